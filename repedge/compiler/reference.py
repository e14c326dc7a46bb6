"""What artifacts are held against: the unfused float graph, run on real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repedge.errors import CheckFailed
from repedge.judge import samples
from repedge.judge.samples import Samples
from repedge.photos import images
from repedge.photos.photos import open_photos

if TYPE_CHECKING:
    import onnx_ir as ir

    from repedge.compiler.request import BuildRequest
    from repedge.config import Preprocess
    from repedge.models.source import Source
    from repedge.tasks.base import Task

ROUNDING = 1e-4
"""What two float32 evaluations of one network may differ by, relative to an output's largest value."""

HALF_ROUNDING = 5e-2
"""The same where one of them is in float16: 1e-3 per operator, grown over a hundred layers."""


@dataclass(frozen=True)
class Outcome:  # a repedge.passes.fusion.certificate.Outcome
    """Network inputs float32 [n, C, H, W] and what the unfused float graph makes of them."""

    inputs: np.ndarray
    outputs: list[np.ndarray]


@dataclass(frozen=True)
class Evidence:
    """What artifacts and the fused graph are held against.

    Attributes:
        samples: Real images; of n of them, some may be there for golden vectors only.
        pixels: The same as uint8 [n, H, W, C].
        real, random: The unfused graph on them, and on normal noise.
    """

    samples: Samples
    pixels: np.ndarray
    real: Outcome
    random: Outcome

    @property
    def judged(self) -> int:
        """How many of the images artifacts are judged on; the first ones."""
        return self.samples.judged


def choose_samples(request: BuildRequest, pre: Preprocess, task: Task) -> Samples:
    """The photos that a run's artifacts are judged on.

    The user's own; else those of the calibration's set that were left over; else bundled ones.

    Raises:
        UserError: The user's can't be read.
    """
    check, calibration = request.verify, request.calibration
    if check.images is not None:
        return samples.from_photos(open_photos(check.images, pre, option="--images"), task, pre, check.count)
    if calibration is not None and request.needs_photos:
        used = set(calibration.images(pre).record.files.values())
        given = samples.Calibrated(calibration.open(pre), used, calibration.seed)
        found = samples.from_calibration(given, task, pre, check.count)
        if found is not None:
            return found
    return samples.from_bundled(task, pre, check.count)


def gather(source: Source, graph: ir.Model, reference: Path, photos: Samples) -> Evidence:
    """Save the unfused graph, run it on real images, and hold it against the model it was made from.

    That is the torch module, or the ``.onnx`` file as it is, in whatever opset it is written.

    Args:
        reference: The file to save it to.
        photos: The images.

    Raises:
        UserError: The model does not run.
        CheckFailed: The model gives NaN or infinite outputs, or the graph differs from the model.
    """
    from repedge.graph.load import save_onnx
    from repedge.graph.run import Session, as_brought

    save_onnx(graph, reference)
    pixels = photos.pixels(source.preprocess)
    inputs = images.normalise(pixels, source.preprocess)
    with as_brought(source.name):
        session = Session(reference)
        outputs = session.run(inputs)
        session.require_batches(outputs, len(inputs))
    if not all(np.isfinite(o).all() for o in outputs):
        raise CheckFailed(
            "the model itself gives NaN or infinite outputs on real images; nothing was compiled"
        )
    if source.module is not None:
        _check_export(source.module, inputs[:2], [o[:2] for o in outputs])
    if source.onnx is not None:
        outputs = _check_conversion(source, inputs, outputs)
    noise = np.random.default_rng(0).normal(size=(1, *inputs.shape[1:])).astype(np.float32)
    return Evidence(photos, pixels, Outcome(inputs, outputs), Outcome(noise, session.run(noise)))


def _check_export(module: Any, inputs: np.ndarray, outputs: Sequence[np.ndarray]) -> None:
    """The graph against the torch module itself, so that no later check rests on the export alone."""
    import torch

    from repedge.graph.export import single_thread

    singles = torch.from_numpy(inputs).split(1)  # one by one, as it was exported
    with single_thread(), torch.inference_mode():
        rows = [torch.utils._pytree.tree_leaves(module.eval()(image)) for image in singles]
    worst = _difference(outputs, [torch.cat(parts).float().numpy() for parts in zip(*rows, strict=True)])
    if not worst < ROUNDING:
        raise CheckFailed(
            f"the exported graph differs from the torch model by {worst:.1e} of its largest output; "
            "does its forward draw random numbers or keep a state?"
        )


def _check_conversion(source: Source, inputs: np.ndarray, outputs: list[np.ndarray]) -> list[np.ndarray]:
    """The graph against the untouched file, so that no later check rests on the opset's conversion.

    Returns:
        What artifacts are held against: the file's own outputs; the graph's for a file that computes in
        float16, which is the less exact of the two.
    """
    from repedge.graph.load import computes_in_half
    from repedge.graph.run import Session, as_brought

    assert source.onnx is not None, "asked of files only"
    with as_brought(source.name):
        session = Session(source.onnx)
        rows = [session.run(image) for image in np.split(inputs, len(inputs))]  # a file may be for one image
    found = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    half = computes_in_half(source.onnx)
    worst = _difference(outputs, found)
    if not worst < (HALF_ROUNDING if half else ROUNDING):
        raise CheckFailed(
            f"the graph that repedge made of {source.onnx} differs from the file as ONNX Runtime runs it, "
            f"by {worst:.1e} of its largest output; export it with opset 20"
        )
    return outputs if half else found


def _difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The largest difference over the largest value of the same output; inf where shapes or NaN differ."""
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape:
            return float("inf")
        apart = np.abs(mine.astype(np.float64) - other).max(initial=0.0)
        worst = max(worst, float(apart) / max(float(np.abs(other).max(initial=0.0)), 1e-30))
        if not np.isfinite(apart):
            return float("inf")
    return worst
