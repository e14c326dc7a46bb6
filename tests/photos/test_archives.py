"""Calibration from .zip and .npz, which are not trusted, and from the command line."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from photo_files import PRE, folder, photos, pixels

import repedge
from repedge import cli
from repedge.bundle.folder import Bundle
from repedge.errors import UserError
from repedge.photos.choice import load


def zipped(path: Path, source: Path, prefix: str = "", **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for file in sorted(source.rglob("*.*")):
            archive.write(file, prefix + file.relative_to(source).as_posix())
    return path


def test_zip_and_npz_hold_the_images_of_the_folder(tmp_path: Path) -> None:
    arrays = photos(20)
    path = folder(tmp_path / "p", arrays)
    want = load(path, PRE, count=12, seed=3)
    packed = load(zipped(tmp_path / "p.zip", path), PRE, count=12, seed=3)
    assert np.array_equal(pixels(packed), pixels(want))
    assert packed.record.files == want.record.files
    assert (packed.record.kind, packed.record.source) == ("zip", "p.zip")
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", images=arrays, labels=np.arange(20))
        table = load(tmp_path / "a.npz", PRE, count=12, seed=3)
        assert np.array_equal(pixels(table), pixels(want))
        assert table.record.found == "photos: images uint8 [20, 10, 14, 3] (not read: labels int64 [20])"
    assert list(table.record.files) == [f"images[{n[:3].lstrip('0') or 0}]" for n in want.record.files]
    np.savez(tmp_path / "single.npz", *arrays)
    assert np.array_equal(
        np.sort(pixels(load(tmp_path / "single.npz", PRE)), 0), np.sort(pixels(load(path, PRE)), 0)
    )
    inputs = np.concatenate(list(want.batches(False)))
    np.savez(tmp_path / "inputs.npz", x=inputs[:6], y=inputs[6:])
    again = load(tmp_path / "inputs.npz", PRE)
    assert again.record.found.startswith("network inputs: x float32 [6, 3, 8, 12], y float32")
    np.testing.assert_allclose(np.sort(pixels(again), 0), np.sort(pixels(want), 0), atol=1e-3)


def test_a_zip_is_never_unpacked_and_its_junk_is_left_out(tmp_path: Path) -> None:
    source = folder(tmp_path / "p", photos(9))
    (source / "notes.txt").write_text("not a photo")
    path = zipped(tmp_path / "evil.zip", source, prefix="../../escaped/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/._000.png", b"resource fork")
        archive.writestr("link.png", b"/etc/passwd")  # what a symbolic link holds
    before = sorted(tmp_path.rglob("*"))
    record = load(path, PRE).record
    assert len(record.files) == 9
    assert list(record.skipped) == ["link.png"]
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "escaped").exists()


def test_zip_bombs_passwords_and_damage(tmp_path: Path) -> None:
    source = folder(tmp_path / "p", photos(9))
    bomb = zipped(tmp_path / "bomb.zip", source)
    with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.bmp", bytes(4 * 2**20))
    with pytest.raises(UserError, match=r"'zeros.bmp' in .* inflate \d+ times, like a zip bomb"):
        load(bomb, PRE)
    with pytest.raises(UserError, match="compressed in a way that is not read"):
        load(zipped(tmp_path / "lzma.zip", source, compression=zipfile.ZIP_LZMA), PRE)
    good = zipped(tmp_path / "good.zip", source).read_bytes()
    at = good.index(b"PK\x01\x02")  # the flags of the first entry of the table of contents
    (tmp_path / "locked.zip").write_bytes(good[: at + 8] + b"\x01" + good[at + 9 :])
    with pytest.raises(UserError, match="is encrypted"):
        load(tmp_path / "locked.zip", PRE)
    (tmp_path / "cut.zip").write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="can't be read as an archive"):
        load(tmp_path / "cut.zip", PRE)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(UserError, match="can't be read as an archive"):
        load(tmp_path / "text.zip", PRE)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.txt").write_text("x")
    with pytest.raises(UserError, match="holds no images"):
        load(zipped(tmp_path / "none.zip", tmp_path / "t"), PRE)


def test_a_member_damaged_inside_is_skipped(tmp_path: Path) -> None:
    data = bytearray(zipped(tmp_path / "z.zip", folder(tmp_path / "p", photos(9))).read_bytes())
    at = data.index(b"IDAT") + 30
    data[at] ^= 0xFF
    (tmp_path / "z.zip").write_bytes(bytes(data))
    record = load(tmp_path / "z.zip", PRE).record
    assert len(record.files) == 8
    assert "Bad CRC-32" in record.skipped["000.png"]


class Bomb:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_pickles_in_npz_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", images=np.array([Bomb(tmp_path / "boom")] * 9, dtype=object))
    assert pickle.dumps(Bomb(tmp_path / "x"))
    with pytest.raises(UserError, match="Python objects, that is a pickle, which is never loaded"):
        load(tmp_path / "bad.npz", PRE)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((9, 8, 12, 3))}, r"float64 \[9, 8, 12, 3\]; wanted are photos uint8 \[N, H, W, 3\]"),
        ({"x": np.asfortranarray(photos(9))}, "Fortran order"),
        ({"x": photos(9), "y": np.zeros((9, 3, 8, 12), np.float32)}, "together; give one kind"),
        ({"labels": np.arange(9)}, r"only labels int64 \[9\]"),
        ({"x": photos(9), "y": np.zeros((4, 4, 4, 4, 4))}, "'y' .* wanted are photos"),
    ],
)
def test_npz_of_something_else(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "x.npz", PRE)


def test_an_npz_whose_header_lies(tmp_path: Path) -> None:
    """A header that asks for terabytes is refused before anything is allocated."""
    np.save(tmp_path / "x.npy", photos(9))
    data = (tmp_path / "x.npy").read_bytes()
    for shape in (b"(9999999999, 10, 14, 3)", b"(-9, -10, 14, 3)"):
        old = b"(9, 10, 14, 3), }"
        lie = data.replace(old + b" " * (len(shape) - len(old) + 3), shape + b", }")
        assert lie != data
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("x.npy", lie)
        with pytest.raises(UserError, match="is damaged: .* bytes, where its header asks|can't be read"):
            load(tmp_path / "x.npz", PRE)


# --- compile -------------------------------------------------------------------------------------


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--json"])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), json.loads(captured.out), captured.err


@pytest.mark.slow
def test_dry_run_says_what_would_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path / "p", photos(20))
    out = tmp_path / "out"
    builds = ["-t", "tflite", "-t", "gpu", "-p", "w8a8", "-p", "fp32"]
    arguments = ["compile", *builds, "--dry-run", "-o", str(out)]
    code, answer, _ = call(capsys, *arguments, "--calib", str(path), "--calib-seed", "5", "--recipe", "fast")
    assert code == 0
    assert not out.exists()
    assert answer["bundles"] == []
    plan = answer["plan"]
    assert [(b["target"], b["precision"]) for b in plan["builds"]] == [
        ("tflite", "w8a8"), ("tflite", "fp32"), ("gpu", "w8a8"), ("gpu", "fp32"),
    ]  # fmt: skip
    assert [b["scheme"] and b["scheme"]["name"] for b in plan["builds"]] == [
        "tflite-w8a8", None, "tensorrt-w8a8", None,
    ]  # fmt: skip
    assert plan["builds"][0]["path"] == str(out / "repvit_demo-tflite-w8a8")
    assert {"observe", "equalize"} <= {s["step"] for s in plan["recipe"]["steps"]}
    assert plan["calibration"] == {
        "kind": "folder", "source": "p", "found": "20 image files", "available": 20, "count": 20, "seed": 5,
    }  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--calib", str(path)])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for text in (
        "repvit_demo-gpu-w8a8",
        "activations int8 symmetric",
        "20 of 20 images",
        "1. observe",
        "nothing",
    ):
        assert text in shown
    budget = ["--max-drop", "0.5", "--keep-float", "features.0.0,features.1.*", "--eval-data", str(path)]
    plan = call(capsys, *arguments, "--calib", str(path), *budget)[1]["plan"]
    assert plan["budget"] == {"measure": "max_drop", "limit": 0.5, "data": str(path), "count": 2000}
    assert plan["keep_float"] == ["features.0.0", "features.1.*"]
    (out / "repvit_demo-tflite-fp32").mkdir(parents=True)
    code, answer, _ = call(capsys, "compile", "-t", "tflite", "-p", "fp32", "--dry-run", "-o", str(out))
    assert (code, "exists" in answer["error"]) == (2, True)
    out = tmp_path / "other"
    code, answer, _ = call(capsys, "compile", "-t", "tflite", "-p", "fp32", "--dry-run", "-o", str(out))
    assert (code, answer["plan"]["recipe"], answer["plan"]["calibration"]) == (0, None, None)


@pytest.mark.slow
def test_dry_run_finds_all_that_would_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = ["--calib", str(folder(tmp_path / "good", photos(20)))]
    (tmp_path / "bad").mkdir()
    for i in range(20):
        (tmp_path / "bad" / f"{i}.png").write_bytes(b"no photo")
    (tmp_path / "file").write_text("")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    cases: dict[str, list[str]] = {
        "be read": ["--calib", "bad"],
        "no layer is called 'nope'": [*good, "--keep-float", "nope"],
        "has 0 left": [*good, "--max-drop", "1"],  # to judge on: it calibrates on all
        "there is nothing at nowhere": [*good, "--max-drop", "1", "--eval-data", "nowhere"],
        "nowhere; --images takes": [*good, "--images", "nowhere"],
        "2 class names for a network of 10": [*good, "--labels", "names.txt"],
        "is not a folder": [*good, "-o", "file/x"],
        "needs deployment_target iOS17": [*good, "-t", "coreml", "--deployment-target", "iOS16"],
        "no option 'nonsense'": [*good, "-O", "nonsense=1"],
    }
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    for message, arguments in cases.items():
        command = ["compile", "-t", "tflite", "-p", "w8a8", *arguments, "--dry-run"]
        code, answer, _ = call(capsys, *command)
        assert (code, message in answer["error"]) == (2, True), answer["error"]
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_bad_calibration_is_exit_2_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few, good = str(folder(tmp_path / "few", photos(3))), str(folder(tmp_path / "good", photos(20)))
    cases = {
        "there is nothing at nowhere": ["--calib", "nowhere"],
        "has 3 usable images": ["--calib", few],
        "8 images or more": ["--calib", good, "--calib-count", "2"],
        "there is no recipe 'fastest'": ["--calib", good, "--recipe", "fastest"],
        "pass --calib FOLDER": [],
    }
    for dry in ([], ["--dry-run"]):
        for message, arguments in cases.items():
            code, answer, err = call(
                capsys, "compile", "-t", "tflite", "-p", "w8a8", "-o", "out", *arguments, *dry
            )
            assert (code, message in answer["error"]) == (2, True), answer
            assert err.strip().splitlines()[-1].startswith("error: ")
    code, answer, _ = call(capsys, "compile", "-t", "gpu", "-p", "palette4", "--calib", good)
    assert code == 2
    assert "gpu does not offer palette4" in answer["error"]
    assert {p.name for p in tmp_path.iterdir()} - {"out"} == {"few", "good"}
    assert list(Path("out").glob("*")) == []


def network(path: Path, convolution: bool) -> Path:
    """A file with one convolution, or with nothing but a Relu, and an average."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 12])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 1, 1])
    w = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)
    first = (
        helper.make_node("Conv", ["x", "w"], ["r"]) if convolution else helper.make_node("Relu", ["x"], ["r"])
    )
    graph = helper.make_graph(
        [first, helper.make_node("GlobalAveragePool", ["r"], ["y"])], "g", [x], [y],
        [numpy_helper.from_array(w, "w")] if convolution else [],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    onnx.save(model, path)
    return path


def test_a_model_without_anything_to_quantize(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no layer that tflite-w8a8 could quantize"):
        repedge.compile(
            network(tmp_path / "plain.onnx", False),
            targets=["tflite"], precisions=["w8a8"], calib=photos(9), out=tmp_path / "o",
        )  # fmt: skip
    assert list((tmp_path / "o").glob("*")) == []


@pytest.mark.slow
def test_the_manifest_says_what_it_was_calibrated_on(tmp_path: Path) -> None:
    """A one-shot iterable serves two targets; noise is warned of in the report and in the bundle."""
    arrays = photos(20, 64, 64)
    options: dict[str, Any] = {
        "precisions": ["w8a8"], "recipe": "minmax", "min_sqnr": -99, "reference": False, "resize": "squash",
    }  # fmt: skip
    net = network(tmp_path / "small.onnx", True)
    with pytest.warns(UserWarning, match="calibrated on 9 images only"):
        report = repedge.compile(
            net, targets=["tflite", "gpu"], calib=(a for a in arrays), calib_count=9,
            out=tmp_path / "a", **options,
        )  # fmt: skip
    assert len(report.bundles) == 2
    for built in report.bundles:
        manifest = Bundle.open(built.path).manifest
        assert manifest.quantization is not None
        assert manifest.quantization["calibration"]["sha256"].keys() == {str(i) for i in range(9)}
        assert "calibrated on 9 images only; 16 to 200 are better" in manifest.notes
    with pytest.warns(UserWarning, match="random noise"):
        report = repedge.compile(
            net, targets=["gpu"], calib="random", calib_count=8, out=tmp_path / "b", **options
        )
    with pytest.warns(UserWarning, match="images were not used: name w8a8"):
        repedge.compile(
            net, targets=["gpu"], calib=arrays, out=tmp_path / "c", **{**options, "precisions": ["fp32"]}
        )
    note = "calibrated on random noise: accuracy will be poor; give photos of the kind to expect"
    assert report.as_json()["warnings"] == [note]
    assert note in Bundle.open(report.bundles[0].path).manifest.notes
