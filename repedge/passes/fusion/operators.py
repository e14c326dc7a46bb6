"""The linear operators with their constants: as convolutions, and evaluated by their definitions.

`Op.kernel` is the algebra's side, `Op.run` the side that the algebra is checked against; neither uses
the other. All arithmetic is float64. Source: the ONNX operator specification, opset 20.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from repedge.passes.fusion.geometry import Geometry, Pads, Pair, pointwise, windowed

Kernel = tuple[np.ndarray, np.ndarray]
"""Weight [O, I / group, kh, kw] and bias [O], float64."""


@dataclass(frozen=True, eq=False)
class Op:
    """One linear operator with its constants.

    Attributes:
        name: The node's name.
        type: The node's operator type, for sentences.
    """

    name: str
    type: str

    @property
    def border(self) -> float | np.ndarray:
        """What the operator sees outside of the map: a number, or one per channel."""
        return 0.0

    def geometry(self, channels: int, size: Pair) -> Geometry:
        """The operator as a convolution of a map [channels, *size]."""
        raise NotImplementedError

    def cost(self, geometry: Geometry) -> int:
        """Multiply-accumulates that the operator takes as it stands."""
        return geometry.macs

    def kernel(self, channels: int) -> Kernel:
        """Weight and bias of the equal convolution; the arrays are the caller's to change."""
        raise NotImplementedError

    def run(self, x: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        """Evaluate on x [C, H, W], output channels ``rows`` only (None: all)."""
        raise NotImplementedError

    def select(self, rows: np.ndarray) -> Op:
        """The same depthwise operator for the channels ``rows`` alone."""
        return self


@dataclass(frozen=True, eq=False)
class Conv(Op):
    """Conv, Gemm and MatMul: weight [O, I / group, kh, kw] and bias [O] or None, in the graph's dtype."""

    weight: np.ndarray
    bias: np.ndarray | None
    group: int = 1
    strides: Pair = (1, 1)
    dilations: Pair = (1, 1)
    pads: Pads = (0, 0, 0, 0)

    def geometry(self, channels: int, size: Pair) -> Geometry:
        shape = self.weight.shape
        return windowed(
            channels, shape[0], self.group, shape[2:], self.strides, self.dilations, self.pads, size
        )

    def kernel(self, channels: int) -> Kernel:
        bias = np.zeros(len(self.weight)) if self.bias is None else self.bias.astype(np.float64)
        return self.weight.astype(np.float64, order="C"), bias

    def select(self, rows: np.ndarray) -> Op:
        bias = None if self.bias is None else self.bias[rows]
        return replace(self, weight=self.weight[rows], bias=bias, group=len(rows))

    def run(self, x: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        return convolve(x, self.weight, self.bias, self.group, self.strides, self.dilations, self.pads, rows)


@dataclass(frozen=True, eq=False)
class Affine(Op):
    """``x * scale + shift`` per channel: BatchNormalization in eval mode, Mul, Add, ... by constants."""

    scale: np.ndarray
    shift: np.ndarray

    def geometry(self, channels: int, size: Pair) -> Geometry:
        return pointwise(channels, size)

    def kernel(self, channels: int) -> Kernel:
        return self.scale.reshape(-1, 1, 1, 1).copy(), self.shift.copy()

    def select(self, rows: np.ndarray) -> Op:
        return replace(self, scale=self.scale[rows], shift=self.shift[rows])

    def run(self, x: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        chosen = slice(None) if rows is None else rows
        return x[chosen] * self.scale[chosen, None, None] + self.shift[chosen, None, None]


@dataclass(frozen=True, eq=False)
class Pool(Op):
    """AveragePool whose windows all count the same number of cells."""

    window: Pair
    strides: Pair
    dilations: Pair
    pads: Pads

    def geometry(self, channels: int, size: Pair) -> Geometry:
        return windowed(
            channels, channels, channels, self.window, self.strides, self.dilations, self.pads, size
        )

    def kernel(self, channels: int) -> Kernel:
        return np.full((channels, 1, *self.window), 1 / math.prod(self.window)), np.zeros(channels)

    def run(self, x: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        x = _padded(x if rows is None else x[rows], self.pads, 0.0)
        views = list(_taps(x, self.window, self.strides, self.dilations))
        return np.mean([v for _, v in views], axis=0)


@dataclass(frozen=True, eq=False)
class Pad(Op):
    """Pad of rows and columns with a constant, or with one per channel."""

    pads: Pads
    value: float | np.ndarray = 0.0

    @property
    def border(self) -> float | np.ndarray:
        return self.value

    def select(self, rows: np.ndarray) -> Op:
        return replace(self, value=self.value[rows]) if isinstance(self.value, np.ndarray) else self

    def geometry(self, channels: int, size: Pair) -> Geometry:
        return windowed(channels, channels, channels, (1, 1), (1, 1), (1, 1), self.pads, size)

    def cost(self, geometry: Geometry) -> int:
        return 0

    def kernel(self, channels: int) -> Kernel:
        return np.ones((channels, 1, 1, 1)), np.zeros(channels)

    def run(self, x: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        if rows is not None:
            return self.select(rows).run(x[rows], None)
        if isinstance(self.value, np.ndarray):
            around = self.value[:, None, None]
            return _padded(x - around, self.pads, 0.0) + around
        return _padded(x, self.pads, self.value)


def convolve(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, group: int, strides: Pair,
    dilations: Pair, pads: Pads, rows: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """ONNX Conv of x [C, H, W] by the definition, in float64, for output channels ``rows`` only."""
    rows = np.arange(len(weight)) if rows is None else rows
    x = _padded(x, pads, 0.0)
    per_out, per_in = len(weight) // group, weight.shape[1]
    total: np.ndarray | None = None
    if per_in == 1:  # depthwise: one product per tap instead of one per channel
        own = x[rows // per_out]
        for (ty, tx), view in _taps(own, weight.shape[2:], strides, dilations):  # type: ignore[arg-type]
            part = weight[rows, 0, ty, tx].astype(np.float64)[:, None, None] * view
            total = part if total is None else total + part
        rest = np.zeros(0, int)
    else:
        rest = np.unique(rows // per_out)
    for number in rest:
        mine = np.flatnonzero(rows // per_out == number)
        block = weight[rows[mine]].astype(np.float64, copy=False)
        own = x[number * per_in : (number + 1) * per_in]
        for (ty, tx), view in _taps(own, weight.shape[2:], strides, dilations):  # type: ignore[arg-type]
            if total is None:
                total = np.zeros((len(rows), *view.shape[1:]))
            total[mine] += np.tensordot(block[:, :, ty, tx], view, 1)
    assert total is not None, "a convolution has an output channel and a tap"
    return total if bias is None else total + bias[rows].astype(np.float64)[:, None, None]


def _padded(x: np.ndarray, pads: Pads, value: float) -> np.ndarray:
    widths = ((0, 0), (pads[0], pads[2]), (pads[1], pads[3]))
    return np.pad(x, widths, constant_values=value) if any(pads) else x


def _taps(
    x: np.ndarray, kernel: Sequence[int], strides: Pair, dilations: Pair
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """((row, column) of a tap, what all windows see through it [C, out_h, out_w]) of x [C, H, W]."""
    last = [
        (n - (k - 1) * d - 1) // s * s
        for n, k, s, d in zip(x.shape[1:], kernel, strides, dilations, strict=True)
    ]
    for tap in np.ndindex(tuple(kernel)):
        y, c = tap[0] * dilations[0], tap[1] * dilations[1]
        yield tap, x[:, y : y + last[0] + 1 : strides[0], c : c + last[1] + 1 : strides[1]]
