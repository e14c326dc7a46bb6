"""Artifact latency on this CPU: repedge's artifact and the peer's, same runtime, run by run in turn.

    python bench/latency.py [--models repvgg_a0 repvit_m0_9] [--runs 100] [--threads 1]

Both sides take the normalised float32 input; the weights are random (they don't change the time).
The ratio is the median over rounds of ours / theirs, with its 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peers

import repedge

Invoke = Callable[[], None]


def litert(path: Path, threads: int) -> Invoke:
    """A .tflite in LiteRT, input filled once."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    detail = interpreter.get_input_details()[0]
    rng = np.random.default_rng(0)
    interpreter.set_tensor(detail["index"], rng.normal(size=detail["shape"]).astype(detail["dtype"]))
    return interpreter.invoke


def openvino(path: Path, threads: int) -> Invoke:
    """An IR in OpenVINO in float32 arithmetic, latency hint."""
    import openvino as ov

    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = ov.Core().compile_model(str(path), "CPU", config)
    request = compiled.create_infer_request()
    shape = [d.get_length() if d.is_static else 1 for d in compiled.input(0).partial_shape]
    request.set_input_tensor(ov.Tensor(np.random.default_rng(0).normal(size=shape).astype(np.float32)))
    return request.infer


def artifacts(model: str, folder: Path) -> dict[str, tuple[Path, Path]]:
    """Runtime -> (our artifact, the peer's)."""
    report = repedge.compile(
        model, random_weights=True, targets=["tflite", "openvino"], precisions=["fp32"], out=folder,
        input_kind="float32",
    )  # fmt: skip
    ours = {b.target: repedge.Bundle.open(b.path).artifact for b in report.bundles}
    module, x = peers.fused_module(model), peers.example_input(model)
    peers.litert_torch_convert(module, x, folder / "peer.tflite")
    peers.openvino_convert(module, x, folder / "peer.xml")
    return {
        "litert": (ours["tflite"], folder / "peer.tflite"),
        "openvino": (ours["openvino"], folder / "peer.xml"),
    }


def interleave(ours: Invoke, theirs: Invoke, runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of each run, the two in turn, the order swapped every round."""
    for _ in range(10):
        ours()
        theirs()
    times = np.empty((2, runs))
    for i in range(runs):
        for side in (0, 1) if i % 2 else (1, 0):
            began = time.perf_counter()
            (ours, theirs)[side]()
            times[side, i] = (time.perf_counter() - began) * 1e3
    return times[0], times[1]


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["repvgg_a0", "repvit_m0_9"])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    print("  ".join(f"{k} {v}" for k, v in peers.versions().items()))
    print("| model | runtime | repedge ms | peer ms | ratio | 95 % interval | bar |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            for runtime, (ours, theirs) in artifacts(model, Path(folder)).items():
                start = litert if runtime == "litert" else openvino
                a, b = interleave(start(ours, args.threads), start(theirs, args.threads), args.runs)
                low, high = interval(a / b)
                print(
                    f"| {model} | {runtime} | {np.median(a):.2f} | {np.median(b):.2f} "
                    f"| {np.median(a / b):.3f} | {low:.3f}..{high:.3f} | 1.02 |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
