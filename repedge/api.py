"""The Python API. It reads like the command line: one function per verb.

import repedge
report = repedge.compile(targets=["tflite"])           # the bundled demo model
repedge.verify(report.bundles[0].path)
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from repedge import tasks
from repedge.bundle.folder import Bundle, is_bundle
from repedge.bundle.manifest import Verification, task_of
from repedge.compiler import groups, pipeline, preview
from repedge.compiler.budget import Budget
from repedge.compiler.builds import Builds, choose_builds
from repedge.compiler.clock import silent
from repedge.compiler.preview import Preview
from repedge.compiler.quantization import Calibration
from repedge.compiler.request import BuildRequest, Built, Check
from repedge.config import InputKind, Preprocess
from repedge.diagnosis.machine import Health, doctor
from repedge.diagnosis.model import Inspection, inspect, no_options
from repedge.diagnosis.report import diagnose
from repedge.errors import UserError
from repedge.judge import evaluation, verification
from repedge.models.modules import random_state_kept
from repedge.precision import Precision
from repedge.targets import DEFAULT
from repedge.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from repedge.compiler.fastest import Choice
    from repedge.compiler.refusals import Refused
    from repedge.judge.side_by_side import Parity
    from repedge.models.source import Source
    from repedge.tasks.base import Task

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
        warnings: What to know of the weights and of the calibration images.
        plan: What a dry run would have done.
        choices: What precision ``auto`` kept, and why.
        refused: What a target can't take, and why.
        preprocess: What photos go through before the network.
        preprocess_from: Field of it -> where its value is from.
    """

    name: str
    found: str
    bundles: tuple[Built, ...]
    warnings: tuple[str, ...] = ()
    plan: Preview | None = None
    choices: tuple[Choice, ...] = ()
    refused: tuple[Refused, ...] = ()
    preprocess: Preprocess = field(default_factory=Preprocess)
    preprocess_from: dict[str, str] = field(default_factory=dict)

    @property
    def task(self) -> Task | None:
        """What the outputs mean; None of a dry run."""
        return self.bundles[0].task if self.bundles else None

    @property
    def passed(self) -> bool:
        """Whether all that was asked for is there, and proven equal within its precision's thresholds."""
        return not self.refused and all(b.verify.passed for b in self.bundles)

    def as_json(self) -> dict[str, Any]:
        """The object that ``repedge compile --json`` prints."""
        return {
            "repedge": __version__,
            "model": self.name,
            "found": self.found,
            **({} if self.task is None else {"task": self.task.name}),
            "preprocess": self.preprocess.model_dump(mode="json"),
            "preprocess_from": dict(self.preprocess_from),
            "bundles": [b.as_json() for b in self.bundles],
            "refused": [r.as_json() for r in self.refused],
            "warnings": list(self.warnings),
            **({} if self.plan is None else {"plan": self.plan.as_json()}),
            **({"auto": [c.as_json() for c in self.choices]} if self.choices else {}),
        }


