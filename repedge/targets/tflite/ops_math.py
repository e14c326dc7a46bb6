"""Elementwise operators, activations, matrix products and reductions."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.targets.tflite.emit import ACTIVATIONS, Emitter, bounds
from repedge.targets.tflite.layout import Layout, natural, stored
from repedge.targets.tflite.writer import schema

_CLAMP_OPS = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
assert _CLAMP_OPS.keys() == ACTIVATIONS.keys()


def unary(op: str, **defaults: tuple[str, object]) -> Callable[[Emitter, ir.Node], None]:
    """One operator on each element; ``defaults`` maps an option to the ONNX attribute and its default."""

    def lower(c: Emitter, node: ir.Node) -> None:
        layout = c.layout(node.inputs[0])  # type: ignore[arg-type]
        options = {option: attr(node, name, default) for option, (name, default) in defaults.items()}
        c.op(op, [c.read(node.inputs[0])], [c.write(node.outputs[0], layout)], **options)

    return lower


def gelu(c: Emitter, node: ir.Node) -> None:
    """Gelu -> GELU, exact or by tanh."""
    layout = c.layout(node.inputs[0])  # type: ignore[arg-type]
    tanh = attr(node, "approximate", "none") == "tanh"
    c.op("GELU", [c.read(node.inputs[0])], [c.write(node.outputs[0], layout)], approximate=tanh)


def clip(c: Emitter, node: ir.Node) -> None:
    """Relu and Clip that could not be fused -> RELU, RELU6, RELU_N1_TO_1, or MAXIMUM and MINIMUM."""
    low, high = bounds(node)
    layout = c.layout(node.inputs[0])  # type: ignore[arg-type]
    x, out = c.read(node.inputs[0]), node.outputs[0]
    real = c.writer.tensors[x].dtype == "float32"
    if (low, high) in _CLAMP_OPS and real:
        c.op(_CLAMP_OPS[low, high], [x], [c.write(out, layout)])
        return
    if high < np.inf and low > -np.inf:
        x = c.step("MAXIMUM", [x, c.number(f"{node.name}/min", low, x)], f"{out.name}/low")
        low = -np.inf
    limit = float(np.finfo(np.float32).max) if real else np.iinfo(np.int32).max
    op, bound = ("MAXIMUM", low) if low > -np.inf else ("MINIMUM", min(high, limit))
    c.op(op, [x, c.number(f"{node.name}/bound", bound, x)], [c.write(out, layout)])


def refuse_clip(node: ir.Node) -> str | None:
    """Why a Clip can't be lowered."""
    bounds(node)
    return None


def hard_sigmoid(c: Emitter, node: ir.Node) -> None:
    """clip(a*x + b, 0, 1) -> MUL(RELU6(6a*x + 6b), 1/6): a Relu6 is free in the ADD."""
    slope, shift = 6 * attr(node, "alpha", 0.2), 6 * attr(node, "beta", 0.5)
    layout = c.layout(node.inputs[0])  # type: ignore[arg-type]
    x, out = c.read(node.inputs[0]), node.outputs[0]
    shape = c.writer.tensors[x].shape
    if not np.isclose(slope, 1.0, rtol=1e-6, atol=0):  # 1/6 as ONNX stores it, in float32
        scaled = c.scratch(f"{out.name}/scaled", shape)
        c.op("MUL", [x, c.floats(f"{node.name}/slope", np.array(slope))], [scaled])
        x = scaled
    clamped = c.scratch(f"{out.name}/clamped", shape)
    relu6 = ACTIVATIONS[0.0, 6.0]
    c.op(
        "ADD", [x, c.floats(f"{node.name}/shift", np.array(shift))], [clamped], fusedActivationFunction=relu6
    )
    c.op("MUL", [clamped, c.floats(f"{node.name}/sixth", np.array(1 / 6))], [c.write(out, layout)])


def binary(op: str, fuse: bool = True) -> Callable[[Emitter, ir.Node], None]:
    """Two operands with broadcasting (Max and Min: one after the other if there are more)."""

    def lower(c: Emitter, node: ir.Node) -> None:
        rank = len(shape_of(node.outputs[0]))
        layout = natural(rank)
        for value in node.inputs:
            if const(value) is None and len(shape_of(value)) == rank:
                layout = c.layout(value)  # type: ignore[arg-type]
                break
        first, *others, last = (operand(c, value, rank, layout) for value in node.inputs)
        for i, other in enumerate(others):
            shape = stored(shape_of(node.outputs[0]), layout)
            first = c.step(op, [first, other], f"{node.outputs[0].name}/{i}", shape)
        if fuse:
            out, activation = c.tail(node)
            c.op(op, [first, last], [c.write(out, layout)], fusedActivationFunction=activation)
        else:
            c.op(op, [first, last], [c.write(node.outputs[0], layout)])

    return lower


