"""The steps that recipes are made of, by name, and what they hand on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.calib.distance import Distance
from repedge.calib.levels.ranges import NEED_HISTOGRAMS, choose_ranges, ranges
from repedge.calib.plan import QuantPlan
from repedge.calib.simulation.observe import Statistics, observe
from repedge.calib.structure import layers, place
from repedge.calib.weights.bias import correct_bias, correct_bias_at_once
from repedge.calib.weights.equalize import equalize, pairs
from repedge.calib.weights.rounding import round_weights
from repedge.errors import UserError
from repedge.graph.analysis.decoding import last_layers
from repedge.graph.count import macs_of
from repedge.photos.feed import Feed
from repedge.scheme import QuantScheme

FRONTIER = 512 * 2**20
"""Bytes of activations that a walk over many images side by side may take."""


def affordable(model: ir.Model) -> int:
    """How many images may be walked side by side within `FRONTIER` bytes."""
    largest = max(
        int(np.prod(v.shape.numpy())) for n in model.graph for v in n.outputs if v.shape is not None
    )
    return max(4, FRONTIER // (3 * 4 * largest))


@dataclass
class CalibrationState:
    """What the steps hand on.

    Attributes:
        reference: The float graph, equalized once that is done.
        model: The graph that is worked on; None until weights are rounded.
        plan: Every decision so far.
        feed: The calibration images.
        distance: Of the network's answers from the float one's.
        stats: Of ``reference``; None before `observe`.
        seconds: Step -> processor seconds.
    """

    reference: ir.Model
    plan: QuantPlan
    feed: Feed
    distance: Distance
    model: ir.Model | None = None
    stats: Statistics | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def scheme(self) -> QuantScheme:
        """The target's rules."""
        return self.plan.scheme

    def batches(self, count: int | None) -> Callable[[], Iterable[np.ndarray]]:
        """Gives ``count`` images (None: all), anew at each call."""
        return lambda: self.feed.batches(count)

    def observed(self) -> Statistics:
        """The statistics.

        Raises:
            UserError: Nothing was observed yet.
        """
        if self.stats is None:
            raise UserError("the recipe has no observe step ahead of the steps that need statistics")
        return self.stats

    def rounded(self) -> ir.Model:
        """The graph with rounded weights.

        Raises:
            UserError: Weights are not rounded yet.
        """
        if self.model is None:
            raise UserError("the recipe has no round step ahead of the steps that correct or refine")
        return self.model


def _observe(c: CalibrationState, images: int | None = None, moments: int = 64) -> None:
    c.stats = observe(c.reference, c.feed.batches(images), moments=moments, tensors=_told_apart(c))


def _told_apart(c: CalibrationState) -> set[str]:
    """The tensors that ranges or factors are chosen for: not those between a layer and its activation."""
    placed = place(c.reference, c.scheme, c.plan.float_nodes).values
    return {*placed, *(str(p.between[-1].name) for p in pairs(c.reference))}


def _equalize(
    c: CalibrationState,
    alphas: Sequence[Sequence[float]] = ((0.5, 0.25, 1.0),),
    quantile: float | None = 0.9,
    images: int = 16,
) -> None:
    """Of several ``alphas``, takes the best at the output.

    Each is (alpha, weights) or (alpha, weights, depthwise) of `equalize`.
    """
    if c.scheme.weights_only:
        return
    stats, before = c.observed(), c.reference
    best: tuple[float, ir.Model, dict[str, np.ndarray], str] | None = None
    costs = []
    for alpha, weights, *more in alphas:
        depthwise = (more or [alpha])[0]
        model, factors = equalize(
            before, stats, alpha=alpha, weights=weights, depthwise=depthwise, quantile=quantile
        )
        name = f"({', '.join(f'{v:g}' for v in (alpha, weights, *more))})"
        cost = 0.0
        if len(alphas) > 1:
            cost = min(_try_ranges(c, model, stats.divided(model, factors), images).values())
            costs.append(f"{name}: {cost:.4g}")
        if best is None or cost < best[0]:
            best = (cost, model, factors, name)
    assert best is not None
    _, c.reference, factors, taken = best
    c.stats = stats.divided(c.reference, factors)
    _keep_factors(c, factors)
    if costs:
        c.plan.notes.append(f"equalization {taken} by its cost at the output: {', '.join(costs)}")


