"""Convolutions without their numbers: what a merge would be and cost, before any weight is touched.

Convolution here means ``y[o, p] = b[o] + sum_(i, t) w[o, i, t] x[i, stride p + offset + dilation t]``
along each axis, with ``x`` zero outside of the map; ``offset`` is minus the leading pad. Source: the
ONNX Conv-11 specification.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]
"""ONNX order: top, left, bottom, right."""


class Refused(Exception):
    """The merge is not possible; the message is the sentence for the certificate."""


@dataclass(frozen=True)
class Geometry:
    """A convolution without its numbers.

    Attributes:
        cin, cout, group: Channels and groups.
        kernel, strides, dilations: (height, width).
        offset: Input row and column that the first tap of the first output reads (pads are negative).
        size, out: Height and width of the input and of the output.
    """

    cin: int
    cout: int
    group: int
    kernel: Pair
    strides: Pair
    dilations: Pair
    offset: Pair
    size: Pair
    out: Pair

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        return math.prod(self.kernel) * self.cin // self.group * self.cout * math.prod(self.out)

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """ONNX pads (top, left, bottom, right), symmetric where the output's size allows that.

        Raises:
            Refused: No padding gives this output: it would take a crop.
        """
        ends = []
        for o, k, s, d, size, out in zip(
            self.offset, self.kernel, self.strides, self.dilations, self.size, self.out, strict=True
        ):
            span = (k - 1) * d + 1
            needed = max((out - 1) * s + o + span - size, 0)
            fits = [e for e in (-o, needed) if e >= 0 and (size - o + e - span) // s + 1 == out]
            if o > 0 or not fits:
                raise Refused(
                    "the branches read different parts of the map; one convolution would have to crop it"
                )
            ends.append(fits[0])
        return -self.offset[0], -self.offset[1], ends[0], ends[1]


def pointwise(channels: int, size: Pair) -> Geometry:
    """A 1x1 depthwise convolution of stride 1: identity and per-channel affine maps."""
    return Geometry(channels, channels, channels, (1, 1), (1, 1), (1, 1), (0, 0), size, size)


def windowed(
    cin: int, cout: int, group: int, kernel: Pair, strides: Pair, dilations: Pair,
    pads: Pads, size: Pair,
) -> Geometry:  # fmt: skip
    """Geometry of a Conv or AveragePool with ONNX ``pads`` (top, left, bottom, right)."""
    out = tuple(
        (n + a + b - (k - 1) * d - 1) // s + 1
        for n, a, b, k, s, d in zip(size, pads[:2], pads[2:], kernel, strides, dilations, strict=True)
    )
    offset = (-pads[0], -pads[1])
    return Geometry(cin, cout, group, kernel, strides, dilations, offset, size, out)  # type: ignore[arg-type]


def chained(a: Geometry, b: Geometry) -> Geometry:
    """``b`` after ``a``, where the borders agree."""
    kernel, dilations = [], []
    for ka, da, sa, kb, db in zip(a.kernel, a.dilations, a.strides, b.kernel, b.dilations, strict=True):
        step = math.gcd(da if ka > 1 else 0, sa * db if kb > 1 else 0) or 1
        kernel.append(((ka - 1) * da + (kb - 1) * sa * db) // step + 1)
        dilations.append(step)
    return Geometry(
        a.cin,
        b.cout,
        math.gcd(a.group, b.group),
        (kernel[0], kernel[1]),
        (a.strides[0] * b.strides[0], a.strides[1] * b.strides[1]),
        (dilations[0], dilations[1]),
        (a.strides[0] * b.offset[0] + a.offset[0], a.strides[1] * b.offset[1] + a.offset[1]),
        a.size,
        b.out,
    )


def summed(terms: Sequence[Geometry]) -> Geometry:
    """The smallest convolution that has all taps of all ``terms``.

    Raises:
        Refused: Strides or output sizes differ.
    """
    first = terms[0]
    for other in terms[1:]:
        if other.cout != first.cout:
            raise Refused(f"the branches have {first.cout} and {other.cout} channels")
        if other.strides != first.strides:
            raise Refused(f"the branches' strides differ: {first.strides} and {other.strides}")
        if other.out != first.out:
            raise Refused(f"the branches' output sizes differ: {first.out} and {other.out}")
    kernel, dilations, offset = [], [], []
    for axis in (0, 1):
        start = min(t.offset[axis] for t in terms)
        end = max(t.offset[axis] + (t.kernel[axis] - 1) * t.dilations[axis] for t in terms)
        steps = [t.offset[axis] - start for t in terms]
        steps += [t.dilations[axis] for t in terms if t.kernel[axis] > 1]
        step = math.gcd(*steps) or 1
        offset.append(start)
        dilations.append(step)
        kernel.append((end - start) // step + 1)
    group = math.gcd(*(t.group for t in terms))
    return replace(
        first,
        group=group,
        kernel=(kernel[0], kernel[1]),
        dilations=(dilations[0], dilations[1]),
        offset=(offset[0], offset[1]),
    )
