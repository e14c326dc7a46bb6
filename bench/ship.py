"""What shipping costs, and whether the packages are as fast as the runner that `repedge profile` times.

python bench/ship.py [BUNDLE ...]     (default: the demo model for tflite and openvino, compiled here)

Prints the seconds of `ship` per platform (the bound is 2 s) and, per Python and C++ package, the median time
of one image beside the same artifact in the target's own runner, interleaved, one thread.
"""

from __future__ import annotations

import importlib.util
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import repedge
from repedge.bundle import Bundle
from repedge.images import normalise
from repedge.ship import PLATFORMS, ship
from repedge.verification import open_bundle

ROUNDS, RUNS = 9, 30


def median_ms(run: Callable[[], Any]) -> float:
    """Median of `RUNS` calls, milliseconds."""
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def shipping(bundle: Bundle, scratch: Path) -> None:
    """Seconds of `ship`, for every platform that takes the bundle."""
    for platform in PLATFORMS.values():
        if bundle.manifest.target in platform.targets:
            began = time.perf_counter()
            made = ship([bundle.path], platform.name, scratch / platform.name, name="net")
            seconds = time.perf_counter() - began
            print(f"  ship --to {platform.name:8} {seconds:6.2f} s  {made.size_bytes / 1e6:7.2f} MB")


def python_ratio(bundle: Bundle, package: Path) -> None:
    """The Python package beside the runner, in this process."""
    spec = importlib.util.spec_from_file_location("net", package / "net" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    net = importlib.util.module_from_spec(spec)
    sys.modules["net"] = net
    spec.loader.exec_module(net)
    model = net.Model(threads=1)
    pixels, feed = inputs(bundle)
    _, runner = open_bundle(bundle, 1)
    pairs = [
        (median_ms(lambda: model.run_pixels(pixels)), median_ms(lambda: runner.run(feed)))
        for _ in range(ROUNDS)
    ]
    show("python", pairs)
    for name in [n for n in sys.modules if n == "net" or n.startswith("net.")]:
        del sys.modules[name]


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
    _, feed = inputs(bundle)
    _, runner = open_bundle(bundle, 1)
    pairs = []
    for _ in range(ROUNDS):
        output = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout
        found = re.search(r"median ([\d.]+) ms", output)
        assert found, output
        pairs.append((float(found[1]), median_ms(lambda: runner.run(feed))))
    show("cpp", pairs)


def inputs(bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """Pixels for the package and the batch of one for the runner."""
    pre = bundle.manifest.preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (*pre.size, pre.channels), dtype=np.uint8)
    batch = pixels[None]
    return pixels, batch if bundle.manifest.input_kind == "uint8" else normalise(batch, pre)


def show(what: str, pairs: list[tuple[float, float]]) -> None:
    ours, runner = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"  {what:8} {ours:8.3f} ms   runner {runner:8.3f} ms   ratio {ratio:.3f}")


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
