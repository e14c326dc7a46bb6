"""What artifacts are held against: the unfused float graph, run on real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from repedge.errors import CheckFailed
from repedge.judge import samples
from repedge.judge.samples import Samples
from repedge.judge.statistics import oddities
from repedge.photos import images
from repedge.photos.tensors import Tensors

if TYPE_CHECKING:
    import onnx_ir as ir

    from repedge.compiler.request import BuildRequest
    from repedge.config import Preprocess
    from repedge.graph.analysis.resolution import Parts, Resolution
    from repedge.models.source import Source
    from repedge.tasks.base import Task

ROUNDING = 1e-4
"""What two float32 evaluations of one network may differ by, relative to an output's largest value."""

QUANTIZED_DB = 8.0
"""The least signal-to-noise ratio between a quantized file and the float network inside, as of w8a8."""

HALF_ROUNDING = 5e-2
"""The same where one of them is in float16: 1e-3 per operator, grown over a hundred layers."""


@dataclass
class Outcome:  # a repedge.passes.fusion.certificate.Outcome
    """What the unfused float graph makes of some images.

    Attributes:
        inputs: float32 [n, C, H, W].
        outputs: Every output, [n, ...] each.
        reference: The graph, an ``.onnx`` file.
        tensors: What it takes beside the images, from the first sample on.
    """

    inputs: np.ndarray
    outputs: list[np.ndarray]
    reference: Path
    tensors: Tensors = field(default_factory=Tensors)
    _resolution: list[Resolution] | None = field(default=None, init=False, repr=False)

    def resolution(self) -> list[Resolution]:
        """What an arithmetic can tell apart at each output; measured when it is first asked for."""
        if self._resolution is None:
            from repedge.graph.analysis.resolution import resolution
            from repedge.graph.inputs import Form
            from repedge.graph.load import load_onnx

            graph = load_onnx(self.reference, form=Form("", tensors=self.tensors))
            self._resolution = resolution(graph, self.inputs, self.tensors)
        return self._resolution

    def scaled(self, factor: float) -> Outcome:
        """What the graph makes of the images times this."""
        from repedge.graph.run import Session

        inputs = self.inputs * np.float32(factor)
        outputs = self.tensors.from_first(Session(self.reference).run)(inputs)
        return Outcome(inputs, outputs, self.reference, self.tensors)


@dataclass(frozen=True)
class Evidence:
    """What artifacts and the fused graph are held against.

    Attributes:
        samples: Real images; of n of them, some may be there for golden vectors only.
        pixels: The same as uint8 [n, H, W, C].
        real, random: The unfused graph on them, and on normal noise.
        warnings: Sentences on what is odd about them.
    """

    samples: Samples
    pixels: np.ndarray
    real: Outcome
    random: Outcome
    warnings: tuple[str, ...] = ()

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
        return samples.from_photos(samples.open_judged(check.images, task, pre), task, pre, check.count)
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
    from repedge.graph.analysis.parts import parts_of
    from repedge.graph.load import save_onnx
    from repedge.graph.run import Session, as_brought

    save_onnx(graph, reference)
    pixels = photos.pixels(source.preprocess)
    inputs = images.normalise(pixels, source.preprocess)
    with as_brought(source.name):
        session = Session(reference)
        run = source.tensors.from_first(session.run)
        outputs = run(inputs)
        session.require_batches(outputs, len(inputs))
    if not all(np.isfinite(o).all() for o in outputs):
        raise CheckFailed(
            "the model itself gives NaN or infinite outputs on real images; nothing was compiled"
        )
    real, parts = Outcome(inputs, outputs, reference, source.tensors), parts_of(graph)
    if source.module is not None:
        _check_export(source, real, parts)
    if source.rounded:
        _check_rounding(source, real)
    elif source.onnx is not None:
        real.outputs = _check_conversion(source, real, parts)
    noise = np.random.default_rng(0).normal(size=(1, *inputs.shape[1:])).astype(np.float32)
    random = Outcome(noise, run(noise), reference, source.tensors)
    odd = oddities(graph, source.preprocess, inputs[: photos.judged]) if not source.tensors else []
    return Evidence(photos, pixels, real, random, tuple(odd))


