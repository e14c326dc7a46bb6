"""Any opset -> opset 20, computing what ONNX Runtime makes of the file as it is.

ONNX's own converter brings a graph from older opsets up; what it gets wrong or does not know has a rule
here. Opsets above 20 add element types to operators, a few operators, and GroupNormalization's scale per
channel: the new operators are spelled out by rules, the others are taken as they stand in opset 20.

Sources: the ONNX changelog (each operator's versions); for Resize and Upsample before opset 11, whose
text leaves the rounding open, ONNX's backtests of opset 10 and ONNX Runtime (``upsamplebase.h``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import UnsupportedModel
from repedge.graph.attrs import attr
from repedge.graph.serde import first_line, from_proto, with_small_proto
from repedge.graph.values import add_initializer, const, shape_of

OPSET = 20
DEFAULT_DOMAINS = ("", "ai.onnx")


def opset_of(model: ir.Model) -> int:
    """Version of the default domain that the graph is written in."""
    return next((v for d, v in model.opset_imports.items() if d in DEFAULT_DOMAINS), 1)


def convert(model: ir.Model, path: Any) -> ir.Model:
    """The same graph in opset 20.

    Raises:
        UnsupportedModel: It has operators, or attributes of them, that opset 20 can't say.
    """
    import onnx.checker
    import onnx.defs
    import onnx.version_converter

    own = opset_of(model)
    for domain in [d for d in model.opset_imports if d != ""]:
        del model.opset_imports[domain]
    model.opset_imports[""] = own
    if own == OPSET:
        return model
    try:
        if own > onnx.defs.onnx_opset_version():
            raise ValueError(f"ONNX {onnx.__version__} knows {onnx.defs.onnx_opset_version()} of them")
        if own > OPSET:
            model.opset_imports[""] = OPSET
            with_small_proto(model, onnx.checker.check_model)
            return model
        proto = with_small_proto(model, lambda p: onnx.version_converter.convert_version(p, OPSET))
    except Exception as error:
        raise UnsupportedModel(
            f"{path} is opset {own} and can't be converted to opset {OPSET} ({first_line(error)}); "
            f"export it with opset {OPSET}"
        ) from error
    converted = _with_weights_of(model, proto)
    if own < 11:
        for node in tuple(converted.graph):
            if node.op_type == "Resize":
                _make_asymmetric(node)
    return converted


def _with_weights_of(model: ir.Model, proto: Any) -> ir.Model:
    """The graph of ``proto``, with the weights that `with_small_proto` left out put back."""
    tensors = {name: v.const_value for name, v in model.graph.initializers.items()}
    count = len(model.graph.inputs)
    result = from_proto(proto)
    for value in list(result.graph.inputs)[count:]:
        tensor = tensors.get(str(value.name))
        if value.name not in result.graph.initializers and tensor is not None:
            value.const_value = tensor
            result.graph.register_initializer(value)
    while len(result.graph.inputs) > count:
        result.graph.inputs.pop()  # onnx_ir's `del inputs[count:]` would leave them marked as inputs
    return result


# --- Resize and Upsample before opset 11 ---------------------------------------------------------


def _make_asymmetric(node: ir.Node) -> None:
    """A converted Resize computes what opset 7 to 10 did: sample ``x / scale``, rounded down.

    An axis that shrinks is rounded up instead; where another one grows, that takes a Resize of its own.
    Scales that are computed are taken to enlarge, as they do in every Upsample.
    """
    node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "asymmetric"
    )
    if attr(node, "mode", "nearest") != "nearest":
        return
    scales = const(node.inputs[2]) if len(node.inputs) > 2 else None
    shrinks = scales is not None and bool((scales < 1).any())
    node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "ceil" if shrinks else "floor")
    if scales is None or not shrinks or not (scales > 1).any():
        return
    write = Writer(node)
    x = node.inputs[0]
    rows = np.maximum(scales, 1).astype(np.float32)
    options = {**node.attributes, "nearest_mode": ir.AttrString("nearest_mode", "floor")}
    larger = write("Resize", x, None, write.const(rows), **{k: a.value for k, a in options.items()})
    node.replace_input_with(0, larger)
    node.replace_input_with(2, write.const(np.minimum(scales, 1).astype(np.float32)))


# --- operators that are spelled out, in the file's own opset ---------------------------------------


class Writer:
    """Adds nodes and constants ahead of a node."""

    def __init__(self, node: ir.Node) -> None:
        assert isinstance(node.graph, ir.Graph), "rules work on the nodes of a graph"
        self.node, self.graph = node, node.graph
        self._count = 0

    def __call__(self, op: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> Any:
        """A node's output, or a list of them."""
        given = [None if v is None else v for v in inputs]
        results = [ir.Value(name=self._name(op)) for _ in range(outputs)]
        node = ir.node(op, given, attributes, outputs=results, name=results[0].name)
        node.metadata_props.update(self.node.metadata_props)
        self.graph.insert_before(self.node, node)
        return results[0] if outputs == 1 else results

    def const(self, array: Any, dtype: Any = None) -> ir.Value:
        """An initializer."""
        return add_initializer(self.graph, self._name("const"), np.asarray(array, dtype))

    def ints(self, *numbers: int) -> ir.Value:
        """An int64 vector."""
        return self.const(numbers, np.int64)

    def _name(self, word: str) -> str:
        self._count += 1
        return f"{self.node.outputs[0].name}/{word}_{self._count}"


