"""What is in a checkpoint, a model or a bundle, and what fusing would make of it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from repedge import passes, tasks
from repedge.bundle.folder import Bundle, is_bundle
from repedge.bundle.manifest import task_of
from repedge.errors import UserError
from repedge.models.files import SUFFIXES
from repedge.models.modules import random_state_kept

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Size:
    """One side of the before/after table.

    Attributes:
        nodes: Nodes of the graph.
        convolutions: Conv and ConvTranspose nodes.
        normalizations: BatchNormalization nodes.
        branches: Additions and concatenations, where parallel paths meet.
        params: Weights.
        macs: Multiply-accumulates per image.
    """

    nodes: int
    convolutions: int
    normalizations: int
    branches: int
    params: int
    macs: int


@dataclass(frozen=True)
class Inspection:
    """The answer of `inspect`.

    Attributes:
        kind: What was looked at.
        path: The file, folder or model name.
        found: One sentence.
        before, after: The graph before and after fusing; None for a checkpoint alone.
        details: Merges, what was left unfused and why; or the bundle's manifest.
        warnings: What is doubtful about the weights.
        task, outputs: What the outputs mean: the task's name, and a sentence; empty of a checkpoint.
    """

    kind: Literal["checkpoint", "model", "bundle"]
    path: str
    found: str
    before: Size | None = None
    after: Size | None = None
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    task: str = ""
    outputs: str = ""

    def as_json(self) -> dict[str, Any]:
        """The object that ``repedge inspect --json`` prints."""
        return asdict(self)


@random_state_kept()
def inspect(what: str | Path | nn.Module | None = None, **source_options: Any) -> Inspection:
    """Look at a bundle folder, a checkpoint file, or a model as for `repedge.compile`.

    Raises:
        UserError: It is none of these, or it is damaged.
    """
    if isinstance(what, (str, os.PathLike)):
        if Path(what).suffix.lower() in SUFFIXES:
            no_options("a checkpoint", source_options)
            return _checkpoint(Path(what))
        if is_bundle(what):
            no_options("a bundle", source_options)
            return _bundle(Path(what))
    return _model(what, **source_options)


def no_options(what: str, options: dict[str, Any]) -> None:
    """Refuse options that say which network is meant where that is settled.

    Raises:
        UserError: Some were given.
    """
    given = [name for name, value in options.items() if value not in (None, False)]
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{what} is taken as it is; leave out {words}")


def _bundle(path: Path) -> Inspection:
    bundle = Bundle.open(path, allow_unverified=True)
    m = bundle.manifest
    size = f"{bundle.size_bytes / 1e6:.2f} MB"
    found = f"{m.name} for {m.target} in {m.precision}, {size}; every file's hash is right"
    if bundle.unverified:
        found += f"; NOT VERIFIED: {bundle.unverified}"
    task = task_of(m)
    details = m.model_dump(mode="json")
    return Inspection("bundle", str(path), found, details=details, task=task.name, outputs=task.describe())


def _checkpoint(path: Path) -> Inspection:
    from repedge.models.checkpoints import identify, load_checkpoint

    state = load_checkpoint(path)
    finding = identify(state)
    params = sum(t.numel() for t in state.values())
    return Inspection(
        "checkpoint", str(path), str(finding), details={"tensors": len(state), "params": params}
    )


def _model(model: str | Path | nn.Module | None, **source_options: Any) -> Inspection:
    from repedge.models.registry import spec
    from repedge.models.source import resolve

    needs = False
    if isinstance(model, str) and ":" not in model and not model.lower().endswith(".onnx"):
        # What fusing does can be seen without the weights.
        needs = spec(model).bundled is None and not source_options.get("weights")
        source_options = {"random_weights": needs, **source_options}
    source = resolve(model, **source_options)
    graph = source.graph()
    passes.settle(graph)
    task = tasks.of_graph(graph, source.labels)
    before = _size(graph)
    certificate = passes.clean(graph)
    details = certificate.model_dump(mode="json")
    doubts = () if needs else source.warnings
    return Inspection(
        "model", source.name, source.description, before, _size(graph), details, doubts, task.name,
        task.describe(),
    )  # fmt: skip


def _size(graph: Any) -> Size:
    from repedge.graph.count import count

    c = count(graph)
    ops = c.ops
    return Size(
        nodes=c.nodes,
        convolutions=ops.get("Conv", 0) + ops.get("ConvTranspose", 0),
        normalizations=ops.get("BatchNormalization", 0),
        branches=ops.get("Add", 0) + ops.get("Concat", 0),
        params=c.params,
        macs=c.macs,
    )
