"""What is looked at in every layer, and from where on it is a worry. One row of the heat map each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from repedge.diagnosis.layers import LayerDiagnosis

Value = Callable[[LayerDiagnosis], float | None]


@dataclass(frozen=True)
class Metric:
    """One number per layer.

    Attributes:
        key: Unique name.
        group: Heading it stands under.
        title: A few words.
        what: One sentence for the reader.
        value: Reads it off a layer; None where there is none.
        calm, alarm: Values of the two ends of the colour scale; beyond them the colour stays.
        log: Whether the scale between is logarithmic.
        text: Writes a value.
    """

    key: str
    group: str
    title: str
    what: str
    value: Value
    calm: float
    alarm: float
    log: bool
    text: Callable[[float], str]

    def heat(self, value: float) -> float:
        """0 (calm) to 1 (alarm)."""
        if self.log:
            value, low, high = (math.log(max(v, 1e-12)) for v in (value, self.calm, self.alarm))
        else:
            low, high = self.calm, self.alarm
        return min(1.0, max(0.0, (value - low) / (high - low)))


def times(v: float) -> str:
    """A factor."""
    return f"{v:.1f}x" if v < 9.95 else f"{v:.0f}x"


def decibels(v: float) -> str:
    """A ratio in dB."""
    return f"{v:.0f} dB"


def percent(v: float) -> str:
    """A share."""
    return f"{v:.0%}" if v == 0 or v >= 0.01 else f"{v:.1%}"


def cost(v: float) -> str:
    """A cost at the output: KL divergence in nats, mostly."""
    if v < 1e-7:
        return "0"
    return f"{v:.0e}".replace("e-0", "e-") if v < 0.01 else f"{v:.2g}"


METRICS: tuple[Metric, ...] = (
    Metric(
        "growth", "merging", "range growth",
        "Range of the merged kernel over that of its widest branch, median channel: each doubling takes a "
        "bit from the branch.",
        lambda la: la.growth, 1, 32, True, times,
    ),
    Metric(
        "centre", "merging", "centre over ring",
        "Largest centre tap over the largest other tap, median channel: the scale is set by one tap.",
        lambda la: la.weights.centre_to_ring, 1, 32, True, times,
    ),
    Metric(
        "spread", "weights", "channel spread, weights",
        "Largest over median range of the output channels: what one scale for all would have to span.",
        lambda la: la.weights.channel_spread, 1, 32, True, times,
    ),
    Metric(
        "sqnr", "weights", "rounding, scale per channel",
        "Signal to rounding noise of the weights, to nearest, one scale per output channel.",
        lambda la: la.weights.sqnr_db, 45, 20, False, decibels,
    ),
    Metric(
        "sqnr_tensor", "weights", "rounding, one scale",
        "The same with one scale for the whole weight, as some tools and accelerators do.",
        lambda la: la.weights.sqnr_per_tensor_db, 45, 20, False, decibels,
    ),
    Metric(
        "outlier", "activations", "outlier images",
        "In what it reads: largest value of any image over the mean of the images' largest: a range for the "
        "one wastes the rest.",
        lambda la: la.reads.outlier if la.reads else None, 1, 6, True, times,
    ),
    Metric(
        "channels", "activations", "channel spread, values",
        "In what it reads: largest over median range of the channels, which share one scale: quiet "
        "channels are left with few levels.",
        lambda la: la.reads.channel_spread if la.reads else None, 1, 32, True, times,
    ),
    Metric(
        "dead", "activations", "dead channels",
        "Output channels of the layer that never change: they cost time and may overflow an integer bias.",
        lambda la: la.dead / max(la.channels, 1), 0, 0.3, False, percent,
    ),
    Metric(
        "stock", "cost at the output", "stock calibration",
        "What the output loses (KL divergence, mostly) when this layer alone is in integers: least and "
        "greatest value, nearest rounding.",
        lambda la: la.cost_stock, 1e-5, 1e-1, True, cost,
    ),
    Metric(
        "cost", "cost at the output", "with the recipe",
        "The same with what repedge would do about it.",
        lambda la: la.cost, 1e-5, 1e-1, True, cost,
    ),
)  # fmt: skip
"""In the order of the heat map's rows."""

BY_KEY = {m.key: m for m in METRICS}


@dataclass(frozen=True)
class Deed:
    """Something that the recipe may do with a layer.

    Attributes:
        title: A few words.
        done: What was done, in words; None where it was not.
    """

    title: str
    done: Callable[[LayerDiagnosis], str | None]


def equalized(la: LayerDiagnosis) -> str | None:
    """What equalization did to the layer's output channels."""
    factors = la.treatment.equalized if la.treatment else None
    return None if factors is None else f"output channels divided by {factors[0]:.2g} to {factors[1]:.2g}"


def clipped(la: LayerDiagnosis) -> str | None:
    """How much narrower the range of what it reads is than all that was seen."""
    t = la.treatment
    if t is None or t.range is None or la.reads is None:
        return None
    full = max(abs(la.reads.low), abs(la.reads.high))
    kept = max(abs(t.range[0]), abs(t.range[1]))
    return None if kept >= 0.97 * full else f"outliers clipped: {kept:.3g} of {full:.3g} ({t.range_rule})"


def rounded(la: LayerDiagnosis) -> str | None:
    """How the weights are rounded where that is better than to nearest."""
    how = la.treatment.rounding if la.treatment else None
    return None if how in (None, "nearest") else f"weights rounded by {how}"


def corrected(la: LayerDiagnosis) -> str | None:
    """How the bias is corrected."""
    t = la.treatment
    return None if t is None or t.bias is None else f"bias corrected ({t.bias}) by {t.bias_rms:.2g} rms"


def left_float(la: LayerDiagnosis) -> str | None:
    """Why it stays float32."""
    return la.treatment.float_why if la.treatment else None


DEEDS: tuple[Deed, ...] = (
    Deed("equalized", equalized),
    Deed("range clipped", clipped),
    Deed("rounded by error", rounded),
    Deed("bias corrected", corrected),
    Deed("stays float32", left_float),
)


def treatment_words(la: LayerDiagnosis) -> str:
    """What will be done about a layer, in a line."""
    t = la.treatment
    if t is None:
        return ""
    if t.float_why is not None:
        return f"float32: {t.float_why}"
    words = []
    if t.equalized:
        words.append("equalized")
    if t.range_rule:
        words.append(f"range {_short(t.range_rule)}")
    if t.rounding:
        words.append(t.rounding)
    if t.bias:
        words.append("bias")
    return ", ".join(words)


def _short(rule: str) -> str:
    rule = rule.replace(" of per-image extremes", "").replace(" (one cell)", "")
    return rule.replace("least and greatest value of all images", "full").replace(
        "values of a constant", "full"
    )