def refuse_extremum(node: ir.Node) -> str | None:
    """Why a Max or Min can't be lowered."""
    if len(node.inputs) < 2:
        return "it has one operand; simplify the model first"
    shape = shape_of(node.outputs[0])
    if len(node.inputs) > 2 and all(shape_of(v) != shape for v in node.inputs[:2]):
        return "its first operands broadcast against each other"
    return None


POWERS = {2.0: "SQUARE", 0.5: "SQRT", -0.5: "RSQRT"}


def power(c: Emitter, node: ir.Node) -> None:
    """Pow -> SQUARE, SQRT or RSQRT, which XNNPACK takes, or POW."""
    exponent = const(node.inputs[1])
    number = float(exponent.reshape(())) if exponent is not None and exponent.size == 1 else np.nan
    if number in POWERS:
        unary(POWERS[number])(c, node)
    else:
        binary("POW", fuse=False)(c, node)


def operand(c: Emitter, value: ir.Value | None, rank: int, layout: Layout) -> int:
    """A value as an operand of a given rank: axes of length 1 in front, then the layout."""
    shape = shape_of(value)
    if len(shape) == rank:
        return c.read(value, layout)
    assert value is not None
    expanded = (1,) * (rank - len(shape)) + shape
    array = const(value)
    if array is not None:
        return c.stated(value, array.reshape(expanded).transpose(layout))
    raw, plain = c.read(value, tuple(range(len(shape)))), tuple(range(rank))
    widened = c.scratch(f"{value.name}/rank{rank}", expanded, c.quant(raw))
    c.reshape(raw, widened)
    return c.relayout(widened, expanded, plain, layout, f"{value.name}/broadcast")


def batch_normalization(c: Emitter, node: ir.Node) -> None:
    """A BatchNormalization that could not be folded -> MUL and ADD."""
    scale, shift, mean, variance = (np.asarray(const(v), np.float64) for v in node.inputs[1:5])
    factor = scale / np.sqrt(variance + attr(node, "epsilon", 1e-5))
    layout = c.layout(node.inputs[0])  # type: ignore[arg-type]
    x, shape = c.read(node.inputs[0]), shape_of(node.inputs[0])
    column = [1] * len(shape)
    column[1] = shape[1]

    def constant(name: str, array: np.ndarray) -> int:
        return c.floats(f"{node.name}/{name}", array.reshape(column).transpose(layout))

    scaled = c.scratch(f"{node.outputs[0].name}/scaled", c.writer.tensors[x].shape)
    c.op("MUL", [x, constant("scale", factor)], [scaled])
    out, activation = c.tail(node)
    moved = constant("shift", shift - mean * factor)
    c.op("ADD", [scaled, moved], [c.write(out, layout)], fusedActivationFunction=activation)


def refuse_computed_parameters(node: ir.Node) -> str | None:
    """Why an operator whose further inputs are parameters can't be lowered."""
    if any(const(v) is None for v in node.inputs[1:] if v is not None):
        return "its parameters are computed, not constant"
    if attr(node, "training_mode", 0):
        return "it is in training mode; export the model in eval mode"
    return None


def softmax(op: str, **options: Any) -> Callable[[Emitter, ir.Node], None]:
    """Softmax and LogSoftmax over the last stored axis."""

    def lower(c: Emitter, node: ir.Node) -> None:
        axis = attr(node, "axis", -1) % len(shape_of(node.inputs[0]))
        layout = c.layout(node.inputs[0])  # type: ignore[arg-type]
        if layout[-1] != axis:
            layout = (*(a for a in layout if a != axis), axis)
        c.op(op, [c.read(node.inputs[0], layout)], [c.write(node.outputs[0], layout)], **options)

    return lower


# Matrix products


def refuse_gemm(node: ir.Node) -> str | None:
    """Why a Gemm can't be lowered."""
    if attr(node, "transA", 0):
        return "transA is set"
    if const(node.inputs[1]) is None:
        return "its weight is computed, not constant"
    third = node.inputs[2] if len(node.inputs) > 2 else None
    if third is not None:
        array = const(third)
        if array is None:
            return "its bias is computed, not constant"
        if prod(array.shape[:-1]) != 1:
            return f"its bias has shape {list(array.shape)}; one value per output is supported"
    return None