Rule = Callable[[Writer, ir.Node, int], "ir.Value | None"]
"""(writer, node, opset) -> what takes the node's place, or None where the converter is right."""


def _hardmax(write: Writer, node: ir.Node, opset: int) -> ir.Value | None:
    """Before opset 13 all axes from ``axis`` on are one."""
    if opset >= 13:
        return None
    x = node.inputs[0]
    flat = write("Flatten", x, axis=attr(node, "axis", 1))
    return write("Reshape", write("Hardmax", flat, axis=1), write("Shape", x))


def _batch_norm(write: Writer, node: ir.Node, opset: int) -> ir.Value | None:
    """``spatial = 0``, up to opset 8: statistics per element of the map, not per channel."""
    if attr(node, "spatial", 1) != 0:
        return None
    x, scale, shift, mean, var = node.inputs
    eps = write.const(attr(node, "epsilon", 1e-5), np.float32)
    gain = write("Div", scale, write("Sqrt", write("Add", var, eps)))
    return write("Add", write("Mul", write("Sub", x, mean), gain), shift)


def _group_norm(write: Writer, node: ir.Node, opset: int) -> ir.Value | None:
    """One instance per group; opset 21 moved scale and bias from groups to channels."""
    x, scale, shift = node.inputs
    groups, eps = attr(node, "num_groups"), attr(node, "epsilon", 1e-5)
    rows = write("Reshape", x, write.ints(0, groups, -1))
    shape = write("Shape", x)
    if opset < 21:
        return write("Reshape", write("InstanceNormalization", rows, scale, shift, epsilon=eps), shape)
    ones, zeros = write.const(np.ones(groups, np.float32)), write.const(np.zeros(groups, np.float32))
    plain = write("InstanceNormalization", rows, ones, zeros, epsilon=eps)
    channels = write("Reshape", plain, write.ints(0, shape_of(scale)[0], -1))
    column = write.ints(-1, 1)
    scaled = write("Mul", channels, write("Reshape", scale, column))
    return write("Reshape", write("Add", scaled, write("Reshape", shift, column)), shape)


def _dequantized(write: Writer, node: ir.Node, opset: int) -> ir.Value | None:
    """Weights of opset 21 and later: in blocks, or of 4 bits, which opset 20 does not have."""
    x, scale, *zero = (const(v) for v in node.inputs)
    if opset <= OPSET or x is None or scale is None:
        return None
    offset = np.zeros_like(scale) if not zero or zero[0] is None else zero[0]
    axis, block = attr(node, "axis", 1), attr(node, "block_size", 0)
    if block:
        scale, offset = (np.repeat(a, block, axis).take(range(x.shape[axis]), axis) for a in (scale, offset))
    elif scale.ndim == 1:
        shape = [-1 if a == axis % x.ndim else 1 for a in range(x.ndim)]
        scale, offset = scale.reshape(shape), offset.reshape(shape)
    return write.const((x.astype(np.float32) - offset.astype(np.float32)) * scale.astype(np.float32))


def _rms_norm(write: Writer, node: ir.Node, opset: int) -> ir.Value | None:
    x, scale = node.inputs
    axis = attr(node, "axis", -1)
    axes = write.ints(*range(axis, 0)) if axis < 0 else write.ints(*range(axis, len(shape_of(x))))
    eps = write.const(attr(node, "epsilon", 1e-5), np.float32)
    power = write("ReduceMean", write("Mul", x, x), axes, keepdims=1)
    return write("Mul", write("Div", x, write("Sqrt", write("Add", power, eps))), scale)


