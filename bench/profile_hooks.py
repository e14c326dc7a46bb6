"""What timing in one's own loop costs.

    python bench/profile_hooks.py [MODEL]

A torch model (default: the demo RepViT) runs by turns bare, under ``repedge.profile.stopwatch`` and under
``repedge.profile.hook``. The table compares the fastest runs, which other work on the machine reaches last,
and has beside them what ``Timeline.overhead_ms`` said that a run's events cost.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import repedge
from repedge.models.source import resolve


def milliseconds(run: Callable[[], Any]) -> float:
    """One run."""
    began = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - began) / 1e6


def lap(watch: repedge.profile.stopwatch) -> None:
    """Nothing, timed."""
    with watch:
        pass


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="default: the demo model")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = resolve(options.model, random_weights=options.random_weights)
    if source.module is None:
        raise SystemExit("an ONNX file has no layers to hook")
    net, x = source.module.eval(), torch.zeros(source.input_shape)
    watch = repedge.profile.stopwatch()

    def watched() -> None:
        with watch:
            net(x)

    bare, hooks, laps, claims, events = [], [], [], [], 0
    empty = []
    with torch.no_grad():
        for _ in range(20):
            net(x)
        for _ in range(options.runs):
            bare.append(milliseconds(lambda: net(x)))
            laps.append(milliseconds(watched))
            with repedge.profile.hook(net) as timeline:
                hooks.append(milliseconds(lambda: net(x)))
            events = len(timeline.events)
            claims.append(events * timeline.overhead_ms)
            empty.append(milliseconds(lambda: lap(watch)))
    once = min(bare)
    print(
        f"{options.runs} runs in turns, {options.threads} threads, bare run {once:.3f} ms, {events} layers\n"
    )
    print(f"an empty lap of the stopwatch: {min(empty) * 1e3:.2f} microseconds\n")
    print("| timed by | a run costs more, ms | share | said beforehand, ms |")
    print("|---|---|---|---|")
    for name, extra, said in (("hook", hooks, f"{statistics.median(claims):.3f}"), ("stopwatch", laps, "")):
        more = min(extra) - once
        print(f"| {name} | {more:.4f} | {more / once:.1%} | {said} |")


if __name__ == "__main__":
    main()
