"""``--precision auto``: build integers and floats, time them in turns on this machine, keep the fastest.

Integers are kept where they are shown to be faster than every float precision, and only if they keep
the accuracy budget, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from repedge import targets
from repedge.bundle.folder import Bundle, Draft
from repedge.compiler.budget import NotMet
from repedge.compiler.pipeline import compile_source
from repedge.compiler.refusals import Outcome, Refused, nothing_built
from repedge.compiler.request import BuildRequest, Built, bundle_path
from repedge.disk import leftovers
from repedge.errors import CheckFailed, UserError
from repedge.precision import Precision

if TYPE_CHECKING:
    from repedge.models.source import Source
    from repedge.profile.result import Profile
    from repedge.targets.base import Target

INTEGERS: Precision = "w8a8"
FLOATS: tuple[Precision, ...] = ("fp16", "fp32")
TIE = 0.03
"""Two float precisions that differ by less than this share are as fast as each other: the smaller is kept."""


@dataclass(frozen=True)
class Timed:
    """A candidate and how long it took.

    Attributes:
        precision: What it was built in.
        size_bytes: Of the artifact.
        p50_ms: Median latency.
        ratio: Its time over that of the first candidate, and the 95 % interval; None for the first.
        verdict: ``faster``, ``slower`` or ``no difference shown``, against the first.
    """

    precision: Precision
    size_bytes: int
    p50_ms: float
    ratio: tuple[float, float, float] | None = None
    verdict: str | None = None


@dataclass(frozen=True)
class Choice:
    """What was kept for a target, and why."""

    target: str
    precision: Precision
    why: str
    candidates: tuple[Timed, ...]

    def as_json(self) -> dict[str, Any]:
        """One element of ``auto`` in the JSON of ``repedge compile``."""
        return {
            "target": self.target,
            "precision": self.precision,
            "why": self.why,
            "candidates": [dict(c.__dict__) for c in self.candidates],
        }


def candidates(names: Sequence[str]) -> tuple[tuple[str, Precision], ...]:
    """(target, precision) of everything that ``auto`` builds, integers first.

    Raises:
        UserError: A target that can't be timed here, or one without integers.
    """
    pairs: list[tuple[str, Precision]] = []
    for name in dict.fromkeys(names):
        target = targets.get(name)
        if not _timed_here(target):
            able = ", ".join(t.name for t in targets.installed() if _timed_here(t))
            raise UserError(
                f"--precision auto times artifacts on this machine, which it can for {able}, not for "
                f"{target.name}: name a precision"
            )
        floats = [p for p in FLOATS if p in target.precisions]
        pairs += [(target.name, p) for p in (INTEGERS, *floats)]
    return tuple(pairs)


def _timed_here(target: Target) -> bool:
    """Whether its integers can be timed on any machine that compiles."""
    return INTEGERS in target.precisions and target.engine is not None and target.engine.everywhere


def build(
    source_of: Callable[[], Source],
    request: BuildRequest,
    report: Callable[[str], None] = lambda stage: None,
) -> tuple[Outcome, tuple[Choice, ...]]:
    """Build, time and keep one bundle for each target of ``request``.

    The candidates are built in a hidden folder beside their final place, of which nothing is left.

    Args:
        source_of: Gives the model anew; building gives up its weights.
        request: Its builds are those of `candidates`.
        report: Told each stage.

    Raises:
        UserError: No target takes the model.
        CheckFailed: No candidate of a target equals the model.
    """
    built: list[Built] = []
    choices: list[Choice] = []
    refused: list[tuple[Refused, UserError]] = []
    request.out.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(target for target, _ in request.builds):
        with leftovers.held(request.out, ".auto.partial") as staging:
            mine = tuple(pair for pair in request.builds if pair[0] == name)
            try:
                found, lost = _candidates(source_of, replace(request, out=staging, builds=mine), report)
            except UserError as error:
                refused.append((Refused(name, "auto", str(error)), error))
                continue
            if not found:
                raise CheckFailed(f"no precision of {name} equals the model: {lost}")
            rows = _time(found, report)
            best, why = pick(rows)
            why = f"{lost}; {why}" if lost else why
            winner = next(b for b in found if b.precision == best)
            manifest = Bundle.open(winner.path).manifest
            final = bundle_path(request.out, manifest.name, name, best)
            draft = Draft(winner.path, final, request.force)
            draft.seal(manifest.model_copy(update={"notes": (*manifest.notes, f"precision auto: {why}")}))
            built.append(replace(winner, path=draft.publish()))
            choices.append(Choice(name, best, why, rows))
    if not built:
        raise nothing_built(refused)
    return Outcome(tuple(built), tuple(r for r, _ in refused)), tuple(choices)


def _candidates(
    source_of: Callable[[], Source], request: BuildRequest, report: Callable[[str], None]
) -> tuple[list[Built], str]:
    """The bundles that passed, and what is wrong with the others."""
    lost = []
    try:
        outcome = compile_source(source_of(), request, report)
    except NotMet as e:
        lost.append(str(e))
        floats = tuple(pair for pair in request.builds if pair[1] != INTEGERS)
        outcome = compile_source(
            source_of(), replace(request, builds=floats, budget=None, calibration=None), report
        )
    built = outcome.built
    lost += [f"{r.precision}: {r.why}" for r in outcome.refused]
    lost += [f"{b.precision}: {b.verify.failures[0]}" for b in built if not b.verify.passed]
    return [b for b in built if b.verify.passed], "; ".join(lost)


def _time(found: Sequence[Built], report: Callable[[str], None]) -> tuple[Timed, ...]:
    """Median latencies, in turns."""
    from repedge.profile.measure import compare, measure

    if len(found) == 1:
        profiles: Sequence[Profile] = [measure(found[0].path, on_stage=report)]
    else:
        profiles = compare([b.path for b in found], on_stage=report).profiles
    rows = []
    for b, p in zip(found, profiles, strict=True):
        ratio = None
        if p.ratio_p50 is not None and p.ratio_p50_interval is not None:
            ratio = (p.ratio_p50, *p.ratio_p50_interval)
        rows.append(Timed(b.precision, b.size_bytes, p.p50_ms, ratio, p.verdict))
    return tuple(rows)


def pick(rows: Sequence[Timed]) -> tuple[Precision, str]:
    """The precision to keep, and a sentence why.

    Args:
        rows: Integers first, where there are any; the others' ratios and verdicts are against the first.
    """
    floats = [r for r in rows if r.precision != INTEGERS]
    if not floats:
        return rows[0].precision, f"{rows[0].precision} is the only one left"
    least = min(r.p50_ms for r in floats)
    best = min((r for r in floats if r.p50_ms <= least * (1 + TIE)), key=lambda r: r.size_bytes)
    if len(floats) == len(rows):
        return best.precision, f"{best.precision} is the fastest of the float precisions"
    if all(r.verdict == "slower" for r in floats):
        return INTEGERS, f"{best.precision} takes {_ratio(best)} of the time of {INTEGERS} here"
    return best.precision, (
        f"{INTEGERS} is not shown to be faster than {best.precision} here, which takes "
        f"{_ratio(best)} of its time"
    )


def _ratio(row: Timed) -> str:
    assert row.ratio is not None
    value, low, high = row.ratio
    return f"{value:.2f} ({low:.2f}..{high:.2f})"
