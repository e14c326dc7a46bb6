"""Timing in one's own code: every layer of a torch module, every operator of an artifact, one's own loop."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Event:
    """One layer or operator that ran.

    Attributes:
        name: Qualified module name, or the operator's name in the artifact.
        type: Class of the module, or the operator's type.
        start_ms: Since the timeline began.
        ms: How long it took.
        shape: Shape of its (first) output; empty where it is not known.
    """

    name: str
    type: str
    start_ms: float
    ms: float
    shape: tuple[int, ...] = ()


@dataclass
class Timeline:
    """Events in the order in which they ended.

    Attributes:
        events: What was timed.
        overhead_ms: What timing one event costs, measured when the timeline began: each event's ``ms``
            holds part of it, and the whole run is slower by ``len(events) * overhead_ms`` at the least: twice
            that in ``bench/profile_hooks.py``, where real layers empty the caches between events. 0 for an
            artifact, whose operators the runtime times itself.
    """

    events: list[Event] = field(default_factory=list)
    overhead_ms: float = 0.0
    callback: Callable[[Event], None] | None = None

    def add(self, event: Event) -> None:
        """Keep an event and hand it to the callback."""
        self.events.append(event)
        if self.callback is not None:
            self.callback(event)

    def clear(self) -> None:
        """Forget the events so far, such as those of the warm-up."""
        self.events.clear()

    def totals(self) -> list[tuple[str, str, float]]:
        """(name, type, milliseconds over all its events), in order of first appearance."""
        sums: dict[tuple[str, str], float] = {}
        for e in self.events:
            sums[e.name, e.type] = sums.get((e.name, e.type), 0.0) + e.ms
        return [(name, kind, ms) for (name, kind), ms in sums.items()]

    @property
    def total_ms(self) -> float:
        """Sum over all events."""
        return math.fsum(e.ms for e in self.events)


@contextlib.contextmanager
def hook(
    model: nn.Module | str | Path, callback: Callable[[Event], None] | None = None, **measure: Any
) -> Iterator[Timeline]:
    """Time every innermost layer of a torch module while the context lasts, or an artifact's operators.

    A module is run by the caller, and each call of a layer is an event; on CUDA the device is
    synchronized around each layer, which slows the whole. A bundle or artifact file is measured at once
    on entering, in a process of its own, and each operator is one event with its mean time.

    Args:
        model: A ``torch.nn.Module``, or a bundle or artifact file.
        callback: Called with each `Event` as soon as it is known.
        measure: For artifacts: runs, threads, device and the like, as for `repedge.profile.measure`.

    Raises:
        UserError: ``model`` is neither; DeviceError: the runtime failed.
    """
    timeline = Timeline(callback=callback)
    if isinstance(model, str | Path):
        _artifact(model, timeline, measure)
        yield timeline
        return
    handles: list[Any] = []
    try:
        timeline.overhead_ms = _overhead()
        _attach(model, timeline, handles)
        yield timeline
    finally:
        for handle in handles:
            handle.remove()


def _artifact(what: str | Path, timeline: Timeline, options: dict[str, Any]) -> None:
    from repedge.profile.measure import measure

    clock = 0.0
    for op in measure(what, per_op=True, **options).ops:
        ms = op.ms or 0.0
        timeline.add(Event(op.name, op.type, clock, ms, op.shape))
        clock += ms


def _attach(model: nn.Module, timeline: Timeline, handles: list[Any]) -> None:
    began = time.perf_counter_ns()
    waiting: list[tuple[object, int]] = []

    def before(module: nn.Module, inputs: object) -> None:
        _settle(inputs)
        waiting.append((module, time.perf_counter_ns()))

    for name, module in model.named_modules():
        if next(module.children(), None) is not None:
            continue

        def after(module: nn.Module, inputs: object, output: Any, name: str = name) -> None:
            _settle(output)
            end = time.perf_counter_ns()
            while waiting and waiting[-1][0] is not module:  # left by a layer that raised
                waiting.pop()
            start = waiting.pop()[1] if waiting else end
            kind = type(module).__name__
            timeline.add(
                Event(name or kind, kind, (start - began) / 1e6, (end - start) / 1e6, _shape(output))
            )

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))


def _settle(values: Any) -> None:
    """Wait for a CUDA device whose tensors these are."""
    first = values[0] if isinstance(values, tuple | list) and values else values
    if getattr(first, "is_cuda", False):
        import torch

        torch.cuda.synchronize(first.device)


def _shape(output: Any) -> tuple[int, ...]:
    first = output[0] if isinstance(output, tuple | list) and output else output
    return tuple(int(d) for d in getattr(first, "shape", ()))


def _overhead(calls: int = 200) -> float:
    """Cost of timing one event: an empty layer with the hooks against one without, milliseconds."""
    import torch
    from torch import nn

    x = torch.zeros(1)

    def median(module: nn.Module) -> float:
        times = []
        for _ in range(calls):
            start = time.perf_counter_ns()
            module(x)
            times.append(time.perf_counter_ns() - start)
        return sorted(times)[calls // 2] / 1e6

    bare = nn.Identity()
    hooked, handles = nn.Identity(), []  # type: ignore[var-annotated]
    _attach(hooked, Timeline(), handles)
    return max(0.0, median(hooked) - median(bare))


class stopwatch:
    """Latency of one's own loop: use it again and again as a context manager, or as a decorator.

    watch = repedge.profile.stopwatch("inference", every=100)
    for frame in camera:
        with watch:
            net(frame)
    print(watch)

    Args:
        name: For the log.
        every: Log after each this many laps; 0: never.
        log: Where to; None: the logger ``repedge``, at INFO.
        skip: First laps that are not counted.
        keep: Most laps that `samples_ms` holds, so that a loop may run for days: beyond, the older half goes.

    A lap costs about 4 microseconds beyond what it times (``bench/profile_hooks.py``).
    """

    def __init__(
        self,
        name: str = "stopwatch",
        *,
        every: int = 0,
        log: Callable[[str], None] | None = None,
        skip: int = 0,
        keep: int = 100_000,
    ) -> None:
        self.name, self.laps, self.samples_ms = name, 0, list[float]()
        self._every, self._log, self._skip, self._keep = every, log or _log, skip, keep
        self._began: list[int] = []

    def __enter__(self) -> stopwatch:
        self._began.append(time.perf_counter_ns())
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        ms = (time.perf_counter_ns() - self._began.pop()) / 1e6
        if kind is not None:  # a lap that failed is no lap
            return
        if self._skip > 0:
            self._skip -= 1
            return
        self.samples_ms.append(ms)
        self.laps += 1
        if len(self.samples_ms) > self._keep:
            del self.samples_ms[: self._keep // 2 + 1]
        if self._every and self.laps % self._every == 0:
            self._log(str(self))

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Time each call of a function."""
        import functools

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return timed

    def summary(self) -> dict[str, float]:
        """n, min_ms, p50_ms, p90_ms, p99_ms, mean_ms over the laps kept; n alone before the first."""
        x = sorted(self.samples_ms)
        if not x:
            return {"n": 0}
        return {
            "n": len(x), "min_ms": x[0], "p50_ms": _quantile(x, 0.5), "p90_ms": _quantile(x, 0.9),
            "p99_ms": _quantile(x, 0.99), "mean_ms": math.fsum(x) / len(x),
        }  # fmt: skip

    def __str__(self) -> str:
        s = self.summary()
        if not s["n"]:
            return f"{self.name}: no laps"
        times = ", ".join(f"{q} {s[q + '_ms']:.3f}" for q in ("p50", "p90", "p99"))
        return f"{self.name}: {s['n']} laps, {times} ms"


def _quantile(ordered: Sequence[float], q: float) -> float:
    """Linear between neighbours, as numpy's default."""
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _log(line: str) -> None:
    import logging

    logging.getLogger("repedge").info(line)
