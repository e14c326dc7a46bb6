"""Comparisons, logic, choices, conversions, and functions that are several operators here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, only_reader, shape_of
from repedge.targets.tflite.emit import Emitter
from repedge.targets.tflite.layout import Layout, natural
from repedge.targets.tflite.ops_math import operand, unary

Lower = Callable[[Emitter, ir.Node], None]


def joint_layout(c: Emitter, node: ir.Node) -> Layout:
    """The layout of the first computed operand of the output's rank."""
    rank = len(shape_of(node.outputs[0]))
    for value in node.inputs:
        if value is not None and const(value) is None and len(shape_of(value)) == rank:
            return c.layout(value)
    return natural(rank)


def joint(op: str, then: str = "") -> Lower:
    """An operator of several operands with broadcasting, and perhaps one on each element behind it."""

    def lower(c: Emitter, node: ir.Node) -> None:
        out, layout = node.outputs[0], joint_layout(c, node)
        operands = [operand(c, value, len(layout), layout) for value in node.inputs]
        result = c.write(out, layout)
        if then:
            first = c.like(f"{out.name}/{op.lower()}", c.writer.tensors[result].shape, result)
            c.op(op, operands, [first])
            c.op(then, [first], [result])
        else:
            c.op(op, operands, [result])

    return lower


def remainder(c: Emitter, node: ir.Node) -> None:
    """Mod -> FLOOR_MOD, with the divisor's sign; with the dividend's (fmod): sign(x) * (|x| mod |y|)."""
    if not attr(node, "fmod", 0):
        joint("FLOOR_MOD")(c, node)
        return
    out, layout = node.outputs[0], joint_layout(c, node)
    x, y = (operand(c, value, len(layout), layout) for value in node.inputs)
    result = c.write(out, layout)
    shape = c.writer.tensors[result].shape
    sizes = [c.step("ABS", [v], f"{out.name}/size{i}") for i, v in enumerate((x, y))]
    rest = c.step("FLOOR_MOD", sizes, f"{out.name}/rest", shape)
    c.op("MUL", [rest, c.step("SIGN", [x], f"{out.name}/sign")], [result])


def cast(c: Emitter, node: ir.Node) -> None:
    """Cast -> CAST; to bool -> NOT_EQUAL to 0."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    layout, x = c.layout(value), c.read(value)
    result = c.write(out, layout)
    before, after = (c.writer.tensors[t].dtype for t in (x, result))
    if after == "bool" and before != "bool":
        c.op("NOT_EQUAL", [x, c.number(f"{node.name}/zero", 0, x)], [result])
    elif before == after:
        c.reshape(x, result)
    else:
        c.op("CAST", [x], [result])


def square_root(c: Emitter, node: ir.Node) -> None:
    """Sqrt -> SQRT, unless a Reciprocal alone reads it, which then is one RSQRT."""
    reader = only_reader(node.outputs[0])
    if reader is None or reader.op_type != "Reciprocal":
        unary("SQRT")(c, node)


def reciprocal(c: Emitter, node: ir.Node) -> None:
    """Reciprocal -> DIV of 1; of a square root -> RSQRT."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    root = value.producer()
    if root is not None and root.op_type == "Sqrt" and only_reader(value) is node:
        value = root.inputs[0]
        assert value is not None
        layout = c.layout(value)
        c.op("RSQRT", [c.read(value)], [c.write(out, layout)])
        return
    layout, x = c.layout(value), c.read(value)
    c.op("DIV", [c.floats(f"{node.name}/one", 1.0), x], [c.write(out, layout)])


ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
ERF_STEP = 0.3275911
"""Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: erf to 1.5e-7, float32's resolution."""

LEAST = float(np.finfo(np.float32).tiny)


def erf(c: Emitter, node: ir.Node) -> None:
    """sign(x) * (1 - t (a1 + t (a2 + ...)) exp(-x * x)) with t = 1 / (1 + p |x|)."""
    value, out = node.inputs[0], node.outputs[0]
    layout, x, name = c.layout(value), c.read(value), out.name  # type: ignore[arg-type]
    one = c.floats(f"{node.name}/one", 1.0)
    size = c.step("ABS", [x], f"{name}/size")
    t = c.step("MUL", [size, c.floats(f"{node.name}/p", ERF_STEP)], f"{name}/p")
    t = c.step("DIV", [one, c.step("ADD", [t, one], f"{name}/p1")], f"{name}/t", c.writer.tensors[x].shape)
    total = c.step("MUL", [t, c.floats(f"{node.name}/a5", ERF[-1])], f"{name}/a5")
    for i in (4, 3, 2, 1):
        total = c.step("ADD", [total, c.floats(f"{node.name}/a{i}", ERF[i - 1])], f"{name}/a{i}")
        total = c.step("MUL", [total, t], f"{name}/t{i}")
    bell = c.step("NEG", [c.step("SQUARE", [x], f"{name}/square")], f"{name}/negated")
    bell = c.step("EXP", [bell], f"{name}/bell")
    tail = c.step("MUL", [total, bell], f"{name}/tail")
    positive = c.step("SUB", [one, tail], f"{name}/positive", c.writer.tensors[x].shape)
    sign = c.step(
        "DIV",
        [x, c.step("MAXIMUM", [size, c.floats(f"{node.name}/least", LEAST)], f"{name}/some")],
        f"{name}/sign",
    )
    c.op("MUL", [positive, sign], [c.write(out, layout)])
