"""Are repedge's medians those of the runtimes' own benchmark programs? python bench/profile_fidelity.py

For each artifact, repedge and the peer (OpenVINO's benchmark_app, LiteRT's litert-benchmark, both from
the runtimes' pip packages) measure in turns, each time in a fresh process, with the same threads and
runs. The table has the mean over the rounds of log(repedge / peer), as a ratio, with its 95 % interval.
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
from repedge.profile.stats import T95

BIN = Path(sys.executable).parent


def benchmark_app(artifact: Path, threads: int, runs: int) -> float:
    """Median latency in OpenVINO's tool, ms: one request at a time, the same number of threads."""
    command = [
        str(BIN / "benchmark_app"), "-m", str(artifact), "-d", "CPU", "-hint", "none",
        "-nstreams", "1", "-nireq", "1", "-nthreads", str(threads), "-niter", str(runs),
    ]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    found = re.search(r"Median:\s+([\d.]+) ms", text)
    if found is None:
        raise SystemExit(f"benchmark_app printed no median:\n{text[-2000:]}")
    return float(found[1])


def litert_benchmark(artifact: Path, threads: int, runs: int) -> float:
    """Median latency in LiteRT's tool, ms."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [
            str(BIN / "litert-benchmark"), "--model", str(artifact), "--num_runs", str(runs),
            "--warmup_runs", "20", "--num_threads", str(threads), "--result_json", str(result),
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, check=True, timeout=600)
        return float(json.loads(result.read_text())["latency"]["median_ms"])


PEERS: dict[str, tuple[str, Callable[[Path, int, int], float]]] = {
    "openvino": ("benchmark_app", benchmark_app),
    "tflite": ("litert-benchmark", litert_benchmark),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="*", type=Path, help="default: the demo model, compiled now")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundles = options.bundles or demo(Path(folder))
        rows = [row(b, options.threads, options.runs, options.rounds) for b in bundles]
    print(f"\n{options.threads} threads, {options.runs} runs, {options.rounds} rounds in turns\n")
    print("| artifact | peer | repedge p50 ms | peer p50 ms | ratio | 95 % |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


def demo(folder: Path) -> list[Path]:
    """The bundled model, compiled for the targets that have a peer."""
    report = repedge.compile(targets=list(PEERS), out=folder)
    return [b.path for b in report.bundles]


def row(bundle: Path, threads: int, runs: int, rounds: int) -> str:
    """One artifact against its peer."""
    opened = repedge.Bundle.open(bundle)
    name, peer = PEERS[opened.manifest.target]
    ours, theirs = [], []
    for i in range(rounds):
        steps = [
            lambda: ours.append(measure(bundle, threads=threads, runs=runs).p50_ms),
            lambda: theirs.append(peer(opened.artifact, threads, runs)),
        ]
        for step in steps if i % 2 == 0 else steps[::-1]:
            step()
        print(json.dumps({"bundle": bundle.name, "repedge": ours[-1], name: theirs[-1]}), file=sys.stderr)
    logs = np.log(ours) - np.log(theirs)
    half = (
        T95[min(rounds - 2, len(T95) - 1)] * logs.std(ddof=1) / math.sqrt(rounds) if rounds > 1 else math.nan
    )
    low, middle, high = (math.exp(logs.mean() + d) for d in (-half, 0, half))
    medians = f"{np.median(ours):.3f} | {np.median(theirs):.3f}"
    return f"| {bundle.name} | {name} | {medians} | {middle:.3f} | {low:.3f} to {high:.3f} |"


if __name__ == "__main__":
    main()
