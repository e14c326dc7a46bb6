"""ONNX operator -> a torch function of its tensors. What has no row here runs in ONNX Runtime.

A row takes the node and gives a function of the node's inputs (None where one is left out), already
torch tensors. Imported lazily: it needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.nn import functional as F

from repedge.calib.simulation import torch_values
from repedge.graph.attrs import Window, attr, conv_attrs, pool_attrs
from repedge.graph.values import const, shape_of

Tensor = torch.Tensor
Function = Callable[..., Any]


def conv(node: ir.Node) -> Function:
    a = conv_attrs(node)
    padding = a.pads[:2] if a.symmetric else (0, 0)

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        x = x if a.symmetric else _pad(x, a.pads, 0.0)
        return F.conv2d(x, w, b, a.strides, padding, a.dilations, a.group)

    return run


def conv_transpose(node: ir.Node) -> Function:
    a = conv_attrs(node)
    if not a.symmetric or attr(node, "output_shape") is not None:
        return in_onnxruntime(node)
    return lambda x, w, b=None: F.conv_transpose2d(
        x, w, b, a.strides, a.pads[:2], a.output_padding, a.group, a.dilations
    )


def gemm(node: ir.Node) -> Function:
    alpha, beta = attr(node, "alpha", 1.0), attr(node, "beta", 1.0)
    if attr(node, "transA", 0) or alpha != 1.0 or beta != 1.0:
        return in_onnxruntime(node)
    if attr(node, "transB", 0):
        return lambda x, w, b=None: F.linear(x, w, b)
    return lambda x, w, b=None: x @ w if b is None else x @ w + b


def max_pool(node: ir.Node) -> Function:
    a = pool_attrs(node)
    if a.ceil_mode or len(node.outputs) > 1:
        return in_onnxruntime(node)
    return lambda x: F.max_pool2d(_pad(x, a.pads, -torch.inf), a.kernel, a.strides, 0, a.dilations)


def average_pool(node: ir.Node) -> Function:
    a = pool_attrs(node)
    if a.ceil_mode or tuple(a.dilations) != (1, 1) or not a.symmetric:
        return in_onnxruntime(node)
    if any(p > k // 2 for p, k in zip(a.pads[:2], a.kernel, strict=True)):
        return in_onnxruntime(node)
    return lambda x: F.avg_pool2d(x, a.kernel, a.strides, a.pads[:2], count_include_pad=a.count_include_pad)


def batch_norm(node: ir.Node) -> Function:
    eps = attr(node, "epsilon", 1e-5)
    return lambda x, s, b, m, v: F.batch_norm(x, m, v, s, b, False, 0.0, eps)


def reduce(function: Function) -> Callable[[ir.Node], Function]:
    def row(node: ir.Node) -> Function:
        axes = const(node.inputs[1]) if len(node.inputs) > 1 else None
        keep = bool(attr(node, "keepdims", 1))
        if axes is None:
            return in_onnxruntime(node)
        dims = [int(i) for i in axes.reshape(-1)]
        return lambda x, _=None: function(x, dims, keepdim=keep)

    return row


def clip(node: ir.Node) -> Function:
    low, high = (_scalar(node, i) for i in (1, 2))
    return lambda x, *_: torch.clamp(x, low, high)


def gelu(node: ir.Node) -> Function:
    approximate = attr(node, "approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


def hard_sigmoid(node: ir.Node) -> Function:
    alpha, beta = attr(node, "alpha", 0.2), attr(node, "beta", 0.5)
    return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)


def selu(node: ir.Node) -> Function:
    alpha, gamma = attr(node, "alpha", 1.6732632), attr(node, "gamma", 1.050701)
    return lambda x: gamma * F.elu(x, alpha)


def softmax(node: ir.Node) -> Function:
    axis = attr(node, "axis", -1)
    return lambda x: torch.softmax(x, axis)


def reshape(node: ir.Node) -> Function:
    target = const(node.inputs[1])
    if target is None:
        return in_onnxruntime(node)
    dims = [int(d) for d in target.reshape(-1)]
    return lambda x, _: x.reshape([x.shape[i] if d == 0 else d for i, d in enumerate(dims)])


def slice_(node: ir.Node) -> Function:
    starts, ends, axes, steps = ([int(i) for i in _ints(node, k)] for k in (1, 2, 3, 4))

    def run(x: Tensor, *_: Tensor) -> Tensor:
        index: list[Any] = [slice(None)] * x.ndim
        for i, axis in enumerate(axes or range(len(starts))):
            step = steps[i] if steps else 1
            if step < 0:
                raise NotImplementedError("Slice with a negative step")
            index[axis] = slice(starts[i], min(ends[i], x.shape[axis]), step)
        return x[tuple(index)]

    return run


def split(node: ir.Node) -> Function:
    axis, sizes = attr(node, "axis", 0), [int(i) for i in _ints(node, 1)]
    return lambda x, *_: torch.split(x, sizes, axis)


def pad(node: ir.Node) -> Function:
    pads, value = [int(p) for p in _ints(node, 1)], _scalar(node, 2) or 0.0
    rank = len(pads) // 2
    if attr(node, "mode", "constant") != "constant" or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return in_onnxruntime(node)
    order = [p for i in reversed(range(rank)) for p in (pads[i], pads[rank + i])]
    return lambda x, *_: F.pad(x, order, value=value)


def transpose(node: ir.Node) -> Function:
    perm = attr(node, "perm")
    return lambda x: x.permute(perm)


def elementwise(function: Function) -> Callable[[ir.Node], Function]:
    return lambda node: function


def _concat(node: ir.Node) -> Function:
    def run(*xs: torch.Tensor) -> torch.Tensor:
        images = max(len(x) for x in xs)  # constants are there for one image
        axis = attr(node, "axis")
        if axis % xs[0].ndim:
            xs = tuple(x if len(x) == images else x.expand(images, *x.shape[1:]) for x in xs)
        return torch.cat(xs, axis)

    return run


OPS: dict[str, Callable[[ir.Node], Function]] = {
    # windows and products
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": elementwise(torch.matmul),
    "BatchNormalization": batch_norm,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": elementwise(lambda x: x.mean((2, 3), keepdim=True)),
    "GlobalMaxPool": elementwise(lambda x: x.amax((2, 3), keepdim=True)),
    "ReduceMean": reduce(torch.mean),
    "ReduceSum": reduce(torch.sum),
    "ReduceMax": reduce(torch.amax),
    # activations
    "Relu": elementwise(torch.relu),
    "Clip": clip,
    "LeakyRelu": lambda node: lambda x: F.leaky_relu(x, attr(node, "alpha", 0.01)),
    "PRelu": elementwise(lambda x, slope: torch.where(x < 0, x * slope, x)),
    "Elu": lambda node: lambda x: F.elu(x, attr(node, "alpha", 1.0)),
    "Celu": lambda node: lambda x: F.celu(x, attr(node, "alpha", 1.0)),
    "Selu": selu,
    "Mish": elementwise(F.mish),
    "Softsign": elementwise(F.softsign),
    "ThresholdedRelu": lambda node: lambda x: F.threshold(x, attr(node, "alpha", 1.0), 0.0),
    "LogSoftmax": lambda node: lambda x: torch.log_softmax(x, attr(node, "axis", -1)),
    "Gelu": gelu,
    "Sigmoid": elementwise(torch.sigmoid),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": elementwise(lambda x: x * torch.clamp(x / 6 + 0.5, 0.0, 1.0)),
    "Tanh": elementwise(torch.tanh),
    "Softplus": elementwise(lambda x: torch.nn.functional.softplus(x, threshold=1e30)),
    "Softmax": softmax,
    # elementwise
    "Add": elementwise(torch.add),
    "Sub": elementwise(torch.sub),
    "Mul": elementwise(torch.mul),
    "Div": elementwise(torch.div),
    "Pow": elementwise(torch.pow),
    "Abs": elementwise(torch.abs),
    "Neg": elementwise(torch.neg),
    "Exp": elementwise(torch.exp),
    "Sqrt": elementwise(torch.sqrt),
    "Erf": elementwise(torch.erf),
    # moving elements
    "Concat": _concat,
    "Split": split,
    "Slice": slice_,
    "Reshape": reshape,
    "Flatten": lambda node: lambda x: x.flatten(attr(node, "axis", 1)),
    "Transpose": transpose,
    "Pad": pad,
    "Identity": elementwise(lambda x: x),
}

VIEWS = frozenset({"Reshape", "Flatten", "Transpose", "Slice", "Split", "Identity", "Expand"})
"""Operators whose result may share memory with their input."""


def in_onnxruntime(node: ir.Node) -> Function:
    """The node as a function by ONNX Runtime, image by image; without gradients.

    One image may be several rows of the first axis, where the graph has folded others into it.
    """
    import onnx
    import onnxruntime as ort

    names = [str(v.name) if v is not None else "" for v in node.inputs]
    constants = {n: const(v) for n, v in zip(names, node.inputs, strict=True) if v is not None}
    fed = dict.fromkeys(v for v in node.inputs if v is not None and const(v) is None)
    inputs = [_declared(v, list(shape_of(v))) for v in fed]
    outputs = [_declared(v, None) for v in node.outputs]
    weights = [onnx.numpy_helper.from_array(a, n) for n, a in constants.items() if a is not None]
    graph = onnx.helper.make_graph([ir.serde.serialize_node(node)], "node", inputs, outputs, weights)
    opset = node.version or 20
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    live = [(i.name, names.index(i.name)) for i in session.get_inputs()]
    rows_of = {str(v.name): shape_of(v)[0] for v in fed if shape_of(v)}

    def run(*xs: Tensor | None) -> Any:
        fed = {name: x.detach().numpy() for name, k in live if (x := xs[k]) is not None}
        batch = max([1, *(len(fed[n]) // rows_of[n] for n in rows_of if n in fed)])
        rows = [session.run(None, _image(fed, rows_of, i)) for i in range(batch)]
        done = [
            torch.from_numpy(np.asarray(parts[0]) if batch == 1 else np.concatenate(parts))
            for parts in zip(*rows, strict=True)
        ]
        return done[0] if len(done) == 1 else tuple(done)

    return run


def _image(fed: dict[str, np.ndarray], rows: dict[str, int], i: int) -> dict[str, np.ndarray]:
    """The i-th image's part of each input; what has no axes, or is there for one image, is all images'."""
    return {
        n: x[i * rows[n] : (i + 1) * rows[n]] if n in rows and len(x) > rows[n] else x for n, x in fed.items()
    }


def _declared(value: ir.Value, shape: list[int] | None) -> Any:
    import onnx

    dtype = value.dtype or ir.DataType.FLOAT
    return onnx.helper.make_tensor_value_info(str(value.name), int(dtype), shape)


def function_of(node: ir.Node) -> Function:
    """The torch function of a node."""
    row = OPS.get(node.op_type) or torch_values.OPS.get(node.op_type)
    found = None if row is None or node.domain not in ("", "ai.onnx") else row(node)
    return in_onnxruntime(node) if found is None else found


def _pad(x: Tensor, pads: Sequence[int], value: float) -> Tensor:
    top, left, bottom, right = pads
    return F.pad(x, (left, right, top, bottom), value=value) if any(pads) else x


def _ints(node: ir.Node, i: int) -> list[int]:
    array = const(node.inputs[i]) if len(node.inputs) > i else None
    return [] if array is None else [int(v) for v in array.reshape(-1)]


def _scalar(node: ir.Node, i: int) -> float | None:
    array = const(node.inputs[i]) if len(node.inputs) > i else None
    return None if array is None else float(array.reshape(-1)[0])


def unfold(x: Tensor, window: Window) -> Tensor:
    """[N, C, H, W] -> [N, C, kh * kw, oh * ow]: the cells under each tap of a window, zeros for padding."""
    x = _pad(x, window.pads, 0.0)
    n, c = x.shape[:2]
    columns = F.unfold(x, window.kernel, window.dilations, 0, window.strides)
    return columns.reshape(n, c, window.kernel[0] * window.kernel[1], -1)