def _protect(c: CalibrationState, images: int = 8, **options: Any) -> None:
    from repedge.calib.mixed.protect import protect

    if c.scheme.weights_only:
        return
    before = c.scheme
    batches = c.feed.chosen(c.feed.spread(min(images, len(c.feed))))
    found = protect(
        c.reference, c.observed(), c.scheme, batches, c.distance, float_nodes=c.plan.float_nodes, **options
    )
    c.reference, c.stats, c.plan.scheme = found.model, found.stats, found.scheme
    for name, factors in found.factors.items():
        c.plan.equalization[name] = [float(v) for v in factors]
    c.plan.float_nodes.update(dict.fromkeys(found.nodes, "around a tensor that 8 bits would ruin"))
    if found.after < found.before:
        c.plan.notes.append(
            f"rounding all activations costs {found.before:.4g} by slopes; {found.after:.4g} with channels "
            f"behind {len(found.factors)} layers evened out and {len(found.nodes)} nodes in float"
            + (", and zero points of their own" if found.scheme.centred != before.centred else "")
        )


def _keep_factors(c: CalibrationState, factors: Mapping[str, np.ndarray]) -> None:
    """Into the plan, times those of earlier steps."""
    outs = {str(la.out.name) for la in layers(c.reference)}
    for name in sorted(outs & factors.keys()):
        before = np.array(c.plan.equalization.get(name, 1.0))
        c.plan.equalization[name] = [float(v) for v in before * factors[name]]


def _learn_levels(c: CalibrationState, held_out: int = 24, **options: Any) -> None:
    from repedge.calib.levels.learned import learn_levels

    if c.scheme.weights_only or len(c.feed) < 2 * held_out:
        return
    held = c.feed.spread(held_out)
    train = [i for i in range(len(c.feed)) if i not in set(held)]
    found = learn_levels(
        c.reference, c.observed(), c.plan, c.feed.chosen, train, held, distance=c.distance, **options
    )
    model, factors, plan, costs = found
    if not costs:
        return
    if factors or plan is not c.plan:
        c.stats = c.observed().divided(model, factors)
        c.reference, c.plan = model, plan
        _keep_factors(c, factors)
    c.plan.notes.append(
        f"levels learned: cost on held-out images {costs['before']:.4g}, then {costs['after']:.4g}"
        + ("" if costs["after"] < costs["before"] else ": given up")
    )


def _try_ranges(c: CalibrationState, model: ir.Model, stats: Statistics, images: int) -> dict[str, float]:
    both = (("mean", 1.0), ("minmax", 1.0))
    nodes = c.plan.float_nodes
    return choose_ranges(
        model, stats, c.scheme, c.batches(images), candidates=both, float_nodes=nodes, distance=c.distance
    )[1]


def _ranges(c: CalibrationState, rule: str = "mean", factor: float = 1.0, images: int | None = None) -> None:
    stats = c.observed()
    if rule in NEED_HISTOGRAMS:
        stats = observe(c.reference, c.feed.batches(images), histograms=True, tensors=_told_apart(c))
    ranges(
        c.reference, stats, c.scheme, rule=rule, factor=factor, float_nodes=c.plan.float_nodes, plan=c.plan
    )


def _choose_ranges(
    c: CalibrationState, rules: Sequence[str] = ("mean", "median", "q90", "minmax"), images: int = 32
) -> None:
    if c.scheme.weights_only:
        return
    candidates = tuple((str(rule), 1.0) for rule in rules)
    stats = c.observed()
    if any(rule in NEED_HISTOGRAMS for rule, _ in candidates):
        few = c.feed.batches(2 * images)
        stats = observe(c.reference, few, histograms=True, tensors=_told_apart(c))
    batches = c.batches(images)
    kept: dict[str, Any] = {"float_nodes": c.plan.float_nodes, "plan": c.plan, "distance": c.distance}
    _, costs = choose_ranges(c.reference, stats, c.scheme, batches, candidates=candidates, **kept)
    text = ", ".join(f"{k}: {v:.4g}" for k, v in costs.items())
    c.plan.notes.append(f"ranges by their cost at the output: {text}")


def _round(c: CalibrationState, method: Any = "closed-form", steps: int = 500) -> None:
    """``steps`` are those of ``adaround``."""
    nodes = [n for n, why in c.plan.float_nodes.items() if why != HEAD]
    c.model = round_weights(
        c.reference, c.plan, c.scheme, c.stats, method=method, steps=steps, float_nodes=nodes
    )


