"""Files and folders made to hurt: tensors and images that unpack to more than memory, crafted manifests."""

from __future__ import annotations

import errno
import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundles import change_manifest, make
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import repedge
from repedge.bundle.folder import Bundle
from repedge.config import Preprocess
from repedge.disk import atomic
from repedge.errors import UserError
from repedge.models.files import load_checkpoint
from repedge.photos import images
from repedge.photos.photos import open_photos
from repedge.tasks.labels import class_indices


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(10**6, 10**6), "unpacks to 4000.0 GB"),
        (torch.zeros(10**6, 1).expand(10**6, 10**5), "unpacks to 400.0 GB"),
        (torch.zeros(3, device="meta"), "a shape without values"),
    ],
)
def test_tensors_larger_than_their_file(tmp_path: Path, tensor: torch.Tensor, message: str) -> None:
    torch.save({"conv.weight": tensor}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"conv.weight .*{message}"):
        load_checkpoint(tmp_path / "w.pth")


def onnx_file(file: Path, kernel: np.ndarray, **attributes: Any) -> Path:
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)],
        "g",
        [tensor("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [tensor("y", TensorProto.FLOAT, ["a", "b", "c", "d"])],
        [numpy_helper.from_array(kernel, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), file)
    return file


@pytest.mark.parametrize(
    ("shape", "attributes"), [((4, 5, 3, 3), {}), ((4, 3, 11, 11), {}), ((4, 3, 3, 3), {"group": 2})]
)
def test_a_graph_that_does_not_run_is_the_users(tmp_path: Path, shape: tuple, attributes: dict) -> None:
    file = onnx_file(tmp_path / "net.onnx", np.ones(shape, np.float32), **attributes)
    with pytest.raises(UserError, match="net does not run as it is: ") as caught:
        repedge.compile(file, targets="tflite", out=tmp_path / "out")
    assert tempfile.gettempdir() not in str(caught.value).replace(str(tmp_path), "")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def png(width: int, height: int) -> bytes:
    """A PNG file that says it has this size, and holds nearly nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(60000, 60000), (0, 5)])
def test_pictures_that_lie_about_their_size(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(png(*size))
    with pytest.raises(UserError, match="bomb.png can't be read as an image"):
        images.decode(tmp_path / "bomb.png")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 60000), (60000, 2)])
def test_a_strip_is_not_blown_up(tmp_path: Path, size: tuple[int, int]) -> None:
    """Its short side resized to 256 would make an image of gigabytes."""
    with pytest.raises(UserError, match="can't be resized to a short side of 256; crop it"):
        images.pixels(Image.new("RGB", size), Preprocess())
    Image.new("RGB", size).save(tmp_path / "strip.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.png")
    found = repedge.evaluate("repvgg_a0", tmp_path, random_weights=True, limit=2)
    assert (found.n, found.skipped) == (1, 1)


@pytest.mark.parametrize("folder", ["²", "9" * 30])
def test_class_folders_with_odd_numbers_are_names(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / folder / "a.png")
    assert class_indices(open_photos(tmp_path))(f"{folder}/a.png", None) == 0


@pytest.mark.parametrize("content", ['{"a.png": -1}', '{"a.png": 100000000000000000000}', "[" * 100_000])
def test_label_files_made_to_hurt(tmp_path: Path, content: str) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(UserError, match="labels.json must be a JSON object"):
        class_indices(open_photos(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"artifact": "golden"}, "another part of the bundle"),
        ({"artifact": "manifest.json"}, "another part of the bundle"),
        ({"artifact": "../../etc/passwd"}, "has no artifact"),
        ({"options": {"min_sqnr": "high"}}, "not a number of decibels"),
        ({"options": {"min_sqnr": 1e999}}, "not a number of decibels|damaged"),
        ({"preprocess": {"mean": [0.5]}}, "one number per channel of RGB"),
        ({"preprocess": {"size": [1000000, 1000000]}}, "damaged .preprocess.size"),
        ({"schema_version": 0}, "damaged .schema_version"),
        ({"files": [{"path": "..\\x", "size": 1, "sha256": "0"}]}, "outside the bundle"),
    ],
)
def test_crafted_manifests(tmp_path: Path, change: dict, message: str) -> None:
    """Whoever means harm computes the digest, too."""
    make(tmp_path / "net")
    change_manifest(tmp_path / "net", change)
    with pytest.raises(UserError, match=message):
        Bundle.open(tmp_path / "net")


def test_a_manifest_nested_without_end(tmp_path: Path) -> None:
    make(tmp_path / "net")
    (tmp_path / "net" / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged"):
        Bundle.open(tmp_path / "net")


@pytest.mark.slow
def test_no_place_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no place for temporary files .*TMPDIR"):
        repedge.compile(targets="tflite", out=tmp_path / "out")


def test_a_full_place_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    message = "disk is full: no room for temporary files in .*TMPDIR"
    with pytest.raises(UserError, match=message), atomic.scratch() as folder:
        assert folder.parent == tmp_path
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_writers_in_other_languages_on_a_full_disk() -> None:
    message = r"can't write net.xml: iostream error; is the disk full\?"
    with pytest.raises(UserError, match=message), atomic.foreign_writer("net.xml"):
        raise RuntimeError("iostream error [/tmp/x]\nmore")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"input_size": 2.5}, "input size 2.5 is not"),
        ({"input_size": (16, None)}, "input size .* is not"),
        ({"input_sise": 16}, "no option 'input_sise'; did you mean input_size"),
        ({"count": "4"}, "whole number of images"),
        ({"count": 2.5}, "whole number of images"),
        ({"resize": [1]}, "neither pixels nor"),
        ({"interpolation": 4}, "none of nearest"),
        ({"labels": 5}, "labels are a file or a list"),
        ({"out": "a\0b"}, "no name that a file can have"),
        ({"model": torch.nn.ReLU}, "ReLU is a class"),
        ({"model": 5}, "not a int"),
    ],
)
def test_wrong_types_in_python_are_one_sentence(tmp_path: Path, wrong: dict, message: str) -> None:
    given = {
        "model": torch.nn.ReLU(),
        "targets": "tflite",
        "out": tmp_path / "out",
        "input_size": 16,
        **wrong,
    }
    with pytest.raises(UserError, match=message) as caught:
        repedge.compile(**given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.tflite"))


def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    size = (np.int64(9), np.int32(12))
    assert repedge.compile(network, targets="tflite", input_size=size, out=tmp_path, count=np.int64(2)).passed