def _swish(write: Writer, node: ir.Node, opset: int) -> ir.Value | None:
    x = node.inputs[0]
    alpha = attr(node, "alpha", 1.0)
    return write(
        "Mul", x, write("Sigmoid", x if alpha == 1 else write("Mul", x, write.const(alpha, np.float32)))
    )


def _attention(write: Writer, node: ir.Node, opset: int) -> ir.Value | None:
    """softmax(scale Q K^T + mask) V per head; without a cache, a soft cap or a second output."""
    if any(node.inputs[4:]) or any(v.uses() for v in node.outputs[1:]) or attr(node, "softcap", 0.0):
        return None
    q, k, v = (_heads(write, node, i) for i in range(3))
    (_, heads, rows, width), (_, shared, columns, _) = _head_shape(node, 0), _head_shape(node, 1)
    k, v = (_repeated(write, t, shared, heads // shared) for t in (k, v))
    scale = write.const(attr(node, "scale", width**-0.5), np.float32)
    scores = write("MatMul", write("Mul", q, scale), write("Transpose", k, perm=[0, 1, 3, 2]))
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None:
        least = np.float32(np.finfo(np.float32).min)
        if mask.dtype == ir.DataType.BOOL:
            mask = write("Where", mask, write.const(0, np.float32), write.const(least))
        scores = write("Add", scores, mask)
    if attr(node, "is_causal", 0):
        ahead = np.triu(np.full((rows, columns), np.finfo(np.float32).min), 1)
        scores = write("Add", scores, write.const(ahead, np.float32))
    y = write("MatMul", write("Softmax", scores, axis=-1), v)
    if len(shape_of(node.inputs[0])) == 4:
        return y
    return write("Reshape", write("Transpose", y, perm=[0, 2, 1, 3]), write.ints(0, 0, -1))


def _head_shape(node: ir.Node, index: int) -> tuple[int, ...]:
    """Query, key or value as [batch, heads, length, width]."""
    shape = shape_of(node.inputs[index])
    if len(shape) == 4:
        return shape
    heads = attr(node, "kv_num_heads" if index else "q_num_heads")
    return shape[0], heads, shape[1], shape[2] // heads


def _heads(write: Writer, node: ir.Node, index: int) -> ir.Value:
    value, (_, heads, _, width) = node.inputs[index], _head_shape(node, index)
    if len(shape_of(value)) == 4:
        return value  # type: ignore[return-value]
    return write("Transpose", write("Reshape", value, write.ints(0, 0, heads, width)), perm=[0, 2, 1, 3])


def _repeated(write: Writer, value: ir.Value, heads: int, times: int) -> ir.Value:
    """Each head ``times`` in a row: queries that share keys and values."""
    if times == 1:
        return value
    parts = [value] if heads == 1 else write("Split", value, outputs=heads, axis=1, num_outputs=heads)
    return write("Concat", *(part for part in parts for _ in range(times)), axis=1)


RULES: dict[str, Rule] = {
    "Hardmax": _hardmax,
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "DequantizeLinear": _dequantized,
    "RMSNormalization": _rms_norm,
    "Swish": _swish,
    "Attention": _attention,
}

NEED_SHAPES = frozenset({"Attention", "RMSNormalization"})
"""Their rules read shapes, which the file may not state."""


def needs_shapes(model: ir.Model) -> bool:
    """Whether `spell_out` needs the shape of every value."""
    return any(n.op_type in NEED_SHAPES and n.domain in DEFAULT_DOMAINS for n in model.graph)


def spell_out(model: ir.Model, only: Collection[str] = RULES.keys()) -> None:
    """Replace the nodes that have a rule (of the operators ``only``); in place, in the file's own opset."""
    opset = opset_of(model)
    for node in tuple(model.graph):
        if node.op_type not in RULES or node.op_type not in only or node.domain not in DEFAULT_DOMAINS:
            continue
        try:
            value = RULES[node.op_type](Writer(node), node, opset)
        except (ValueError, TypeError, ZeroDivisionError):
            continue  # not what the operator takes: the checker says it better
        if value is not None:
            _take_over(node, value)


def _take_over(node: ir.Node, value: ir.Value) -> None:
    out: ir.Value = node.outputs[0]
    name, shape, type_ = out.name, out.shape, out.type
    out.replace_all_uses_with(value, replace_graph_outputs=True)
    assert node.graph is not None, "found in the graph"
    node.graph.remove(node, safe=True)
    out.name = None
    value.name, value.shape, value.type = name, value.shape or shape, value.type or type_
