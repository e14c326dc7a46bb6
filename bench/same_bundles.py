"""Do two checkouts of repedge write the same bundles, byte for byte?

    python bench/same_bundles.py OLD NEW --calib photos.zip --work build/same

Each checkout compiles every model for every target and precision in a process of its own; then every file
of the bundles is compared. What a manifest says of the toolchain is left aside, and so are its digest and
the versions that the toolchain writes into an artifact: all else must be equal. Bundles that an earlier,
interrupted run has written are taken as they are (``--work`` names their folder).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

MODELS = ("repvgg_demo", "repvit_demo", "repvgg_a0", "repvit_m0_9")
TARGETS = ("coreml", "tflite", "openvino", "gpu")
PRECISIONS = ("fp32", "fp16", "w8a8")
ASIDE = ("toolchain", "digest")
"""What manifests may differ in."""


def main() -> int:
    """Compile with both, compare, and print a line for each bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="a checkout of repedge")
    parser.add_argument("new", type=Path, help="another")
    parser.add_argument("--calib", type=Path, required=True, help="photos for w8a8: a folder or archive")
    parser.add_argument("--calib-count", type=int, default=16)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--work", type=Path, default=Path("build/same_bundles"))
    given = parser.parse_args()
    differing = compared = 0
    for model in given.models:
        for precision in given.precisions:
            for target in given.targets:
                name = f"{model}-{target}-{precision}"
                folders = [
                    _compiled(
                        checkout.resolve(), given.work.resolve() / side, model, target, precision, given
                    )
                    for side, checkout in (("old", given.old), ("new", given.new))
                ]
                wrong = _differences(folders[0] / name, folders[1] / name)
                compared, differing = compared + 1, differing + bool(wrong)
                print(f"{name}: {'; '.join(wrong) or 'the same'}", flush=True)
    print(f"{compared - differing} of {compared} bundles are the same")
    return 1 if differing else 0


def _compiled(
    checkout: Path, work: Path, model: str, target: str, precision: str, given: argparse.Namespace
) -> Path:
    """The folder with the bundle, compiled by the checkout where it is not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    if any((work / f"{model}-{target}-{precision}{end}").is_dir() for end in ("", ".rejected")):
        return work
    command = [sys.executable, "-m", "repedge", "compile", model, "-t", target, "-p", precision, "--out", "."]
    command += ["--json"] + ([] if model.endswith("_demo") else ["--random-weights"])
    if precision == "w8a8":
        command += ["--calib", str(given.calib.resolve()), "--calib-count", str(given.calib_count)]
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    if done.returncode not in (0, 3):  # a bundle of random weights may be rejected; by both, then
        raise SystemExit(f"{checkout}: {' '.join(command)}\n{done.stderr[-2000:]}")
    return work


def _differences(old: Path, new: Path) -> list[str]:
    """What is not the same, in words."""
    old, new = (p if p.is_dir() else p.with_name(p.name + ".rejected") for p in (old, new))
    if old.name != new.name:
        return [f"{old.name} became {new.name}"]
    names = [{p.relative_to(side).as_posix() for p in side.rglob("*") if p.is_file()} for side in (old, new)]
    wrong = [f"{name} is in one only" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        before, after = (old / name).read_bytes(), (new / name).read_bytes()
        if name == "manifest.json":
            before, after = _comparable(before), _comparable(after)
        if before != after:
            wrong.append(f"{name} differs")
    return wrong


def _comparable(manifest: bytes) -> bytes:
    """A manifest without what may differ, its keys in the order in which they stand."""
    content = json.loads(manifest)
    return json.dumps({key: value for key, value in content.items() if key not in ASIDE}).encode()


if __name__ == "__main__":
    raise SystemExit(main())
