"""Mutations of ONNX files: their structure, and bombs that unfold while constants are computed ahead."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fuzz_bytes import mutate_bytes
from onnx import AttributeProto, TensorProto, helper, numpy_helper

SIZES = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 5, 16, 255, 4096, 10**6, 2**31 - 1, 2**40, 2**63 - 1)
NAMES = ("", "x", "y", "w", "c", "no such", "é", "\x1b[2J", "n" * 100_000, "a/b:0", "../../x")


def mutate_onnx(file: Path, out: Path, dice: random.Random) -> None:
    data = file.read_bytes()
    if dice.random() < 0.3:
        out.write_bytes(mutate_bytes(data, dice))
        return
    proto = onnx.load_from_string(data)
    for _ in range(dice.choice((0, 1, 1, 3))):
        _mild(proto, dice)
    for _ in range(dice.choice((0, 0, 1, 1, 2))):
        dice.choice(STRUCTURAL)(proto, dice)
    out.write_bytes(proto.SerializeToString())


def _attribute(proto: Any, dice: random.Random) -> None:
    node = dice.choice(proto.graph.node)
    if not node.attribute:
        name = dice.choice(
            ("axis", "pads", "kernel_shape", "strides", "group", "to", "mode", "perm", "epsilon")
        )
        node.attribute.append(helper.make_attribute(name, dice.choice((1, [1, 2], 0.5, "text", [2**62] * 4))))
        return
    a = dice.choice(node.attribute)
    if a.type == AttributeProto.INTS and a.ints and dice.random() < 0.8:
        a.ints[dice.randrange(len(a.ints))] = dice.choice(SIZES)
        if dice.random() < 0.3:
            a.ints.append(dice.choice(SIZES))
    elif a.type == AttributeProto.INT:
        a.i = dice.choice(SIZES)
    elif a.type == AttributeProto.FLOAT:
        a.f = dice.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    elif a.type == AttributeProto.STRING:
        a.s = dice.choice((b"", b"linear", b"cubic", b"\xff\xfe", b"reflect"))
    else:
        a.name = dice.choice(NAMES)


def _edge(proto: Any, dice: random.Random) -> None:
    node = dice.choice(proto.graph.node)
    known = [v for n in proto.graph.node for v in (*n.input, *n.output)] + list(NAMES)
    side = node.input if dice.random() < 0.7 else node.output
    if side and dice.random() < 0.8:
        side[dice.randrange(len(side))] = dice.choice(known)
    else:
        side.append(dice.choice(known))


def _node(proto: Any, dice: random.Random) -> None:
    nodes = proto.graph.node
    at = dice.randrange(len(nodes))
    kind = dice.randrange(5)
    if kind == 0 and len(nodes) > 1:
        del nodes[at]
    elif kind == 1:
        nodes.add().CopyFrom(nodes[at])
    elif kind == 2:
        nodes[at].op_type = dice.choice(OPERATORS)
    elif kind == 3:
        nodes[at].domain = dice.choice(("ai.onnx.ml", "com.microsoft", "ai.onnx", "é", "n" * 5000))
    else:
        nodes[at].name = dice.choice(NAMES)


ALIKE = (
    ("Relu", "Sigmoid", "Tanh", "Exp", "Neg", "HardSwish", "Erf", "Sqrt", "Identity", "Floor", "Softplus"),
    ("Add", "Mul", "Sub", "Div", "Pow", "Max", "Min", "PRelu"),
    ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceL2"),
    ("Flatten", "Squeeze", "Transpose", "Softmax", "LogSoftmax"),
)


def _mild(proto: Any, dice: random.Random) -> None:
    """What may well be a network: another operator of the same kind, or a number one more or less."""
    nodes = [n for n in proto.graph.node if any(n.op_type in kind for kind in ALIKE)]
    numbers = [a for n in proto.graph.node for a in n.attribute if a.ints or a.type == AttributeProto.INT]
    if nodes and dice.random() < 0.6:
        chosen = dice.choice(nodes)
        chosen.op_type = dice.choice(next(kind for kind in ALIKE if chosen.op_type in kind))
    elif numbers:
        a = dice.choice(numbers)
        if a.ints:
            a.ints[dice.randrange(len(a.ints))] += dice.choice((-1, 1, 2))
        else:
            a.i += dice.choice((-1, 1))


OPERATORS = sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain == ""})


def _tensor(proto: Any, dice: random.Random) -> None:
    if not proto.graph.initializer:
        return
    t = dice.choice(proto.graph.initializer)
    kind = dice.randrange(8)
    if kind == 0 and t.dims:
        t.dims[dice.randrange(len(t.dims))] = dice.choice(SIZES)
    elif kind == 1:
        t.dims.append(dice.choice(SIZES))
    elif kind == 2:
        t.data_type = dice.choice((*range(25), 99, 2**31 - 1))
    elif kind == 3:
        t.raw_data = t.raw_data[: dice.randrange(len(t.raw_data) + 1)]
    elif kind == 4:
        t.name = dice.choice(NAMES)
    elif kind == 5:
        _values(t, dice)
    elif kind == 6:
        t.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", dice.choice(("/etc/passwd", "../x", "x.data", ""))),
            ("length", "99"),
        ):
            t.external_data.add(key=key, value=value)
    else:
        proto.graph.initializer.add().CopyFrom(t)


def _values(t: Any, dice: random.Random) -> None:
    try:
        array = numpy_helper.to_array(t).copy()
    except Exception:
        return
    if array.size == 0:
        return
    odd = dice.choice(SIZES) if array.dtype.kind == "i" else dice.choice((np.nan, np.inf, 1e38, 0.0, -1.0))
    array.reshape(-1)[dice.randrange(array.size)] = odd
    t.CopyFrom(numpy_helper.from_array(array, t.name))


def _signature(proto: Any, dice: random.Random) -> None:
    infos = [*proto.graph.input, *proto.graph.output]
    info = dice.choice(infos)
    kind = dice.randrange(6)
    shape = info.type.tensor_type.shape
    if kind == 0 and shape.dim:
        shape.dim[dice.randrange(len(shape.dim))].dim_value = dice.choice(SIZES)
    elif kind == 1 and shape.dim:
        shape.dim[dice.randrange(len(shape.dim))].dim_param = dice.choice(NAMES)
    elif kind == 2:
        info.type.tensor_type.elem_type = dice.choice(range(25))
    elif kind == 3:
        shape.dim.add().dim_value = dice.choice(SIZES)
    elif kind == 4:
        info.name = dice.choice(NAMES)
    else:
        (proto.graph.input if dice.random() < 0.5 else proto.graph.output).add().CopyFrom(info)


def _head(proto: Any, dice: random.Random) -> None:
    kind = dice.randrange(4)
    if kind == 0:
        proto.opset_import[0].version = dice.choice((-1, 0, 1, 6, 7, 9, 10, 11, 13, 18, 21, 23, 99, 2**40))
    elif kind == 1:
        proto.ir_version = dice.choice((0, 1, 3, 99, 2**40))
    elif kind == 2:
        proto.graph.name = dice.choice(NAMES)
        proto.metadata_props.add(key=dice.choice(NAMES), value="n" * 1000)
    else:
        proto.opset_import.add(domain=dice.choice(("", "ai.onnx", "x")), version=dice.choice((1, 20, 99)))


def _bomb(proto: Any, dice: random.Random) -> None:
    """A constant of gigabytes out of a few bytes, added to what the network's last node gives."""
    graph = proto.graph
    prefix = f"bomb{len(graph.node)}_"
    nodes, weights = dice.choice(BOMBS)(dice.choice((10**3, 10**5, 10**7)))
    names = {n: prefix + n for node in nodes for n in (*node.input, *node.output) if n not in ("", "x")}
    for name, array in weights.items():
        graph.initializer.append(numpy_helper.from_array(array, names[name]))
    last, out = graph.node[-1], graph.output[0].name
    if out not in last.output:
        return
    last.output[list(last.output).index(out)] = prefix + "before"
    for node in nodes:
        for side in (node.input, node.output):
            side[:] = [names.get(n, n) for n in side]
        node.name = prefix + node.op_type
    end = nodes[-1].output[0]
    small = helper.make_node("ReduceMax", [end], [prefix + "small"], name=prefix + "max", keepdims=0)
    add = helper.make_node("Add", [prefix + "before", prefix + "small"], [out], name=prefix + "add")
    graph.node.extend([*nodes, *((small, add) if dice.random() < 0.7 else ())])
    if prefix + "small" not in [v for n in graph.node for v in n.output]:
        graph.node.append(helper.make_node("Add", [prefix + "before", end], [out], name=prefix + "add"))


