"""Chrome's trace-event form, which Perfetto and chrome://tracing open."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from repedge.html import write_whole
from repedge.profile.result import Profile


def events(profiles: Sequence[Profile]) -> Iterator[dict[str, Any]]:
    """One process per artifact: its phases, its timed runs end to end, and one run's operators.

    Source: "Trace Event Format", Google: complete events (``X``), times in microseconds. The gaps
    between runs are not measured and not drawn.
    """
    for pid, p in enumerate(profiles, start=1):
        yield _name("process_name", pid, 0, f"{p.name} on {p.device} ({p.runtime})")
        for tid, thread in ((1, "phases"), (2, "runs"), (3, "one run's operators")):
            yield _name("thread_name", pid, tid, thread)
        clock = 0.0
        phases = [("load", p.load_ms or 0.0), ("first run", p.first_ms or 0.0)]
        phases += [("warm-up", sum(p.warmup_ms)), ("timed runs", sum(p.samples_ms))]
        for phase, ms in phases:
            yield _event(phase, "phase", pid, 1, clock, ms, {})
            clock += ms
        clock -= sum(p.samples_ms)
        begin = clock
        for i, ms in enumerate(p.samples_ms):
            yield _event(f"run {i}", "run", pid, 2, clock, ms, {})
            clock += ms
        for op in p.ops:
            if op.ms is not None:
                args = {"type": op.type, "where": op.where, "precision": op.precision}
                yield _event(op.name or op.type, "op", pid, 3, begin, op.ms, args)
                begin += op.ms


def _event(
    name: str, category: str, pid: int, tid: int, begin: float, ms: float, args: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name, "cat": category, "ph": "X", "pid": pid, "tid": tid,
        "ts": round(1000 * begin, 3), "dur": round(1000 * ms, 3), "args": args,
    }  # fmt: skip


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def write(profiles: Sequence[Profile], file: Path, force: bool = False) -> None:
    """Write the trace of one or more profiles.

    Raises:
        UserError: The file exists (without ``force``), or can't be written.
    """
    head = {"displayTimeUnit": "ms", "otherData": {"generator": "repedge"}}
    text = json.dumps({**head, "traceEvents": list(events(profiles))})
    write_whole(file, text, force)
