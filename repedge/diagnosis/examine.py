"""From a model and photos to a diagnosis: the same graph, photos and recipe as `repedge compile` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge import pipeline
from repedge.config import Precision
from repedge.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from repedge.calib.diagnose import Diagnosis


@dataclass(frozen=True)
class Report:
    """The answer of `examine`.

    Attributes:
        name: The model's name.
        found: What was found in the checkpoint or model, in words.
        target, precision: What it was diagnosed for.
        recipe: Name of the recipe.
        photos: What was calibrated on, in words; empty without photos.
        warnings: About the photos.
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


def scheme_name(target: str, precision: str) -> str:
    """Name of the integer rules of a target at a precision.

    Raises:
        UserError: It has none.
    """
    from repedge.calib.scheme import SCHEMES

    own = pipeline.SCHEMES_OF.get(target, target)
    name = precision if precision in SCHEMES else f"{own}-{precision}"
    if name not in SCHEMES:
        have = [s.removeprefix(f"{own}-") for s in SCHEMES if s.startswith(f"{own}-")] + ["w8a32"]
        raise UserError(f"{target} has no integer rules for {precision}; it has {', '.join(have)}")
    return name


def examine(
    model: str | Path | nn.Module | None = None,
    *,
    calib: Any = None,
    calib_count: int = 64,
    calib_seed: int = 0,
    keep_float: Sequence[str] = (),
    recipe: str = "default",
    target: str = "tflite",
    precision: Precision = "w8a8",
    on_stage: Callable[[str], None] = lambda stage: None,
    **source_options: Any,
) -> Report:
    """Diagnose a model.

    Args:
        model: As for `repedge.compile`.
        calib: Photos as `repedge.calib.data.load` takes them; None looks at the weights alone.
        calib_count, calib_seed: How many of them, and the seed of their choice.
        keep_float: Layers that are to stay float, by name or pattern.
        recipe: fast, default, best, or a .json file: what would be done.
        target, precision: Whose integer rules.
        on_stage: Called with the name of each stage as it begins.
        source_options: As for `repedge.compile`.

    Raises:
        UserError: The model, the photos or an option is wrong, or there is nothing to quantize.
    """
    from repedge import targets
    from repedge.calib.choose import chosen_float
    from repedge.calib.diagnose import diagnose
    from repedge.calib.recipe import find_recipe
    from repedge.calib.scheme import SCHEMES
    from repedge.diagnosis.findings import findings
    from repedge.models.source import resolve
    from repedge.quantization import EXACT_PIXELS, Calibration

    scheme = SCHEMES[scheme_name(targets.get(target).name, precision)]
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
    graph, branches = _fused(source, scheme.name in EXACT_PIXELS)
    found = diagnose(
        graph, scheme, images.feed(pixels=True) if images else None, chosen, branches=branches,
        float_nodes=chosen_float(graph, scheme, keep_float), progress=on_stage,
    )  # fmt: skip
    return Report(
        name=source.name,
        found=source.description,
        target=target,
        precision=precision,
        recipe=chosen.name,
        photos=f"{found.images} images of {images.record.source}" if images else "",
        warnings=tuple(images.record.warnings) if images else (),
        diagnosis=found,
        findings=tuple(findings(found)),
    )


def _fused(source: Any, border: bool) -> tuple[Any, dict[str, Any]]:
    """The fused graph that takes pixels, and what merging did to the layers that were branches."""
    from repedge import passes
    from repedge.calib.merging import branch_growth
    from repedge.passes.preprocess import fold_preprocess

    graph = pipeline.to_graph(source)
    source.module = None
    pipeline.settle(graph)
    canonical = graph.clone()
    passes.canonicalize(canonical)
    branches = branch_growth(canonical)
    pipeline.optimize(graph, None)
    return fold_preprocess(graph, source.preprocess, border=border), branches
