"""The range of every quantized tensor: the rules, and the choice between them on the network's output."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from repedge.calib.distance import Distance
from repedge.calib.levels.plateaus import telling
from repedge.calib.plan import QuantPlan
from repedge.calib.simulation.heap import give_back
from repedge.calib.simulation.observe import BINS, Statistics, TensorStats
from repedge.calib.structure import place
from repedge.errors import UserError
from repedge.graph.values import const, shape_of
from repedge.passes.preprocess import PIXEL_MAX, takes_pixels
from repedge.scheme import QuantScheme

Range = tuple[float, float]


def _mean(t: TensorStats, levels: int) -> Range:
    return float(t.image_lows.mean(dtype=np.float64)), float(t.image_highs.mean(dtype=np.float64))


def _median(t: TensorStats, levels: int) -> Range:
    return float(np.median(t.image_lows)), float(np.median(t.image_highs))


def image_quantile(share: float) -> Callable[[TensorStats, int], Range]:
    """The range that covers the extremes of ``share`` of the images."""

    def rule(t: TensorStats, levels: int) -> Range:
        return float(np.quantile(t.image_lows, 1 - share)), float(np.quantile(t.image_highs, share))

    return rule


def _minmax(t: TensorStats, levels: int) -> Range:
    return t.low, t.high


def percentile(share: float) -> Callable[[TensorStats, int], Range]:
    """The range that holds ``share`` of all elements (half of the rest on either side)."""

    def rule(t: TensorStats, levels: int) -> Range:
        counts, edges = _histogram(t)
        part = np.cumsum(counts) / counts.sum()
        low = edges[int(np.searchsorted(part, (1 - share) / 2 if t.low < 0 else 0.0))]
        high = edges[min(int(np.searchsorted(part, (1 + share) / 2 if t.low < 0 else share)) + 1, BINS)]
        return max(float(low), t.low), min(float(high), t.high)

    return rule


def _mse(t: TensorStats, levels: int) -> Range:
    """The shrunk range with the least mean square error of rounding and clipping."""
    counts, edges = _histogram(t)
    centres = (edges[1:] + edges[:-1]) / 2
    return min(_shrunk(t), key=lambda r: float(counts @ _error(centres, r, levels) ** 2))


def _entropy(t: TensorStats, levels: int) -> Range:
    """The shrunk range with the least KL divergence of the histogram from its rounded self."""
    counts, edges = _histogram(t)
    centres = (edges[1:] + edges[:-1]) / 2
    zero = len(counts) // 2
    kept = counts.copy()
    kept[zero] = min(
        kept[zero], float(np.delete(kept, zero).max(initial=0))
    )  # a spike of exact zeros says nothing
    return min(_shrunk(t), key=lambda r: _divergence(kept, centres, r, levels))


RULES: dict[str, Callable[[TensorStats, int], Range]] = {
    "mean": _mean,
    "median": _median,
    "q75": image_quantile(0.75),
    "q90": image_quantile(0.9),
    "minmax": _minmax,
    "p99.9": percentile(0.999),
    "p99.99": percentile(0.9999),
    "mse": _mse,
    "entropy": _entropy,
}
"""Name -> rule. ``mean``, ``median`` and ``q75``, ``q90`` are over images, of the per-image extremes."""

PER_IMAGE = frozenset({"mean", "median", "q75", "q90"})
NEED_HISTOGRAMS = frozenset({"p99.9", "p99.99", "mse", "entropy"})


def ranges(
    model: ir.Model,
    stats: Statistics,
    scheme: QuantScheme,
    *,
    rule: str = "mean",
    factor: float = 1.0,
    float_nodes: Collection[str] = (),
    plan: QuantPlan | None = None,
) -> QuantPlan:
    """Give every quantized tensor its scale and zero point by one rule.

    A network's outputs keep their full range (clipping a logit changes the class), a tensor that is
    never negative starts at 0, tensors that are tied get the hull of their ranges.

    Args:
        model: The graph that ``stats`` is of.
        stats: By `observe`; with histograms where the rule needs them.
        scheme: The target's rules.
        rule: One of `RULES`.
        factor: Widens (> 1) or narrows all ranges but those of outputs and constants.
        float_nodes: Names of nodes that stay in float32.
        plan: A plan to change in place; a new one is made if there is none.

    Returns:
        The plan.

    Raises:
        UserError: An unknown rule, or missing histograms.
    """
    if rule not in RULES:
        raise UserError(f"there is no range rule {rule!r}; choose from {', '.join(RULES)}")
    plan = QuantPlan(scheme=scheme) if plan is None else plan
    placement = place(model, scheme, float_nodes)
    pixels, image = takes_pixels(model), str(model.graph.inputs[0].name)
    levels = scheme.limits()[1] - scheme.limits()[0] if not scheme.weights_only else 0
    plan.tensors = {}
    for root, names in placement.groups().items():
        ties = {n: (None if n == root else root) for n in names}
        fixed = scheme.fixed.get(placement.fixed.get(root, ""))
        if fixed is not None:
            low, high = scheme.range_of(fixed.scale, fixed.zero_point)
            plan.set_range(ties, low, high, f"laid down for {placement.fixed[root]}")
            for n in names:
                plan.tensors[n].scale, plan.tensors[n].zero_point = fixed.scale, fixed.zero_point
            continue
        found = [_one(placement.values[n], n == image and pixels, stats, rule, factor, levels) for n in names]
        why = max((w for _, _, w in found), key=len)
        plan.set_range(ties, min(f[0] for f in found), max(f[1] for f in found), why)
    return plan


def _one(
    value: ir.Value, pixels: bool, stats: Statistics, rule: str, factor: float, levels: int
) -> tuple[float, float, str]:
    array = const(value)
    if array is not None:
        return float(array.min()), float(array.max()), "values of a constant"
    if pixels:
        return 0.0, PIXEL_MAX, "pixels"  # whatever these photos hold; of scale 1, for 8 bits
    t = stats.tensors[str(value.name)]
    if value.is_graph_output() or value.is_graph_input():
        return t.low, t.high, "least and greatest value of all images"
    if _cells(value) == 1:
        return t.low, t.high, "least and greatest value of all images (one cell)"
    low, high = RULES[rule](t, levels)
    low = 0.0 if t.low >= 0 else low
    low, high = telling(value, low, high, levels)
    text = f"{rule} of per-image extremes" if rule in PER_IMAGE else rule
    return low * factor, high * factor, text + (f" x {factor:g}" if factor != 1 else "")


def _cells(value: ir.Value) -> int:
    """Numbers per channel and image; where there is one, its extremes are the signal, not outliers."""
    shape = shape_of(value)
    return int(np.prod(shape[2:]))


Candidate = tuple[str, float]
CANDIDATES: tuple[Candidate, ...] = (("mean", 1.0), ("median", 1.0), ("q90", 1.0), ("minmax", 1.0))


def choose_ranges(
    model: ir.Model,
    stats: Statistics,
    scheme: QuantScheme,
    batches: Callable[[], Iterable[np.ndarray]],
    *,
    distance: Distance | None = None,
    candidates: Sequence[Candidate] = CANDIDATES,
    float_nodes: Collection[str] = (),
    plan: QuantPlan | None = None,
) -> tuple[QuantPlan, dict[str, float]]:
    """`ranges` with the rule whose rounding of activations changes the network's output least.

    The measure is `Distance.cost`, with float32 weights: a local error would protect outliers that do not
    matter to the outputs.

    Args:
        batches: Gives the images, float32 [N, C, H, W], anew at each call.
        distance: Of the network's answers; None: by what its outputs say they are.
        candidates: (rule, factor) to choose from.

    Returns:
        The plan, and every candidate's measure.
    """
    from repedge.calib.simulation.simulator import Simulator

    distance = distance or Distance.of(model)
    reference = Simulator(model).answers(batches())
    found: dict[str, float] = {}
    best: tuple[float, Candidate] | None = None
    for rule, factor in candidates:
        trial = ranges(model, stats, scheme, rule=rule, factor=factor, float_nodes=float_nodes)
        cost = distance.cost(reference, Simulator(model, trial, weights=False).answers(batches()))
        found[f"{rule} x {factor:g}"] = cost
        if best is None or cost < best[0]:
            best = (cost, (rule, factor))
    give_back()
    assert best is not None
    rule, factor = best[1]
    return ranges(model, stats, scheme, rule=rule, factor=factor, float_nodes=float_nodes, plan=plan), found


def _histogram(t: TensorStats) -> tuple[np.ndarray, np.ndarray]:
    if t.histogram is None:
        raise UserError(
            "this range rule needs histograms; observe with histograms=True (and after equalizing)"
        )
    return t.histogram, np.linspace(-t.edge, t.edge, len(t.histogram) + 1)


def _shrunk(t: TensorStats) -> list[Range]:
    return [(t.low * k, t.high * k) for k in np.geomspace(0.02, 1.0, 80)]


def _error(x: np.ndarray, r: Range, levels: int) -> np.ndarray:
    return _rounded(x, r, levels) - x


def _rounded(x: np.ndarray, r: Range, levels: int) -> np.ndarray:
    low, high = min(r[0], 0.0), max(r[1], 0.0)
    step = max((high - low) / levels, 1e-30)
    return np.clip(np.round(x / step) * step, low, high)


def _divergence(counts: np.ndarray, centres: np.ndarray, r: Range, levels: int) -> float:
    q = np.round(
        _rounded(centres, r, levels) / max((max(r[1], 0.0) - min(r[0], 0.0)) / levels, 1e-30)
    ).astype(int)
    q -= q.min()
    mass, filled = np.bincount(q, counts), np.bincount(q, counts > 0)
    smooth = np.where(counts > 0, mass[q] / np.maximum(filled[q], 1), 0.0)
    on = counts > 0
    inside = (centres >= r[0]) & (centres <= max(r[1], 0.0))
    clipped = counts[~inside].sum() / counts.sum()
    p = counts[on] / counts.sum()
    s = np.maximum(smooth[on], 1e-12) / counts.sum()
    return float((p * np.log(p / s)).sum() + clipped)
