"""Gates for CI: what ran where (``--require``) and how fast it was before (``--baseline``)."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from repedge import targets
from repedge.disk import regular
from repedge.errors import UserError
from repedge.profile import stats
from repedge.profile.result import Profile

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
NUMBERS: dict[str, str] = {
    "partitions": "parts that run inside the delegate",
    "outside": "operators outside of the delegate",
    "p50_ms": "median latency", "p90_ms": "90th percentile", "p99_ms": "99th percentile",
    "first_ms": "first run", "load_ms": "load time", "peak_rss_mb": "peak memory in MB",
}  # fmt: skip
"""What ``--require`` can ask for, beside the share on a unit (`units`)."""

SETTLED = ("partitions", "outside")
"""Of these, what another measurement would not change; so are the shares on units."""

ATTEMPTS = 3
"""Fresh measurements in each of which a gate must fail before it is believed."""


def units() -> tuple[str, ...]:
    """Words of the places where the targets' runtimes run operators."""
    found = [unit for t in targets.installed() if t.engine is not None for unit in t.engine.units]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Requirement:
    """``NAME OP NUMBER``, such as ``partitions<=1`` or ``ane>=0.95``."""

    name: str
    op: str
    limit: float

    def __str__(self) -> str:
        return f"{self.name}{self.op}{self.limit:g}"


def parse(text: str) -> Requirement:
    """Read a requirement.

    Raises:
        UserError: Not of the form, or the name is unknown.
    """
    match = re.fullmatch(r"\s*([a-z_0-9]+)\s*(<=|>=|==|<|>)\s*([0-9.eE+-]+)\s*(%?)\s*", text)
    try:
        limit = float(match[3]) / (100 if match[4] else 1) if match else math.nan
    except ValueError:
        limit = math.nan
    if match is None or math.isnan(limit):
        raise UserError(f"--require {text!r}: write it as 'partitions<=1' or 'ane>=0.95'")
    known = (*NUMBERS, *units())
    if match[1] not in known:
        raise UserError(f"--require {text!r}: {match[1]!r} is unknown; use {', '.join(known)}")
    return Requirement(match[1], match[2], limit)


def _noisy(profile: Profile, r: Requirement) -> bool:
    """Whether another measurement might give another number."""
    return r.name in NUMBERS and r.name not in SETTLED and _value(profile, r.name) is not None


def _missed(profile: Profile, r: Requirement) -> str:
    value = _value(profile, r.name)
    if value is None:
        return f"{r} can't be told, {profile.runtime} does not report it"
    if _COMPARE[r.op](value, r.limit):
        return ""
    places = (r.name in ("partitions", "outside") or r.name not in NUMBERS) and profile.outside
    more = ", ..." if len(profile.outside) > 5 else ""
    outside = f" (outside: {', '.join(profile.outside[:5])}{more})" if places else ""
    return f"{r} is missed: it is {value:g}{outside}"


def _value(profile: Profile, name: str) -> float | None:
    if name == "outside":
        return float(len(profile.outside)) if profile.partitions is not None else None
    if name == "peak_rss_mb":
        return None if profile.peak_rss_bytes is None else profile.peak_rss_bytes / 1e6
    if name in NUMBERS:
        value = getattr(profile, name)
        return None if value is None else float(value)
    if not profile.residency:
        return None
    return profile.residency.get(name, 0.0)


BESIDE = ("max_regression", "regression", "error", "exit_code")
"""What the JSON has beside a profile: how the run and its gates ended."""


def read_baseline(file: Path) -> Profile:
    """A stored ``repedge profile --json``.

    Raises:
        UserError: No such file, or not such an object.
    """
    try:
        data = json.loads(regular.read_text(file))
        if isinstance(data, dict) and "profiles" in data:
            raise UserError(f"{file} holds a comparison; the baseline must be the JSON of one artifact")
        known = {k: v for k, v in data.items() if k not in BESIDE} if isinstance(data, dict) else data
        return Profile.model_validate(known)
    except OSError as e:
        raise UserError(f"the baseline {file} can't be read: {e.strerror}") from e
    except (ValueError, ValidationError, RecursionError) as e:
        first = str(e).splitlines()[0]
        raise UserError(f"{file} is not what `repedge profile --json` prints ({first})") from e


