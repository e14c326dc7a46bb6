"""From a model and photos to a diagnosis: the same graph, photos and recipe as `repedge compile` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge import passes, targets, tasks
from repedge.errors import UserError
from repedge.models.modules import random_state_kept
from repedge.precision import Precision
from repedge.scheme import W8A32, QuantScheme

if TYPE_CHECKING:
    from torch import nn

    from repedge.diagnosis.layers import Diagnosis


@dataclass(frozen=True)
class Report:
    """The answer of `diagnose`.

    Attributes:
        name: The model's name.
        found: What was found in the checkpoint or model, in words.
        target, precision: What it was diagnosed for.
        recipe: Name of the recipe.
        photos: What was calibrated on, in words; empty without photos.
        warnings: About the weights and the photos.
        diagnosis: The numbers.
        findings: The diagnosis in sentences.
    """

    name: str
    found: str
    target: str
    precision: str
    recipe: str
    photos: str
    diagnosis: Diagnosis
    warnings: tuple[str, ...] = ()
    findings: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The object that ``repedge diagnose --json`` prints, less the version."""
        return {
            "model": self.name,
            "found": self.found,
            "target": self.target,
            "precision": self.precision,
            "recipe": self.recipe,
            "photos": self.photos,
            "warnings": list(self.warnings),
            "findings": list(self.findings),
            **self.diagnosis.as_json(),
        }


def scheme_of(target: str, precision: Precision) -> QuantScheme:
    """The integer rules of a target at a precision; 8-bit weights alone are the same for all.

    Raises:
        UserError: It has none.
    """
    rules = {W8A32.name: W8A32, **targets.get(target).schemes}
    if precision not in rules:
        raise UserError(f"{target} has no integer rules for {precision}; it has {', '.join(rules)}")
    return rules[precision]


@random_state_kept()
def diagnose(
    model: str | Path | nn.Module | None = None,
    *,
    calib: Any = None,
    calib_count: int = 64,
    calib_seed: int = 0,
    keep_float: Sequence[str] = (),
    recipe: str = "default",
    target: str = targets.DEFAULT_INTEGERS,
    precision: Precision = "w8a8",
    task: str | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
    **source_options: Any,
) -> Report:
    """Diagnose a model.

    Args:
        model: As for `repedge.compile`.
        calib: Photos as `repedge.photos.choice.load` takes them; None looks at the weights alone.
        calib_count, calib_seed: How many of them, and the seed of their choice.
        keep_float: Layers that are to stay float, by name or pattern.
        recipe: fast, default, best, or a .json file: what would be done.
        target, precision: Whose integer rules.
        task: What the outputs mean, as for `repedge.compile`.
        on_stage: Called with the name of each stage as it begins.
        source_options: As for `repedge.compile`.

    Raises:
        UserError: The model, the photos or an option is wrong, or there is nothing to quantize.
    """
    from repedge.calib.mixed.choose import chosen_float
    from repedge.calib.recipe import find_recipe
    from repedge.compiler.quantization import Calibration
    from repedge.diagnosis.findings import findings
    from repedge.diagnosis.layers import diagnose_graph
    from repedge.models.source import resolve

    target = targets.get(target).name
    scheme = scheme_of(target, precision)
    chosen = find_recipe(recipe)
    calibration = None if calib is None else Calibration(calib, calib_count, recipe, calib_seed)
    if calibration is not None:
        calibration.check()
    on_stage("load")
    source = resolve(model, **source_options)
    images = None
    if calibration is not None:  # before the export, which takes longer to fail
        on_stage("read photos")
        images = calibration.images(source.preprocess)
    on_stage("fuse")
    graph, branches = _fused(source, scheme.exact_pixels)
    found = diagnose_graph(
        graph, scheme, images.feed(pixels=True, tensors=source.tensors) if images else None, chosen,
        task=tasks.of_graph(graph, source.labels, task), branches=branches,
        float_nodes=chosen_float(graph, scheme, keep_float), progress=on_stage,
    )  # fmt: skip
    return Report(
        name=source.name,
        found=source.description,
        target=target,
        precision=precision,
        recipe=chosen.name,
        photos=f"{found.images} images of {images.record.source}" if images else "",
        warnings=source.warnings + (tuple(images.record.warnings) if images else ()),
        diagnosis=found,
        findings=tuple(findings(found)),
    )


def _fused(source: Any, border: bool) -> tuple[Any, dict[str, Any]]:
    """The fused graph that takes pixels, and what merging did to the layers that were branches."""
    from repedge.diagnosis.merging import branch_growth
    from repedge.passes.preprocess import fold_preprocess

    graph = source.graph()
    source.module = None
    passes.settle(graph)
    canonical = graph.clone()
    passes.canonicalize(canonical)
    branches = branch_growth(canonical)
    passes.clean(graph)
    return fold_preprocess(graph, source.preprocess, border=border), branches
