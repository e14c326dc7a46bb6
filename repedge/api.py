"""The Python API. It reads like the command line: one function per verb.

import repedge
report = repedge.compile(targets=["tflite"])           # the bundled demo model
repedge.verify(report.bundles[0].path)
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from repedge import __version__, dryrun, evaluation, pipeline, targets, verification
from repedge.budget import PHOTOS, Budget
from repedge.bundle import Bundle, Verification, is_bundle
from repedge.config import InputKind, Precision
from repedge.diagnosis import examine as diagnose
from repedge.dryrun import Preview
from repedge.errors import UserError
from repedge.health import Health
from repedge.health import examine as doctor
from repedge.inspection import Inspection, no_options
from repedge.inspection import examine as inspect
from repedge.quantization import Calibration

if TYPE_CHECKING:
    from torch import nn

    from repedge.auto import Choice
    from repedge.models.source import Source
    from repedge.parity import Parity

__all__ = [
    "CompileReport", "Health", "Inspection", "compare_bundles", "compile", "diagnose", "doctor", "evaluate",
    "inspect", "verify",
]  # fmt: skip


@dataclass(frozen=True)
class CompileReport:
    """What `compile` built.

    Attributes:
        name: The model's name.
        found: What was found in the checkpoint or model, in words.
        bundles: One per target and precision, rejected ones included; none of a dry run.
        warnings: What to know of the calibration images.
        plan: What a dry run would have done.
        choices: What precision ``auto`` kept, and why.
    """

    name: str
    found: str
    bundles: tuple[pipeline.Built, ...]
    warnings: tuple[str, ...] = ()
    plan: Preview | None = None
    choices: tuple[Choice, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every bundle is proven equal to the model within its precision's thresholds."""
        return all(b.verify.passed for b in self.bundles)

    def as_json(self) -> dict[str, Any]:
        """The object that ``repedge compile --json`` prints."""
        return {
            "repedge": __version__,
            "model": self.name,
            "found": self.found,
            "bundles": [b.as_json() for b in self.bundles],
            "warnings": list(self.warnings),
            **({} if self.plan is None else {"plan": self.plan.as_json()}),
            **({"auto": [c.as_json() for c in self.choices]} if self.choices else {}),
        }


