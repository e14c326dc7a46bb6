"""What a float network's activations are like, gathered image by image in constant memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from repedge.calib.simulation.heap import give_back
from repedge.calib.structure import Layer, layers
from repedge.errors import UserError
from repedge.graph.attrs import ConvAttrs, conv_attrs
from repedge.graph.values import shape_of

if TYPE_CHECKING:
    import torch

RESERVOIR = 256
"""Images whose per-channel extremes are kept; beyond that a uniform random choice of all images."""
BINS = 2048
SAMPLE = 8192
"""Elements per image and tensor that go into a histogram."""
BLOCK = 1152
"""Greatest side of a covariance; the inputs of a wider filter are taken as independent blocks."""
COLUMNS = 2**21
"""Elements of the columns that a layer's groups are taken together up to: a depthwise 3x3 filter's are
nine times its input, and more would only leave the processor's cache."""


@dataclass
class TensorStats:
    """Statistics of one tensor over the images.

    Attributes:
        low, high: Least and greatest value of all.
        lows, highs: Per-image least and greatest value of each channel, float32 [images kept, C].
        histogram: Counts of ``BINS`` bins over [-edge, edge], or None if not asked for.
        edge: Half the histogram's width.
    """

    low: float = np.inf
    high: float = -np.inf
    lows: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    highs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    histogram: np.ndarray | None = None
    edge: float = 0.0

    @property
    def image_lows(self) -> np.ndarray:
        """Per-image minimum, [images kept]."""
        return self.lows.min(1)

    @property
    def image_highs(self) -> np.ndarray:
        """Per-image maximum, [images kept]."""
        return self.highs.max(1)

    @property
    def channel_magnitude(self) -> np.ndarray:
        """Mean over images of each channel's greatest magnitude, float64 [C]."""
        return np.maximum(np.abs(self.lows), np.abs(self.highs)).astype(np.float64).mean(0)

    def channel_quantile(self, q: float) -> np.ndarray:
        """Quantile over images of each channel's greatest magnitude, float64 [C]."""
        return np.quantile(np.maximum(np.abs(self.lows), np.abs(self.highs)).astype(np.float64), q, axis=0)

    def divided(self, factor: np.ndarray) -> TensorStats:
        """The statistics of the tensor divided by ``factor`` [C] > 0; the histogram is given up."""
        lows, highs = self.lows / factor, self.highs / factor
        low = min(self.low / factor.min(), float(lows.min())) if self.low >= 0 else float(lows.min())
        return TensorStats(low, float(highs.max()), lows.astype(np.float32), highs.astype(np.float32))


@dataclass
class Moments:
    """Mean and covariance of what a layer's filters read, over images and positions.

    Attributes:
        mean: float64 [groups, K], K = input channels per group times taps, as in the weight.
        cov: Covariances float32 [groups, k, k] of consecutive blocks of k <= ``BLOCK`` of the K inputs.
        count: Positions seen.
    """

    mean: np.ndarray
    cov: list[np.ndarray]
    count: int

    def divided(self, factor: np.ndarray) -> Moments:
        """The moments of the input divided by ``factor``, float64 [input channels]."""
        groups, k = self.mean.shape
        per_input = np.repeat(factor, groups * k // len(factor)).reshape(groups, k)
        blocks, start = [], 0
        for block in self.cov:
            f = per_input[:, start : start + block.shape[1]]
            blocks.append((block / (f[:, :, None] * f[:, None, :])).astype(np.float32))
            start += block.shape[1]
        return Moments(self.mean / per_input, blocks, self.count)


@dataclass
class Statistics:
    """All that `observe` found.

    Attributes:
        images: Images seen.
        tensors: Value name -> its statistics.
        moments: Layer name -> moments of its input.
    """

    images: int = 0
    tensors: dict[str, TensorStats] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)

    def divided(self, model: ir.Model, factors: Mapping[str, np.ndarray]) -> Statistics:
        """The statistics of ``model`` after its tensors were divided by the factors per channel."""
        tensors = {n: t.divided(factors[n]) if n in factors else t for n, t in self.tensors.items()}
        moments = dict(self.moments)
        for layer in layers(model):
            x = str(layer.x.name)
            if layer.name in moments and x in factors:
                moments[layer.name] = moments[layer.name].divided(factors[x])
        return Statistics(self.images, tensors, moments)