def _many(op: str, count: int) -> list[Any]:
    """A chain of nodes each of which doubles what comes in."""
    nodes = [helper.make_node(op, ["v", "v"], ["d0"], name="d0", axis=0)]
    return nodes + [
        helper.make_node(op, [f"d{i}", f"d{i}"], [f"d{i + 1}"], name=f"d{i + 1}", axis=0)
        for i in range(count)
    ]


node = helper.make_node
f32 = np.float32
Bomb = Callable[[int], tuple[list[Any], dict[str, np.ndarray]]]
BOMBS: tuple[Bomb, ...] = (
    lambda n: ([node("Expand", ["v", "s"], ["e"])], {"v": np.ones(1, f32), "s": np.array([n, n])}),
    lambda n: ([node("Tile", ["v", "s"], ["e"])], {"v": np.ones((1, 1), f32), "s": np.array([n, n])}),
    lambda n: (
        [node("Range", ["a", "b", "c"], ["e"])],
        {"a": np.array(0, f32), "b": np.array(n * 1000, f32), "c": np.array(1, f32)},
    ),
    lambda n: ([node("ConstantOfShape", ["s"], ["e"])], {"s": np.array([n, n])}),
    lambda n: (
        [node("Pad", ["v", "s"], ["e"])],
        {"v": np.ones((1, 1), f32), "s": np.array([0, 0, n, n])},
    ),
    lambda n: (
        [node("Resize", ["v", "", "s"], ["e"], mode="nearest")],
        {"v": np.ones((1, 1, 2, 2), f32), "s": np.array([1, 1, n, n], f32)},
    ),
    lambda n: (
        [node("MatMul", ["a", "b"], ["e"])],
        {"a": np.ones((min(n, 10**6), 1), f32), "b": np.ones((1, min(n, 10**6)), f32)},
    ),
    lambda n: (
        [node("Gather", ["v", "i"], ["e0"], axis=0), node("Gather", ["e0", "j"], ["e"], axis=1)],
        {
            "v": np.ones((1, 1), f32),
            "i": np.zeros(min(n, 10**5), np.int64),
            "j": np.zeros(min(n, 10**5), np.int64),
        },
    ),
    lambda n: (
        [node("OneHot", ["i", "d", "v"], ["e"])],
        {"i": np.zeros(min(n, 10**5), np.int64), "d": np.array(n), "v": np.array([0, 1], f32)},
    ),
    lambda n: (_many("Concat", 12 + len(str(n)) * 4), {"v": np.ones(64, f32)}),
    lambda n: (
        [node("Mul", ["q", "q"], ["s"]), node("ConstantOfShape", ["s"], ["e"])],
        {"q": np.array([n, 1])},
    ),
    lambda n: (
        [node("ReduceProd", ["q"], ["s"], keepdims=1), node("ConstantOfShape", ["s"], ["e"])],
        {"q": np.array([n, n])},
    ),
    lambda n: (
        [
            node("Expand", ["v", "s"], ["e0"]),
            node("NonZero", ["e0"], ["e1"]),
            node("Cast", ["e1"], ["e"], to=1),
        ],
        {"v": np.ones(1, f32), "s": np.array([min(n, 10**4), min(n, 10**4)])},
    ),
    lambda n: (
        [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Expand", ["m", "s"], ["e"])],
        {"s": np.array([n, n])},
    ),
)  # fmt: skip

STRUCTURAL = (_attribute, _attribute, _edge, _node, _node, _tensor, _tensor, _signature, _head, _bomb, _bomb)