def _check_export(source: Source, graph: Outcome, parts: Parts) -> None:
    """The graph against the torch module itself, so that no later check rests on the export alone."""
    import torch

    from repedge.graph.export import Call, single_thread

    assert source.module is not None, "asked of modules only"
    call = Call(source.module.eval(), source.form)
    singles = torch.from_numpy(graph.inputs[:2]).split(1)  # one by one, as it was exported
    beside = [torch.from_numpy(a) for a in source.tensors.at(0, len(singles)).values()]
    with single_thread(), torch.inference_mode():
        rows = [
            torch.utils._pytree.tree_leaves(call(image, *(t[i] for t in beside)))
            for i, image in enumerate(singles)
        ]
    found = _stacked([[t.float().numpy() for t in row] for row in rows], graph.outputs)
    worst = _difference([y[:2] for y in graph.outputs], found, graph, parts)
    if worst is not None:
        raise CheckFailed(
            f"the exported graph differs from the torch model by {worst:.1e} of its largest output; "
            "does its forward draw random numbers or keep a state?"
        )


def _check_conversion(source: Source, graph: Outcome, parts: Parts) -> list[np.ndarray]:
    """The graph against the untouched file, so that no later check rests on the opset's conversion.

    Returns:
        What artifacts are held against: the file's own outputs; the graph's for a file that computes in
        float16, which is the less exact of the two.
    """
    from repedge.graph.load import computes_in_half

    assert source.onnx is not None, "asked of files only"
    found = _file_outputs(source, graph)
    half = computes_in_half(source.onnx)
    worst = _difference(graph.outputs, found, graph, parts, half)
    if worst is not None:
        raise CheckFailed(
            f"the graph that repedge made of {source.onnx} differs from the file as ONNX Runtime runs it, "
            f"by {worst:.1e} of its largest output; export it with opset 20"
        )
    return graph.outputs if half else found


def _file_outputs(source: Source, graph: Outcome) -> list[np.ndarray]:
    """What ONNX Runtime makes of the images in the untouched file."""
    from repedge.graph.load import to_run
    from repedge.graph.run import Session, as_brought

    assert source.onnx is not None, "asked of files only"
    with as_brought(source.name):
        run = source.tensors.along(Session(to_run(source.onnx), form=source.form).run)
        singles = np.split(graph.inputs, len(graph.inputs))  # a file may be for one image
        rows = [run(image) for image in singles]
    return _stacked(rows, graph.outputs)


def _check_rounding(source: Source, graph: Outcome) -> None:
    """The float network inside a quantized file, which differs from the file by its rounding only."""
    for ours, theirs in zip(graph.outputs, _file_outputs(source, graph), strict=True):
        noise = float(np.square(ours.astype(np.float64) - theirs).sum())
        if noise > float(np.square(theirs.astype(np.float64)).sum()) * 10 ** (-QUANTIZED_DB / 10):
            raise CheckFailed(
                f"{source.onnx} is quantized, and the float network inside is less than {QUANTIZED_DB:g} dB "
                "from it: compile the float file that it was made from"
            )


def _stacked(rows: Sequence[Sequence[np.ndarray]], like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Every output [n, ...] from those of single images, which may have the axis of images elsewhere."""
    columns = list(zip(*rows, strict=True))
    if len(columns) != len(like):
        return [np.concatenate(column) for column in columns]
    found = []
    for column, want in zip(columns, like, strict=True):
        own = want.shape[1:]
        found.append(np.concatenate([y.reshape(1, *own) if y.size == np.prod(own) else y for y in column]))
    return found


def _difference(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], graph: Outcome, parts: Parts, half: bool = False
) -> float | None:
    """The largest difference over the largest value of the same part; None if rounding explains it.

    Args:
        ours, theirs: Outputs of the graph and of the model.
        graph: The graph, for what rounding makes of its outputs.
        parts: Of each output.
        half: Whether the model computes in float16.
    """
    from repedge.graph.analysis.resolution import SINGLE, gap, most_roundings, roundings

    if [y.shape for y in ours] != [y.shape for y in theirs]:
        return float("inf")
    found = gap(ours, theirs, parts)
    if found.relative < (HALF_ROUNDING if half else ROUNDING):
        return None
    epsilon = 2.0**-11 if half else SINGLE
    times = roundings(ours, theirs, graph.resolution(), parts, epsilon)
    return None if times <= most_roundings(epsilon) else found.relative
