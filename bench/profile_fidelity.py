"""Are repedge's medians those of the runtimes' own benchmark programs?

    python bench/profile_fidelity.py

For each artifact, repedge and the peer (OpenVINO's benchmark_app, LiteRT's litert-benchmark, both from
the runtimes' pip packages) measure in turns, each time in a fresh process, with the same settings: threads,
one request at a time on one stream, called in sync, arithmetic in f32 (threads and arithmetic are checked).
The table has the median over the rounds of repedge / peer, with the 95 % interval that order statistics
give: rounds that other work on the machine fell into do not move it. On a machine that is never quiet, the
last column still tells whether both do the same thing: the fastest run of all of ours over theirs.

Both peers print to 0.01 ms, so an artifact of 2 ms or more shows a per cent, one of 0.5 ms does not.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import repedge
from repedge.profile.measure import measure
from repedge.profile.result import Profile

BIN = Path(sys.executable).parent
Peer = Callable[[Path, int, int], tuple[float, float, dict[str, str]]]


def benchmark_app(artifact: Path, threads: int, runs: int) -> tuple[float, float, dict[str, str]]:
    """Median and least latency in OpenVINO's tool, ms, and the settings that it reports.

    ``-hint none`` because the tool takes ``-nthreads`` with no other; one stream and one request are what the
    latency hint means. It fills the input once, with random values.
    """
    command = [
        str(BIN / "benchmark_app"), "-m", str(artifact), "-d", "CPU", "-hint", "none", "-api", "sync",
        "-infer_precision", "f32", "-nstreams", "1", "-nireq", "1", "-nthreads", str(threads),
        "-niter", str(runs),
    ]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    found = re.search(r"Median:\s+([\d.]+) ms.*Min:\s+([\d.]+) ms", text, re.DOTALL)
    if found is None:
        raise SystemExit(f"benchmark_app printed no median:\n{text[-2000:]}")
    settings = dict(re.findall(r"^\[ INFO \]\s+([A-Z_]+): (.*)$", text, re.MULTILINE))
    return (
        float(found[1]),
        float(found[2]),
        {
            "threads": settings["INFERENCE_NUM_THREADS"],
            "precision": settings["INFERENCE_PRECISION_HINT"].strip("<>'").partition("'")[2],
        },
    )


def litert_benchmark(artifact: Path, threads: int, runs: int) -> tuple[float, float, dict[str, str]]:
    """Median and least latency in LiteRT's tool, ms: CompiledModel on the CPU, which is XNNPACK too."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [
            str(BIN / "litert-benchmark"), "--model", str(artifact), "--num_runs", str(runs),
            "--warmup_runs", "20", "--num_threads", str(threads), "--result_json", str(result),
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, check=True, timeout=600)
        found = json.loads(result.read_text())
        times = found["latency"]
        return times["median_ms"], times["min_ms"], {"threads": str(found["num_threads"])}


PEERS: dict[str, tuple[str, Peer]] = {
    "openvino": ("benchmark_app", benchmark_app),
    "tflite": ("litert-benchmark", litert_benchmark),
}
LONG = {"bf16": "bfloat16", "f32": "float32", "f16": "float16"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="*", type=Path, help="default: the demo model, compiled now")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundles = options.bundles or demo(Path(folder))
        rows = [row(b, options.threads, options.runs, options.rounds) for b in bundles]
    print(f"\n{options.threads} threads, {options.runs} runs, {options.rounds} rounds in turns\n")
    print("| artifact | peer | repedge p50 ms | peer p50 ms | ratio | 95 % | fastest runs |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def demo(folder: Path) -> list[Path]:
    """The bundled model, compiled for the targets that have a peer."""
    report = repedge.compile(targets=list(PEERS), out=folder)
    return [b.path for b in report.bundles]


def row(bundle: Path, threads: int, runs: int, rounds: int) -> str:
    """One artifact against its peer."""
    opened = repedge.Bundle.open(bundle)
    name, peer = PEERS[opened.manifest.target]
    ours, theirs, least = [], [], []
    for i in range(rounds):
        if i % 2 == 0:
            profile = measure(bundle, threads=threads, runs=runs)
            median, fastest, settings = peer(opened.artifact, threads, runs)
        else:
            median, fastest, settings = peer(opened.artifact, threads, runs)
            profile = measure(bundle, threads=threads, runs=runs)
        same_settings(profile, settings)
        ours.append(profile.p50_ms)
        theirs.append(median)
        least.append((profile.min_ms, fastest))
        print(json.dumps({"bundle": bundle.name, "repedge": ours[-1], name: median}), file=sys.stderr)
    low, middle, high = median_interval(np.array(ours) / np.array(theirs))
    medians = f"{np.median(ours):.3f} | {np.median(theirs):.3f}"
    mine, other = (min(column) for column in zip(*least, strict=True))
    ratios = f"{middle:.3f} | {low:.3f} to {high:.3f} | {mine / other:.3f}"
    return f"| {bundle.name} | {name} | {medians} | {ratios} |"


def same_settings(profile: Profile, peer: dict[str, str]) -> None:
    """Stop where the two measured different things."""
    here = {"threads": str(profile.threads), "precision": LONG.get(profile.precision_used, "")}
    different = {k: (here[k], v) for k, v in peer.items() if here[k] != v}
    if different:
        raise SystemExit(f"{profile.name}: repedge and its peer have different settings: {different}")


def median_interval(x: np.ndarray) -> tuple[float, float, float]:
    """(low, median, high) at 95 %: the order statistics that leave 2.5 % of a fair coin's sums outside."""
    ordered, n = np.sort(x), len(x)
    below, tail = 0, 0.5**n
    while tail + math.comb(n, below + 1) * 0.5**n <= 0.025 and below + 1 < n // 2:
        below += 1
        tail += math.comb(n, below) * 0.5**n
    return float(ordered[below]), float(np.median(x)), float(ordered[n - 1 - below])


if __name__ == "__main__":
    main()
