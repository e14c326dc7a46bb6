"""What a layer's weights are like, before they are rounded: kernels with a peak, channels that differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repedge.calib.structure import Layer
from repedge.calib.weights.rounding import nearest
from repedge.diagnosis.merging import NEGLIGIBLE


@dataclass(frozen=True)
class WeightFacts:
    """A layer's weights in the float graph.

    Attributes:
        kernel: (height, width); (1, 1) for a fully connected layer.
        taps: Root mean square of each tap over the channels, relative to the greatest; None for 1x1.
        centre_to_ring: ``max |centre tap| / max |other taps|`` of each output channel, the median;
            None where there is no centre or no ring.
        centre_to_ring_worst: The greatest.
        channel_spread: Greatest over median ``max |w|`` of the output channels.
        sqnr_db: Signal to rounding noise, one scale per output channel, dB.
        sqnr_per_tensor_db: The same with one scale for all.
    """

    kernel: tuple[int, int]
    taps: tuple[tuple[float, ...], ...] | None
    centre_to_ring: float | None
    centre_to_ring_worst: float | None
    channel_spread: float
    sqnr_db: float
    sqnr_per_tensor_db: float


def kind(layer: Layer) -> str:
    """What sort of layer it is, in a word."""
    if layer.node.op_type == "ConvTranspose":
        return "transposed"
    if layer.node.op_type != "Conv":
        return "fully connected"
    if layer.depthwise:
        return "depthwise"
    if layer.array.shape[2:] == (1, 1):
        return "pointwise"
    return "grouped" if layer.groups > 1 else "dense"


def weight_facts(layer: Layer) -> WeightFacts:
    """Look at a layer's weights."""
    rows, kernel = weight_rows(layer)
    largest = peaks(rows)
    taps, ratios = None, np.zeros(0)
    if kernel != (1, 1):
        rms = np.sqrt((rows**2).mean((0, 1)))
        taps = tuple(tuple(float(v) for v in row) for row in rms / max(float(rms.max()), 1e-30))
        ratios = _centre_to_ring(np.abs(rows))
    return WeightFacts(
        kernel=kernel,
        taps=taps,
        centre_to_ring=float(np.median(ratios)) if len(ratios) else None,
        centre_to_ring_worst=float(ratios.max()) if len(ratios) else None,
        channel_spread=spread_of(largest),
        sqnr_db=_rounding_sqnr(rows, largest),
        sqnr_per_tensor_db=_rounding_sqnr(rows, np.full_like(largest, largest.max(initial=0.0))),
    )


def weight_rows(layer: Layer) -> tuple[np.ndarray, tuple[int, int]]:
    """Weights as float64 [output channels, inputs, kh, kw] and the kernel."""
    w = layer.array.astype(np.float64)
    if w.ndim == 4:
        if layer.node.op_type == "ConvTranspose":  # [I, O / groups, kh, kw]
            g = layer.groups
            split = w.reshape(g, w.shape[0] // g, *w.shape[1:])
            w = split.swapaxes(1, 2).reshape(-1, split.shape[1], *w.shape[2:])
        return w, (w.shape[2], w.shape[3])
    if w.ndim == 2:
        return (w if layer.axis == 0 else w.T)[:, :, None, None], (1, 1)
    return w.reshape(1, -1, 1, 1), (1, 1)


def peaks(rows: np.ndarray) -> np.ndarray:
    """Greatest magnitude of each row, [O]."""
    return np.abs(rows).reshape(len(rows), -1).max(1)


def _centre_to_ring(size: np.ndarray) -> np.ndarray:
    """The ratio of each channel that has both; empty for kernels without a centre."""
    kh, kw = size.shape[2:]
    if kh % 2 == 0 or kw % 2 == 0:
        return np.zeros(0)
    centre = size[:, :, kh // 2, kw // 2].max(1)
    ring = size.copy()
    ring[:, :, kh // 2, kw // 2] = 0
    around = peaks(ring)
    on = around > NEGLIGIBLE * size.max(initial=0.0)
    return centre[on] / around[on]


def spread_of(sizes: np.ndarray) -> float:
    """Greatest over median of the channels that are not dead; 1 where all are."""
    alive = sizes[sizes > NEGLIGIBLE * sizes.max(initial=0.0)]
    return float(alive.max() / np.median(alive)) if len(alive) else 1.0


def _rounding_sqnr(rows: np.ndarray, largest: np.ndarray, limit: int = 127) -> float:
    """dB, capped at 200, of rounding to nearest with these greatest magnitudes."""
    scale = np.where(largest > 0, largest, 1.0)[:, None, None, None] / limit
    noise = float(((nearest(rows, scale, limit) * scale - rows) ** 2).sum())
    signal = float((rows**2).sum())
    return 200.0 if noise == 0 else float(min(200.0, 10 * np.log10(signal / noise)))
