"""Does the way over ssh change the number?

    python bench/profile_ssh.py [BUNDLE]

One artifact is profiled on ``local`` and, through a real OpenSSH server on loopback (started here, with keys
of its own), on the same machine, in turns. Timing happens on the device, so that the ratio should be 1.
Needs sshd and the devices extra.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from profile_fidelity import median_interval

import repedge
from repedge.profile.measure import measure

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from ssh_server import Server


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, help="default: RepViT-M0.9 as TFLite, random weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or example(Path(folder))
        (Path(folder) / "server").mkdir()
        server = Server(Path(folder) / "server").start()
        try:
            far: dict[str, Any] = {"device": server.uri, "device_options": server.options()}
            local: list[float] = []
            remote: list[float] = []
            for i in range(options.rounds):
                for side in (0, 1) if i % 2 else (1, 0):
                    where: dict[str, Any] = far if side else {}
                    found = measure(bundle, **where, threads=options.threads, runs=options.runs)
                    (local, remote)[side].append(found.p50_ms)
        finally:
            server.stop()
    low, middle, high = median_interval(np.array(remote) / np.array(local))
    print(
        f"\n{bundle.name}: {options.threads} threads, {options.runs} runs, {options.rounds} rounds in turns\n"
    )
    print("| local p50 ms | ssh p50 ms | ratio | 95 % |\n|---|---|---|---|")
    print(f"| {np.median(local):.3f} | {np.median(remote):.3f} | {middle:.3f} | {low:.3f} to {high:.3f} |")


def example(folder: Path) -> Path:
    """An artifact that takes long enough for a per cent to show."""
    return repedge.compile("repvit_m0_9", random_weights=True, targets=["tflite"], out=folder).bundles[0].path


if __name__ == "__main__":
    main()