def observe(
    model: ir.Model,
    batches: Iterable[np.ndarray],
    *,
    histograms: bool = False,
    moments: int = 0,
    tensors: Collection[str] | None = None,
    seed: int = 0,
) -> Statistics:
    """Run the float graph on the images and gather statistics of its tensors.

    Memory is independent of the number of images: extremes are kept of at most ``RESERVOIR`` images
    (a uniform random choice), histograms and moments are sums.

    Args:
        model: A clean graph.
        batches: Images float32 [N, C, H, W].
        histograms: Whether to make histograms, which the percentile, MSE and entropy ranges need.
        moments: Number of images, from the first on, that means and covariances are taken over
            (rounding and bias correction need them). Layers that see one position per image, as those
            behind global pooling do, are cheap and need more: theirs are over all images.
        tensors: Names of those whose statistics are wanted; None for all. Others are only looked through
            for values that are not finite.
        seed: Of the random choice.

    Raises:
        UserError: No image, or an activation that is NaN or infinite (the first such node is named).
    """
    from repedge.calib.simulation.simulator import Simulator

    simulator = Simulator(model)
    watch = _Watch(model, histograms, seed)
    found = {la.name: _MomentSum(la) for la in layers(model)} if moments else {}
    values = [*model.graph.inputs, *(v for n in model.graph for v in n.outputs)]
    taps: dict[str, Any] = {
        str(v.name): watch.tap(v) if tensors is None or v.name in tensors else watch.glance(v)
        for v in values
        if v.dtype == ir.DataType.FLOAT
    }
    for batch in batches:
        watch.begin(len(batch))
        active = dict(taps)
        _attach(active, found, moments - watch.seen, len(batch))
        simulator.run(batch, active)
        watch.end()
    if watch.seen == 0:
        raise UserError("there are no calibration images to observe")
    result = watch.close()
    result.moments = {n: m.moments() for n, m in found.items() if m.count}
    give_back()
    return result


def _attach(taps: dict[str, Any], sums: Mapping[str, _MomentSum], left: int, batch: int) -> None:
    for m in sums.values():
        name = str(m.layer.x.name)
        limit = batch if m.single else left
        if limit > 0:
            taps[name] = _both(taps.get(name), m.add, limit, whole=limit >= batch)


def _both(first: Any, second: Any, limit: int, whole: bool) -> Any:
    def tap(x: torch.Tensor) -> None:
        if first is not None:
            first(x)
        second(x if whole else x[:limit])

    return tap


class _Watch:
    """Extremes and histograms of tensors as they pass by."""

    def __init__(self, model: ir.Model, histograms: bool, seed: int) -> None:
        self.result = Statistics()
        self.seen = 0
        self._histograms = histograms
        self._rng = np.random.default_rng(seed)
        self._writer = {str(v.name): n for n in model.graph for v in n.outputs}
        self._count = 0
        self._slots: list[int] = []
        self._taken: list[int] = []
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def begin(self, count: int) -> None:
        """Choose the places of the next images in the reservoir (-1: none)."""
        slots = {}
        for k, i in enumerate(range(self.seen, self.seen + count)):
            j = i if i < RESERVOIR else int(self._rng.integers(0, i + 1))
            if j < RESERVOIR:
                slots[j] = k  # of two for one place the later stays
        self._slots, self._taken = list(slots), list(slots.values())
        self._count = count

    def end(self) -> None:
        self.seen += self._count

    def close(self) -> Statistics:
        """What was found; the places that no image took are given back."""
        count = min(self.seen, RESERVOIR)
        for name, rows in self._kept.items():
            stats = self.result.tensors[name]
            stats.lows, stats.highs = (r if count == len(r) else r[:count].copy() for r in rows)
        self._kept.clear()
        self.result.images = self.seen
        return self.result

    def glance(self, value: ir.Value) -> Any:
        def see(x: torch.Tensor) -> None:
            self._check(str(value.name), *(float(e) for e in x.aminmax()))

        return see

    def tap(self, value: ir.Value) -> Any:
        name, shape = str(value.name), shape_of(value)
        stats = self.result.tensors.setdefault(name, TensorStats())
        # Whole and at once: rows added one by one would leave holes all over the heap.
        channels = shape[1] if len(shape) in (2, 4) else 1
        cells = int(np.prod(shape[2:] if len(shape) in (2, 4) else shape))
        size = (RESERVOIR, channels)
        rows = self._kept[name] = np.empty(size, np.float32), np.empty(size, np.float32)

        def see(x: torch.Tensor) -> None:
            flat = x.reshape(-1, channels, cells)  # rows of an image that lie on the first axis are joined
            lows = flat.amin(2).reshape(self._count, -1, channels).amin(1).numpy()
            highs = flat.amax(2).reshape(self._count, -1, channels).amax(1).numpy()
            low, high = float(lows.min()), float(highs.max())
            self._check(name, low, high)
            stats.low, stats.high = min(stats.low, low), max(stats.high, high)
            for kept, new in zip(rows, (lows, highs), strict=True):
                kept[self._slots] = new[self._taken]
            if self._histograms:
                _count(stats, x.reshape(self._count, -1))

        return see

    def _check(self, name: str, low: float, high: float) -> None:
        if np.isfinite(low) and np.isfinite(high):
            return
        node = self._writer.get(name)
        where = f"{node.op_type} node {node.name!r}" if node is not None else f"the input {name!r}"
        raise UserError(
            f"{where} gives NaN or infinite activations in float32; the network can't be calibrated as it is"
        )