def comparable(now: Profile, then: Profile) -> None:
    """Whether two profiles were taken alike.

    Raises:
        UserError: Another machine, runtime, thread count or hint: a ratio would mean nothing.
    """
    for what, a, b in (
        ("runtime", now.runtime, then.runtime),
        ("device", now.device, then.device),
        ("threads", now.threads, then.threads),
        ("unit", now.unit, then.unit),
        ("hint", now.hint, then.hint),
        ("arithmetic", now.precision_used, then.precision_used),
        ("CPU", now.host.cpu, then.host.cpu),
    ):
        if a != b:
            raise UserError(
                f"the baseline was measured with another {what} ({b}, now {a}); measure it again here"
            )


@dataclass(frozen=True)
class Regression:
    """A profile against a baseline: the ratio, and whether it is a regression beyond the limit."""

    ratio: stats.Ratio
    limit: float
    failed: bool


def regression(now: Profile, then: Profile, limit: float) -> Regression:
    """Whether the median rose by more than ``limit`` (0.05 is 5 %), and not by noise.

    It failed if the ratio is over the limit and its 95 % interval leaves out 1. The caller repeats the
    measurement in a fresh process before it believes that.
    """
    ratio = stats.unpaired_ratio(then.samples_ms, now.samples_ms)
    return Regression(ratio, limit, ratio.value > 1 + limit and ratio.low > 1)


@dataclass(frozen=True)
class Held:
    """How a measurement stands against its gates.

    Attributes:
        failures: A sentence for each gate that failed.
        verdict: Against the baseline; None without one.
        again: Whether another measurement might pass: what failed are times or memory.
    """

    failures: tuple[str, ...]
    verdict: Regression | None
    again: bool


@dataclass(frozen=True)
class Gates:
    """What a measurement must reach.

    Attributes:
        requirements: Of every profile.
        baseline: What a single profile is held against; None: nothing.
        limit: Share by which its median may be above the baseline's.
    """

    requirements: tuple[Requirement, ...] = ()
    baseline: Profile | None = None
    limit: float = 0.05

    def hold(self, rows: Sequence[Profile]) -> Held:
        """Hold profiles against the gates.

        Raises:
            UserError: The baseline was taken otherwise.
        """
        missed = [(row, r, _missed(row, r)) for row in rows for r in self.requirements]
        missed = [(row, r, why) for row, r, why in missed if why]
        noisy = [_noisy(row, r) for row, r, _ in missed]
        failures = [
            f"{row.name} on {row.device}: {'; '.join(mine)}"
            for row in rows
            if (mine := [why for other, _, why in missed if other is row])
        ]
        verdict = None
        if self.baseline is not None:
            comparable(rows[0], self.baseline)
            verdict = regression(rows[0], self.baseline, self.limit)
            if verdict.failed:
                r = verdict.ratio
                noisy.append(True)
                failures.append(
                    f"{rows[0].name} takes {r.value:.3f} times as long as its baseline "
                    f"({r.low:.3f}..{r.high:.3f}); {1 + self.limit:.3f} is allowed"
                )
        return Held(tuple(failures), verdict, bool(failures) and all(noisy))


def measured(
    measure: Callable[[], tuple[list[Profile], dict[str, Any]]], gates: Gates
) -> tuple[list[Profile], dict[str, Any], Held]:
    """Measure, and again in fresh processes where a gate fails that noise could have failed.

    Args:
        measure: Gives the profiles and their JSON.
    """
    for attempt in range(ATTEMPTS):
        rows, data = measure()
        held = gates.hold(rows)
        if not held.again:
            break
        if attempt == ATTEMPTS - 1:
            failures = tuple(f"{f}, in each of {ATTEMPTS} measurements" for f in held.failures)
            held = replace(held, failures=failures)
    return rows, data, held


def parse_limit(text: str) -> float:
    """``5%`` or ``0.05`` as a fraction.

    Raises:
        UserError: Neither.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", text)
    if match is None:
        raise UserError(f"--max-regression {text!r}: write a share such as 5% or 0.05")
    return float(match[1]) / (100 if match[2] else 1)
