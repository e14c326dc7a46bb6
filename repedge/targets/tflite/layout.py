"""Which axis is stored where: TensorFlow Lite wants channels last, ONNX has them second.

A *layout* is a permutation: stored axis ``i`` holds ONNX axis ``layout[i]``. Values of rank 4 are
stored NHWC unless something else is cheaper, all others as ONNX has them. An ONNX Transpose is then
only another layout of the same tensor, and a Reshape that keeps or splits whole axes (a channel
shuffle, ``[1, C, H, W] -> [1, C, H*W]``) never moves data either.
"""

from __future__ import annotations

from collections.abc import Sequence

Layout = tuple[int, ...]

NHWC: Layout = (0, 2, 3, 1)


def natural(rank: int) -> Layout:
    """The layout that a value of this rank has unless there is a reason for another."""
    return NHWC if rank == 4 else tuple(range(rank))


def stored(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """The shape of the tensor that stores a value of ONNX shape ``shape``."""
    return tuple(shape[axis] for axis in layout)


def transposition(before: Layout, after: Layout) -> tuple[int, ...]:
    """The permutation a TRANSPOSE needs to turn one layout into another."""
    return tuple(before.index(axis) for axis in after)


def same_bytes(shape: Sequence[int], a: Layout, b: Layout) -> bool:
    """Whether two layouts of a value differ only in where its axes of length 1 stand."""
    return [x for x in a if shape[x] != 1] == [x for x in b if shape[x] != 1]


def regroup(before: Sequence[int], after: Sequence[int], layout: Layout) -> Layout | None:
    """The layout that a RESHAPE of the stored tensor gives to the reshaped value.

    Args:
        before, after: ONNX shapes around a Reshape.
        layout: How the tensor of shape ``before`` is stored.

    Returns:
        None if axes that the Reshape merges do not stand side by side, in order.
    """
    group_of = {g[0][0]: g for g in _groups(before, after)}
    order = [axis for axis in layout if before[axis] != 1]
    result: list[int] = []
    while order:
        if order[0] not in group_of:
            return None
        ins, outs = group_of[order[0]]
        if order[: len(ins)] != ins:
            return None
        result += outs
        order = order[len(ins) :]
    return _place_units(result, after)


def gathered(before: Sequence[int], after: Sequence[int], layout: Layout) -> Layout:
    """The layout nearest to ``layout`` from which a Reshape needs no further move.

    Axes that the Reshape merges are brought together where the first of them stands.
    """
    groups = _groups(before, after)
    merged = sorted((ins for ins, _ in groups), key=lambda ins: min(layout.index(axis) for axis in ins))
    units = [axis for axis in layout if before[axis] == 1]
    return (*units, *(axis for ins in merged for axis in ins))


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes (those of length 1 left out) that hold the same elements on both sides."""
    a = [axis for axis, size in enumerate(before) if size != 1]
    b = [axis for axis, size in enumerate(after) if size != 1]
    groups = []
    while a:
        ins, outs = [a.pop(0)], [b.pop(0)]
        p, q = before[ins[0]], after[outs[0]]
        while p != q:
            if p < q:
                ins.append(a.pop(0))
                p *= before[ins[-1]]
            else:
                outs.append(b.pop(0))
                q *= after[outs[-1]]
        groups.append((ins, outs))
    return groups


def _place_units(order: list[int], shape: Sequence[int]) -> Layout:
    """Put the axes of length 1 back in: where the natural layout has them, else in front."""
    for layout in (natural(len(shape)), tuple(range(len(shape)))):
        if [axis for axis in layout if shape[axis] != 1] == order:
            return layout
    return (*(axis for axis, size in enumerate(shape) if size == 1), *order)
