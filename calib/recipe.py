"""Recipes: named orders of calibration steps, and `calibrate`, which follows one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, ValidationError

from repedge.calib.bias import correct_bias, correct_bias_at_once
from repedge.calib.equalize import equalize
from repedge.calib.feed import Feed
from repedge.calib.observe import Statistics, input_shape, observe
from repedge.calib.plan import QuantPlan
from repedge.calib.ranges import NEED_HISTOGRAMS, choose_ranges, ranges
from repedge.calib.rounding import round_weights
from repedge.calib.scheme import QuantScheme
from repedge.calib.structure import layers, own_parameters, place
from repedge.errors import UserError

Options = Mapping[str, Any]


class StepSpec(BaseModel):
    """One step of a recipe: its name and what it is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    options: dict[str, Any] = {}

    def __str__(self) -> str:
        return self.step + (
            f"({', '.join(f'{k}={v}' for k, v in self.options.items())})" if self.options else ""
        )


class Recipe(BaseModel):
    """A named order of steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    steps: tuple[StepSpec, ...]

    def __str__(self) -> str:
        return f"{self.name}:\n" + "\n".join(f"  {i}. {s}" for i, s in enumerate(self.steps, 1))

    def save(self, path: str | Path) -> None:
        """Write the recipe as JSON."""
        Path(path).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe.

        Raises:
            UserError: The file is missing, is no recipe, or names an unknown step.
        """
        try:
            recipe = cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except OSError as e:
            raise UserError(f"the recipe {path} can't be read ({e.strerror})") from e
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise UserError(f"{path} is no recipe: {where}: {first['msg']}") from e
        recipe.check()
        return recipe

    def check(self) -> None:
        """Raise UserError where a step is not known."""
        for spec in self.steps:
            if spec.step not in STEPS:
                known = ", ".join(STEPS)
                raise UserError(f"recipe {self.name!r} has an unknown step {spec.step!r}; known are {known}")


@dataclass
class Calibration:
    """What the steps hand on.

    Attributes:
        reference: The float graph, equalized once that is done.
        model: The graph that is worked on; None until weights are rounded.
        plan: Every decision so far.
        feed: The calibration images.
        stats: Of ``reference``; None before `observe`.
        seconds: Step -> processor seconds.
    """

    reference: ir.Model
    plan: QuantPlan
    feed: Feed
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


def _observe(c: Calibration, images: int | None = None, moments: int = 64) -> None:
    c.stats = observe(c.reference, c.feed.batches(images), moments=moments)


def _equalize(
    c: Calibration,
    alphas: Sequence[Sequence[float]] = ((0.5, 0.25, 1.0),),
    quantile: float | None = 0.9,
    images: int = 16,
) -> None:
    """Each of ``alphas`` is (alpha, weights) or (alpha, weights, depthwise) of `equalize`; of several, the
    best at the output is taken."""
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
    outs = {str(la.out.name) for la in layers(c.reference)}
    c.plan.equalization = {n: [float(v) for v in f] for n, f in factors.items() if n in outs}
    if costs:
        c.plan.notes.append(f"equalization {taken} by its cost at the output: {', '.join(costs)}")


def _try_ranges(c: Calibration, model: ir.Model, stats: Statistics, images: int) -> dict[str, float]:
    both = (("mean", 1.0), ("minmax", 1.0))
    nodes = c.plan.float_nodes
    return choose_ranges(model, stats, c.scheme, c.batches(images), candidates=both, float_nodes=nodes)[1]


def _ranges(c: Calibration, rule: str = "mean", factor: float = 1.0, images: int | None = None) -> None:
    stats = c.observed()
    if rule in NEED_HISTOGRAMS:
        stats = observe(c.reference, c.feed.batches(images), histograms=True)
    ranges(
        c.reference, stats, c.scheme, rule=rule, factor=factor, float_nodes=c.plan.float_nodes, plan=c.plan
    )


