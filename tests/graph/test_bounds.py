"""Files of a few bytes that ask for gigabytes: refused before anything of that size is made."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import repedge
from repedge.errors import UserError
from repedge.graph import bounds
from repedge.graph.load import load_onnx
from repedge.graph.run import Session
from repedge.passes import constants, prepare

node = helper.make_node
BIG = 100_000


def save(path: Path, nodes: list, weights: dict[str, np.ndarray]) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abcd"))
    tensors = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    graph = helper.make_graph([*nodes, node("Add", ["x", "small"], ["y"])], "g", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def doublings(count: int) -> list:
    chain = [node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=0) for i in range(count)]
    return [*chain, node("Identity", [f"v{count}"], ["big"])]


ONE = np.ones((1, 1), np.float32)
BOMBS: dict[str, tuple[list, dict[str, np.ndarray]]] = {
    "Expand": ([node("Expand", ["v", "s"], ["big"])], {"v": ONE, "s": np.array([BIG, BIG])}),
    "Tile": ([node("Tile", ["v", "s"], ["big"])], {"v": ONE, "s": np.array([BIG, BIG])}),
    "Pad": ([node("Pad", ["v", "s"], ["big"])], {"v": ONE, "s": np.array([0, 0, BIG, BIG])}),
    "ConstantOfShape": ([node("ConstantOfShape", ["s"], ["big"])], {"s": np.array([BIG, BIG])}),
    "Range": (
        [node("Range", ["a", "b", "c"], ["big"])],
        {"a": np.array(0, np.float32), "b": np.array(1e10, np.float32), "c": np.array(1, np.float32)},
    ),
    "Resize": (
        [node("Resize", ["v", "", "s"], ["big"], mode="nearest")],
        {"v": ONE[None, None], "s": np.array([1, 1, BIG, BIG], np.float32)},
    ),
    "MatMul": (
        [node("MatMul", ["a", "b"], ["big"])],
        {"a": np.ones((BIG, 1), np.float32), "b": np.ones((1, BIG), np.float32)},
    ),
    "Gather": (
        [node("Gather", ["v", "i"], ["w"], axis=0), node("Gather", ["w", "i"], ["big"], axis=1)],
        {"v": ONE, "i": np.zeros(BIG, np.int64)},
    ),
    "Range that is added to": (  # shape inference would compute its numbers, one message each
        [
            node("ReduceMax", ["x"], ["m"], keepdims=0),
            node("Range", ["a", "b", "c"], ["r"]),
            node("Add", ["m", "r"], ["big"]),
        ],
        {"a": np.array(0.0, np.float32), "b": np.array(1e10, np.float32), "c": np.array(1.0, np.float32)},
    ),
    "Concat": (doublings(34), {"v0": np.ones(4, np.float32)}),
    "computed": (
        [node("ReduceProd", ["q"], ["s"]), node("Expand", ["v", "s"], ["big"])],
        {"v": ONE[0], "q": np.array([BIG, BIG])},
    ),
    "input": (
        [
            node("ReduceMax", ["x"], ["m"], keepdims=0),
            node("Expand", ["m", "s"], ["big"]),
        ],
        {"s": np.array([BIG, BIG])},
    ),
    "NonZero": (
        [
            node("Expand", ["v", "s"], ["e"]),
            node("NonZero", ["e"], ["n"]),
            node("Cast", ["n"], ["big"], to=TensorProto.FLOAT),
        ],
        {"v": ONE, "s": np.array([8000, 8000])},
    ),
    "values": (
        [
            node("ReduceMax", ["x"], ["m"], keepdims=0),
            node("Mul", ["m", "k"], ["n"]),
            node("Cast", ["n"], ["i"], to=TensorProto.INT64),
            node("Unsqueeze", ["i", "zero"], ["s"]),
            node("ConstantOfShape", ["s"], ["big"]),
        ],
        {"k": np.array(1e10, np.float32), "zero": np.array([0])},
    ),
}
SMALL = [node("ReduceMax", ["big"], ["small"], keepdims=0)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOMBS)
def test_bombs(tmp_path: Path, kind: str) -> None:
    nodes, weights = BOMBS[kind]
    file = save(tmp_path / "bomb.onnx", [*nodes, *SMALL], weights)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="GB are needed|not known before it runs") as caught:
        repedge.compile(file, targets="tflite", out=tmp_path / "out")
    assert "does not run" not in str(caught.value)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 600 * 2**20


def test_shapes_that_hang_on_values_are_refused_by_every_verb(tmp_path: Path) -> None:
    nodes, weights = BOMBS["NonZero"]
    file = save(tmp_path / "net.onnx", [*nodes, *SMALL], weights)
    with pytest.raises(UserError, match="NonZero node .* not known before it runs"):
        repedge.inspect(file)


@pytest.mark.slow
def test_nodes_that_nothing_reads_are_not_run(tmp_path: Path) -> None:
    """They are no part of the network, but of the file that it is held against."""
    nodes, weights = BOMBS["Expand"]
    dead = [node("Relu", ["x"], ["r"]), node("ReduceMax", ["r"], ["small"], keepdims=0), *nodes]
    file = save(tmp_path / "net.onnx", dead, weights)
    report = repedge.compile(file, targets="tflite", precisions=["fp32"], out=tmp_path / "out")
    assert report.passed


def test_what_is_there_at_one_time_counts_not_what_ever_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain of 20 tensors needs two at a time; a sum of them at the end needs all."""
    chain = [node("Relu", [f"t{i}" if i else "x"], [f"t{i + 1}"]) for i in range(20)]
    ends = {"chain": [], "sum": [node("Sum", [f"t{i + 1}" for i in range(20)], ["s"])]}
    monkeypatch.setattr(bounds, "MOST", 6 * 192)
    for kind, end in ends.items():
        last = "s" if end else "t20"
        nodes = [*chain, *end, node("ReduceMax", [last], ["small"], keepdims=0)]
        file = save(tmp_path / f"{kind}.onnx", nodes, {})
        if kind == "chain":
            load_onnx(file)
        else:
            with pytest.raises(UserError, match="GB are needed"):
                load_onnx(file)


def test_folding_many_times_is_bounded_and_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over the limit stays computed, and the network means the same."""
    monkeypatch.setattr(constants, "MAX_FOLDED", 4000)
    monkeypatch.setattr(constants, "MAX_GROWTH", 1 << 12)
    nodes = [node("Expand", ["v", "s"], ["e"])]
    nodes += [node("Mul", ["e", f"k{i}"], [f"m{i}"]) for i in range(8)]
    nodes += [node("Sum", [f"m{i}" for i in range(8)], ["big"]), *SMALL]
    weights = {"v": ONE * 3, "s": np.array([30, 30])}
    weights |= {f"k{i}": np.array(i, np.float32) for i in range(8)}
    model = load_onnx(save(tmp_path / "net.onnx", nodes, weights))
    prepare(model)
    total = sum(v.const_value.size for v in model.graph.initializers.values())
    assert total < 4000 + constants.TIMES * 1000
    x = np.ones((1, 3, 8, 8), np.float32)
    (y,) = Session(model).run(x)
    assert np.array_equal(y, x + 3 * sum(range(8)))
