"""int8 on other CPUs: OpenVINO bundles on emulated processors beside this one, on the same photos.

    python bench/int8_cpus.py build/repvit_demo-openvino-w8a8 [...] [--cpu Haswell Nehalem] [--count 40]

CPUs without VNNI add two products in 16 bits, which can overflow. Needs qemu-x86_64 (Debian: qemu-user),
whose ``-cpu help`` lists the processors. Only OpenVINO runs in the emulator; times there mean nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import repedge
from repedge.graph.run import Session
from repedge.photos import images
from repedge.photos.photos import demo_photos, open_photos, stacked

RUN = """
import sys, numpy, openvino
model, photos, out = sys.argv[1:]
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
batch = numpy.load(photos)
numpy.save(out, numpy.concatenate([compiled([batch[i : i + 1]])[0].copy() for i in range(len(batch))]))
"""
"""Neither torch nor repedge: they take minutes to load there."""


def logits(artifact: Path, batch: np.ndarray, cpu: str | None) -> np.ndarray:
    """What the artifact gives on the named processor, or on this one."""
    emulator = ["qemu-x86_64", "-cpu", cpu] if cpu else []
    python = os.path.realpath(sys.executable)
    packages = os.pathsep.join(p for p in sys.path if p)  # the emulator sees no virtual environment
    with tempfile.TemporaryDirectory() as folder:
        photos, out = Path(folder, "photos.npy"), Path(folder, "out.npy")
        np.save(photos, batch)
        subprocess.run(
            [*emulator, python, "-c", RUN, str(artifact), str(photos), str(out)],
            check=True, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": packages},
        )  # fmt: skip
        return np.load(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--cpu", nargs="+", default=["Haswell", "Nehalem"])
    parser.add_argument("--photos", type=Path, help="a folder; default: the bundled ones")
    parser.add_argument("--count", type=int, default=40)
    args = parser.parse_args()
    print("| bundle | processor | SQNR dB | agreement |\n| --- | --- | --- | --- |")
    for path in args.bundles:
        bundle = repedge.Bundle.open(path)
        if bundle.reference is None:
            raise SystemExit(f"{path} has no float reference to compare with")
        pre = bundle.manifest.preprocess
        pixels = stacked(open_photos(args.photos) if args.photos else demo_photos(), pre, args.count)
        inputs = images.normalise(pixels, pre)
        (wanted,) = Session(bundle.reference).run(inputs)
        batch = pixels if bundle.manifest.input_kind == "uint8" else inputs
        for cpu in (None, *args.cpu):
            got = logits(bundle.artifact, batch, cpu)
            decibels = 10 * np.log10((wanted**2).mean() / ((got - wanted) ** 2).mean())
            agree = (got.argmax(1) == wanted.argmax(1)).mean()
            print(f"| {path.name} | {cpu or 'this'} | {decibels:.1f} | {agree:.1%} |", flush=True)


if __name__ == "__main__":
    main()
