"""Padding: numbers that are not negative, and part of the convolution or pool that it is for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr, conv_attrs, pool_attrs
from repedge.graph.values import const, shape_of
from repedge.passes.base import bypass, floats, input_at, insert, ints, nodes_of, rewrite, scalar

LOWEST = float(np.finfo(np.float32).min)


def explicit_pads(model: ir.Model) -> int:
    """auto_pad, ceil_mode (and a ConvTranspose's output_shape) -> pads.

    Source: ONNX Conv-11, ConvTranspose-11, AveragePool-19.
    """
    count = 0
    for node in nodes_of(model, "AveragePool", "MaxPool"):
        count += _end_pads(node)
    for node in nodes_of(model, "Conv", "AveragePool", "MaxPool", "ConvTranspose"):
        automatic = attr(node, "auto_pad", "NOTSET")
        if len(shape_of(node.outputs[0])) != 4:
            continue
        if not {"auto_pad", "output_shape"} & node.attributes.keys():
            continue
        if automatic == "NOTSET" and "output_shape" not in node.attributes:
            pads = attr(node, "pads", (0, 0, 0, 0))
        elif node.op_type == "ConvTranspose":
            pads = _transposed_pads(node, automatic)
        else:
            pads = (conv_attrs(node) if node.op_type == "Conv" else pool_attrs(node)).pads
        node.attributes.pop("auto_pad", None)
        node.attributes.pop("output_shape", None)
        node.attributes["pads"] = ir.AttrInt64s("pads", list(pads))
        count += 1
    return count


def _end_pads(node: ir.Node) -> bool:
    """ceil_mode -> as much padding at the end as the last window reaches over.

    Where the pool counts its padding, it still does not count what that window adds (ONNX
    AveragePool-19): a Pad ahead of it takes the counted part.
    """
    if not attr(node, "ceil_mode", 0) or len(node.outputs) != 1:
        return False
    x, kernel = node.inputs[0], attr(node, "kernel_shape")
    ones = (1,) * len(kernel)
    sizes, outs = shape_of(x)[2:], shape_of(node.outputs[0])[2:]
    strides, dilations = attr(node, "strides", ones), attr(node, "dilations", ones)
    pads = attr(node, "pads", (0,) * 2 * len(kernel)) if "auto_pad" not in node.attributes else None
    node.attributes.pop("ceil_mode")
    if pads is None or attr(node, "auto_pad", "NOTSET") != "NOTSET":
        return True  # the automatic padding has no part of a window left
    begin, end = pads[: len(kernel)], pads[len(kernel) :]
    reached = tuple(
        max(e, (out - 1) * s + (k - 1) * d + 1 - size - b)
        for size, out, k, s, d, b, e in zip(sizes, outs, kernel, strides, dilations, begin, end, strict=True)
    )
    if node.op_type == "AveragePool" and reached != end:
        if attr(node, "count_include_pad", 0) and any(pads):
            padded = (*shape_of(x)[:2], *(n + b + e for n, b, e in zip(sizes, begin, end, strict=True)))
            amounts = ints(node, "pads", [0, 0, *begin, 0, 0, *end])
            inputs = [x, amounts, floats(node, "zero", 0.0)]
            node.replace_input_with(0, insert(node, "Pad", inputs, {"mode": "constant"}, shape=padded))
            begin = (0,) * len(begin)
            reached = tuple(r - e for r, e in zip(reached, end, strict=True))
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)
    node.attributes["pads"] = ir.AttrInt64s("pads", [*begin, *reached])
    return True


def unify_pads(model: ir.Model) -> int:
    """Pad of any spelling -> cells that go are a Slice, cells that come are a Pad of all axes.

    Negative amounts crop, ``axes`` may be negative or absent, and mode "wrap" is a Concat of the two ends.
    """
    count = 0
    for node in nodes_of(model, "Pad"):
        widths = _widths(node)
        if widths is None:
            continue
        if (widths < 0).any():
            _crop(node, widths)
        elif attr(node, "mode", "constant") == "wrap":
            _wrap(node, widths)
        elif input_at(node, 3) is not None:
            node.replace_input_with(1, ints(node, "pads", widths.reshape(-1).tolist()))
            node.resize_inputs(3 if node.inputs[2] is not None else 2)
        else:
            continue
        count += 1
    return count


def _widths(node: ir.Node) -> np.ndarray | None:
    """Cells before and after each axis, int64 [2, rank], or None if they are computed."""
    rank = len(shape_of(node.inputs[0]))
    amounts, axes = const(input_at(node, 1)), input_at(node, 3)
    chosen = np.arange(rank) if axes is None else const(axes)
    if amounts is None or chosen is None:
        return None
    full = np.zeros((2, rank), np.int64)
    full[:, chosen % rank] = amounts.reshape(2, -1)
    return full


def _crop(node: ir.Node, widths: np.ndarray) -> None:
    x = node.inputs[0]
    sizes = np.asarray(shape_of(x), np.int64)
    first, last = np.maximum(-widths[0], 0), sizes - np.maximum(-widths[1], 0)
    cut = np.flatnonzero((widths < 0).any(0))  # a batch axis that stays is not mentioned: it may become free
    bounds = (first[cut], last[cut], cut, np.ones_like(cut))
    names = ("starts", "ends", "axes", "steps")
    inputs = [x, *(ints(node, name, b.tolist()) for name, b in zip(names, bounds, strict=True))]
    rest = np.maximum(widths, 0)
    if not rest.any():
        rewrite(node.outputs[0], "Slice", inputs)
        return
    node.replace_input_with(0, insert(node, "Slice", inputs, shape=(last - first).tolist()))
    node.replace_input_with(1, ints(node, "pads", rest.reshape(-1).tolist()))
    node.resize_inputs(3 if input_at(node, 2) is not None else 2)


def _wrap(node: ir.Node, widths: np.ndarray) -> None:
    """Axis by axis: the last cells, all cells, the first cells."""
    value = node.inputs[0]
    assert value is not None, "Pad always has an input"
    for axis, (before, after) in enumerate(widths.T.tolist()):
        shape = list(shape_of(value))
        size = shape[axis]
        ends = [(size - before, size)] * bool(before) + [(0, size)] + [(0, after)] * bool(after)
        parts = []
        for start, end in ends:
            bounds = {"starts": start, "ends": end, "axes": axis, "steps": 1}
            inputs = [value, *(ints(node, name, [number]) for name, number in bounds.items())]
            shape[axis] = end - start
            parts.append(value if end - start == size else insert(node, "Slice", inputs, shape=shape))
        shape[axis] = size + before + after
        if len(parts) > 1:
            value = insert(node, "Concat", parts, {"axis": axis}, shape=shape)
    bypass(node, value)


def _transposed_pads(node: ir.Node, automatic: str) -> tuple[int, ...]:
    kernel = shape_of(node.inputs[1])[2:]
    strides, dilations = attr(node, "strides", (1, 1)), attr(node, "dilations", (1, 1))
    extra = attr(node, "output_padding", (0, 0))
    begin, end = [], []
    sizes = zip(shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:], strict=True)
    for (size, out), k, s, d, e in zip(sizes, kernel, strides, dilations, extra, strict=True):
        total = max(s * (size - 1) + e + (k - 1) * d + 1 - out, 0)
        small, large = total // 2, total - total // 2
        # The specification gives the odd cell to the end only for SAME_UPPER.
        begin.append(small if automatic == "SAME_UPPER" else large)
        end.append(large if automatic == "SAME_UPPER" else small)
    return (*begin, *end)


def fold_pads(model: ir.Model) -> int:
    """Conv(Pad(x, 0)) -> Conv(x) with wider pads; likewise AveragePool, and MaxPool of -inf.

    Only where every reader of the Pad can take it, so that the Pad goes.
    """
    count = 0
    for pad in nodes_of(model, "Pad"):
        widths = _spatial_widths(pad)
        out = pad.outputs[0]
        uses = list(out.uses())
        if widths is None or not uses or out.is_graph_output():
            continue
        fill = scalar(pad.inputs[2]) if input_at(pad, 2) is not None else 0.0
        if not all(use.idx == 0 and _absorbs(use.node, widths, fill) for use in uses):
            continue
        for use in uses:
            _widen(use.node, widths)
            use.node.replace_input_with(0, pad.inputs[0])
        count += 1
    return count


def _spatial_widths(pad: ir.Node) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of a Pad with constant mode that pads rows and columns only, else None."""
    rank = len(shape_of(pad.inputs[0]))
    amounts = const(input_at(pad, 1))
    if amounts is None or rank != 4 or attr(pad, "mode", "constant") != "constant":
        return None
    full = np.zeros((2, rank), np.int64)
    if input_at(pad, 3) is None:
        full[:] = amounts.reshape(2, rank)
    else:
        axes = const(pad.inputs[3])
        if axes is None:
            return None
        full[:, axes % rank] = amounts.reshape(2, -1)
    if full[:, :2].any() or (full < 0).any():
        return None
    top, left, bottom, right = (int(v) for v in full[:, 2:].reshape(-1))
    return top, left, bottom, right


def _absorbs(node: ir.Node, widths: tuple[int, int, int, int], fill: float | None) -> bool:
    if node.op_type == "Conv":
        return fill == 0.0 and "auto_pad" not in node.attributes
    if (
        node.op_type not in ("AveragePool", "MaxPool")
        or "auto_pad" in node.attributes
        or len(node.outputs) != 1
    ):
        return False
    pool = pool_attrs(node)
    total = [a + b for a, b in zip(pool.pads, widths, strict=True)]
    if pool.ceil_mode or any(p >= k for p, k in zip(total, (*pool.kernel, *pool.kernel), strict=True)):
        return False  # the last window of ceil_mode, and one wholly in the padding, would mean another thing
    if node.op_type == "MaxPool":
        return fill is not None and fill <= LOWEST
    return fill == 0.0 and (pool.count_include_pad or not any(pool.pads))


def _widen(node: ir.Node, widths: tuple[int, int, int, int]) -> None:
    old = attr(node, "pads", (0, 0, 0, 0))
    node.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(old, widths, strict=True)])
    if node.op_type == "AveragePool":
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