def gemm(c: Emitter, node: ir.Node) -> None:
    """Gemm -> FULLY_CONNECTED; a Flatten in front is undone by reordering the weight's columns.

    One that rounds its input at run time becomes a CONV_2D of one cell: FULLY_CONNECTED has such a kernel
    for weights with several scales from release 2.17 on, CONV_2D from 2.4 on.
    """
    data, weight = node.inputs[:2]
    assert data is not None
    rows, columns = shape_of(weight)
    transposed = bool(attr(node, "transB", 0))
    outs, ins = (rows, columns) if transposed else (columns, rows)
    alpha, order = attr(node, "alpha", 1.0), None
    if data in c.flat:
        x, layout, before = c.flat[data]
        order = np.arange(ins).reshape(before[1:]).transpose([a - 1 for a in layout if a]).reshape(-1)
        if (order == np.arange(ins)).all():
            order = None
    else:
        x = c.read(data, (0, 1))

    def load() -> np.ndarray:
        array = const(weight)
        assert array is not None
        array = array if transposed else array.T
        array = array if order is None else array[:, order]
        return array if alpha == 1.0 else array * np.float32(alpha)

    cell = c.rounds(node)
    shape = (outs, 1, 1, ins) if cell else (outs, ins)
    name = weight.name or f"{node.name}/weight"  # type: ignore[union-attr]
    w = c.weight(node, name, shape, lambda: load().reshape(shape))
    bias = np.zeros(outs, np.float32)
    if len(node.inputs) > 2 and node.inputs[2] is not None and not c.integer(node):
        given = const(node.inputs[2])
        assert given is not None
        bias = np.float32(attr(node, "beta", 1.0)) * np.broadcast_to(given.reshape(-1), outs)
    out, activation = c.tail(node)
    bias_tensor, result = c.bias(node, outs, bias), c.write(out)
    if not cell:
        c.op("FULLY_CONNECTED", [x, w, bias_tensor], [result], fusedActivationFunction=activation)
        return
    count = shape_of(out)[0]
    if c.writer.tensors[x].shape != (count, 1, 1, ins):
        wide = c.scratch(f"{node.name}/in", (count, 1, 1, ins))
        c.reshape(x, wide)
        x = wide
    narrow = c.scratch(f"{node.name}/out", (count, 1, 1, outs))
    window = {"padding": schema.Padding.VALID, "strideH": 1, "strideW": 1}
    window |= {"dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": activation}
    c.op("CONV_2D", [x, w, bias_tensor], [narrow], **window)
    c.reshape(narrow, result)


def refuse_matmul(node: ir.Node) -> str | None:
    """Why a MatMul can't be lowered."""
    ranks = [len(shape_of(v)) for v in node.inputs[:2]]
    if min(ranks) < 2 or max(ranks) > 5:
        return f"its operands have ranks {ranks[0]} and {ranks[1]}; ranks 2 to 5 are supported"
    if const(node.inputs[0]) is not None and const(node.inputs[1]) is not None:
        return "both operands are constant; simplify the model first"
    return None


def matmul(c: Emitter, node: ir.Node) -> None:
    """MatMul -> FULLY_CONNECTED by a constant matrix, else BATCH_MATMUL."""
    data, weight = node.inputs[:2]
    assert data is not None
    assert weight is not None
    rank, out = len(shape_of(data)), node.outputs[0]
    if const(weight) is None or len(shape_of(weight)) != 2:
        plain = [c.read(v, tuple(range(len(shape_of(v))))) for v in (data, weight)]
        c.op("BATCH_MATMUL", plain, [c.write(out, tuple(range(len(shape_of(out)))))])
        return
    layout = c.layout(data)
    if layout[-1] != rank - 1:
        layout = tuple(range(rank))
    ins, outs = shape_of(weight)

    def load() -> np.ndarray:
        array = const(weight)
        assert array is not None
        return array.T

    w = c.weight(node, weight.name or f"{node.name}/weight", (outs, ins), load)
    final, activation = c.tail(node)
    operands = [c.read(data, layout), w, c.bias(node, outs, None)]
    version = 5 if rank > 2 else 1
    options = {"fusedActivationFunction": activation, "keepNumDims": rank > 2}
    c.op("FULLY_CONNECTED", operands, [c.write(final, layout)], version, **options)
