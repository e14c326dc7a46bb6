"""Linear maps between feature maps, in float64: what fusing calculates with.

An `Expr` is a tree of the original operators over one tensor ``x`` of shape [C, H, W]. The same tree
is read in three ways: `Expr.geometry` is the convolution it equals, known without touching a weight;
`Expr.collapse` is that convolution's weight and bias; `Expr.run` evaluates the operators one by one,
which is what a merge is checked against. A fully connected layer is a 1x1 convolution of a 1x1 map.

The algebra of branches is that of RepVGG (arXiv:2101.03697, 3.3) and DBB (arXiv:2103.13425, 3.2),
here for any stride, dilation, grouping and padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from repedge.passes.fusion.geometry import Geometry, Pair, Refused, chained, pointwise, summed
from repedge.passes.fusion.operators import Kernel, Op


class Expr:
    """A linear map of the tensor ``x``; see the module's docstring."""

    @property
    def geometry(self) -> Geometry:
        """The convolution it equals.

        Raises:
            Refused: It equals none (borders), or its terms do not fit together.
        """
        raise NotImplementedError

    @property
    def cost(self) -> int:
        """Multiply-accumulates of the operators as they stand in the graph now."""
        raise NotImplementedError

    @property
    def ops(self) -> tuple[Op, ...]:
        """The operators with Blocks opened, in order of execution; a Sum of terms is no Op."""
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all the original nodes in order of execution, sums included."""
        raise NotImplementedError

    def collapse(self) -> Kernel:
        """Weight and bias of the convolution in `geometry`, float64, the caller's to change."""
        raise NotImplementedError

    def run(self, x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """The original operators on x [C, H, W] in float64; any H and W. No algebra is used."""
        raise NotImplementedError


class Input(Expr):
    """``x`` itself."""

    ops: tuple[Op, ...] = ()
    names: tuple[str, ...] = ()
    cost = 0

    def __init__(self, channels: int, size: Pair) -> None:
        self.channels, self.size = channels, size

    @property
    def geometry(self) -> Geometry:
        return pointwise(self.channels, self.size)

    def collapse(self) -> Kernel:
        return np.ones((self.channels, 1, 1, 1)), np.zeros(self.channels)

    def run(self, x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        return x if rows is None else x[rows]


class Apply(Expr):
    """An operator on top of an expression."""

    def __init__(self, op: Op, inner: Expr) -> None:
        self.op, self.inner = op, inner

    @cached_property
    def _own(self) -> Geometry:
        a = self.inner.geometry
        return self.op.geometry(a.cout, a.out)

    @cached_property
    def geometry(self) -> Geometry:  # type: ignore[override]
        a, b = self.inner.geometry, self._own
        _require_same_border(self.inner, a, self.op, b)
        return chained(a, b)

    @property
    def cost(self) -> int:  # type: ignore[override]
        return self.inner.cost + self.op.cost(self._own)

    @property
    def ops(self) -> tuple[Op, ...]:  # type: ignore[override]
        own = self.op.expr.ops if isinstance(self.op, Block) else (self.op,)
        return (*self.inner.ops, *own)

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        own = self.op.expr.names if isinstance(self.op, Block) else (self.op.name,)
        return (*self.inner.names, *own)

    def collapse(self) -> Kernel:
        a, b = self.inner.geometry, self._own
        if isinstance(self.inner, Input):
            return self.op.kernel(a.cout)
        return _chain(a, self.inner.collapse(), b, self.op.kernel(a.cout), self.geometry)

    def run(self, x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        a, b = self.inner.geometry, self._own
        if rows is None or isinstance(self.op, Block) or not b.group == a.cout == b.cout:
            return self.op.run(self.inner.run(x), rows)
        # A depthwise operator needs no other channels than those asked for.
        return self.op.select(rows).run(self.inner.run(x, rows), None)


class Sum(Expr):
    """``sum(sign * term)``."""

    def __init__(self, terms: Sequence[tuple[float, Expr]], names: tuple[str, ...]) -> None:
        self.terms, self.nodes = tuple(terms), names

    @cached_property
    def geometry(self) -> Geometry:  # type: ignore[override]
        return summed([t.geometry for _, t in self.terms])

    @property
    def cost(self) -> int:  # type: ignore[override]
        return sum(t.cost for _, t in self.terms)

    @property
    def ops(self) -> tuple[Op, ...]:  # type: ignore[override]
        return tuple(op for _, t in self.terms for op in t.ops)

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*(n for _, t in self.terms for n in t.names), *self.nodes)

    def collapse(self) -> Kernel:
        g = self.geometry
        # A term that has the sum's own shape comes first: its array takes the others in.
        terms = sorted(self.terms, key=lambda t: t[1].geometry != g)
        weight: np.ndarray | None = None
        bias = np.zeros(g.cout)
        for sign, term in terms:
            w, b = term.collapse()
            if sign != 1:
                w *= sign
            bias += sign * b
            if weight is None and term.geometry == g:
                weight = w
                continue
            if weight is None:
                weight = np.zeros((g.cout, g.cin // g.group, *g.kernel))
            place(weight, g, w, term.geometry)
        assert weight is not None, "a sum has terms"
        return weight, bias

    def run(self, x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        (sign, first), *others = self.terms
        total = sign * first.run(x, rows)
        for sign, term in others:
            total = total + sign * term.run(x, rows)
        return total


@dataclass(frozen=True, eq=False)
class Block(Op):
    """A merged convolution whose numbers are not worked out yet."""

    expr: Expr

    def geometry(self, channels: int, size: Pair) -> Geometry:
        return self.expr.geometry

    def kernel(self, channels: int) -> Kernel:
        return self.expr.collapse()

    def run(self, x: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        return self.expr.run(x, rows)


def _require_same_border(inner: Expr, a: Geometry, op: Op, b: Geometry) -> None:
    """Outside of its map, ``inner`` continued must be what ``op`` sees there.

    ``op`` reads its border value where it reads outside of the map. The merged convolution reads zeros
    around ``x`` instead, so there ``inner`` must give the border value for an input of zeros alone.

    Raises:
        Refused: It does not.
    """
    outside = False
    for axis in (0, 1):
        outputs = np.arange(b.out[axis])[:, None] * b.strides[axis] + b.offset[axis]
        reads = (outputs + np.arange(b.kernel[axis]) * b.dilations[axis]).reshape(-1)
        beyond = np.unique(reads[(reads < 0) | (reads >= a.out[axis])])
        if not beyond.size:
            continue
        outside = True
        taps = beyond[:, None] * a.strides[axis] + a.offset[axis]
        taps = taps + np.arange(a.kernel[axis]) * a.dilations[axis]
        if ((taps >= 0) & (taps < a.size[axis])).any():
            raise Refused(
                f"the padding of {op.type} {op.name!r} follows a kernel larger than 1x1, so merging would be "
                "inexact at the border"
            )
    if outside:
        shift = inner.collapse()[1]
        scalar = np.ndim(op.border) == 0
        if not np.allclose(shift, op.border, rtol=0, atol=0 if scalar else 1e-12 * np.abs(shift).max()):
            raise Refused(
                f"the zero padding of {op.type} {op.name!r} would make folding the shift before it inexact"
                if scalar and op.border == 0
                else f"the border {op.name!r} is not what the branch makes of zeros"
            )


def place(acc: np.ndarray, into: Geometry, weight: np.ndarray, of: Geometry) -> None:
    """Add ``weight`` of geometry ``of`` to ``acc`` of geometry ``into``: taps aligned, groups expanded.

    Args:
        acc: [O, I / into.group, *into.kernel], changed in place.
        weight: [O, I / of.group, *of.kernel]; ``into.group`` divides ``of.group``.
    """
    taps = []
    for axis in (0, 1):
        start = (of.offset[axis] - into.offset[axis]) // into.dilations[axis]
        step = of.dilations[axis] // into.dilations[axis] if of.kernel[axis] > 1 else 1
        taps.append(slice(start, start + (of.kernel[axis] - 1) * step + 1, step))
    fine = of.group // into.group  # groups of the branch in one group of the sum
    blocks = acc.reshape(into.group, fine, of.cout // of.group, fine, of.cin // of.group, *into.kernel)
    parts = weight.reshape(into.group, fine, of.cout // of.group, of.cin // of.group, *of.kernel)
    if fine == 1:
        blocks[:, 0, :, 0, :, taps[0], taps[1]] += parts[:, 0]
        return
    each = np.arange(fine)
    # Two index arrays with slices between them: the indexed axis comes first.
    blocks[:, each, :, each, :, taps[0], taps[1]] += parts.swapaxes(0, 1)


def _chain(a: Geometry, ka: Kernel, b: Geometry, kb: Kernel, c: Geometry) -> Kernel:
    """Weight and bias of ``b`` after ``a``; ``c`` is their `chained` geometry. May work in place."""
    (wa, ba), (wb, bb) = ka, kb
    if a.kernel == (1, 1) and a.group == a.cin == a.cout:  # affine before: scale the columns
        column = np.arange(b.cout)[:, None] // (b.cout // b.group) * (b.cin // b.group)
        column = column + np.arange(b.cin // b.group)
        shift = (wb.sum((2, 3)) * ba[column]).sum(1)
        wb *= wa.reshape(-1)[column][:, :, None, None]
        return wb, bb + shift
    if b.kernel == (1, 1) and b.group == b.cin == b.cout:  # affine after: scale the rows
        wa *= wb.reshape(-1, 1, 1, 1)
        return wa, ba * wb.reshape(-1) + bb
    g = c.group
    inner, outer = _grouped(wa, a, g), _grouped(wb, b, g)
    weight = np.zeros((g, c.cout // g, c.cin // g, *c.kernel))
    for ty, tx in np.ndindex(b.kernel):
        for uy, ux in np.ndindex(a.kernel):
            y = (a.strides[0] * b.dilations[0] * ty + a.dilations[0] * uy) // c.dilations[0]
            x = (a.strides[1] * b.dilations[1] * tx + a.dilations[1] * ux) // c.dilations[1]
            weight[..., y, x] += outer[..., ty, tx] @ inner[..., uy, ux]
    shift = outer.sum((3, 4)) @ ba.reshape(g, -1, 1)
    return weight.reshape(c.cout, c.cin // g, *c.kernel), bb + shift.reshape(-1)


def _grouped(weight: np.ndarray, of: Geometry, group: int) -> np.ndarray:
    """The weight as [group, O / group, I / group, kh, kw] for a divisor of its own groups."""
    coarse = replace(of, group=group)
    acc = np.zeros((of.cout, of.cin // group, *of.kernel))
    place(acc, coarse, weight, of)
    return acc.reshape(group, of.cout // group, of.cin // group, *of.kernel)
