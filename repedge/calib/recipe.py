"""Recipes: named orders of calibration steps, and `calibrate`, which follows one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, ValidationError

from repedge import tasks
from repedge.calib.distance import Distance
from repedge.calib.plan import QuantPlan
from repedge.calib.simulation.batching import images_at_once
from repedge.calib.simulation.observe import input_shape
from repedge.calib.steps import STEPS, CalibrationState
from repedge.calib.structure import own_parameters, place
from repedge.disk import regular
from repedge.errors import UserError
from repedge.photos.feed import Feed
from repedge.scheme import QuantScheme
from repedge.tasks.base import Task


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
            recipe = cls.model_validate_json(regular.read_bytes(path))
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


def _steps(*specs: tuple[str, dict[str, Any]]) -> tuple[StepSpec, ...]:
    return tuple(StepSpec(step=name, options=options) for name, options in specs)


_RULES = ["mean", "median", "q75", "q90", "minmax", "p99.99", "mse"]

_DEFAULT = _steps(
    ("observe", {"moments": 64}),
    ("float_heads", {}),
    ("equalize", {"alphas": [[0.0, 0.0], [0.5, 0.25, 1.0], [0.5, 0.5]], "quantile": 0.9, "images": 24}),
    # Before ranges: one tensor that is beyond help would choose the rule for all.
    ("protect", {"images": 16}),
    ("choose_ranges", {"rules": _RULES, "images": 32}),
    # Before rounding: what a channel is divided by goes into the weights that read it.
    ("learn_levels", {"steps": 150, "images_per_step": 4}),
    ("round", {"method": "closed-form"}),
    # Weight error first: a mean over clipped activations would be that of a few images.
    ("correct_bias", {"images": 64}),
    # After the ranges: it takes out what their rounding shifts.
    ("correct_bias", {"images": 64, "activations": True, "statistic": "median"}),
    ("dynamic_outputs", {}),
)

_BEST: dict[str, dict[str, Any]] = {
    "learn_levels": {"steps": 600, "effort": 4.0},
    "round": {"method": "adaround"},
}
"""What `best` does more of."""

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
                ("float_heads", {}),
                ("equalize", {}),  # before ranges, which it changes
                ("protect", {}),
                # Before rounding: ranges and biases bound the weights' scales from below.
                ("choose_ranges", {"rules": ["mean", "q90", "minmax"], "images": 16}),
                ("round", {"method": "closed-form"}),
                ("correct_bias_at_once", {}),  # it takes out what rounding left
                ("dynamic_outputs", {}),
            ),
        ),
        Recipe(name="default", steps=_DEFAULT),
        Recipe(
            name="best",
            steps=tuple(
                StepSpec(step=s.step, options={**s.options, **_BEST.get(s.step, {})}) for s in _DEFAULT
            ),
        ),
    )
}
"""The bundled recipes by name."""


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
    task: Task | None = None,
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
        task: What the outputs mean; None: what they say themselves.
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
    feed.at_once = images_at_once(reference)
    if not place(reference, scheme, float_nodes or {}).layers:
        raise UserError(f"the graph {model.graph.name!r} has no layer that {scheme.name} could quantize")
    plan = QuantPlan(
        scheme=scheme, float_nodes=dict(float_nodes or {}), recipe=chosen.model_dump(mode="json")
    )
    c = CalibrationState(reference, plan, feed, Distance(task or tasks.of_graph(reference)))
    for spec in chosen.steps:
        progress(str(spec))
        began = time.process_time()
        try:
            STEPS[spec.step](c, **spec.options)
        except TypeError as e:
            raise UserError(f"step {spec} of the recipe {chosen.name!r}: {e}") from e
        c.seconds[spec.step] = c.seconds.get(spec.step, 0.0) + time.process_time() - began
    return c.rounded(), c.plan
