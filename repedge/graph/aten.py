"""ATen operator -> ONNX nodes: the table and its element-wise and structural rows.

A key is the operator as PyTorch's dispatcher names it, without ``aten::`` and without ``.default``;
``relu_`` and the like are looked up without the underscore. A lowering takes the builder and the
operator's own arguments, with the defaults of its ATen schema (native_functions.yaml), and returns
the value(s) of its result. Rows that slide a window, resize or multiply matrices are in
``aten_spatial``. A missing row is a missing feature: the stock exporter takes the model then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from repedge.graph import aten_spatial as spatial
from repedge.graph.aten_build import Builder, Operand, Unlowerable, dims

if TYPE_CHECKING:
    import torch

Lowering = Callable[..., Any]


def unary(op: str, **attributes: float) -> Lowering:
    return lambda g, x: g.node(op, [x], **attributes)


def binary(op: str) -> Lowering:
    return lambda g, x, y: g.node(op, [_unexpanded(g, x, y), _unexpanded(g, y, x)])


def _unexpanded(g: Builder, x: Operand, other: Operand) -> Operand:
    """Expand(x) -> x where ONNX broadcasting against ``other`` gives the same shape."""
    node = x.producer() if isinstance(x, ir.Value) else None
    if node is None or node.op_type != "Expand":
        return x
    source = node.inputs[0]
    assert source is not None, "Expand always has an input"
    shapes = [
        dims(source),
        dims(other) if isinstance(other, ir.Value) else tuple(getattr(other, "shape", ())),
    ]
    width = max(map(len, shapes))
    padded = [(1,) * (width - len(s)) + s for s in shapes]
    broadcast = tuple(max(pair) for pair in zip(*padded, strict=True))
    return source if broadcast == g.shape() else x


def add(g: Builder, x: Operand, y: Operand, alpha: float = 1) -> ir.Value:
    return binary("Add")(g, x, _scaled(g, y, alpha))


def sub(g: Builder, x: Operand, y: Operand, alpha: float = 1) -> ir.Value:
    return binary("Sub")(g, x, _scaled(g, y, alpha))


def rsub(g: Builder, x: Operand, y: Operand, alpha: float = 1) -> ir.Value:
    return g.node("Sub", [y, _scaled(g, x, alpha)])


def _scaled(g: Builder, x: Operand, factor: float) -> Operand:
    if factor == 1 or not isinstance(x, ir.Value):
        return x if factor == 1 else x * factor
    return g.node("Mul", [x, factor], dims(x))


def addcmul(g: Builder, x: Operand, a: Operand, b: Operand, value: float = 1) -> ir.Value:
    return g.node("Add", [x, _scaled(g, g.node("Mul", [a, b]), value)])


def lerp(g: Builder, x: Operand, end: Operand, weight: Operand) -> ir.Value:
    return g.node("Add", [x, g.node("Mul", [g.node("Sub", [end, x]), weight])])


def power(g: Builder, x: Operand, exponent: Operand) -> ir.Value:
    if exponent == 2 and isinstance(exponent, (int, float)):
        return g.node("Mul", [x, x])
    if exponent == 0.5 and isinstance(exponent, (int, float)):
        return g.node("Sqrt", [x])
    return g.node("Pow", [x, exponent])


def rsqrt(g: Builder, x: Operand) -> ir.Value:
    return g.node("Reciprocal", [g.node("Sqrt", [x])])


def clamp(g: Builder, x: Operand, low: float | None = None, high: float | None = None) -> ir.Value:
    if not all(b is None or isinstance(b, (int, float)) for b in (low, high)):
        raise Unlowerable("bounds that are tensors")
    return g.node("Clip", [x, low, high])


def hardtanh(g: Builder, x: Operand, low: float = -1, high: float = 1) -> ir.Value:
    return clamp(g, x, low, high)


def threshold(g: Builder, x: Operand, bound: float, value: float) -> ir.Value:
    if bound != 0 or value != 0:
        raise Unlowerable("a threshold other than 0")
    return g.node("Relu", [x])


def silu(g: Builder, x: Operand) -> ir.Value:
    return g.node("Mul", [x, g.node("Sigmoid", [x])])


def gelu(g: Builder, x: Operand, *, approximate: str = "none") -> ir.Value:
    return g.node("Gelu", [x], approximate=approximate)


def leaky_relu(g: Builder, x: Operand, slope: float = 0.01) -> ir.Value:
    return g.node("LeakyRelu", [x], alpha=float(slope))


def elu(g: Builder, x: Operand, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> ir.Value:
    if scale != 1 or input_scale != 1:
        raise Unlowerable("a scaled ELU")
    return g.node("Elu", [x], alpha=float(alpha))


def prelu(g: Builder, x: Operand, slope: Operand) -> ir.Value:
    if isinstance(slope, ir.Value):
        raise Unlowerable("a slope that depends on the input")
    # ATen hands over [1, C, 1, 1]; ONNX wants it unidirectionally broadcastable: the same.
    return g.node("PRelu", [x, slope])


def softplus(g: Builder, x: Operand, beta: float = 1, bound: float = 20) -> ir.Value:
    if beta != 1:
        raise Unlowerable("a beta other than 1")
    return g.node("Softplus", [x])


def softmax(op: str) -> Lowering:
    def lower(g: Builder, x: Operand, dim: int, half_to_float: bool = False) -> ir.Value:
        return g.node(op, [x], axis=dim % len(g.shape()))

    return lower


def reduce(op: str) -> Lowering:
    def lower(
        g: Builder, x: ir.Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> ir.Value:
        rank = len(dims(x))
        given = [dim] if isinstance(dim, int) else list(dim or range(rank))
        axes = sorted(d % rank for d in given) if rank else []
        if op == "ReduceMean" and rank == 4 and axes == [2, 3]:
            return g.reshape(g.node("GlobalAveragePool", [x], (*dims(x)[:2], 1, 1)))
        return g.node(op, [x, g.ints(*axes)], keepdims=int(keepdim))

    return lower


def cat(g: Builder, tensors: Sequence[Operand], dim: int = 0) -> ir.Value:
    parts = [g.value(t) for t in tensors]
    parts = [p for p in parts if dims(p) != (0,)]  # torch skips legacy empty tensors
    if len(parts) == 1:
        return parts[0]
    return g.node("Concat", parts, axis=dim % len(g.shape()))


def stack(g: Builder, tensors: Sequence[Operand], dim: int = 0) -> ir.Value:
    axis = dim % len(g.shape())
    shape = [1 if i == axis else n for i, n in enumerate(g.shape())]
    parts = [g.reshape(t, shape) for t in tensors]
    return parts[0] if len(parts) == 1 else g.node("Concat", parts, axis=axis)


def repeat(g: Builder, x: Operand, repeats: Sequence[int]) -> ir.Value:
    value = g.value(x)
    shape = [1] * (len(repeats) - len(dims(value))) + list(dims(value))
    value = g.reshape(value, shape)
    for axis, times in enumerate(repeats):
        shape[axis] *= times
        if times > 1:
            value = g.node("Concat", [value] * times, list(shape), axis=axis)
    return value


def expand(g: Builder, x: Operand, size: Sequence[int], *, implicit: bool = False) -> ir.Value:
    value = g.value(x)
    if dims(value) == g.shape():
        return value
    # An extent of 1 keeps the other operand's: Expand broadcasts both ways, so the batch stays free.
    own = (1,) * (len(g.shape()) - len(dims(value))) + dims(value)
    wanted = (1 if old == new else new for old, new in zip(own, g.shape(), strict=True))
    return g.node("Expand", [value, g.ints(*wanted)])


def split(g: Builder, x: ir.Value, sizes: Any, dim: int = 0) -> list[ir.Value]:
    shapes = [g.shape(i) for i in range(len(g.result))]
    axis = dim % len(shapes[0])
    if len(shapes) == 1:
        return [x]
    return g.nodes_out("Split", [x, g.ints(*(s[axis] for s in shapes))], shapes, axis=axis)


def unbind(g: Builder, x: ir.Value, dim: int = 0) -> list[ir.Value]:
    axis = dim % len(dims(x))
    pieces = [tuple(1 if i == axis else n for i, n in enumerate(dims(x)))] * len(g.result)
    if len(pieces) == 1:
        return [g.reshape(x, g.shape(0))]
    split_sizes = g.ints(*[1] * len(pieces))
    parts = g.nodes_out("Split", [x, split_sizes], pieces, axis=axis)
    return [g.reshape(part, g.shape(i)) for i, part in enumerate(parts)]


def slice_(
    g: Builder, x: ir.Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> ir.Value:
    axis = dim % len(dims(x))
    first, last, _ = slice(start, end, step).indices(dims(x)[axis])
    return g.slice(x, axis, first, max(first, last), step)


def select(g: Builder, x: ir.Value, dim: int, index: int) -> ir.Value:
    axis = dim % len(dims(x))
    index %= dims(x)[axis]
    return g.reshape(g.slice(x, axis, index, index + 1))


def permute(g: Builder, x: ir.Value, perm: Sequence[int]) -> ir.Value:
    return g.transpose(x, perm)


def transpose(g: Builder, x: ir.Value, a: int = 0, b: int = 1) -> ir.Value:
    """Defaults are those of ``t``, which swaps the axes of a matrix."""
    perm = list(range(len(dims(x))))
    if len(perm) < 2:
        return x
    perm[a], perm[b] = perm[b], perm[a]
    return g.transpose(x, perm)


def reshape(g: Builder, x: ir.Value, *_: Any, **__: Any) -> ir.Value:
    """Anything that keeps the elements in row-major order; torch's result has the shape."""
    return g.reshape(x)