@random_state_kept()
def compile(
    model: str | Path | nn.Module | None = None,
    *,
    targets: Sequence[str] = (DEFAULT,),
    precisions: Sequence[Precision] = (),
    out: Path | str = "build",
    force: bool = False,
    calibration: Calibration | None = None,
    budget: Budget | None = None,
    task: str | None = None,
    verification: Check | None = None,
    options: Mapping[str, Any] | None = None,
    about: Mapping[str, str] | None = None,
    input_kind: InputKind = "uint8",
    reference: bool = True,
    dry_run: bool = False,
    command: Sequence[str] = (),
    on_stage: Callable[[str], None] = silent,
    **more: Any,
) -> CompileReport:
    """Fuse, simplify, compile and verify a model for one or more targets.

    Args:
        model: A name from ``repedge models``, ``file.onnx``, ``package.module:factory``, ``timm:NAME``,
            an ``nn.Module``, or None for the bundled demo model.
        targets: Names from ``repedge targets``.
        precisions: Precision words; empty takes each target's default. ``auto`` builds integers and
            floats, times them here and keeps the fastest.
        out: Folder that receives the bundles.
        force: Replace bundles that exist.
        calibration: Photos to calibrate integer activations on, and how.
        budget: How much accuracy integers may cost; layers are raised to float to keep to it.
        task: What the outputs mean, a word from `repedge.tasks`: detect, classify, embed, raw; None lets the
            graph and its outputs say it. ``detect:FILE.json`` says of a head what its graph does not.
        verification: How the artifacts are verified.
        options: Target options, such as ``{"deployment_target": "iOS17"}``; ``coreml.deployment_target``
            where several targets know the name.
        about: ``author``, ``license``, ``description``, ``version`` for the artifacts' metadata.
        input_kind: ``uint8`` artifacts take RGB pixels, ``float32`` ones the normalised input.
        reference: Put the float reference graph into the bundles.
        dry_run: Write nothing; the report's ``plan`` says what would be done.
        command: Recorded in the manifests.
        on_stage: Called with the name of each stage as it begins.
        more: What says which model is meant (weights, pretrained, random_weights, input_size, labels, mean,
            std, resize, interpolation, color: see `repedge.models.source.resolve`); and the command line's
            own words for the groups above: calib, calib_count, calib_seed, recipe, keep_float; max_drop,
            max_kl, eval_data, eval_count; images, count, min_sqnr.

    Raises:
        UserError: The input is wrong; nothing was written.
        CheckFailed: The exported or fused graph differs from the model; nothing was written.
    """
    calibration = groups.calibration(calibration, more)
    budget = groups.budget(budget, more)
    check = groups.check(verification, more)
    check.check()
    if input_kind not in get_args(InputKind):
        raise UserError(f"input_kind {input_kind!r} is not one of {', '.join(get_args(InputKind))}")
    if task is not None:
        tasks.meant(task)  # before any work, says what is wrong with the word
    targets, precisions = groups.names(targets), groups.names(precisions)
    automatic = "auto" in precisions
    builds = _automatic(targets, precisions) if automatic else choose_builds(targets, precisions)
    request = BuildRequest(
        builds=builds.chosen,
        out=_folder(out),
        input_kind=input_kind,
        force=force,
        reference=reference,
        verify=check,
        calibration=calibration,
        budget=budget,
        task=task,
        options=options or {},
        about=about or {},
        command=tuple(command),
    )
    if calibration is not None:
        calibration.check()
    if budget is not None:
        budget.check()
    request.check()
    on_stage("load")
    source = _resolve(model, **more)
    said: dict[str, Any] = {"preprocess": source.preprocess, "preprocess_from": source.origins}
    if dry_run:
        plan = preview.preview(source, request)
        plan = replace(plan, refused=builds.refused + plan.refused)
        doubts, refused = source.warnings, plan.refused
        return CompileReport(source.name, source.description, (), doubts, plan, refused=refused, **said)
    request.check_destinations(source.name)
    photos = None
    if calibration is not None and request.needs_photos:
        on_stage("calibration images")  # before the export: the images may be what is wrong
        photos = calibration.images(source.preprocess).record
    choices: tuple[Choice, ...] = ()
    if automatic:
        from repedge.compiler import fastest

        outcome, choices = fastest.build(lambda: _resolve(model, **more), request, on_stage)
    else:
        outcome = pipeline.compile_source(source, request, on_stage)
    notes = source.warnings + (tuple(photos.warnings) if photos else ())
    notes += outcome.built[0].warnings if outcome.built else ()
    if calibration is not None and photos is None:
        notes += ("the calibration images were not used: name w8a8 or w8a16 with --precision",)
    refused = builds.refused + outcome.refused
    missing = (f"{r.target} {r.precision} was not built: {r.why}" for r in refused)
    for note in (*notes, *missing):
        warnings.warn(note, stacklevel=3)  # the caller of the decorated function
    return CompileReport(
        source.name, source.description, outcome.built, notes, choices=choices, refused=refused,
        **said,
    )  # fmt: skip


def _folder(out: Path | str) -> Path:
    if out == "":
        raise UserError("out is empty; name the folder that receives the bundles")
    return Path(out)


def _resolve(model: str | Path | nn.Module | None, **options: Any) -> Source:
    from repedge.models.source import resolve

    return resolve(model, **options)


def _automatic(names: Sequence[str], words: Sequence[str]) -> Builds:
    from repedge.compiler import fastest

    if tuple(words) != ("auto",):
        raise UserError("precision auto chooses one itself: name it alone")
    found = choose_builds(names, ())  # says what is wrong with the names
    return Builds(fastest.candidates([name for name, _ in found.chosen]), found.refused)


def verify(
    bundle: Path | str,
    *,
    images: Any = None,
    count: int = 16,
    inputs: str | Path | Mapping[str, Any] | None = None,
) -> Verification:
    """Compare a bundle's artifact with the float reference in it, on real images.

    Args:
        bundle: Its folder.
        images: Photos as for `evaluate`, without labels; None takes the bundled ones.
        count: How many of them.
        inputs: Samples of what the network takes beside the image, as for `compile`; None takes those of
            the bundle's golden vectors.

    Raises:
        UserError: The bundle is damaged, or was made without a reference.
    """
    return verification.verify_bundle(bundle, images, count, inputs)


