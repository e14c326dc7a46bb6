"""What ``repedge compile --dry-run`` tells: the work that a plan asks for, without doing any of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge import targets
from repedge.compiler.quantization import Calibration
from repedge.compiler.refusals import Refused
from repedge.compiler.rehearsal import check_place, rehearse
from repedge.compiler.request import BuildRequest, bundle_path
from repedge.config import Preprocess
from repedge.precision import Precision

if TYPE_CHECKING:
    from repedge.calib.recipe import Recipe
    from repedge.models.source import Source

SCHEME_FIELDS = ("name", "activations", "symmetric", "narrow", "weight_bits", "per_channel", "bias")
"""What a reader wants of a quantization scheme; the rest are rules of single operators."""


@dataclass(frozen=True)
class Step:
    """One bundle that would be built.

    Attributes:
        path: The bundle's folder.
        executor: What the artifact would be verified in.
        scheme: `SCHEME_FIELDS` of the integers; None where nothing is calibrated.
    """

    target: str
    precision: Precision
    path: Path
    executor: str
    scheme: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """One element of ``builds``."""
        return {**vars(self), "path": str(self.path)}


@dataclass(frozen=True)
class Preview:
    """The plan of a compile.

    Attributes:
        model, found: Name and description of the model.
        preprocess: Of the model.
        input_kind: What the artifacts would take.
        builds: In the order of work.
        recipe: Steps of the calibration; None where nothing is calibrated.
        calibration: kind, source, found, available, count, seed of the images; None likewise.
        keep_float: Names or patterns of layers that stay float.
        budget: measure, limit, data, count of the accuracy budget; None without one.
        refused: What is asked for and can't be built.
    """

    model: str
    found: str
    preprocess: Preprocess
    input_kind: str
    builds: tuple[Step, ...]
    recipe: Recipe | None
    calibration: dict[str, Any] | None
    keep_float: tuple[str, ...] = ()
    budget: dict[str, Any] | None = None
    refused: tuple[Refused, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The ``plan`` object of ``repedge compile --dry-run --json``."""
        return {
            "model": self.model,
            "found": self.found,
            "preprocess": self.preprocess.model_dump(mode="json"),
            "input_kind": self.input_kind,
            "builds": [b.as_json() for b in self.builds],
            "recipe": None if self.recipe is None else self.recipe.model_dump(mode="json"),
            "calibration": self.calibration,
            "keep_float": list(self.keep_float),
            "budget": self.budget,
            "refused": [r.as_json() for r in self.refused],
        }


def preview(source: Source, request: BuildRequest) -> Preview:
    """What `repedge.compiler.pipeline.compile_source` would do, with all of its checks short of calibrating.

    Raises:
        UserError: What would also end the real run before its work: a bundle that exists, an unknown
            recipe, and what `repedge.compiler.rehearsal.rehearse` finds.
    """
    request.check()
    steps = _steps(source.name, request)
    for step in steps:
        check_place(step.path, request.force)
    recipe = data = None
    if request.calibration is not None and request.needs_photos:
        from repedge.calib.recipe import find_recipe

        recipe = find_recipe(request.calibration.recipe)
        data = _images(request.calibration, source.preprocess)
    refused = rehearse(source, request)
    return Preview(
        source.name, source.description, source.preprocess, request.input_kind,
        steps, recipe, data,
        () if request.calibration is None else request.calibration.keep_float, _budget(request),
        tuple(Refused(s.target, s.precision, refused[s.target]) for s in steps if s.target in refused),
    )  # fmt: skip


def _budget(request: BuildRequest) -> dict[str, Any] | None:
    if request.budget is None:
        return None
    b = request.budget
    measure = "max_kl" if b.max_kl is not None else "max_drop"
    data = None if b.data is None else str(b.data)
    return {"measure": measure, "limit": b.limit, "data": data, "count": b.count}


def _steps(name: str, request: BuildRequest) -> tuple[Step, ...]:
    builds: Sequence[tuple[str, Precision]] = request.builds
    return tuple(
        Step(
            target,
            precision,
            bundle_path(request.out, name, target, precision),
            targets.get(target).executor,
            _scheme(request, target, precision),
        )
        for target, precision in builds
    )


def _scheme(request: BuildRequest, target: str, precision: Precision) -> dict[str, Any] | None:
    scheme = request.scheme_of(target, precision)
    return None if scheme is None else scheme.model_dump(include=set(SCHEME_FIELDS))


def _images(calibration: Calibration, pre: Preprocess) -> dict[str, Any]:
    from repedge.photos.choice import look

    source = look(calibration.source, pre, calibration.seed)
    total = source.total
    return {
        "kind": source.kind,
        "source": source.name,
        "found": source.found,
        "available": total,
        "count": calibration.count if total is None else min(total, calibration.count),
        "seed": calibration.seed,
    }
