"""Is the artifact the model it came from? Run both on real images and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import Manifest, PartFigures, Verification, task_of
from repedge.errors import UserError
from repedge.judge import samples
from repedge.judge.beside import Given, artifact_run, tensors_of
from repedge.judge.verdict import Bar, judge
from repedge.photos import images
from repedge.photos.photos import bundled_photos
from repedge.tasks.base import Task
from repedge.tasks.comparison import Agreement, Unit

if TYPE_CHECKING:
    from repedge.targets.base import Job, Runner, Target


def compare(task: Task, actual: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> Agreement:
    """Compare each output with the reference's; arrays have leading axis n.

    Raises:
        CheckFailed: The artifact has other outputs than the reference.
    """
    found = Agreement(task)
    found.update(reference, actual)
    return found


def summarize(
    target: Target,
    bar: Bar,
    found: Agreement,
    *,
    source: str,
    others: Mapping[str, Agreement] = MappingProxyType({}),
    truth: Mapping[str, float] = MappingProxyType({}),
) -> Verification:
    """One `Verification` over all outputs: the worst of each figure.

    Args:
        target: Whose executor ran the artifact.
        bar: What it must reach.
        found: Its outputs against the float network's.
        source: Where the images came from.
        others: What came of `repedge.targets.base.Runner.others`; the figures are not theirs, the failures
            are.
        truth: See `against_truth`.
    """
    verdict = judge(bar, found)
    for how, agreement in others.items():
        more = judge(replace(bar, simulated=None, recorded=None), agreement)
        verdict.failures += [f"{how}: {why}" for why in more.failures]
    return Verification(
        passed=not verdict.failures,
        n=found.n,
        max_abs_err=found.max_abs_err,
        max_rel_err=found.max_rel_err,
        sqnr_db=found.sqnr_db,
        figures=found.figures(),
        executor=target.executor,
        images=source,
        failures=tuple(verdict.failures),
        simulated_sqnr_db=bar.recorded if bar.simulated is None else bar.simulated.sqnr_db,
        others={how: agreement.sqnr_db for how, agreement in others.items()},
        truth=dict(truth),
        remarks=tuple(verdict.remarks),
        parts=tuple(_part(found, unit) for unit in found.units if unit.part is not None),
    )


def against_truth(
    task: Task, truths: Sequence[Any], actual: Sequence[np.ndarray], exact: Sequence[np.ndarray]
) -> dict[str, float]:
    """The task's first metric of the artifact and, as ``float_KEY``, of the float network.

    Args:
        task: What the outputs mean.
        truths: What is to be found in each image; None where nobody knows.
        actual, exact: Every output of both, [n, ...] each.

    Returns:
        Empty where no truth is known, or the network can't give it; else with ``labelled``, its number.
    """
    known = [i for i, truth in enumerate(truths) if truth is not None]
    found: dict[str, float] = {}
    for prefix, outputs in (("", actual), ("float_", exact)):
        if not known:
            return {}
        try:
            scorer = task.scorer()  # which may want a package that nothing else here does
            if scorer is None:
                return {}
            scorer.update([y[known] for y in outputs], [truths[i] for i in known])
        except UserError:  # labels of other classes than the network's
            return {}
        key = task.metrics[0].key
        score = scorer.score()
        if key not in score:  # such as one photo of each class, of which there is nothing to ask
            return {}
        found[f"{prefix}{key}"] = score[key]
    return {**found, "labelled": float(len(known))}


def _part(found: Agreement, unit: Unit) -> PartFigures:
    part, c = unit.part, unit.comparison
    assert part is not None, "asked of parts only"
    return PartFigures(
        output=found.task.outputs[unit.output].name,
        name=part.name,
        unit=part.unit,
        axis=part.axis,
        start=part.start,
        stop=part.stop,
        max_abs_err=c.max_abs_err,
        max_rel_err=c.max_rel_err,
        sqnr_db=max(-999.0, c.sqnr_db),
    )


def job_of(bundle: Bundle) -> Job:
    """The job that a bundle was compiled with."""
    from repedge.targets.base import Job

    m = bundle.manifest
    return Job(
        name=m.name,
        precision=m.precision,
        preprocess=m.preprocess,
        input_kind=m.input_kind,
        labels=m.labels,
        task=task_of(m),
        options=m.options,
    )


def open_bundle(bundle: Bundle, threads: int | None = None) -> tuple[Target, Runner]:
    """The bundle's target and its artifact in the target's executor."""
    from repedge import targets

    target = targets.get(bundle.manifest.target)
    missing = target.missing_modules()
    if missing:
        raise UserError(
            f"running a {target.name} artifact here needs {', '.join(missing)}: pip install repedge"
        )
    if bundle.manifest.precision not in target.precisions:
        raise UserError(
            f"bundle {bundle.path} is in {bundle.manifest.precision!r}, which {target.name} does not offer"
        )
    names = [t.name for t in bundle.manifest.outputs]
    if not names or not bundle.manifest.inputs:
        raise UserError(f"bundle {bundle.path} says nothing of its inputs and outputs; compile it again")
    return target, target.open(bundle.artifact, job_of(bundle), names, threads)


def verify_bundle(
    path: Path | str, folder: Any = None, count: int = samples.COUNT, inputs: Given = None
) -> Verification:
    """Repeat a bundle's verification from the bundle alone (or on images of your own).

    ``folder`` is what `repedge.photos.photos.open_photos` takes; without it bundled photos are used.
    ``inputs`` are samples of what it takes beside the image; without them its golden ones are used.

    Raises:
        UserError: The bundle is damaged or has no float reference.
    """
    from repedge.graph.analysis.resolution import resolution
    from repedge.graph.inputs import Form
    from repedge.graph.load import load_onnx

    check_count(count)
    bundle = Bundle.open(path, allow_unverified=True)  # it is what verification is about
    m = bundle.manifest
    reference_file = bundle.reference
    if reference_file is None:
        raise UserError(f"{path} was made with --no-reference: there is nothing to compare it with")
    task, pre = task_of(m), m.preprocess
    photos = bundled_photos(pre, m.labels) if folder is None else samples.open_judged(folder, task, pre)
    found = samples.from_photos(photos, task, pre, count)
    pixels = found.pixels(pre)
    x, beside = images.normalise(pixels, pre), tensors_of(bundle, inputs)
    reference = beside.from_first(open_reference(bundle))(x)
    target, runner = open_bundle(bundle)
    batch = pixels if m.input_kind == "uint8" else x
    actual = artifact_run(bundle, beside, runner.run)(batch)
    agreement = compare(task, actual, reference)
    further = artifact_run(bundle, beside, runner.others)(batch)
    others = {how: compare(task, outputs, reference) for how, outputs in further.items()}
    bar = Bar(
        m.precision, target.threshold(m.precision), m.options.get("min_sqnr"),
        resolve=lambda: resolution(
            load_onnx(reference_file, pre.size, Form("", tensors=beside)), x, beside
        ),
        steps=_steps(m), recorded=_simulated(m.verification, found.source, agreement.n),
    )  # fmt: skip
    truth = against_truth(task, found.truths, actual, reference)
    return summarize(target, bar, agreement, source=found.source, others=others, truth=truth)


def _simulated(made: Verification | None, source: str, n: int) -> float | None:
    """What the integers gave in simulation when the bundle was made, if that was on these very images."""
    return made.simulated_sqnr_db if made is not None and (made.images, made.n) == (source, n) else None


def _steps(manifest: Manifest) -> list[float]:
    """The scales of the outputs' integers, if the manifest says something usable of them."""
    found = (manifest.quantization or {}).get("output_steps")
    if not isinstance(found, list) or len(found) != len(manifest.outputs):
        return []
    return [float(v) for v in found] if all(isinstance(v, (int, float)) for v in found) else []


def open_reference(bundle: Bundle, threads: int | None = None) -> Callable[..., list[np.ndarray]]:
    """What runs the float reference graph of a bundle that has one, as `repedge.graph.run.Session.run`.

    Raises:
        UserError: The file is no graph, or one that does not run; that is found while it runs, too.
    """
    from repedge.graph.load import check_file
    from repedge.graph.run import Session, as_brought

    assert bundle.reference is not None, "asked of bundles that have one"
    what = f"the float reference of {bundle.path}"
    check_file(bundle.reference)
    with as_brought(what):
        session = Session(bundle.reference, threads)

    def run(*given: Any) -> list[np.ndarray]:
        with as_brought(what):
            return session.run(*given)

    return run


def check_count(count: int) -> None:
    """Refuse to compare on no images.

    Raises:
        UserError: The count is below 1.
    """
    if not hasattr(count, "__index__"):
        raise UserError(f"a count is a whole number of images, not {count!r}")
    if count < 1:
        raise UserError("verification needs at least one image; pass a count of 1 or more")
