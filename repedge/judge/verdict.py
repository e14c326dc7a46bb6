"""The verdict on an artifact: every threshold that it misses, and what to try then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from repedge.precision import Precision, Threshold
from repedge.tasks.comparison import Agreement, Unit

if TYPE_CHECKING:
    from repedge.graph.analysis.resolution import Resolution

WRONG = "noise does not do that: calibrate on photos of the kind to expect, or take another precision"
"""What to do about the faults of `repedge.tasks.comparison.Comparison` and `Answers`."""

Resolve = Callable[[], "list[Resolution]"]
"""Measures what an arithmetic can tell apart at each output of the float network; asked where it matters."""


BEHIND = 6.0
"""dB that integers may lie behind their simulation: 3.9 at the most were met in ten networks on all targets,
where the simulation gives less than `TELLING`."""

TELLING = 40.0
"""Above so many dB it counts what runtimes do in float, as in layers that read floats and round them."""


@dataclass(frozen=True)
class Bar:
    """What an artifact must reach.

    Attributes:
        precision: Its word.
        limit: What the word promises.
        min_sqnr: Replaces the precision's SQNR threshold, dB.
        resolve: Measures what the precision can tell apart: a difference below that is no fault, as in a
            map of probabilities that are all near 0.
        steps: Of each output the scale of its integers, 0 where it is of floats; empty if all are.
        simulated: What the plan's integers must give, against the float network on the same images; None
            where there are no integers, or no plan is at hand.
        recorded: What the simulation gave on these images when the artifact was made, of the worst output,
            dB; None where that is not known. For where no plan is at hand.
    """

    precision: Precision
    limit: Threshold
    min_sqnr: float | None = None
    resolve: Resolve | None = None
    steps: Sequence[float] = ()
    simulated: Agreement | None = None
    recorded: float | None = None

    @property
    def floor(self) -> float:
        """The least SQNR, dB."""
        return self.limit.min_sqnr_db if self.min_sqnr is None else self.min_sqnr


@dataclass
class Verdict:
    """What is to be said of an artifact.

    Attributes:
        failures: A sentence for each threshold that was missed.
        remarks: Sentences on what could not be judged.
    """

    failures: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def judge(bar: Bar, found: Agreement) -> Verdict:
    """Hold an artifact's figures against the bar, every output taken alone, or every part of one."""
    verdict = Verdict()
    plans: Sequence[Unit | None] = bar.simulated.units if bar.simulated else [None] * len(found.units)
    for unit, planned in zip(found.units, plans, strict=True):
        missed = _missed(bar, unit, planned) if found.task.aligned else _unreal(unit)
        excuse = _excuse(bar, unit) if missed and unit.comparison.finite else ""
        if excuse:
            verdict.remarks.append(f"{found.name(unit)}: {excuse}")
        else:
            verdict.failures += [f"{found.name(unit)}{sentence}" for sentence in missed]
    aligned = found.task.aligned and all(c.finite for c in found.outputs)
    if aligned and bar.recorded is not None and _behind(found.sqnr_db, bar.recorded):
        verdict.failures.append(f"the worst output: SQNR {found.sqnr_db:.1f} dB, {_runtime(bar.recorded)}")
    for output, c in zip(found.task.outputs, found.outputs, strict=True):
        changed = c.changed(bar.limit.tie) if bar.limit.same_decisions and c.finite else 0
        if changed:
            verdict.failures.append(
                f"output {output.name!r}: {c.decision} differs on {changed} of {c.n} images; {_advice(bar)}"
            )
        found_wrong = c.faults() if c.finite else ()
        verdict.failures += [f"output {output.name!r}: {fault}; {WRONG}" for fault in found_wrong]
    if all(c.finite for c in found.outputs):
        verdict.failures += [f"{why}; {WRONG}" for why in found.answers.faults(bar.limit.same_decisions)]
        verdict.remarks += found.answers.remarks()
    return verdict


def _unreal(unit: Unit) -> list[str]:
    finite = unit.comparison.finite
    why = " has NaN or infinite values: numbers leave the precision's range; compile in fp32"
    return [] if finite else [why]


def _missed(bar: Bar, unit: Unit, planned: Unit | None) -> list[str]:
    c, most = unit.comparison, bar.limit.max_rel_err
    missed = _unreal(unit)
    if missed:
        return missed
    if c.sqnr_db < bar.floor:
        missed.append(
            f": SQNR {c.sqnr_db:.1f} dB is under {bar.floor:g} dB for {bar.precision}; {_advice(bar)}"
        )
    if planned is not None and _behind(c.sqnr_db, planned.comparison.sqnr_db):
        missed.append(f": SQNR {c.sqnr_db:.1f} dB, {_runtime(planned.comparison.sqnr_db)}")
    if most is not None and c.max_rel_err > most:
        missed.append(f": relative error {c.max_rel_err:.1e} is over {most:g}")
    return missed


def _behind(sqnr_db: float, simulated_db: float) -> bool:
    return sqnr_db < min(simulated_db, TELLING) - BEHIND


def _runtime(simulated_db: float) -> str:
    return (
        f"where the plan's integers give {simulated_db:.1f} dB in simulation: a fault of the runtime; keep "
        "layers in float with --keep-float, or take another precision"
    )


def _advice(bar: Bar) -> str:
    """What to try after a rejection."""
    if bar.min_sqnr is not None:
        return "lower --min-sqnr, or take another precision"
    if bar.simulated is not None:
        return (
            "calibrate on more photos of the kind to expect, keep layers in float with --max-drop or "
            "--keep-float, or compile in fp16"
        )
    return "judge on photos of its own kind with --images, or take a precision with more bits"


def _excuse(bar: Bar, unit: Unit) -> str:
    """Why a difference is no fault: the precision can't tell these numbers any better; empty if it can.

    A floor that the user set has no exception.
    """
    if bar.min_sqnr is not None:
        return ""
    c = unit.comparison
    step = bar.steps[unit.output] if bar.steps else 0.0
    other = "with --images, judge on photos where it is not"
    if c.max_abs_ref < step and c.max_abs_err <= step:
        return f"on these photos it is under one step of its integers, {step:.1e}; {other}"
    if bar.limit.epsilon is None or bar.resolve is None:
        return ""
    from repedge.graph.analysis.resolution import most_roundings

    resolution = bar.resolve()[unit.output]
    times = resolution.roundings(c.rms_err, c.max_abs_err, unit.part, bar.limit.epsilon)
    if times <= most_roundings(bar.limit.epsilon):
        return (
            f"on these photos it is so near 0, or so small a difference of large numbers inside, that "
            f"{bar.precision} rounds it to {c.sqnr_db:.0f} dB; {other}"
        )
    return ""
