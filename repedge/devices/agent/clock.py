"""The protocol: load, first run, warm-up until stable, timed runs, then what else is asked for."""

from __future__ import annotations

import gc
import math
import time

from repedge.devices.agent import host, samples
from repedge.devices.agent.engine import AgentError, open_engine

WINDOW = 5  # runs per window of the warm-up
STEADY = 0.03  # two windows' medians this close together: warm
WARM_S, WARM_RUNS = 5.0, 200  # bounds of the warm-up


def median(values: list) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class Bench:
    """One loaded artifact and everything measured so far."""

    def __init__(self, artifact: str, request: dict, progress) -> None:  # type: ignore[no-untyped-def]
        self._request, self._progress = request, progress
        self._before = host.read()
        began = time.perf_counter_ns()
        self.engine = open_engine(artifact, request)
        self._load_ms = (time.perf_counter_ns() - began) / 1e6
        self._sets = samples.prepare(self.engine.inputs, request.get("samples"))
        self._turn = 0
        self._warmup: list = []
        self._samples: list = []
        self._stable: bool | None = None
        self._first_ms = self._once()
        samples.check_finite(self.engine.outputs())
        self._rate = None

    def summary(self) -> dict:
        """What `open` answers."""
        return {"load_ms": self._load_ms, "first_ms": self._first_ms, "runtime_version": self.engine.version}

    def _once(self) -> float:
        engine = self.engine
        engine.feed(self._sets[self._turn % len(self._sets)])
        self._turn += 1
        return max(1e-6, engine.timed())

    def warm(self) -> list:
        """Untimed runs: a fixed number, or until two windows in a row have the same median."""
        count = self._request.get("warmup")
        began, runs = time.monotonic(), self._warmup
        if count is not None:
            for _ in range(count):
                runs.append(self._once())
                self._progress(len(runs))
            return runs
        self._stable = False
        while len(runs) < WARM_RUNS and (time.monotonic() - began < WARM_S or len(runs) < 3):
            runs.append(self._once())
            self._progress(len(runs))
            if len(runs) >= 2 * WINDOW and len(runs) % WINDOW == 0:
                last, previous = median(runs[-WINDOW:]), median(runs[-2 * WINDOW : -WINDOW])
                if abs(last - previous) <= STEADY * previous:
                    self._stable = True
                    break
        return runs

    def time(self, runs: int, prime: int) -> list:
        """Timed runs, each after ``prime`` untimed ones that bring its weights back into the caches."""
        if self._request.get("hint") == "throughput":
            times, self._rate = self.engine.saturate(runs, self._sets)
            self._samples += times
            return times
        times = []
        gc.collect()
        gc.disable()
        try:
            for i in range(runs):
                for _ in range(prime):
                    self._once()
                times.append(self._once())
                self._progress(i)
        finally:
            gc.enable()
        self._samples += times
        return times

    def finish(self) -> dict:
        """The profile; see RawProfile of repedge.devices.protocol."""
        after = host.read()  # before anything else cools or heats the machine
        samples.check_finite(self.engine.outputs())
        peak = host.peak_rss()
        ops, note = [], ""
        if self._request.get("per_op"):
            ops, note = self.engine.operators(max(3, min(30, len(self._samples))))
        facts = self.engine.facts()
        self._before["temperature_after"] = after["temperature_before"]
        self._before["mhz"] = after["mhz"]
        profile = {
            "protocol": 1,
            "runtime": self._request["runtime"],
            "runtime_version": self.engine.version,
            "threads": self.engine.threads,
            "unit": self.engine.unit,
            "load_ms": self._load_ms,
            "first_ms": self._first_ms,
            "warmup_ms": self._warmup,
            "stable": self._stable,
            "samples_ms": self._samples,
            "throughput_per_s": self._rate,
            "peak_rss_bytes": peak,
            "ops": ops,
            "ops_note": note,
            "host": self._before,
        }
        profile.update(facts)
        if not all(math.isfinite(x) for x in self._samples):
            raise AgentError("the clock went wrong")
        return profile