def _tune(
    c: CalibrationState, factors: Sequence[float] = (0.85, 1.2), margin: float = 0.003, images: int = 64
) -> None:
    from repedge.calib.levels.search import tune_ranges

    if c.scheme.weights_only:
        return
    few = c.batches(min(images, affordable(c.reference)))
    taken = tune_ranges(
        c.rounded(), c.reference, c.plan, few, distance=c.distance, factors=factors, margin=margin
    )
    c.plan.notes.append(f"ranges of {len(taken)} tensors tuned at the output")


def _correct_bias(
    c: CalibrationState, images: int = 64, activations: bool = False, statistic: Any = "mean"
) -> None:
    if activations and c.scheme.weights_only:
        return
    batches = c.batches(min(images, affordable(c.reference)))
    c.model = correct_bias(
        c.rounded(), c.reference, c.plan, batches, activations=activations, statistic=statistic
    )


def _correct_at_once(c: CalibrationState) -> None:
    c.model = correct_bias_at_once(c.rounded(), c.reference, c.plan, c.observed())


def _refine(
    c: CalibrationState, steps: int = 30, rate: float = 3e-5, held_out: int = 32, **options: Any
) -> None:
    from repedge.calib.levels.refine import refine

    if c.scheme.weights_only:
        return
    held = set(c.feed.spread(held_out)) if len(c.feed) >= 2 * held_out else set()
    train = [i for i in range(len(c.feed)) if i not in held]
    tried = refine(
        c.rounded(),
        c.reference,
        c.plan,
        lambda: c.feed.chosen(train),
        lambda: c.feed.chosen(sorted(held) or train),
        distance=c.distance,
        steps=steps,
        rate=rate,
        **options,
    )
    c.model, c.plan, costs = tried
    c.plan.notes.append(f"refined: cost on held-out images {costs['before']:.4g}, then {costs['after']:.4g}")


def _dynamic_outputs(c: CalibrationState) -> None:
    """Classifiers read floats and give floats, where `QuantScheme.dynamic` has them.

    Where the target rounds what they read image by image: the range of one image is narrower than that of
    all; on MobileOne-S0 a classifier's input is 6.5 dB nearer to float32 at the output. Its weights keep
    their 8 bits, and its output is not rounded at all.
    """
    from repedge.calib.mixed.raising import keep_float, nodes_to_raise

    model, why = c.rounded(), "ends the network: it reads floats and gives floats, its weights keep 8 bits"
    weighted = {la.name for la in layers(model)}
    outputs = set(model.graph.outputs)
    for layer in layers(model):
        ends = layer.out in outputs and str(layer.x.name) in c.plan.tensors
        if (
            layer.node.op_type not in c.scheme.dynamic
            or not ends
            or str(layer.weight.name) not in c.plan.weights
        ):
            continue
        nodes = nodes_to_raise(model, c.plan, layer.name)
        if weighted & set(nodes) == {layer.name}:  # no convolution has to be float for it
            model, c.plan = keep_float(model, c.reference, c.plan, nodes, why, weights=())
    c.model = model


HEADS = 0.1
"""Share of the multiply-accumulates up to which the last layers of maps and lists compute in float."""

HEAD = "the last layer of a branch: it gives floats, its weights keep 8 bits"


def _float_heads(c: CalibrationState) -> None:
    """The last layers of a detector's branches give floats where integers can only give integers.

    Among thousands of scores the few that matter lie at the end of the range, which other photos move: of
    YOLOX's objectness, the mean over photos of the greatest logit is half the greatest of all. What they read
    keeps its integers, their weights keep 8 bits.
    """
    if not c.scheme.integer_outputs or not c.scheme.weights_alone:
        return
    names = [str(n.name) for n in last_layers(c.reference)]
    macs = macs_of(c.reference)
    if sum(macs.get(n, 0) for n in names) <= HEADS * sum(macs.values()):
        c.plan.float_nodes.update((n, HEAD) for n in names if n not in c.plan.float_nodes)


STEPS: dict[str, Callable[..., None]] = {
    "float_heads": _float_heads,
    "observe": _observe,
    "equalize": _equalize,
    "protect": _protect,
    "ranges": _ranges,
    "choose_ranges": _choose_ranges,
    "learn_levels": _learn_levels,
    "round": _round,
    "correct_bias": _correct_bias,
    "tune_ranges": _tune,
    "correct_bias_at_once": _correct_at_once,
    "refine": _refine,
    "dynamic_outputs": _dynamic_outputs,
}
"""Name -> step."""
