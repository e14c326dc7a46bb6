"""Hundreds of kill -9 at random moments: no torn bundle, no lost one, nothing left after the next start.

    python tests/fuzz/kills.py --count 500 --seed 0 [--jobs 14]

Each run is a process of its own, forked from a server that has imported everything, and is killed with all
its children at a moment of its usual length: a compile, one with --force, ship, ship with --force, a search
for an accuracy budget.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import campaign
import fuzz_uses
from servers import parallel

KINDS = ("compile", "compile --force", "ship", "ship --force", "budget search")

LATE = 1.1
"""Moments go up to this many times the usual length: some runs end by themselves."""


@dataclass
class Kills:
    """What came of it: runs and kills by kind, and a line for each failure."""

    runs: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    left: int = 0
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "runs": dict(self.runs),
            "killed": dict(self.killed),
            "kills": self.killed.total(),
            "leftovers_removed_by_the_next_start": self.left,
            "failures": self.failures,
        }

    def add(self, other: Kills) -> None:
        """Count what another server did, too."""
        self.runs += other.runs
        self.killed += other.killed
        self.left += other.left
        self.failures += other.failures


def run(count: int, seed: int = 0, seconds: float = 1e9, jobs: int = 1) -> Kills:
    """Kill until ``count`` runs were killed, ``jobs`` at once, or ``seconds`` are over."""
    result, until = Kills(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        root = Path(place)
        made = campaign.in_child(lambda: campaign.corpus(root / "corpus"), root / "corpus.log", limited=False)
        if made.word != "done":
            raise RuntimeError(f"there is no corpus: {made.text}")
        campaign.load()
        counts = [len(range(job, count, jobs)) for job in range(jobs)]
        for part in parallel(lambda job, own: _share(counts[job], seed, job, until, own), jobs, root):
            result.add(part)
    return result


def _share(count: int, seed: int, job: int, until: float, root: Path) -> Kills:
    """One server's part; the usual lengths are measured while the others run, too."""
    result, dice = Kills(), random.Random(f"{seed} {job}")
    usual = {kind: _run(kind, root, None)[0] for kind in KINDS}
    while result.killed.total() < count and time.monotonic() < until:
        kind = KINDS[(job + result.runs.total()) % len(KINDS)]
        result.runs[kind] += 1
        moment = dice.uniform(0, LATE * usual[kind])
        _, was_killed, left, trouble = _run(kind, root, moment)
        result.killed[kind] += was_killed
        result.left += left
        if trouble:
            result.failures.append(f"{kind} after {moment:.3f} s: {trouble}")
            print(result.failures[-1], file=sys.stderr, flush=True)
    return result


def _run(kind: str, root: Path, moment: float | None) -> tuple[float, bool, int, str]:
    """Seconds, whether it was killed, how many leftovers the next start removed, and what is wrong."""
    work = root / "work"
    (work / "tmp").mkdir(parents=True)
    out = work / "out"
    words = _prepare(kind, root / "corpus", out)
    before = {p.name for p in out.iterdir()} if out.is_dir() else set()
    begun = time.monotonic()
    killed = _killed(words, work, moment)
    seconds = time.monotonic() - begun
    left = _hidden(out) + len(list((work / "tmp").iterdir()))
    trouble = _torn(out, before) or _next_start(work, out)
    shutil.rmtree(work)
    return seconds, killed, left, trouble


def _prepare(kind: str, corpus: Path, out: Path) -> list[Any]:
    net = corpus / "onnx" / "plain.onnx"
    if kind.startswith("ship"):
        words = ["ship", corpus / "bundles" / "tflite", "--to", "android", "-o", out / "app"]
        out.mkdir()
    else:
        words = ["compile", net, "-t", "tflite", "-t", "openvino", "-p", "fp32", "-o", out, "--count", 2]
    if kind == "budget search":
        photos = corpus / "archives" / "photos.zip"
        words = ["compile", net, "-t", "tflite", "-p", "w8a8", "--calib", photos, "--calib-count", 8]
        words += ["--max-drop", 50, "--eval-data", photos, "-o", out, "--count", 2]
    if kind.endswith("--force"):
        _finish(words)
        words = [*words, "--force"]
    return words


def _finish(words: list[Any]) -> None:
    with tempfile.NamedTemporaryFile() as log:
        end = campaign.in_child(lambda: fuzz_uses.cli(*words), Path(log.name), limited=False)
    if end.word not in ("done", "check failed"):
        raise RuntimeError(f"{words}: {end.text}")


def _killed(words: list[Any], work: Path, moment: float | None) -> bool:
    """Run to the end, or kill the process and its children after ``moment`` seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            log = os.open(work / "log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            tempfile.tempdir = str(work / "tmp")
            os.environ["TMPDIR"] = str(work / "tmp")
            os.environ["REPEDGE_CACHE"] = str(work / "cache")
            fuzz_uses.cli(*words)
        finally:
            os._exit(0)
    if moment is not None:
        time.sleep(moment)
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def _hidden(out: Path) -> int:
    return sum(p.name.startswith(".") for p in out.iterdir()) if out.is_dir() else 0


def _torn(out: Path, before: set[str]) -> str:
    """What has a name is whole, and what was there is there."""
    from repedge.bundle.folder import Bundle
    from repedge.errors import UserError
    from repedge.ship.package import PACKAGE

    now = {p.name for p in out.iterdir()} if out.is_dir() else set()
    if lost := {name for name in before if not name.startswith(".")} - now:
        return f"lost: {lost}"
    for name in (n for n in now if not n.startswith(".")):
        if name == "app":
            listed = PACKAGE.files(out / name)
            found = {p.relative_to(out / name).as_posix() for p in (out / name).rglob("*") if p.is_file()}
            if listed != found:
                return f"torn: {name} has {found ^ (listed or frozenset())}"
            continue
        try:
            Bundle.open(out / name)
        except UserError as e:
            return f"torn: {e}"
    return ""


def _next_start(work: Path, out: Path) -> str:
    """What any verb does first that writes; nothing may be left then."""
    from repedge.bundle.folder import check_destination

    before, tempfile.tempdir = tempfile.tempdir, str(work / "tmp")
    try:
        check_destination(out / "next", force=False)
    finally:
        tempfile.tempdir = before
    left = [
        p.name for p in (*(work / "tmp").iterdir(), *out.iterdir()) if p.parent != out or p.name[0] == "."
    ]
    return f"left: {left}" if left else ""


def main() -> int:
    """Kill; 1 if anything was torn, lost or left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="kill no more after these")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    result = run(**vars(parser.parse_args()))
    print(json.dumps(result.as_json(), indent=1))
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
