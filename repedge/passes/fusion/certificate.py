"""The fusion certificate: what was merged, how exactly, what was left and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from repedge.errors import CheckFailed
from repedge.graph.analysis.resolution import ROUNDINGS, Parts, Resolution, foreseen, gap, roundings

END_TO_END_TOLERANCE = 1e-4
"""Largest difference of an output, relative to the largest output, that two float32 evaluations of one
network may show: rounding of 6e-8 per operation, grown over a hundred layers."""

FAINTER = (1.0, 0.25, 0.0625)
"""What noise is multiplied with until float32 can tell two evaluations apart: white noise as strong as an
image is like none that a network was made for, and some are chaotic on it (at full strength float32 is 1 %
from float64 in timm's levit_128s and efficientvit_m0, at a quarter 1e-6)."""

Run = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Executes a graph: its outputs for images, float32 [n, C, H, W]."""


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
        max_rel_err: The same over the largest absolute value of that output, or of that part of it.
        roundings: Where that is above the tolerance: how many times as large as rounding to float32 makes
            them the differences are; see `repedge.graph.analysis.resolution`.
        scale: What the inputs were multiplied with, so that float32 can tell; see `FAINTER`.
    """

    model_config = ConfigDict(frozen=True)

    inputs: Literal["random", "real"]
    n: int
    max_abs_err: float
    max_rel_err: float
    roundings: float | None = None
    scale: float = 1.0


class Certificate(BaseModel):
    """What fusing did to a graph.

    Attributes:
        merges, unfused: See `Merge` and `Unfused`.
        params_before, params_after: Parameters.
        macs_before, macs_after: Multiply-accumulates per image.
        end_to_end: Empty where the graph was not run.
        tolerance: What ``max_rel_err`` may be, unless float32 can't tell any better.
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

    def resolution(self) -> list[Resolution]:
        """What float32 can tell apart at each output."""

    def scaled(self, factor: float) -> Outcome:
        """What the unfused graph gives for the inputs times this."""


def certify(
    fused: Fused,
    before: Size,
    after: Size,
    run: Run | None = None,
    real: Outcome | None = None,
    random: Outcome | None = None,
    parts: Parts = (),
) -> Certificate:
    """The certificate of a fused graph.

    Args:
        fused: What `repedge.passes.fusion.fuse.fuse` returned.
        before, after: Counts of the graph before fusing and of the clean graph.
        run: Executes the fused graph; None leaves the end-to-end comparisons out.
        real, random: Inputs with what the unfused graph makes of them.
        parts: Of each output; see `repedge.graph.analysis.parts.parts_of`.

    Raises:
        CheckFailed: The fused graph's outputs differ.
    """
    found = []
    if run is not None and random is not None:
        found.append(_compare_noise(random, run, parts))
    if run is not None and real is not None:
        found.append(_held(_compare("real", real, run, parts)))
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


def _compare_noise(random: Outcome, run: Run, parts: Parts) -> EndToEnd:
    """The comparison on noise that is so faint that float32 can tell, or else where it tells most.

    Raises:
        CheckFailed: The two differ.
    """
    tried = []
    for scale in FAINTER:
        outcome = random if scale == 1 else random.scaled(scale)
        found = _compare("random", outcome, run, parts, scale)
        if found.roundings is None:
            return found
        limit = foreseen(outcome.outputs, outcome.resolution(), parts)
        if limit <= END_TO_END_TOLERANCE or not np.isfinite(found.max_abs_err):
            return _held(found)
        tried.append((limit, scale, found))
    return _held(min(tried, key=lambda t: t[:2])[2])


def _compare(
    name: Literal["random", "real"], expected: Outcome, run: Run, parts: Parts, scale: float = 1.0
) -> EndToEnd:
    """The comparison, whatever it says."""
    actual = run(expected.inputs)
    found = gap(actual, expected.outputs, parts)
    times = None
    if not found.relative <= END_TO_END_TOLERANCE:
        times = roundings(actual, expected.outputs, expected.resolution(), parts)
    return EndToEnd(
        inputs=name,
        n=len(expected.inputs),
        max_abs_err=found.absolute,
        max_rel_err=found.relative,
        roundings=times,
        scale=scale,
    )


def _held(found: EndToEnd) -> EndToEnd:
    """The comparison, if the two agree as far as float32 can tell.

    Raises:
        CheckFailed: They don't.
    """
    if found.roundings is not None and not found.roundings <= ROUNDINGS:
        raise CheckFailed(
            f"the fused graph differs from the unfused one by {found.max_rel_err:.1e} of its largest "
            f"output on {found.inputs} inputs; at most {END_TO_END_TOLERANCE:.0e} is rounding"
        )
    return found
