"""What a dry run looks at: all that could end a run before its first artifact, short of calibrating."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge import tasks
from repedge.bundle.folder import check_free
from repedge.compiler.reference import choose_samples
from repedge.compiler.refusals import operators_missing
from repedge.errors import UserError
from repedge.judge.scoring import held_out, with_truth

if TYPE_CHECKING:
    import onnx_ir as ir

    from repedge.compiler.request import BuildRequest
    from repedge.models.source import Source
    from repedge.tasks.base import Task


def rehearse(source: Source, request: BuildRequest) -> Mapping[str, str]:
    """Export and fuse the network and read the photos, as the run would; nothing is written.

    Photos from an iterable, which can be read once only, are left alone.

    Returns:
        Targets that can't take the network, and why.

    Raises:
        UserError: What would also end the real run: labels that don't fit, photos that can't be used, a
            layer to keep in float that there is not, or operators that no chosen target has.
    """
    from repedge import passes
    from repedge.graph.analysis.parts import parts_of

    calibration = request.calibration if request.needs_photos else None
    if calibration is not None and again(calibration.source):
        calibration.images(source.preprocess)
    graph = source.graph()
    settled = passes.settled(graph)
    task = tasks.of_graph(settled, source.labels, request.task, parts_of(settled))
    task.check_labels()
    if request.verify.images is not None and again(request.verify.images):
        choose_samples(request, source.preprocess, task)
    source.module = None
    passes.clean(graph)
    refused = operators_missing(graph, [name for name, _ in request.builds])
    _check_integers(source, task, graph, request)
    return refused


def _check_integers(source: Source, task: Task, graph: ir.Model, request: BuildRequest) -> None:
    """Names of layers to keep in float, and the photos that an accuracy budget is measured on."""
    from repedge.calib.mixed.choose import named

    calibration, budget, pre = request.calibration, request.budget, source.preprocess
    if calibration is None:
        return
    named(graph, calibration.keep_float)
    if budget is None:
        return
    has_truth = False
    if budget.data is None:
        if again(calibration.source):
            used = set(calibration.images(pre).record.files.values())
            held_out(calibration.open(pre), used, pre, calibration.seed, budget.count)
    elif again(budget.data):
        given = with_truth(budget.data, task, pre, budget.count)
        has_truth = next((truth is not None for _, truth in given.read()), False)
    budget.bound(task, has_truth)


def again(photos: Any) -> bool:
    """Whether photos can be read once more afterwards."""
    return isinstance(photos, (str, os.PathLike)) or hasattr(photos, "__len__")


def check_place(final: Path, force: bool) -> None:
    """Fail where a bundle could not be written, without touching anything.

    Raises:
        UserError: Its name is impossible, something is there, or the folder above it can't be made or
            written to.
    """
    if "\0" in str(final):
        raise UserError(f"{str(final)!r} is no name that a file can have; choose another --out")
    try:
        check_free(final, force)
        place = next(p for p in final.absolute().parents if os.path.lexists(p))
    except OSError as e:
        raise UserError(f"can't write {final} ({e.strerror or e}); choose another --out") from e
    if not place.is_dir():
        raise UserError(f"can't write {final} ({place} is not a folder); choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"can't write {final} ({place} may not be written to); choose another --out")
