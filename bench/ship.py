"""What shipping costs, and whether the packages are as fast as the runner that `repedge profile` times.

python bench/ship.py [BUNDLE ...]     (default: the demo model for tflite and openvino, compiled here)

Prints the seconds of `ship` per platform (the bound is 2 s) and, per Python and C++ package, the median time
of one image beside what `repedge profile` measures of the same artifact, in turns, one thread. The ratio is
the median over the rounds; the last column compares the fastest runs, which other work reaches last.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import repedge
from repedge import devices, targets
from repedge.bundle.folder import Bundle
from repedge.profile.measure import request_for
from repedge.profile.subject import find
from repedge.ship import PLATFORMS, ship

ROUNDS, RUNS = 9, 30


Times = tuple[float, float]
"""Median and least of `RUNS` runs, milliseconds."""


@contextlib.contextmanager
def profiler(bundle: Bundle) -> Iterator[Callable[[], Times]]:
    """The process that `repedge profile` measures in, warm."""
    subject = find(bundle.path)
    with tempfile.TemporaryDirectory() as folder:
        request = request_for(subject, Path(folder) / "samples", {"threads": 1})
        with devices.get("local").open(subject.artifact, request) as session:
            session.warm()

            def times() -> Times:
                found = session.time(RUNS)
                return statistics.median(found), min(found)

            yield times


def shipping(bundle: Bundle, scratch: Path) -> None:
    """Seconds of `ship`, for every platform that takes the bundle."""
    for platform in PLATFORMS.values():
        if platform.name in targets.get(bundle.manifest.target).ship:
            began = time.perf_counter()
            made = ship([bundle.path], platform.name, scratch / platform.name, name="net")
            seconds = time.perf_counter() - began
            print(f"  ship --to {platform.name:8} {seconds:6.2f} s  {made.size_bytes / 1e6:7.2f} MB")


APP = """
import statistics, sys, time
import numpy as np
import net

model = net.Model(threads=1)
pixels = np.random.default_rng(0).integers(0, 256, [int(n) for n in sys.argv[2:]], dtype=np.uint8)
found = []
for _ in range(2 * int(sys.argv[1])):
    began = time.perf_counter()
    model.run_pixels(pixels)
    found.append((time.perf_counter() - began) * 1e3)
found = found[len(found) // 2 :]
print(statistics.median(found), min(found))
"""
"""What an app does, in a process of its own: the first half of the runs is warm-up."""


def python_ratio(bundle: Bundle, package: Path) -> None:
    """The Python package beside the runner."""
    pre = bundle.manifest.preprocess
    command = [sys.executable, "-c", APP, *map(str, (RUNS, *pre.size, pre.channels))]
    pairs = []
    with profiler(bundle) as profiled:
        for _ in range(ROUNDS):
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=package)
            median, least = map(float, done.stdout.split()[-2:])
            pairs.append(((median, least), profiled()))
    show("python", pairs)


def cpp_ratio(bundle: Bundle, package: Path) -> None:
    """The C++ sample beside the runner; the sample times its own runs."""
    places = {m: Path(str(importlib.util.find_spec(m).origin)).parent for m in ("openvino", "ai_edge_litert")}  # type: ignore[union-attr]
    options = [
        f"-DOpenVINO_DIR={places['openvino'] / 'cmake'}",
        f"-DLITERT_LIBRARY={places['ai_edge_litert'] / 'libLiteRt.so'}",
    ]
    build = package / "build"
    for command in (["cmake", "-S", package, "-B", build, *options], ["cmake", "--build", build]):
        subprocess.run([str(c) for c in command], check=True, capture_output=True)
    photo = package / "golden" / bundle.manifest.precision / "0.png"
    command = [build / "net_sample", "--threads", "1", "--repeat", str(RUNS), photo]
    pairs = []
    with profiler(bundle) as profiled:
        for _ in range(ROUNDS):
            done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
            found = re.search(r"median ([\d.]+) ms, least ([\d.]+) ms", done.stdout)
            assert found, done.stdout
            pairs.append(((float(found[1]), float(found[2])), profiled()))
    show("cpp", pairs)


def show(what: str, pairs: list[tuple[Times, Times]]) -> None:
    """One row."""
    app, profile = (statistics.median(t[0] for t in column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a[0] / b[0] for a, b in pairs)
    least = min(a[1] for a, _ in pairs) / min(b[1] for _, b in pairs)
    print(f"  {what:8} {app:8.3f} ms   profile {profile:8.3f} ms   ratio {ratio:.3f}   fastest {least:.3f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        paths = [Path(p) for p in sys.argv[1:]]
        if not paths:
            paths = [
                b.path for b in repedge.compile(targets=["tflite", "openvino"], out=scratch / "build").bundles
            ]
        for i, path in enumerate(paths):
            bundle = Bundle.open(path)
            print(path.name)
            place = scratch / str(i)
            place.mkdir()
            shipping(bundle, place)
            for name, measure in (("python", python_ratio), ("cpp", cpp_ratio)):
                if (place / name).is_dir():
                    measure(bundle, place / name)


if __name__ == "__main__":
    main()
