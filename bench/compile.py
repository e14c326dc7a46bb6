"""How fast and how small: repedge against litert-torch and coremltools, interleaved.

    python bench/compile.py speed    # cold processes, repedge and its peer in turn
    python bench/compile.py memory   # peak memory and time per parameter from RepVGG-A0 to B3
    python bench/compile.py emit     # the emit step alone and the artifact's size, up to RepViT-M2.3
    python bench/compile.py help     # repedge --help

Needs the bench extra: pip install 'repedge[bench]'.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SPEED = (
    # (what, model, our child, the peer's child, bar for ours / peer)
    ("nn.Module -> verified .tflite fp32, cold process", "repvgg_a0", "repedge-tflite", "litert-torch", 0.5),
    (
        "nn.Module -> verified .tflite fp32, cold process",
        "repvit_m0_9",
        "repedge-tflite",
        "litert-torch",
        0.5,
    ),
    ("nn.Module -> .mlpackage fp16, imports left out", "repvgg_a0", "repedge-coreml", "coremltools", 0.6),
    ("nn.Module -> .mlpackage fp16, imports left out", "repvit_m0_9", "repedge-coreml", "coremltools", 0.6),
)
CURVE = ("repvgg_a0", "repvgg_a2", "repvgg_b1", "repvgg_b2", "repvgg_b3")


def child(job: str, model: str) -> dict[str, Any]:
    """One conversion in this fresh process; the seconds that its row counts are in ``seconds``."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if job == "repedge-tflite":
            return _repedge_tflite(model, Path(folder), began)
        if job == "repedge-coreml":
            return _repedge_coreml(model, Path(folder))
        if job == "repedge-all":
            return _repedge_all(model, Path(folder))
        return _peer(job, model, Path(folder), began)


def _repedge_tflite(model: str, folder: Path, began: float) -> dict[str, float]:
    import resource

    import repedge

    report = repedge.compile(model, random_weights=True, targets=["tflite"], precisions=["fp32"], out=folder)
    assert report.passed
    built = report.bundles[0]
    stages = {k.replace(" ", "_"): v for k, v in built.seconds.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": time.perf_counter() - began, "peak": peak, "size": built.size_bytes, **stages}


def _repedge_all(model: str, folder: Path) -> dict[str, Any]:
    """Every target, float32 and float16 where it has them; ``compile`` is the emit step's seconds."""
    import coremltools  # noqa: F401 - imports are left out
    import openvino  # noqa: F401

    import repedge

    names = ["tflite", "openvino", "coreml", "gpu"]
    random = not model.endswith("_demo")
    report = repedge.compile(
        model, random_weights=random, targets=names, precisions=["fp32", "fp16"], out=folder
    )
    return {
        f"{b.target} {b.precision}": {"size": b.size_bytes, "compile": b.seconds["compile"]}
        for b in report.bundles
    }


def _repedge_coreml(model: str, folder: Path) -> dict[str, float]:
    import coremltools  # noqa: F401 - imports are left out on both sides
    import onnxruntime  # noqa: F401
    import torch

    from repedge import passes, targets
    from repedge.config import Preprocess
    from repedge.graph.export import export_module
    from repedge.models.registry import create
    from repedge.targets.base import Job

    torch.manual_seed(0)
    module = create(model).eval()
    target = targets.get("coreml")
    began = time.perf_counter()
    graph = export_module(module, (1, 3, 224, 224))
    passes.clean(graph)
    target.compile(graph, Job(model, "fp16", Preprocess()), folder)
    return {"seconds": time.perf_counter() - began}


def _peer(job: str, model: str, folder: Path, began: float) -> dict[str, float]:
    import peers

    if job == "coremltools":
        import coremltools  # noqa: F401 - imports are left out on both sides
    module, x = peers.fused_module(model), peers.example_input(model)
    if job == "coremltools":
        began = time.perf_counter()
        peers.coremltools_convert(module, x, folder / "peer.mlpackage")
    else:
        peers.litert_torch_convert(module, x, folder / "peer.tflite")
    return {"seconds": time.perf_counter() - began}


def spawn(job: str, model: str) -> dict[str, Any]:
    """Run `child` in a fresh process of this Python."""
    command = [sys.executable, __file__, "child", job, model]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{job} {model} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def speed(runs: int) -> None:
    """Interleaved pairs, one warm-up pair first; the ratio is the median of the pairs' ratios."""
    import peers

    print("  ".join(f"{k} {v}" for k, v in peers.versions().items()))
    print("| what | model | repedge s | peer s | peer | ratio | bar |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for what, model, ours, theirs, bar in SPEED:
        pairs = [(spawn(ours, model)["seconds"], spawn(theirs, model)["seconds"]) for _ in range(runs + 1)][
            1:
        ]
        mine, other = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| {what} | {model} | {mine:.2f} | {other:.2f} | {theirs} | {ratio:.2f} | {bar} |", flush=True)


def memory() -> None:
    """Peak memory of a whole compile to .tflite, over the fp32 bytes of the fused weights."""
    from repedge.models.registry import create

    print("| model | fused weights MB | peak MB | peak / weights | s | us per 1000 parameters |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in CURVE:
        params = sum(p.numel() for p in create(model, deploy=True).parameters())
        run = spawn("repedge-tflite", model)
        size, peak = params * 4, run["peak"]
        print(
            f"| {model} | {size / 1e6:.0f} | {peak / 1e6:.0f} | {peak / size:.2f} "
            f"| {run['seconds']:.1f} | {run['seconds'] / params * 1e9:.0f} |",
            flush=True,
        )


def emit() -> None:
    """Seconds of the emit step alone, and the artifact's bytes against its weights'."""
    from repedge.models.registry import create

    print("| model | target | emit s | artifact KB | weights KB | over by KB | allowed (2 % + 64) |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model in ("repvit_demo", "repvgg_a0", "repvit_m0_9", "repvit_m2_3"):
        params = sum(p.numel() for p in create(model, deploy=True).parameters())
        for name, run in spawn("repedge-all", model).items():
            weights = params * (4 if name.endswith("fp32") else 2) / 1024
            over = run["size"] / 1024 - weights
            print(
                f"| {model} | {name} | {run['compile']:.2f} | {run['size'] / 1024:.0f} | {weights:.0f} "
                f"| {over:.0f} | {0.02 * weights + 64:.0f} |",
                flush=True,
            )


def help_time(runs: int) -> None:
    """Wall time of ``repedge --help`` in a fresh process."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "repedge", "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    print(f"repedge --help: median {statistics.median(times[1:]):.3f} s of {runs} runs (bar 0.3 s)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["speed", "memory", "emit", "help", "child"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    if args.part == "child":
        print(json.dumps(child(*args.rest)))
    elif args.part == "speed":
        speed(args.runs)
    elif args.part == "memory":
        memory()
    elif args.part == "emit":
        emit()
    else:
        help_time(args.runs)


if __name__ == "__main__":
    main()