def _count(stats: TensorStats, per_image: torch.Tensor) -> None:
    """Add a sample of the elements [N, ...] to the histogram, whose width doubles until they fit."""
    import torch

    step = max(1, per_image.shape[1] // SAMPLE)
    sample = per_image[:, ::step].reshape(-1)
    top = float(sample.abs().max())
    if stats.histogram is None:
        stats.histogram, stats.edge = np.zeros(BINS, np.float64), top or 1.0
    while top > stats.edge:
        middle = stats.histogram.reshape(-1, 2).sum(1)
        stats.histogram = np.zeros(BINS, np.float64)
        stats.histogram[BINS // 4 : 3 * BINS // 4] = middle
        stats.edge *= 2
    stats.histogram += torch.histc(sample, BINS, -stats.edge, stats.edge).double().numpy()


class _MomentSum:
    """Sums for the mean and covariance of a layer's input columns, about a fixed shift."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.count = 0
        self.single = int(np.prod(shape_of(layer.out)[2:])) == 1
        self._window: ConvAttrs | None = conv_attrs(layer.node) if layer.node.op_type == "Conv" else None
        self._together = 0
        self._parts: list[_Sums] = []

    def add(self, x: torch.Tensor) -> None:
        if self._window is None:
            if self.layer.node.op_type != "ConvTranspose" and self.layer.axis is not None:
                self._put(0, x.reshape(-1, x.shape[-1]).T[None].clone())
            return
        groups = self._window.group
        width = x.shape[1] // groups
        if not self._together:
            taps = self.layer.array[0, 0].size
            positions = int(np.prod(shape_of(self.layer.out)[2:])) * len(x)
            self._together = max(1, COLUMNS // (width * taps * positions))
        for i, first in enumerate(range(0, groups, self._together)):
            some = x[:, first * width : (first + self._together) * width]
            self._put(i, _columns(some, self._window, some.shape[1] // width))

    def _put(self, i: int, columns: torch.Tensor) -> None:
        """Add the columns [groups, K, positions] of the i-th lot of groups."""
        if i == len(self._parts):
            self._parts.append(_Sums(columns))
        self._parts[i].add(columns)
        if i == 0:
            self.count += columns.shape[2]

    def moments(self) -> Moments:
        found = [p.moments(self.count) for p in self._parts]
        blocks = [np.concatenate(b) for b in zip(*(b for _, b in found), strict=True)]
        return Moments(np.concatenate([m for m, _ in found]), blocks, self.count)


class _Sums:
    """Sums over the columns of some groups."""

    def __init__(self, columns: torch.Tensor) -> None:
        self._shift = columns.mean(2, keepdim=True)
        self._sum: Any = 0.0
        self._squares: list[torch.Tensor] = []

    def add(self, columns: torch.Tensor) -> None:
        """Add columns [groups, K, positions]; they are changed."""
        centred = columns.sub_(self._shift)
        self._sum = self._sum + centred.sum(2).double()
        for i, start in enumerate(range(0, centred.shape[1], BLOCK)):
            part = centred[:, start : start + BLOCK]
            square = part @ part.transpose(1, 2)
            if i == len(self._squares):
                self._squares.append(square)
            else:
                self._squares[i] += square

    def moments(self, count: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Mean and the blocks of the covariance."""
        mean = self._sum / count
        blocks, start = [], 0
        for square in self._squares:
            m = mean[:, start : start + square.shape[1], None]
            blocks.append((square.double() / count - m @ m.transpose(1, 2)).float().numpy())
            start += square.shape[1]
        return (mean + self._shift[:, :, 0].double()).numpy(), blocks


def _columns(x: torch.Tensor, window: ConvAttrs, groups: int) -> torch.Tensor:
    """What the filters of these groups read, [groups, K, positions], in memory of its own.

    Args:
        x: Their input channels, [N, C, H, W].
    """
    from repedge.calib.simulation.torch_ops import unfold

    n, c = x.shape[:2]
    plain = window.kernel == (1, 1) and not any(window.pads)
    sh, sw = window.strides
    result: torch.Tensor | None = None
    for i in range(n):
        one = x[i : i + 1, :, ::sh, ::sw] if plain else unfold(x[i : i + 1], window)
        one = one.reshape(groups, c // groups * (1 if plain else one.shape[2]), -1)
        if result is None:
            result = one.new_empty(*one.shape[:2], n, one.shape[2])
        result[:, :, i] = one
    assert result is not None
    return result.flatten(2)


def input_shape(model: ir.Model) -> tuple[int, ...]:
    """The network's input without its batch axis, [C, H, W]."""
    return shape_of(model.graph.inputs[0])[1:]
