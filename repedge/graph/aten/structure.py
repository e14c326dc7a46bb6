"""ATen -> ONNX for arithmetic, and for what moves elements: joining, cutting, reshaping, shuffling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from repedge.graph.aten.builder import Builder, Operand, Unlowerable, dims, finite_mask

if TYPE_CHECKING:
    pass

Lowering = Callable[..., Any]


def binary(op: str) -> Lowering:
    return lambda g, x, y: arithmetic(g, op, x, y)


def arithmetic(g: Builder, op: str, x: Operand, y: Operand) -> ir.Value:
    """An element-wise operator in the type of torch's result."""
    operands = (_unexpanded(g, x, y), _unexpanded(g, y, x))
    return g.node(op, [g.cast(v, g.dtype) for v in operands])


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
    return arithmetic(g, "Add", finite_mask(x), finite_mask(_scaled(g, y, alpha)))


def sub(g: Builder, x: Operand, y: Operand, alpha: float = 1) -> ir.Value:
    return binary("Sub")(g, x, _scaled(g, y, alpha))


def rsub(g: Builder, x: Operand, y: Operand, alpha: float = 1) -> ir.Value:
    return arithmetic(g, "Sub", y, _scaled(g, x, alpha))


def _scaled(g: Builder, x: Operand, factor: float) -> Operand:
    if factor == 1 or not isinstance(x, ir.Value):
        return x if factor == 1 else x * factor
    return g.node("Mul", [x, factor], dims(x))


def addcmul(g: Builder, x: Operand, a: Operand, b: Operand, value: float = 1) -> ir.Value:
    return g.node("Add", [x, _scaled(g, g.node("Mul", [a, b]), value)])


def lerp(g: Builder, x: Operand, end: Operand, weight: Operand) -> ir.Value:
    return g.node("Add", [x, g.node("Mul", [g.node("Sub", [end, x]), weight])])


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
    import torch

    if g.result.device.type != "cpu" or g.result.dtype not in (
        torch.float32,
        torch.int64,
        torch.int32,
        torch.bool,
    ):
        raise Unlowerable(
            f"a conversion to {str(g.result.dtype).removeprefix('torch.')} on {g.result.device}"
        )
    return g.cast(x, g.dtype)


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


TABLE: dict[str, Lowering] = {
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
}