def same(g: Builder, x: ir.Value, *_: Any, **__: Any) -> ir.Value:
    return x


def to_copy(g: Builder, x: ir.Value, **options: Any) -> ir.Value:
    if not g.result.is_floating_point() or g.result.element_size() != 4 or g.result.device.type != "cpu":
        raise Unlowerable(
            f"a conversion to {str(g.result.dtype).removeprefix('torch.')} on {g.result.device}"
        )
    return x


def channel_shuffle(g: Builder, x: ir.Value, groups: int) -> ir.Value:
    batch, channels, *space = dims(x)
    grouped = g.reshape(x, (batch, groups, channels // groups, *space))
    return g.reshape(g.transpose(grouped, (0, 2, 1, *range(3, 3 + len(space)))))


def pixel_shuffle(g: Builder, x: ir.Value, factor: int) -> ir.Value:
    _require_rank4(x)
    return g.node("DepthToSpace", [x], blocksize=factor, mode="CRD")


def pixel_unshuffle(g: Builder, x: ir.Value, factor: int) -> ir.Value:
    # SpaceToDepth orders the channels differently (ONNX specification), so it is spelled out.
    _require_rank4(x)
    n, c, h, w = dims(x)
    cells = g.reshape(x, (n, c, h // factor, factor, w // factor, factor))
    return g.reshape(g.transpose(cells, (0, 1, 3, 5, 2, 4)))


def _require_rank4(x: ir.Value) -> None:
    if len(dims(x)) != 4:
        raise Unlowerable(f"rank {len(dims(x))}")


def layer_norm(
    g: Builder,
    x: ir.Value,
    normalized: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> list[ir.Value | None]:
    import torch

    scale = torch.ones(tuple(normalized)) if weight is None else weight
    y = g.node("LayerNormalization", [x, scale, bias], g.shape(0), axis=-len(normalized), epsilon=eps)
    return [y, None, None]


TABLE: dict[str, Lowering] = {
    # element-wise, one operand
    "relu": unary("Relu"),
    "sigmoid": unary("Sigmoid"),
    "tanh": unary("Tanh"),
    "hardswish": unary("HardSwish"),
    "hardsigmoid": unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    "mish": unary("Mish"),
    "exp": unary("Exp"),
    "log": unary("Log"),
    "sqrt": unary("Sqrt"),
    "abs": unary("Abs"),
    "neg": unary("Neg"),
    "erf": unary("Erf"),
    "reciprocal": unary("Reciprocal"),
    "floor": unary("Floor"),
    "ceil": unary("Ceil"),
    "rsqrt": rsqrt,
    "silu": silu,
    "gelu": gelu,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "_prelu_kernel": prelu,
    "softplus": softplus,
    "threshold": threshold,
    "clamp": clamp,
    "clamp_min": lambda g, x, low: clamp(g, x, low),
    "clamp_max": lambda g, x, high: clamp(g, x, None, high),
    "hardtanh": hardtanh,
    "pow.Tensor_Scalar": power,
    "pow.Tensor_Tensor": power,
    # element-wise, several operands
    "add.Tensor": add,
    "add.Scalar": add,
    "sub.Tensor": sub,
    "sub.Scalar": sub,
    "rsub.Tensor": rsub,
    "rsub.Scalar": rsub,
    "mul.Tensor": binary("Mul"),
    "mul.Scalar": binary("Mul"),
    "div.Tensor": binary("Div"),
    "div.Scalar": binary("Div"),
    "maximum": binary("Max"),
    "minimum": binary("Min"),
    "addcmul": addcmul,
    "lerp.Scalar": lerp,
    "lerp.Tensor": lerp,
    # reductions
    "_softmax": softmax("Softmax"),
    "_log_softmax": softmax("LogSoftmax"),
    "mean": reduce("ReduceMean"),
    "mean.dim": reduce("ReduceMean"),
    "sum": reduce("ReduceSum"),
    "sum.dim_IntList": reduce("ReduceSum"),
    "amax": reduce("ReduceMax"),
    "amin": reduce("ReduceMin"),
    "native_layer_norm": layer_norm,
    # structure
    "cat": cat,
    "stack": stack,
    "repeat": repeat,
    "expand": expand,
    "split.Tensor": split,
    "split_with_sizes": split,
    "unbind.int": unbind,
    "slice.Tensor": slice_,
    "select.int": select,
    "permute": permute,
    "transpose.int": transpose,
    "t": transpose,
    "view": reshape,
    "_unsafe_view": reshape,
    "_reshape_alias": reshape,
    "reshape": reshape,
    "unsqueeze": reshape,
    "squeeze": reshape,
    "squeeze.dim": reshape,
    "squeeze.dims": reshape,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "clone": same,
    "detach": same,
    "alias": same,
    "contiguous": same,
    "lift_fresh": same,
    "dropout": same,
    "_to_copy": to_copy,
    **spatial.TABLE,
}
