"""Is the artifact the model it came from? Run both on real images and compare.

The thresholds are here, in one table, with their reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from repedge import images
from repedge.bundle import Bundle, Verification
from repedge.calib.metrics import Comparison
from repedge.config import Precision, Preprocess
from repedge.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from repedge.targets.base import Job, Runner, Target


@dataclass(frozen=True)
class Threshold:
    """What an artifact of one precision must reach, every output taken alone.

    Attributes:
        min_sqnr_db: Signal-to-quantization-noise ratio against the float reference.
        max_rel_err: Largest error over the largest reference value; None for no bound.
        same_top1: Whether every image must keep its top-1 class. A flip between two classes whose
            reference logits are closer than the precision resolves is a tie and does not count.
        why: The reason for the numbers.
    """

    min_sqnr_db: float
    max_rel_err: float | None
    same_top1: bool
    why: str


THRESHOLDS: dict[Precision, Threshold] = {
    "fp32": Threshold(90, 1e-4, True, "only the order of float32 sums differs: about 120 dB is usual"),
    "fp16": Threshold(40, None, True, "11-bit significands leave 55 to 70 dB at the logits; 40 is a fault"),
    "w8a32": Threshold(8, None, False, "8-bit weights, rounded to nearest: 10 to 35 dB, depth decides"),
    "w8a16": Threshold(8, None, False, "as w8a32; 16-bit activations add nothing visible"),
    "w8a8": Threshold(8, None, False, "the loss is judged by eval on a validation set, this finds faults"),
    "palette8": Threshold(8, None, False, "256 shared values per tensor: like w8a32"),
    "palette6": Threshold(3, None, False, "64 shared values per tensor: 5 to 20 dB"),
    "palette4": Threshold(0, None, False, "16 shared values per tensor: most nets need retraining"),
}


def judge(
    precision: Precision,
    comparisons: Sequence[Comparison],
    names: Sequence[str],
    min_sqnr: float | None = None,
) -> list[str]:
    """Sentences for every threshold that was missed; empty when all hold."""
    limit = THRESHOLDS[precision]
    floor = limit.min_sqnr_db if min_sqnr is None else min_sqnr
    failures = []
    for name, c in zip(names, comparisons, strict=True):
        if not c.finite:
            failures.append(f"output {name!r} has NaN or infinite values")
            continue
        if c.sqnr_db < floor:
            failures.append(f"output {name!r}: SQNR {c.sqnr_db:.1f} dB is under {floor:g} dB for {precision}")
        if limit.max_rel_err is not None and c.max_rel_err > limit.max_rel_err:
            failures.append(
                f"output {name!r}: relative error {c.max_rel_err:.1e} is over {limit.max_rel_err:g}"
            )
        flips = [margin for margin in c.flips if margin > _tie(precision) * c.max_abs_ref]
        if limit.same_top1 and flips:
            failures.append(f"output {name!r}: top-1 differs on {len(flips)} of {c.n} images")
    return failures


def _tie(precision: Precision) -> float:
    """Relative gap between two logits under which their order means nothing in this precision."""
    return 1e-5 if precision == "fp32" else 2**-8


def compare(actual: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> list[Comparison]:
    """Compare each output with the reference's; arrays have leading axis n.

    Raises:
        CheckFailed: The artifact has other outputs than the reference.
    """
    if [a.shape for a in actual] != [r.shape for r in reference]:
        shapes = [a.shape for a in actual], [r.shape for r in reference]
        raise CheckFailed(f"the artifact's outputs have shapes {shapes[0]}, the reference's {shapes[1]}")
    comparisons = []
    for ref, act in zip(reference, actual, strict=True):
        c = Comparison()
        c.update(ref, act)
        comparisons.append(c)
    return comparisons


def summarize(
    precision: Precision, comparisons: Sequence[Comparison], names: Sequence[str], *, executor: str,
    source: str, min_sqnr: float | None = None,
) -> Verification:  # fmt: skip
    """One `Verification` over all outputs: the worst of each figure."""
    failures = judge(precision, comparisons, names, min_sqnr)
    agreements = [c.agree_top1 for c in comparisons if c.agree_top1 is not None]
    divergences = [c.kl for c in comparisons if c.kl is not None]
    return Verification(
        passed=not failures,
        n=comparisons[0].n,
        max_abs_err=max(c.max_abs_err for c in comparisons),
        max_rel_err=max(c.max_rel_err for c in comparisons),
        sqnr_db=max(-999.0, min(c.sqnr_db for c in comparisons)),
        agree_top1=min(agreements) if agreements else None,
        kl=max(divergences) if divergences else None,
        executor=executor,
        images=source,
        failures=tuple(failures),
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
    names = [t.name for t in bundle.manifest.outputs]
    if not names or not bundle.manifest.inputs:
        raise UserError(f"bundle {bundle.path} says nothing of its inputs and outputs; compile it again")
    return target, target.open(bundle.artifact, job_of(bundle), names, threads)


def verify_bundle(path: Path | str, folder: Path | None = None, count: int = 16) -> Verification:
    """Repeat a bundle's verification from the bundle alone (or on images of your own).

    Without ``folder`` the golden inputs in the bundle and the bundled demo photos are used.

    Raises:
        UserError: The bundle is damaged or has no float reference.
    """
    from repedge.graph.run import Session

    check_count(count)
    bundle = Bundle.open(path)
    m = bundle.manifest
    if bundle.reference is None:
        raise UserError(f"{path} was made with --no-reference: there is nothing to compare it with")
    samples, source = verification_samples(m.preprocess, folder, count, m.labels)
    pixels = np.stack([images.pixels(image, m.preprocess) for _, image in samples])
    inputs = images.normalise(pixels, m.preprocess)
    reference = Session(bundle.reference).run(inputs)
    target, runner = open_bundle(bundle)
    comparisons = compare(runner.run(pixels if m.input_kind == "uint8" else inputs), reference)
    minimum = m.options.get("min_sqnr")
    return summarize(
        m.precision,
        comparisons,
        [t.name for t in m.outputs],
        executor=target.executor,
        source=source,
        min_sqnr=minimum,
    )


def check_count(count: int) -> None:
    """Refuse to compare on no images.

    Raises:
        UserError: The count is below 1.
    """
    if not hasattr(count, "__index__"):
        raise UserError(f"a count is a whole number of images, not {count!r}")
    if count < 1:
        raise UserError("verification needs at least one image; pass a count of 1 or more")


def verification_samples(
    pre: Preprocess, folder: Path | None, count: int, labels: Sequence[str] = ()
) -> tuple[list[tuple[str, Image.Image]], str]:
    """``count`` real images as (name, image), and a phrase for where they came from.

    Photos much larger than the network's input are halved until they are not: they become golden
    inputs in the bundle, which must stay small.
    """
    if folder is None:
        chosen, source = images.spread(images.demo_samples(), count), "bundled CIFAR-10 test photos"
    else:
        chosen, source = images.spread(images.folder_samples(folder, labels), count), folder.name
    limit = 2 * max(*pre.size, pre.resize or 0)
    loaded = []
    for sample in chosen:
        image = sample.load()
        while min(image.size) > limit:
            image = image.reduce(2)
        loaded.append((sample.name, image))
    return loaded, source
