"""Convolutions and pools: sliding windows over NHWC tensors.

TensorFlow Lite knows two paddings. SAME pads as little as an output of ``ceil(size / stride)`` needs,
the odd cell at the end; VALID pads nothing. PyTorch's stride-2 convolutions pad at the beginning, so
they become PAD + VALID (XNNPACK folds that PAD into the convolution); where SAME means exactly the
same cells it is used. Sources: tensorflow/lite/kernels/padding.h; ONNX operators, opset 20.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import PoolAttrs, Window, attr, conv_attrs, pool_attrs
from repedge.graph.values import const, shape_of
from repedge.targets.tflite.emit import Emitter, bounds
from repedge.targets.tflite.layout import NHWC, stored
from repedge.targets.tflite.model import Load
from repedge.targets.tflite.writer import schema

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
_LOWEST = float(np.finfo(np.float32).min)

Pads = tuple[tuple[int, int], tuple[int, int]]
"""((top, bottom), (left, right)): cells that the windows really reach into."""


def reached_pads(node: ir.Node, w: Window) -> Pads:
    """The pads of a window without trailing cells that no window covers (or with those of ceil_mode)."""
    sizes, outs = shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:]
    result = []
    for i in range(2):
        reach = (outs[i] - 1) * w.strides[i] + (w.kernel[i] - 1) * w.dilations[i] + 1
        result.append((w.pads[i], max(0, reach - sizes[i] - w.pads[i])))
    return result[0], result[1]


def is_same(node: ir.Node, w: Window, pads: Pads) -> bool:
    """Whether TensorFlow Lite's SAME pads exactly these cells."""
    sizes, outs = shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:]
    for size, out, stride, pad in zip(sizes, outs, w.strides, pads, strict=True):
        if out != -(-size // stride) or pad[0] != sum(pad) // 2:
            return False
    return True


def pad_spatial(c: Emitter, tensor: int, pads: Pads, value: float = 0.0) -> int:
    """PAD the two spatial axes of an NHWC tensor."""
    if not any(map(any, pads)):
        return tensor
    source = c.writer.tensors[tensor]
    n, h, w, ch = source.shape
    amounts = c.ints(np.array([[0, 0], *pads, [0, 0]]))
    result = c.scratch(f"{source.name}/padded", (n, h + sum(pads[0]), w + sum(pads[1]), ch), source.quant)
    if value == 0.0:
        c.op("PAD", [tensor, amounts], [result])
    else:
        fill = c.constant(f"{source.name}/pad_value", np.array([value]), tensor)
        c.op("PADV2", [tensor, amounts, fill], [result])
    return result


def _windowed(c: Emitter, node: ir.Node, w: Window) -> tuple[int, int]:
    """The NHWC input, padded unless SAME does it, and the padding word."""
    x, pads = c.read(node.inputs[0], NHWC), reached_pads(node, w)
    if not any(map(any, pads)):
        return x, VALID
    if is_same(node, w, pads):
        return x, SAME
    return pad_spatial(c, x, pads), VALID


def _transposed(value: ir.Value | None, *axes: int) -> Load:
    """Reads a weight in another axis order when it is written."""

    def load() -> np.ndarray:
        array = const(value)
        assert array is not None
        return array.transpose(axes)

    return load


def _bias(c: Emitter, node: ir.Node, channels: int) -> int:
    return c.bias(node, channels, const(node.inputs[2]) if len(node.inputs) > 2 else None)


def refuse_conv(node: ir.Node) -> str | None:
    """Why a Conv or ConvTranspose can't be lowered."""
    conv_attrs(node)
    if const(node.inputs[1]) is None:
        return "its weight is computed, not constant"
    if len(node.inputs) > 2 and node.inputs[2] is not None and const(node.inputs[2]) is None:
        return "its bias is computed, not constant"
    return None


def conv(c: Emitter, node: ir.Node) -> None:
    """Conv -> CONV_2D, or DEPTHWISE_CONV_2D where every channel has filters of its own."""
    a, weight = conv_attrs(node), node.inputs[1]
    out_ch, in_ch, kh, kw = shape_of(weight)
    x, padding = _windowed(c, node, a)
    out, activation = c.tail(node)
    window = {
        "padding": padding,
        "strideH": a.strides[0],
        "strideW": a.strides[1],
        "dilationHFactor": a.dilations[0],
        "dilationWFactor": a.dilations[1],
        "fusedActivationFunction": activation,
    }
    name = weight.name or node.name  # type: ignore[union-attr]
    if a.group > 1 and in_ch == 1:  # [C*m, 1, kh, kw] -> [1, kh, kw, C*m]
        load, shape = _transposed(weight, 1, 2, 3, 0), (1, kh, kw, out_ch)
        w = c.weight(node, f"{name}", shape, load, axis=3, fold=False)  # XNNPACK: no dynamic depthwise
        version = 2 if a.dilations != (1, 1) else 1
        operands = [x, w, _bias(c, node, out_ch)]
        multiplier = out_ch // a.group
        c.op("DEPTHWISE_CONV_2D", operands, [c.write(out)], version, depthMultiplier=multiplier, **window)
    else:  # [O, I/g, kh, kw] -> [O, kh, kw, I/g]
        load, shape = _transposed(weight, 0, 2, 3, 1), (out_ch, kh, kw, in_ch)
        w = c.weight(node, f"{name}", shape, load, fold=a.group == 1)
        version = 6 if a.group > 1 else 1
        c.op("CONV_2D", [x, w, _bias(c, node, out_ch)], [c.write(out)], version, **window)


def conv_transpose(c: Emitter, node: ir.Node) -> None:
    """ConvTranspose -> TRANSPOSE_CONV (+ SLICE); groups and dilation become zeros in the filter."""
    a = conv_attrs(node)
    out = node.outputs[0]
    n, channels, *size = shape_of(out)
    load = _dense_filter(node, a.group, a.dilations)
    kernel = [(k - 1) * d + 1 for k, d in zip(a.kernel, a.dilations, strict=True)]
    padding, full = VALID, []
    for i in range(2):  # VALID scatters onto the uncropped output
        reach = (shape_of(node.inputs[0])[2 + i] - 1) * a.strides[i] + kernel[i]
        full.append(max(reach, a.pads[i] + size[i]))
    if full != size and _crops_like_same(node, a, kernel):
        padding, full = SAME, size
    bias = _bias(c, node, channels)
    filters = (channels, *kernel, shape_of(node.inputs[0])[1])
    w = c.weight(node, f"{node.name}/weight", filters, load, fold=False)
    x, shape = c.read(node.inputs[0], NHWC), (n, *full, channels)
    target = c.write(out) if full == size else c.scratch(f"{out.name}/full", shape, c.quants.get(out))
    options = {"padding": padding, "strideH": a.strides[0], "strideW": a.strides[1]}
    c.op("TRANSPOSE_CONV", [c.ints(shape), w, x, bias], [target], 3, **options)
    if full != size:
        begin, end = c.ints((0, a.pads[0], a.pads[1], 0)), c.ints((n, *size, channels))
        c.op("SLICE", [target, begin, end], [c.write(out)])


def _crops_like_same(node: ir.Node, w: Window, kernel: list[int]) -> bool:
    """Whether SAME, which crops what it would pad in the forward direction, crops these pads."""
    for i in range(2):
        size, out = shape_of(node.inputs[0])[2 + i], shape_of(node.outputs[0])[2 + i]
        total = max(0, (size - 1) * w.strides[i] + kernel[i] - out)
        if size != -(-out // w.strides[i]) or w.pads[i] != total // 2:
            return False
    return True


def _dense_filter(node: ir.Node, group: int, dilations: tuple[int, int]) -> Load:
    """[I, O/g, kh, kw] -> [O, kh', kw', I]: one group, dilation written out."""

    def load() -> np.ndarray:
        weight = const(node.inputs[1])
        assert weight is not None
        i, o, kh, kw = weight.shape
        shape = (o * group, (kh - 1) * dilations[0] + 1, (kw - 1) * dilations[1] + 1, i)
        dense = np.zeros(shape, weight.dtype)
        for g in range(group):
            rows = slice(g * i // group, (g + 1) * i // group)
            block = weight[rows].transpose(1, 2, 3, 0)
            dense[g * o : (g + 1) * o, :: dilations[0], :: dilations[1], rows] = block
        return dense

    return load


def refuse_pool(node: ir.Node) -> str | None:
    """Why a pool can't be lowered."""
    a = pool_attrs(node)
    if a.dilations != (1, 1):
        return "TensorFlow Lite has no dilated pooling"
    if len(node.outputs) > 1 and node.outputs[1] is not None and node.outputs[1].uses():
        return "the indices of the maxima are read"
    sizes, outs = shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:]
    for size, out, stride, first in zip(sizes, outs, a.strides, a.pads, strict=False):
        if (
            out - 1
        ) * stride - first >= size:  # PyTorch and onnxruntime drop it, ONNX shape inference does not
            return "its ceil_mode makes a last window that covers no cell of the input"
    return None


def max_pool(c: Emitter, node: ir.Node) -> None:
    """MaxPool -> MAX_POOL_2D; cells that SAME can't leave out are padded with a value that never wins."""
    a = pool_attrs(node)
    x, pads = c.read(node.inputs[0], NHWC), reached_pads(node, a)
    padding = VALID
    if any(map(any, pads)):
        if is_same(node, a, pads):
            padding = SAME
        else:
            # PAD is delegated, PADV2 is not; after a Relu zero never beats a window's maximum.
            quant = c.quant(x)
            lowest = _LOWEST if quant is None else quant.reals[0]
            x = pad_spatial(c, x, pads, 0.0 if _nonnegative(node.inputs[0]) else lowest)
    _pool(c, "MAX_POOL_2D", node, x, a, padding)


def _nonnegative(value: ir.Value | None, depth: int = 8) -> bool:
    """Whether a value is known to be nowhere below zero."""
    node = value.producer() if value is not None else None
    if node is None or depth == 0:
        return False
    if node.op_type in ("Relu", "Clip"):
        return bounds(node)[0] >= 0
    if node.op_type in ("Sigmoid", "HardSigmoid", "Softmax"):
        return True
    if node.op_type in ("MaxPool", "AveragePool", "Add", "Mul", "Concat"):
        return all(_nonnegative(x, depth - 1) for x in node.inputs)
    return False


def _pool(c: Emitter, op: str, node: ir.Node, x: int, a: Window, padding: int) -> None:
    out, activation = c.tail(node)
    c.op(op, [x], [c.write(out)], **_pool_options(a, padding), fusedActivationFunction=activation)


def _pool_options(a: Window, padding: int) -> dict[str, int]:
    return {
        "padding": padding,
        "strideH": a.strides[0],
        "strideW": a.strides[1],
        "filterHeight": a.kernel[0],
        "filterWidth": a.kernel[1],
    }


def average_pool(c: Emitter, node: ir.Node) -> None:
    """AveragePool -> AVERAGE_POOL_2D; SAME averages over real cells only, VALID over all it is given.

    Where neither divides as ONNX does, zeros are padded, VALID divides by the kernel's size, and a
    MUL corrects the border: exact up to one rounding.
    """
    a, pads = pool_attrs(node), reached_pads(node, pool_attrs(node))
    if not any(map(any, pads)):
        _pool(c, "AVERAGE_POOL_2D", node, c.read(node.inputs[0], NHWC), a, VALID)
        return
    if not a.count_include_pad and is_same(node, a, pads):
        _pool(c, "AVERAGE_POOL_2D", node, c.read(node.inputs[0], NHWC), a, SAME)
        return
    x = pad_spatial(c, c.read(node.inputs[0], NHWC), pads)
    rows, columns = (_counted(node, a, axis) for axis in range(2))
    correction = a.kernel[0] * a.kernel[1] / np.outer(rows, columns)
    if (correction == 1).all():
        _pool(c, "AVERAGE_POOL_2D", node, x, a, VALID)
        return
    out = node.outputs[0]
    mean = c.scratch(f"{out.name}/mean", stored(shape_of(out), NHWC))
    c.op("AVERAGE_POOL_2D", [x], [mean], **_pool_options(a, VALID))
    final, activation = c.tail(node)
    factor = c.floats(f"{out.name}/border", correction[None, :, :, None])
    c.op("MUL", [mean, factor], [c.write(final)], fusedActivationFunction=activation)


def averages_whole_windows(node: ir.Node, a: PoolAttrs) -> bool:
    """Whether every mean is over as many cells as the kernel has, zeros of the padding included."""
    return all((_counted(node, a, axis) == a.kernel[axis]).all() for axis in range(2))


def _counted(node: ir.Node, a: Window, axis: int) -> np.ndarray:
    """Cells along one axis that ONNX counts in each window's mean."""
    size, out = shape_of(node.inputs[0])[2 + axis], shape_of(node.outputs[0])[2 + axis]
    first = np.arange(out) * a.strides[axis] - a.pads[axis]
    last = first + a.kernel[axis]
    if getattr(a, "count_include_pad", False):
        return np.minimum(last, size + a.pads[2 + axis]) - first
    return np.minimum(last, size) - np.maximum(first, 0)


def global_average_pool(c: Emitter, node: ir.Node) -> None:
    """GlobalAveragePool -> MEAN over height and width."""
    c.op("MEAN", [c.read(node.inputs[0], NHWC), c.ints((1, 2))], [c.write(node.outputs[0])], keepDims=True)


def global_max_pool(c: Emitter, node: ir.Node) -> None:
    """GlobalMaxPool -> MAX_POOL_2D with a kernel of the whole map, which XNNPACK takes."""
    kernel = shape_of(node.inputs[0])[2:]
    whole = Window((kernel[0], kernel[1]), (1, 1), (1, 1), (0, 0, 0, 0))
    _pool(c, "MAX_POOL_2D", node, c.read(node.inputs[0], NHWC), whole, VALID)


def refuse_global_pool(node: ir.Node) -> str | None:
    """Why a global pool can't be lowered."""
    rank = len(shape_of(node.inputs[0]))
    return None if rank == 4 else f"its input has rank {rank}; only two spatial axes are supported"


def refuse_pad(node: ir.Node) -> str | None:
    """Why a Pad can't be lowered."""
    if attr(node, "mode", "constant") not in PAD_MODES:
        return f"TensorFlow Lite has no padding mode {attr(node, 'mode')!r}"
    if any(const(x) is None for x in node.inputs[1:] if x is not None):
        return "its pads, value or axes are computed, not constant"
    if (_pad_amounts(node) < 0).any():
        return "negative pads crop; TensorFlow Lite only pads"
    if attr(node, "mode", "constant") == "reflect" and len(shape_of(node.inputs[0])) > 4:
        return "MIRROR_PAD is limited to rank 4"
    return None


PAD_MODES: dict[str, Callable[[Emitter, ir.Node, int, int], tuple[str, list[int], dict[str, int]]]] = {
    "constant": lambda c, n, x, p: _constant_pad(c, n, x, p),
    "reflect": lambda c, n, x, p: ("MIRROR_PAD", [x, p], {"mode": schema.MirrorPadMode.REFLECT}),
}


def _constant_pad(c: Emitter, node: ir.Node, x: int, p: int) -> tuple[str, list[int], dict[str, int]]:
    given = node.inputs[2] if len(node.inputs) > 2 else None
    value = const(given) if given is not None else None
    if value is None or float(value.reshape(-1)[0]) == 0.0:
        return "PAD", [x, p], {}
    return "PADV2", [x, p, c.constant(f"{node.name}/value", value.reshape(1), x)], {}


def _pad_amounts(node: ir.Node) -> np.ndarray:
    """Cells before and after each ONNX axis, [rank, 2]."""
    rank, pads = len(shape_of(node.inputs[0])), const(node.inputs[1])
    assert pads is not None
    given = const(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    axes = np.arange(rank) if given is None else given.astype(np.int64) % rank
    amounts = np.zeros((rank, 2), np.int64)
    amounts[axes] = pads.reshape(2, -1).T
    return amounts


def pad(c: Emitter, node: ir.Node) -> None:
    """Pad -> PAD, PADV2 or MIRROR_PAD."""
    layout = c.layout(node.inputs[0])  # type: ignore[arg-type]
    amounts = c.ints(_pad_amounts(node)[list(layout)])
    mode = PAD_MODES[attr(node, "mode", "constant")]
    op, inputs, options = mode(c, node, c.read(node.inputs[0]), amounts)
    c.op(op, inputs, [c.write(node.outputs[0], layout)], **options)
