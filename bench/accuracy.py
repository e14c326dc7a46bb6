"""Top-1 of MobileOne-S0 (ImageNet weights) in torch and in the artifacts of all four targets.

    python bench/accuracy.py --weights mobileone_s0_in1k.safetensors --data imagenet-sample [--limit N]

Every artifact is fed the same 8-bit pixels; the Core ML program runs in the MIL interpreter where the
host has no Core ML.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import repedge
from repedge.config import Preprocess
from repedge.judge import evaluation
from repedge.models.source import resolve
from repedge.precision import Precision
from repedge.tasks.base import Network, Output
from repedge.tasks.classify import Classify

BUILDS: tuple[tuple[str, Precision], ...] = (
    ("tflite", "fp32"),
    ("tflite", "fp16"),
    ("openvino", "fp32"),
    ("openvino", "fp16"),
    ("coreml", "fp16"),
    ("gpu", "fp32"),
    ("gpu", "fp16"),
)


def torch_top1(weights: Path, data: Path, limit: int | None) -> tuple[evaluation.Accuracy, Preprocess]:
    """The torch model itself, eager."""
    source = resolve("examples.mobileone:mobileone_s0", weights=str(weights))
    module = source.module
    assert module is not None

    def forward(pixels: np.ndarray, inputs: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [module(torch.from_numpy(inputs)).numpy()]

    task = Classify(Network((Output("logits", (1000,)),)))
    return evaluation.evaluate(forward, task, source.preprocess, data, limit=limit), source.preprocess


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    base, _ = torch_top1(args.weights, args.data, args.limit)
    assert base.top1 is not None
    print("| model | n | top-1 | difference, points | agreement | SQNR dB |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| torch, eager | {base.n} | {base.top1:.2%} | | | |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for target, precision in BUILDS:
            report = repedge.compile(
                "examples.mobileone:mobileone_s0", weights=str(args.weights), targets=[target],
                precisions=[precision], out=folder, images=args.data,
            )  # fmt: skip
            got = repedge.evaluate(report.bundles[0].path, args.data, limit=args.limit)
            assert got.top1 is not None
            print(
                f"| {target} {precision} | {got.n} | {got.top1:.2%} | {(got.top1 - base.top1) * 100:+.2f} "
                f"| {got.agree_top1:.2%} | {got.sqnr_db:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
