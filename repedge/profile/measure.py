"""Measure one artifact, or several in turns."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repedge import devices
from repedge.devices.base import Device
from repedge.devices.protocol import EngineRef, ProfileRequest, RawProfile
from repedge.disk.atomic import scratch
from repedge.errors import UserError
from repedge.profile import stats
from repedge.profile.result import Profile, summarize
from repedge.profile.subject import Subject, find
from repedge.targets.base import Engine

ROUNDS = 6
"""Rounds of a comparison, each in fresh processes."""


@dataclass(frozen=True)
class Timings:
    """Several artifacts measured in turns; every profile but the first has its ratio to the first."""

    profiles: tuple[Profile, ...]
    rounds: int

    def as_json(self) -> dict[str, Any]:
        """The object that ``repedge profile A B --json`` prints."""
        profiles = [p.model_dump(mode="json") for p in self.profiles]
        return {"repedge": profiles[0]["repedge"], "rounds": self.rounds, "profiles": profiles}


def measure(
    what: str | Path,
    *,
    device: str = "local",
    device_options: Mapping[str, str] | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
    source_options: Mapping[str, Any] | None = None,
    allow_unverified: bool = False,
    **request: Any,
) -> Profile:
    """Latency of one artifact on one device.

    Args:
        what: A bundle, an artifact file, or a model (torch eager, on ``local``).
        device: Where; see ``repedge devices``.
        device_options: Options of the device's kind.
        on_stage: Called with the name of each stage as it begins.
        source_options: For models: weights, random_weights, input_size as for `repedge.compile`.
        allow_unverified: Take a bundle that failed its verification, too.
        request: runs, warmup, threads, per_op, hint, infer_precision, unit, timeout_s: see
            `repedge.devices.protocol.ProfileRequest`.

    Raises:
        UserError: Wrong input, or no runtime for the artifact on the device.
        DeviceError: The device or the runtime failed.
    """
    where = devices.get(device, device_options)
    subject = find(what, allow_unverified, **dict(source_options or {}))
    with scratch() as folder:
        asked = request_for(subject, folder / "samples", request)
        on_stage(f"{subject.name} on {device}")
        raw = where.profile(subject.artifact, asked)
    return summarize(subject, str(where.uri), asked.hint, raw)


def compare(
    whats: Sequence[str | Path],
    *,
    devices_: Sequence[str] = ("local",),
    device_options: Mapping[str, str] | None = None,
    rounds: int = ROUNDS,
    on_stage: Callable[[str], None] = lambda stage: None,
    source_options: Mapping[str, Any] | None = None,
    allow_unverified: bool = False,
    **request: Any,
) -> Timings:
    """Latency of several artifacts (or devices), interleaved run by run, with ratios to the first.

    In each of ``rounds`` rounds every artifact gets a fresh process; the processes take turns in random
    order, and each timed run follows an untimed one of the same process that brings its weights back
    into the caches. Devices that can't be interleaved are measured one after the other, and then the
    interval leaves out what changed in between.

    Args:
        whats: Bundles, artifact files or models; the first is the reference.
        devices_: Every artifact is measured on every one of them.
        rounds: Fresh starts over which the timed runs are spread.
        device_options, on_stage, source_options, allow_unverified, request: As for `measure`.

    Raises:
        UserError: Wrong input, fewer than two things to compare.
        DeviceError: A device or runtime failed.
    """
    places = devices.get_all(devices_, device_options)
    subjects = [find(w, allow_unverified, **dict(source_options or {})) for w in whats]
    pairs = [(s, d) for d in places for s in subjects]
    if len(pairs) < 2:
        raise UserError("a comparison needs at least two artifacts or two devices")
    with scratch() as folder:
        asked = [request_for(s, folder / f"samples{i}", request) for i, (s, _) in enumerate(pairs)]
        if all(d.live for d in places) and asked[0].hint == "latency":
            rows = _interleaved(pairs, asked, rounds, on_stage)
        else:
            rows = _one_by_one(pairs, asked, on_stage)
    return Timings(tuple(_profiles(pairs, asked, rows)), len(rows[0]))


def engine_ref(engine: Engine) -> EngineRef:
    """What the agent is told of an engine."""
    return EngineRef(agent=engine.agent, modules=engine.modules, needs=engine.needs, package=engine.package)


def request_for(subject: Subject, file: Path, given: Mapping[str, Any]) -> ProfileRequest:
    """How a device is asked to measure a subject.

    Args:
        file: Where to write the input samples.
        given: What the user said of the runs; see `measure`.

    Raises:
        UserError: A number is out of its range.
    """
    from pydantic import ValidationError

    torch: dict[str, Any] = {"factory": "repedge.profile.subject:eager", "factory_args": subject.factory_args}
    try:
        return ProfileRequest(
            runtime=subject.engine.runtime,
            engine=engine_ref(subject.engine),
            files=tuple(p.relative_to(subject.artifact.parent).as_posix() for p in subject.files),
            samples=subject.write_samples(file),
            **(torch if subject.factory_args else {}),
            **{k: v for k, v in given.items() if v is not None},
        )
    except ValidationError as e:
        first = e.errors()[0]
        option = str(first["loc"][0]).removesuffix("_s")
        raise UserError(f"--{option} {first['input']}: {first['msg'].lower()}") from e


Pairs = Sequence[tuple[Subject, Device]]


def _interleaved(
    pairs: Pairs, asked: Sequence[ProfileRequest], rounds: int, on_stage: Callable[[str], None]
) -> list[list[RawProfile]]:
    """One list of rounds for each pair."""
    runs = asked[0].runs
    rounds = max(1, min(rounds, runs))
    order = random.Random(0)
    rows: list[list[RawProfile]] = [[] for _ in pairs]
    for k in range(rounds):
        on_stage(f"round {k + 1} of {rounds}")
        last = k == rounds - 1
        with _sessions(
            pairs, [r.model_copy(update={"per_op": r.per_op and last}) for r in asked], k
        ) as sessions:
            for session in sessions:
                session.warm()
            turns = list(range(len(pairs)))
            for _ in range(runs * (k + 1) // rounds - runs * k // rounds):
                order.shuffle(turns)
                for i in turns:
                    sessions[i].time(1, prime=1)
            for row, session in zip(rows, sessions, strict=True):
                row.append(session.finish())
    return rows


@contextlib.contextmanager
def _sessions(pairs: Pairs, asked: Sequence[ProfileRequest], k: int) -> Iterator[list[Any]]:
    """All artifacts loaded; who comes first changes with ``k``, for the first may get better memory."""
    with contextlib.ExitStack() as stack:
        opened: dict[int, Any] = {}
        for j in range(len(pairs)):
            i = (j + k) % len(pairs)
            subject, device = pairs[i]
            opened[i] = stack.enter_context(device.open(subject.artifact, asked[i]))
        yield [opened[i] for i in range(len(pairs))]


def _one_by_one(
    pairs: Pairs, asked: Sequence[ProfileRequest], on_stage: Callable[[str], None]
) -> list[list[RawProfile]]:
    rows = []
    for (subject, device), request in zip(pairs, asked, strict=True):
        on_stage(f"{subject.name} on {device.uri}")
        rows.append([device.profile(subject.artifact, request)])
    return rows


def _profiles(
    pairs: Pairs, asked: Sequence[ProfileRequest], rows: Sequence[Sequence[RawProfile]]
) -> Iterator[Profile]:
    for i, (subject, device) in enumerate(pairs):
        profile = summarize(subject, str(device.uri), asked[i].hint, merge(rows[i]))
        if i > 0:
            samples = [(a.samples_ms, b.samples_ms) for a, b in zip(rows[0], rows[i], strict=True)]
            profile = profile.against(stats.paired_ratio(samples))
        yield profile


def merge(rounds: Sequence[RawProfile]) -> RawProfile:
    """One profile of several rounds: all samples, the last round's operators, the largest memory."""
    import statistics

    last = rounds[-1]
    loads = [r.load_ms for r in rounds if r.load_ms is not None]
    firsts = [r.first_ms for r in rounds if r.first_ms is not None]
    peaks = [r.peak_rss_bytes for r in rounds if r.peak_rss_bytes is not None]
    return last.model_copy(
        update={
            "load_ms": statistics.median(loads) if loads else None,
            "first_ms": statistics.median(firsts) if firsts else None,
            "warmup_ms": tuple(x for r in rounds for x in r.warmup_ms),
            "samples_ms": tuple(x for r in rounds for x in r.samples_ms),
            "stable": None if last.stable is None else all(r.stable for r in rounds),
            "peak_rss_bytes": max(peaks) if peaks else None,
        }
    )
