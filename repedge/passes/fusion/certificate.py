"""The fusion certificate: what was merged, how exactly, what was left and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from repedge.errors import CheckFailed

END_TO_END_TOLERANCE = 1e-4
"""Largest difference of an output, relative to the largest output, that two float32 evaluations of one
network may show: rounding of 6e-8 per operation, grown over a hundred layers."""


class Merge(BaseModel):
    """One convolution or fully connected layer that stands for several nodes.

    Attributes:
        kind: The rule that did most of it: "branches", "chain", "affine before" or "affine after".
        nodes: Names of the nodes it replaces, in order of execution.
        result: Name of the node.
        source: The module that the nodes came from, where known.
        error: Largest difference, relative to a channel's largest output, between the merged layer and
            the original nodes, both evaluated in float64 on random data that includes the borders.
        cast_error: The same for the merged weights rounded to float32.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    nodes: tuple[str, ...]
    result: str
    source: str | None
    error: float
    cast_error: float


class Unfused(BaseModel):
    """A candidate that was left as it is.

    Attributes:
        kind: The rule that looked at it.
        nodes: Names of the nodes concerned.
        reason: Why, in one sentence.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    nodes: tuple[str, ...]
    reason: str


class Fused(list[Merge]):
    """The merges of a graph, with what was ``left`` unfused."""

    def __init__(self, merges: Iterable[Merge] = (), left: Iterable[Unfused] = ()) -> None:
        super().__init__(merges)
        self.left: list[Unfused] = list(left)


class EndToEnd(BaseModel):
    """The fused graph against the unfused one.

    Attributes:
        inputs: What they were run on.
        n: Number of inputs.
        max_abs_err: Largest difference of an output.
        max_rel_err: The same over the largest absolute value of that output.
    """

    model_config = ConfigDict(frozen=True)

    inputs: Literal["random", "real"]
    n: int
    max_abs_err: float
    max_rel_err: float


class Certificate(BaseModel):
    """What fusing did to a graph.

    Attributes:
        merges, unfused: See `Merge` and `Unfused`.
        params_before, params_after: Parameters.
        macs_before, macs_after: Multiply-accumulates per image.
        end_to_end: Empty where the graph was not run.
        tolerance: What ``max_rel_err`` may be.
        passed: Whether every comparison is within it.
    """

    model_config = ConfigDict(frozen=True)

    merges: tuple[Merge, ...]
    unfused: tuple[Unfused, ...]
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    end_to_end: tuple[EndToEnd, ...]
    tolerance: float = END_TO_END_TOLERANCE
    passed: bool


class Size(Protocol):
    """Counts of a graph (`repedge.graph.count.Counts`)."""

    @property
    def params(self) -> int:
        """Numbers in its weights."""

    @property
    def macs(self) -> int:
        """Multiplications and additions of an image."""


class Outcome(Protocol):
    """What the unfused graph gives."""

    @property
    def inputs(self) -> np.ndarray:
        """Images, float32 [n, C, H, W]."""

    @property
    def outputs(self) -> list[np.ndarray]:
        """The graph's outputs for them."""


def certify(
    fused: Fused,
    before: Size,
    after: Size,
    run: Callable[[np.ndarray], Sequence[np.ndarray]] | None = None,
    real: Outcome | None = None,
    random: Outcome | None = None,
) -> Certificate:
    """The certificate of a fused graph.

    Args:
        fused: What `repedge.passes.fusion.fuse.fuse` returned.
        before, after: Counts of the graph before fusing and of the clean graph.
        run: Executes the fused graph; None leaves the end-to-end comparisons out.
        real, random: Inputs with what the unfused graph makes of them.

    Raises:
        CheckFailed: The fused graph's outputs differ.
    """
    given: tuple[tuple[Literal["random", "real"], Outcome | None], ...] = (("random", random), ("real", real))
    found = [_compare(name, o, run(o.inputs)) for name, o in given if run is not None and o is not None]
    worst = max(found, key=lambda c: c.max_rel_err if np.isfinite(c.max_rel_err) else np.inf, default=None)
    if worst is not None and not worst.max_rel_err <= END_TO_END_TOLERANCE:
        raise CheckFailed(
            f"the fused graph differs from the unfused one by {worst.max_rel_err:.1e} of its largest "
            f"output on {worst.inputs} inputs; at most {END_TO_END_TOLERANCE:.0e} is rounding"
        )
    return Certificate(
        merges=tuple(fused),
        unfused=tuple(fused.left),
        params_before=before.params,
        params_after=after.params,
        macs_before=before.macs,
        macs_after=after.macs,
        end_to_end=tuple(found),
        passed=True,
    )


def _compare(name: Literal["random", "real"], expected: Outcome, actual: Sequence[np.ndarray]) -> EndToEnd:
    worst_abs = worst_rel = 0.0
    for ours, theirs in zip(actual, expected.outputs, strict=True):
        difference = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))
        largest = float(np.abs(theirs).max(initial=0.0))
        relative = difference / max(largest, float(np.finfo(np.float32).tiny))
        if np.isnan(difference):
            return EndToEnd(inputs=name, n=len(expected.inputs), max_abs_err=np.inf, max_rel_err=np.inf)
        worst_abs, worst_rel = max(worst_abs, difference), max(worst_rel, relative)
    return EndToEnd(inputs=name, n=len(expected.inputs), max_abs_err=worst_abs, max_rel_err=worst_rel)
