"""Bad input: one clear line, exit code 2, nothing written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from repedge import cli
from repedge.models.registry import create


def compile_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> str:
    """Run compile, expect exit 2 and an untouched output folder; return the message."""
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        cli.main(["compile", *arguments, "-t", "tflite", "-o", str(out), "--json"])
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert stop.value.code == 2, answer
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert not out.exists() or list(out.iterdir()) == []
    return answer["error"]


class Bomb:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def weights(tmp_path: Path, name: str = "repvgg_demo") -> Path:
    file = tmp_path / f"{name}.pth"
    torch.save(create(name).state_dict(), file)
    return file


def test_checkpoints_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = weights(tmp_path)
    cases = {"absent.pth": None, "truncated.pth": good.read_bytes()[: good.stat().st_size // 2]}
    cases |= {"empty.pth": b"", "photo.pth": b"\x89PNG\r\n" * 40, "cut.safetensors": b"\x10\0\0\0\0\0\0\0{"}
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        message = compile_fails(capsys, tmp_path, "repvgg_demo", "--weights", str(tmp_path / name))
        assert name in message


def test_pickle_bomb_does_not_go_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "exploded"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(trace)))
    torch.save({"model": Bomb(trace)}, tmp_path / "zipped.pth")
    for name in ("plain.pth", "zipped.pth"):
        compile_fails(capsys, tmp_path, "repvgg_demo", "--weights", str(tmp_path / name))
        assert not trace.exists()


def test_nan_weights_name_the_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = create("repvgg_demo").state_dict()
    state["stage1.0.rbr_1x1.conv.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    message = compile_fails(capsys, tmp_path, "repvgg_demo", "--weights", str(tmp_path / "nan.safetensors"))
    assert "stage1.0.rbr_1x1.conv.weight" in message


@pytest.mark.slow
def test_checkpoint_of_another_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = compile_fails(capsys, tmp_path, "repvgg_a0", "--weights", str(weights(tmp_path, "repvit_m0_6")))
    assert "repvit_m0_6" in message
    assert "missing" in message
    assert "unexpected" in message


@pytest.mark.slow
@pytest.mark.parametrize("size", ["0", "-3", "64x", "0x64", "big", "64x64x3"])
def test_input_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    assert "input size" in compile_fails(capsys, tmp_path, f"--input-size={size}")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("repvgg_a00", "repvgg_a0"),
        ("no_such_module:make", "no_such_module"),
        ("json:nothing", "nothing"),
        ("json:dumps", "json:dumps"),
        ("missing.onnx", "missing.onnx"),
    ],
)
def test_models_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, message: str
) -> None:
    assert message in compile_fails(capsys, tmp_path, model)


def onnx_file(path: Path, nodes: list, weights: dict[str, np.ndarray] | None = None) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"])
    tensors = [onnx.numpy_helper.from_array(a, n) for n, a in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_unsupported_operators_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="first"),
        helper.make_node("Unsqueeze", ["d", "axes"], ["u"], name="between"),
        helper.make_node("Asinh", ["u"], ["y"], name="second"),
    ]
    file = onnx_file(tmp_path / "odd.onnx", nodes, {"axes": np.array([2, 3])})
    message = compile_fails(capsys, tmp_path, str(file))
    for word in ("Det", "first", "Asinh", "second"):
        assert word in message


def test_damaged_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = onnx_file(tmp_path / "net.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    data = file.read_bytes()
    for content in (data[: len(data) // 2], b"", b"not a graph at all" * 9):
        file.write_bytes(content)
        assert "net.onnx" in compile_fails(capsys, tmp_path, str(file))


@pytest.mark.slow
def test_labels_must_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    message = compile_fails(capsys, tmp_path, "--labels", str(tmp_path / "labels.txt"))
    assert "2" in message
    assert "10" in message


@pytest.mark.slow
def test_output_below_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        cli.main(["compile", "-t", "tflite", "-o", str(tmp_path / "file")])
    assert stop.value.code == 2
    assert "choose another --out" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