def _choose_ranges(
    c: Calibration, rules: Sequence[str] = ("mean", "median", "q90", "minmax"), images: int = 32
) -> None:
    if c.scheme.weights_only:
        return
    candidates = tuple((str(rule), 1.0) for rule in rules)
    stats = c.observed()
    if any(rule in NEED_HISTOGRAMS for rule, _ in candidates):
        stats = observe(c.reference, c.feed.batches(2 * images), histograms=True)
    batches = c.batches(images)
    kept: dict[str, Any] = {"float_nodes": c.plan.float_nodes, "plan": c.plan}
    _, costs = choose_ranges(c.reference, stats, c.scheme, batches, candidates=candidates, **kept)
    text = ", ".join(f"{k}: {v:.4g}" for k, v in costs.items())
    c.plan.notes.append(f"ranges by their cost at the output: {text}")


def _round(c: Calibration, method: Any = "closed-form", steps: int = 500) -> None:
    """``steps`` are those of ``adaround``."""
    nodes = c.plan.float_nodes
    c.model = round_weights(
        c.reference, c.plan, c.scheme, c.stats, method=method, steps=steps, float_nodes=nodes
    )


def _tune(
    c: Calibration, factors: Sequence[float] = (0.85, 1.2), margin: float = 0.003, images: int = 64
) -> None:
    from repedge.calib.search import tune_ranges

    if c.scheme.weights_only:
        return
    few = c.batches(min(images, affordable(c.reference)))
    taken = tune_ranges(c.rounded(), c.reference, c.plan, few, factors=factors, margin=margin)
    c.plan.notes.append(f"ranges of {len(taken)} tensors tuned at the output")


def _correct_bias(
    c: Calibration, images: int = 64, activations: bool = False, statistic: Any = "mean"
) -> None:
    if activations and c.scheme.weights_only:
        return
    batches = c.batches(min(images, affordable(c.reference)))
    c.model = correct_bias(
        c.rounded(), c.reference, c.plan, batches, activations=activations, statistic=statistic
    )


def _correct_at_once(c: Calibration) -> None:
    c.model = correct_bias_at_once(c.rounded(), c.reference, c.plan, c.observed())


def _refine(c: Calibration, steps: int = 30, rate: float = 3e-5, held_out: int = 32, **options: Any) -> None:
    from repedge.calib.refine import refine

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
        steps=steps,
        rate=rate,
        **options,
    )
    c.model, c.plan, costs = tried
    c.plan.notes.append(f"refined: cost on held-out images {costs['before']:.4g}, then {costs['after']:.4g}")


STEPS: dict[str, Callable[..., None]] = {
    "observe": _observe,
    "equalize": _equalize,
    "ranges": _ranges,
    "choose_ranges": _choose_ranges,
    "round": _round,
    "correct_bias": _correct_bias,
    "tune_ranges": _tune,
    "correct_bias_at_once": _correct_at_once,
    "refine": _refine,
}
"""Name -> step."""


def _steps(*specs: tuple[str, dict[str, Any]]) -> tuple[StepSpec, ...]:
    return tuple(StepSpec(step=name, options=options) for name, options in specs)


_RULES = ["mean", "median", "q75", "q90", "minmax", "p99.99", "mse"]

_DEFAULT = _steps(
    ("observe", {"moments": 64}),
    ("equalize", {"alphas": [[0.0, 0.0], [0.5, 0.25, 1.0], [0.5, 0.5]], "quantile": 0.9, "images": 24}),
    ("choose_ranges", {"rules": _RULES, "images": 32}),
    ("round", {"method": "closed-form"}),
    # Weight error first: a mean over clipped activations would be that of a few images.
    ("correct_bias", {"images": 64}),
    ("tune_ranges", {"factors": [0.85, 1.2], "images": 64}),
    # After the ranges: it takes out what their rounding shifts.
    ("correct_bias", {"images": 64, "activations": True, "statistic": "median"}),
)

RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe(
            name="minmax",  # what stock tools do; for comparison
            steps=_steps(
                ("observe", {"moments": 0}), ("ranges", {"rule": "minmax"}), ("round", {"method": "nearest"})
            ),
        ),
        Recipe(
            name="fast",
            steps=_steps(
                ("observe", {"images": 64, "moments": 32}),
                ("equalize", {}),  # before ranges, which it changes
                # Before rounding: ranges and biases bound the weights' scales from below.
                ("choose_ranges", {"rules": ["mean", "q90", "minmax"], "images": 16}),
                ("round", {"method": "closed-form"}),
                ("correct_bias_at_once", {}),  # last: it takes out what rounding left
            ),
        ),
        Recipe(name="default", steps=_DEFAULT),
        Recipe(
            name="best",
            steps=(
                *_DEFAULT,
                StepSpec(step="refine", options={"steps": 30, "images_per_step": 24, "rate": 3e-5}),
            ),
        ),
    )
}
"""The bundled recipes by name."""

FRONTIER = 512 * 2**20
"""Bytes of activations that a walk over many images side by side may take."""


def affordable(model: ir.Model) -> int:
    """How many images may be walked side by side within `FRONTIER` bytes."""
    largest = max(
        int(np.prod(v.shape.numpy())) for n in model.graph for v in n.outputs if v.shape is not None
    )
    return max(4, FRONTIER // (3 * 4 * largest))


def find_recipe(recipe: str | Recipe) -> Recipe:
    """A bundled recipe by name, one from a .json file, or the recipe itself.

    Raises:
        UserError: There is none.
    """
    if isinstance(recipe, Recipe):
        recipe.check()
        return recipe
    if recipe in RECIPES:
        return RECIPES[recipe]
    if recipe.endswith(".json"):
        return Recipe.load(recipe)
    raise UserError(f"there is no recipe {recipe!r}; choose from {', '.join(RECIPES)} or name a .json file")


def calibrate(
    model: ir.Model,
    batches: Iterable[np.ndarray] | Feed,
    scheme: QuantScheme,
    recipe: str | Recipe = "default",
    *,
    float_nodes: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[ir.Model, QuantPlan]:
    """Quantize a float graph.

    Args:
        model: A clean graph; not changed.
        batches: Images float32 [N, C, H, W], normalised as the network's input; read once. A `Feed`
            may be shared between calls.
        scheme: What the target's integers demand.
        recipe: A name, a .json file, or a `Recipe`.
        float_nodes: Nodes that stay in float32: name -> why.
        progress: Told each step as it begins.

    Returns:
        The graph with equalized and rounded weights (each exactly integer times scale) and corrected
        biases, and the plan; `repedge.calib.qdq.to_qdq` makes a QDQ graph of them.

    Raises:
        UserError: No usable images, nothing to quantize, an unknown recipe or node.
    """
    chosen = find_recipe(recipe)
    feed = batches if isinstance(batches, Feed) else Feed(batches, input_shape(model))
    reference = model.clone()
    own_parameters(reference)
    if not place(reference, scheme, float_nodes or {}).layers:
        raise UserError(f"the graph {model.graph.name!r} has no layer that {scheme.name} could quantize")
    plan = QuantPlan(
        scheme=scheme, float_nodes=dict(float_nodes or {}), recipe=chosen.model_dump(mode="json")
    )
    c = Calibration(reference, plan, feed)
    for spec in chosen.steps:
        progress(str(spec))
        began = time.process_time()
        try:
            STEPS[spec.step](c, **spec.options)
        except TypeError as e:
            raise UserError(f"step {spec} of the recipe {chosen.name!r}: {e}") from e
        c.seconds[spec.step] = c.seconds.get(spec.step, 0.0) + time.process_time() - began
    return c.rounded(), c.plan