def compile(
    model: str | Path | nn.Module | None = None,
    *,
    targets: Sequence[str] = ("coreml",),
    precisions: Sequence[Precision | Literal["auto"]] = (),
    out: Path | str = "build",
    input_kind: InputKind = "uint8",
    force: bool = False,
    images: Path | str | None = None,
    count: int = 4,
    reference: bool = True,
    min_sqnr: float | None = None,
    calib: Path | str | Iterable[Any] | None = None,
    calib_count: int = 64,
    calib_seed: int = 0,
    recipe: str = "default",
    keep_float: Sequence[str] = (),
    max_drop: float | None = None,
    max_kl: float | None = None,
    eval_data: Path | str | None = None,
    eval_count: int = PHOTOS,
    options: dict[str, Any] | None = None,
    about: dict[str, str] | None = None,
    command: Sequence[str] = (),
    dry_run: bool = False,
    on_stage: Callable[[str], None] = lambda stage: None,
    **source_options: Any,
) -> CompileReport:
    """Fuse, simplify, compile and verify a model for one or more targets.

    Args:
        model: A name from ``repedge models``, ``file.onnx``, ``package.module:factory``, ``timm:NAME``,
            an ``nn.Module``, or None for the bundled demo model.
        targets: Names from ``repedge targets``.
        precisions: Precision words; empty takes each target's default. ``auto`` builds integers and
            floats, times them here and keeps the fastest (tflite, openvino, gpu).
        out: Folder that receives the bundles.
        input_kind: ``uint8`` artifacts take RGB pixels, ``float32`` ones the normalised input.
        force: Replace bundles that exist.
        images: Folder of photos to verify on; None for the 64 bundled ones.
        count: How many photos to verify on.
        reference: Put the float reference graph into the bundles.
        min_sqnr: Replaces the SQNR threshold of the precision, dB.
        calib: Photos to calibrate integer activations on, without labels: a folder, a .zip, a .npz, a
            uint8 [N, H, W, 3] or float32 [N, C, H, W] array, or an iterable of paths, PIL images and
            uint8 [H, W, 3] arrays, which is read once; ``"random"`` takes noise, with a warning.
        calib_count: How many of them.
        calib_seed: Of their choice.
        recipe: Calibration recipe: fast, default, best, or a .json file.
        keep_float: Layers that stay float, by name or glob pattern.
        max_drop: Points that integers may cost: of top-1 where ``eval_data`` has labels, else of photos
            whose best class is not the float model's. Layers are raised to float to keep to it.
        max_kl: The same as mean KL divergence from the float model, nats; one of the two.
        eval_data: Photos to judge on; None takes calibration photos that were not calibrated on.
        eval_count: At most this many of them.
        options: Target options, such as ``{"deployment_target": "iOS17"}``.
        about: ``author``, ``license``, ``description``, ``version`` for the artifacts' metadata.
        command: Recorded in the manifests.
        dry_run: Write nothing; the report's ``plan`` says what would be done.
        on_stage: Called with the name of each stage as it begins.
        source_options: weights, pretrained, random_weights, input_size, labels, mean, std, resize,
            interpolation, color: see `repedge.models.source.resolve`.

    Raises:
        UserError: The input is wrong; nothing was written.
        CheckFailed: The exported or fused graph differs from the model; nothing was written.
    """
    verification.check_count(count)
    if min_sqnr is not None and not math.isfinite(min_sqnr):
        raise UserError(f"an SQNR threshold is a number of decibels, not {min_sqnr}")
    if input_kind not in get_args(InputKind):
        raise UserError(f"input_kind {input_kind!r} is not one of {', '.join(get_args(InputKind))}")
    automatic = "auto" in precisions
    if automatic and tuple(precisions) not in (("auto",), tuple("auto")):
        raise UserError("precision auto chooses one itself: name it alone")
    builds = (
        _automatic(targets) if automatic else choose_builds(targets, cast("Sequence[Precision]", precisions))
    )
    plan = pipeline.Plan(
        builds=builds,
        out=Path(out),
        input_kind=input_kind,
        force=force,
        images=None if images is None else Path(images),
        count=count,
        reference=reference,
        min_sqnr=min_sqnr,
        calibration=_calibration(calib, calib_count, recipe, calib_seed, _words(keep_float)),
        budget=_budget(max_drop, max_kl, eval_data, eval_count),
        options=options or {},
        about=about or {},
        command=tuple(command),
    )
    if plan.calibration is not None:
        plan.calibration.check()
    if plan.budget is not None:
        plan.budget.check()
    on_stage("load")
    source = _resolve(model, **source_options)
    if dry_run:
        return CompileReport(source.name, source.description, (), plan=dryrun.preview(source, plan))
    pipeline.check_plan(source.name, plan)
    photos = None
    if plan.calibration is not None and dryrun.needs_photos(plan):
        on_stage("calibration images")  # before the export: the images may be what is wrong
        photos = plan.calibration.images(source.preprocess).record
    choices: tuple[Choice, ...] = ()
    if automatic:
        from repedge import auto

        built, choices = auto.build(lambda: _resolve(model, **source_options), plan, on_stage)
    else:
        built = pipeline.compile_source(source, plan, on_stage)
    notes = tuple(photos.warnings) if photos else ()
    if plan.calibration is not None and photos is None:
        notes = ("the calibration images were not used: name w8a8 or w8a16 with --precision",)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return CompileReport(source.name, source.description, tuple(built), notes, choices=choices)


def _resolve(model: str | Path | nn.Module | None, **options: Any) -> Source:
    from repedge.models.source import resolve

    return resolve(model, **options)


def _automatic(names: Sequence[str]) -> tuple[tuple[str, Precision], ...]:
    from repedge import auto

    chosen = choose_builds(names, ())  # says what is wrong with the names
    return auto.candidates([name for name, _ in chosen])


def _words(given: Sequence[str]) -> tuple[str, ...]:
    """Names, each of which may be several with commas between."""
    given = (given,) if isinstance(given, str) else given
    return tuple(w.strip() for item in given for w in item.split(",") if w.strip())


def _calibration(
    calib: Any, count: int, recipe: str, seed: int, keep_float: tuple[str, ...]
) -> Calibration | None:
    if calib is not None:
        return Calibration(calib, count, recipe, seed, keep_float)
    if keep_float or recipe != Calibration.recipe:
        raise UserError("--recipe and --keep-float are for a calibration: pass --calib FOLDER")
    return None