@random_state_kept()
def evaluate(
    what: str | Path | nn.Module | None,
    data: Any = None,
    *,
    task: str | None = None,
    limit: int | None = None,
    split: str | None = None,
    ways: int | None = None,
    shots: int | None = None,
    episodes: int | None = None,
    threads: int | None = None,
    allow_unverified: bool = False,
    show: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **source_options: Any,
) -> evaluation.Accuracy:
    """How good a bundle or a model is on photos, and how near it is to the float reference.

    Args:
        what: A bundle folder, or a model as for `compile` (its float graph is run).
        data: A folder or .zip with class sub-folders or a labels.json (file name -> index), a .npz with
            photos and labels, or an iterable of pairs (image, index); labels may be missing. For detectors a
            ``data.yaml`` with YOLO's labels, a COCO file or a folder or .zip of VOC, for segmenters a folder
            or .zip with PNG masks. None takes bundled photos.
        task: What a model's outputs mean, as for `compile`; a bundle says it itself.
        limit: Evaluate this many, spread evenly over them.
        split: Which part of a data set with boxes or masks: train, val or test; None takes val, else test.
        ways, shots, episodes: Of an embedding: classes of a few-shot episode (5, or as many as there are),
            examples of each (1), and how many episodes (1000); a class is a folder of photos.
        threads: CPU threads of the artifact's runtime.
        allow_unverified: Take a bundle that failed its verification, too.
        show: Keep so many of the photos on which a bundle's artifact and its reference differ most.
        progress: Called with (done, total) images.
        source_options: As for `compile`, for models.
    """
    _positive(limit=limit, threads=threads)
    how: dict[str, Any] = {"limit": limit, "split": split, "show": show, "progress": progress}
    asked = {"ways": ways, "shots": shots, "episodes": episodes}
    if isinstance(what, (str, os.PathLike)) and is_bundle(what):
        inputs = source_options.pop("inputs", None)
        no_options("a bundle", {"task": task, **source_options})
        return _evaluate_bundle(Bundle.open(what, allow_unverified), data, inputs, threads, asked, **how)
    source = _resolve(what, **source_options)
    from repedge import passes
    from repedge.graph.run import Session

    graph = source.graph()
    meaning = tasks.of_graph(passes.settled(graph), source.labels, task).asked(**asked)
    run = source.tensors.along(Session(graph).run)
    found = evaluation.evaluate(lambda pixels, inputs: run(inputs), meaning, source.preprocess, data, **how)
    return replace(found, warnings=source.warnings)


def compare_bundles(
    bundles: Sequence[Path | str],
    data: Any = None,
    *,
    limit: int | None = None,
    split: str | None = None,
    threads: int | None = None,
    allow_unverified: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Bundles on the same photos: top-1, and agreement, SQNR and KL between every two and with float.

    Args:
        bundles: Two or more bundle folders.
        data: As for `evaluate`; None takes bundled ones.
        limit, split, threads, allow_unverified, progress: As for `evaluate`.
    """
    from repedge.judge import side_by_side

    _positive(limit=limit, threads=threads)
    return side_by_side.compare(
        bundles, data, limit=limit, split=split, threads=threads, allow_unverified=allow_unverified,
        progress=progress,
    )  # fmt: skip


def _positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UserError(f"{name} must be 1 or more, not {number}")


def _evaluate_bundle(
    bundle: Bundle, data: Any, inputs: Any, threads: int | None, asked: Mapping[str, int | None], **how: Any
) -> evaluation.Accuracy:
    from repedge.judge.beside import artifact_run, tensors_of

    m = bundle.manifest
    task = task_of(m).asked(**asked)
    beside = tensors_of(bundle, inputs)
    _, runner = verification.open_bundle(bundle, threads)
    run = artifact_run(bundle, beside, runner.run)
    reference = beside.along(verification.open_reference(bundle)) if bundle.reference else None

    def forward(pixels: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
        return run(pixels if m.input_kind == "uint8" else x)

    found = evaluation.evaluate(
        forward,
        task,
        m.preprocess,
        data,
        reference=None if reference is None else lambda pixels, x: reference(x),
        **how,
    )
    return replace(found, warnings=bundle.warnings)
