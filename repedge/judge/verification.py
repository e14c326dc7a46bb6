"""Is the artifact the model it came from? Run both on real images and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import Verification, task_of
from repedge.errors import UserError
from repedge.judge import samples
from repedge.photos import images
from repedge.photos.photos import bundled_photos, open_photos
from repedge.precision import Precision, Threshold
from repedge.tasks.base import Task
from repedge.tasks.comparison import Agreement

if TYPE_CHECKING:
    from repedge.targets.base import Job, Runner, Target


def judge(
    limit: Threshold,
    precision: Precision,
    found: Agreement,
    min_sqnr: float | None = None,
) -> list[str]:
    """Sentences for every threshold that was missed; empty when all hold."""
    floor = limit.min_sqnr_db if min_sqnr is None else min_sqnr
    failures = []
    for output, c in zip(found.task.outputs, found.outputs, strict=True):
        name = output.name
        if not c.finite:
            failures.append(f"output {name!r} has NaN or infinite values")
            continue
        if c.sqnr_db < floor:
            failures.append(f"output {name!r}: SQNR {c.sqnr_db:.1f} dB is under {floor:g} dB for {precision}")
        if limit.max_rel_err is not None and c.max_rel_err > limit.max_rel_err:
            failures.append(
                f"output {name!r}: relative error {c.max_rel_err:.1e} is over {limit.max_rel_err:g}"
            )
        changed = c.changed(limit.tie)
        if limit.same_decisions and changed:
            failures.append(f"output {name!r}: {c.decision} differs on {changed} of {c.n} images")
    return failures


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
    precision: Precision,
    found: Agreement,
    *,
    source: str,
    min_sqnr: float | None = None,
    others: Mapping[str, Agreement] = MappingProxyType({}),
) -> Verification:
    """One `Verification` over all outputs: the worst of each figure.

    Args:
        source: Where the images came from.
        min_sqnr: Replaces the precision's SQNR threshold, dB.
        others: What came of `repedge.targets.base.Runner.others`; the figures are not theirs, the failures
            are.
    """
    limit = target.threshold(precision)
    failures = judge(limit, precision, found, min_sqnr)
    for how, agreement in others.items():
        failures += [f"{how}: {why}" for why in judge(limit, precision, agreement, min_sqnr)]
    return Verification(
        passed=not failures,
        n=found.n,
        max_abs_err=found.max_abs_err,
        max_rel_err=found.max_rel_err,
        sqnr_db=found.sqnr_db,
        figures=found.figures(),
        executor=target.executor,
        images=source,
        failures=tuple(failures),
        others={how: agreement.sqnr_db for how, agreement in others.items()},
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


def verify_bundle(path: Path | str, folder: Any = None, count: int = samples.COUNT) -> Verification:
    """Repeat a bundle's verification from the bundle alone (or on images of your own).

    ``folder`` is what `repedge.photos.photos.open_photos` takes; without it bundled photos are used.

    Raises:
        UserError: The bundle is damaged or has no float reference.
    """
    from repedge.graph.run import Session

    check_count(count)
    bundle = Bundle.open(path, allow_unverified=True)  # it is what verification is about
    m = bundle.manifest
    if bundle.reference is None:
        raise UserError(f"{path} was made with --no-reference: there is nothing to compare it with")
    task, pre = task_of(m), m.preprocess
    photos = bundled_photos(pre) if folder is None else open_photos(folder, pre, option="--images")
    found = samples.from_photos(photos, task, pre, count)
    pixels = found.pixels(pre)
    inputs = images.normalise(pixels, pre)
    reference = Session(bundle.reference).run(inputs)
    target, runner = open_bundle(bundle)
    batch = pixels if m.input_kind == "uint8" else inputs
    agreement = compare(task, runner.run(batch), reference)
    others = {how: compare(task, outputs, reference) for how, outputs in runner.others(batch).items()}
    floor = m.options.get("min_sqnr")
    return summarize(target, m.precision, agreement, source=found.source, min_sqnr=floor, others=others)


def check_count(count: int) -> None:
    """Refuse to compare on no images.

    Raises:
        UserError: The count is below 1.
    """
    if not hasattr(count, "__index__"):
        raise UserError(f"a count is a whole number of images, not {count!r}")
    if count < 1:
        raise UserError("verification needs at least one image; pass a count of 1 or more")