def _budget(
    max_drop: float | None, max_kl: float | None, data: Path | str | None, count: int
) -> Budget | None:
    if max_drop is None and max_kl is None:
        if data is not None:
            raise UserError(
                "--eval-data is what an accuracy budget is measured on: give --max-drop or --max-kl"
            )
        return None
    return Budget(max_drop, max_kl, None if data is None else Path(data), count)


def choose_builds(names: Sequence[str], precisions: Sequence[Precision]) -> tuple[tuple[str, Precision], ...]:
    """(target, precision) pairs: every asked precision that a target offers, or its default.

    Raises:
        UserError: No target, an unknown one, or one that offers none of the asked precisions.
    """
    names = (names,) if isinstance(names, str) else names
    if isinstance(precisions, str):  # type: ignore[list-item]
        precisions = cast("tuple[Precision]", (precisions,))
    if not names:
        raise UserError(f"name at least one --target: {', '.join(targets.names())}")
    builds: list[tuple[str, Precision]] = []
    for target in [targets.get(n) for n in dict.fromkeys(names)]:
        offered = [p for p in dict.fromkeys(precisions) if p in target.precisions]
        if precisions and not offered:
            wrong, right = ", ".join(precisions), ", ".join(target.precisions)
            raise UserError(f"{target.name} does not offer {wrong}; it offers {right}")
        missing = target.missing_modules()
        if missing:
            raise UserError(
                f"target {target.name} needs {', '.join(missing)}, not installed: pip install repedge"
            )
        builds += [(target.name, p) for p in offered or target.precisions[:1]]
    return tuple(builds)


def verify(bundle: Path | str, *, images: Path | str | None = None, count: int = 16) -> Verification:
    """Compare a bundle's artifact with the float reference in it, on real images.

    Raises:
        UserError: The bundle is damaged, or was made without a reference.
    """
    return verification.verify_bundle(bundle, None if images is None else Path(images), count)


def evaluate(
    what: str | Path | nn.Module | None,
    data: Path | str,
    *,
    limit: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **source_options: Any,
) -> evaluation.Accuracy:
    """Top-1 and top-5 of a bundle or a model on a folder of images, and agreement with the reference.

    Args:
        what: A bundle folder, or a model as for `compile` (its float graph is run).
        data: Class sub-folders, or images with a labels.json (file name -> index).
        limit: Evaluate this many, spread evenly over the folder.
        threads: CPU threads of the artifact's runtime.
        progress: Called with (done, total) images.
        source_options: As for `compile`, for models.
    """
    _positive(limit=limit, threads=threads)
    if isinstance(what, (str, os.PathLike)) and is_bundle(what):
        no_options("a bundle", source_options)
        return _evaluate_bundle(Bundle.open(what), Path(data), limit, threads, progress)
    source = _resolve(what, **source_options)
    from repedge.graph.run import Session

    session = Session(pipeline.to_graph(source))
    return evaluation.evaluate(
        lambda pixels, inputs: session.run(inputs)[0],
        source.preprocess, Path(data), labels=source.labels, limit=limit, progress=progress,
    )  # fmt: skip


def compare_bundles(
    bundles: Sequence[Path | str],
    data: Path | str | None = None,
    *,
    limit: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Bundles on the same photos: top-1, and agreement, SQNR and KL between every two and with float.

    Args:
        bundles: Two or more bundle folders.
        data: As for `evaluate`; None takes the 64 bundled photos.
        limit, threads, progress: As for `evaluate`.
    """
    from repedge import parity

    _positive(limit=limit, threads=threads)
    return parity.compare(
        bundles, None if data is None else Path(data), limit=limit, threads=threads, progress=progress
    )


def _positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UserError(f"{name} must be 1 or more, not {number}")


def _evaluate_bundle(
    bundle: Bundle, data: Path, limit: int | None, threads: int | None, progress: Callable[[int, int], None]
) -> evaluation.Accuracy:
    from repedge.graph.run import Session

    m = bundle.manifest
    _, runner = verification.open_bundle(bundle, threads)
    reference = Session(bundle.reference) if bundle.reference else None

    def forward(pixels: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        return runner.run(pixels if m.input_kind == "uint8" else inputs)[0]

    return evaluation.evaluate(
        forward,
        m.preprocess,
        data,
        reference=None if reference is None else lambda pixels, inputs: reference.run(inputs)[0],
        labels=m.labels,
        limit=limit,
        progress=progress,
    )
