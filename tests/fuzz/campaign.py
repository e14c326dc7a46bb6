"""Thousands of damaged and crafted files, each in a process of its own: what may never happen?

    python tests/fuzz/campaign.py --count 10000 --seed 0 [--jobs 14]

A server imports everything once and forks a worker for each input, whose memory and time are limited. A
worker makes its file from the seed and its number, hands it to repedge as a user would, and must end in an
answer or in one bounded sentence: no traceback, no crash, no more than `SECONDS` or `MEMORY`, nothing left
behind. With ``--jobs`` that many servers share the inputs, which stay the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from servers import data_bytes, own_bytes, parallel

SECONDS = 60
"""CPU time of one input."""

PATIENCE = 300
"""Seconds by the clock, for machines that do other work, too."""

MEMORY = 4 * 2**30
"""Bytes that a worker may take, weights, runtimes and all."""

OUT_OF_MEMORY = re.compile(
    r"bad.?alloc|memoryerror|out of memory|(fail|can.t|cannot|unable)\w* to alloc", re.I
)
"""What C++ and Python say at the limit: without one they would have gone on."""

LONGEST = 2500
"""Characters of a message, with the words around it."""

SHARES = {"onnx": 40, "weights": 20, "bundles": 20, "images": 10, "archives": 5, "datasets": 5}
"""Inputs of each kind, of 100."""


@dataclass
class Result:
    """What came of a campaign.

    Attributes:
        ends: (kind, how it ended) -> how often.
        failures: A line for each input that failed: its number, its kind, what happened.
        slowest: Seconds of CPU of the slowest input.
        largest: Bytes that the largest worker took.
    """

    count: int = 0
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0
    largest: int = 0
    seconds: float = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "inputs": self.count,
            "ends": {f"{kind}: {end}": n for (kind, end), n in sorted(self.ends.items())},
            "failures": self.failures,
            "slowest_cpu_s": round(self.slowest, 1),
            "largest_mib": self.largest >> 20,
            "seconds": round(self.seconds),
        }

    def add(self, other: Result) -> None:
        """Count what another server found, too."""
        self.count += other.count
        self.ends += other.ends
        self.failures += other.failures
        self.slowest = max(self.slowest, other.slowest)
        self.largest = max(self.largest, other.largest)


@dataclass(frozen=True)
class Plan:
    """What to try.

    Attributes:
        count, first: Numbers of the inputs.
        seed: With the number it gives the input.
        keep: Where inputs that fail are kept.
        only: One kind of them.
        seconds: After these no more inputs are begun.
        jobs: Inputs tried at once.
    """

    count: int
    seed: int = 0
    first: int = 0
    keep: Path | None = None
    only: str = ""
    seconds: float = 1e9
    jobs: int = 1


def run(plan: Plan) -> Result:
    """Try the inputs of a plan."""
    result = Result()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        root = Path(place)
        made = in_child(lambda: corpus(root / "corpus"), root / "corpus.log", limited=False)
        if made.word != "done":
            raise RuntimeError(f"there is no corpus: {made.text}")
        load()
        for part in parallel(partial(_share, plan, begun), plan.jobs, root):
            result.add(part)
    result.seconds = time.monotonic() - begun
    return result


def _share(plan: Plan, begun: float, job: int, root: Path) -> Result:
    """Every input of this job."""
    result = Result()
    for number in range(plan.first + job, plan.first + plan.count, plan.jobs):
        if time.monotonic() - begun > plan.seconds:
            break
        kind = plan.only or _kind(number)
        work = root / "work"
        work.mkdir()
        end = in_child(partial(_try, kind, number, plan.seed, root / "corpus", work), root / "log")
        trouble = end.trouble(work)
        result.count += 1
        result.ends[kind, end.word] += 1
        result.slowest = max(result.slowest, end.seconds)
        result.largest = max(result.largest, end.memory)
        if trouble:
            result.failures.append(f"{number} {kind}: {trouble}")
            print(result.failures[-1], file=sys.stderr, flush=True)
            if plan.keep is not None:
                shutil.copytree(work, plan.keep / f"{plan.seed}-{number}", symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(work)
    return result


def _kind(number: int) -> str:
    at = random.Random(number).randrange(100)
    for kind, share in SHARES.items():
        at -= share
        if at < 0:
            return kind
    raise AssertionError


def corpus(folder: Path) -> None:
    import fuzz_corpus

    fuzz_corpus.build(folder)


def load() -> None:
    """What workers would else import each; no thread is started, which a fork would lose."""
    import ai_edge_litert.interpreter  # noqa: F401
    import coremltools  # noqa: F401
    import onnx.version_converter  # noqa: F401
    import onnxruntime  # noqa: F401
    import onnxsim  # noqa: F401
    import openvino  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch

    import repedge.api
    import repedge.cli
    import repedge.compiler.pipeline
    import repedge.models.checkpoints
    import repedge.photos.choice
    import repedge.ship  # noqa: F401

    torch.set_num_threads(1)


@dataclass
class End:
    """How a worker ended.

    Attributes:
        word: ``done``, ``refused``, ``check failed``, ``device``, or what went wrong.
        text: What it printed.
        seconds: Of CPU.
        memory: Bytes that it took.
    """

    word: str
    text: str
    seconds: float
    memory: int

    def trouble(self, work: Path) -> str:
        """What may not be, or nothing."""
        if self.word not in ("done", "refused", "check failed"):
            return f"{self.word}: {' '.join(self.text.split())[-400:]}"
        if self.memory > MEMORY or OUT_OF_MEMORY.search(self.text):
            return f"memory, {self.memory >> 20} MiB: {' '.join(self.text.split())[-400:]}"
        if len(self.text) > LONGEST:
            return f"{len(self.text)} characters: {self.text[:200]}"
        left = [p.name for p in (work / "tmp").iterdir()] if (work / "tmp").is_dir() else []
        if (work / "out").is_dir():
            left += [p.name for p in (work / "out").iterdir() if p.name.startswith(".")]
        return f"left behind: {left}" if left else ""


WORDS = {0: "done", 2: "refused", 3: "check failed"}


def in_child(job: Callable[[], None], log: Path, limited: bool = True) -> End:
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 1
        try:
            os.setsid()
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            warnings.simplefilter("ignore")
            os.write(writing, b"%20d" % own_bytes())
            if limited:
                resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + MEMORY + 2**30,) * 2)
                resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 2))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            job()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        except BaseException:
            os.write(2, f"Traceback {traceback.format_exc()}".encode("utf-8", "backslashreplace"))
        finally:
            os._exit(code)
    os.close(writing)
    before = int(os.read(reading, 20))
    ended = select.select([reading], [], [], PATIENCE if limited else None)[0]  # its end closes the pipe
    if not ended:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    os.close(reading)
    _, status, usage = os.wait4(pid, 0)
    text = log.read_text(encoding="utf-8", errors="replace")
    memory = max(0, usage.ru_maxrss * 1024 - before)
    return End(_word(status, bool(ended), text), text, usage.ru_utime + usage.ru_stime, memory)


def _word(status: int, ended: bool, text: str) -> str:
    if not ended:
        return "hang"
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    if "Traceback" in text or "internal error" in text:
        return "traceback"
    code = os.WEXITSTATUS(status)
    return WORDS.get(code, f"exit code {code}")


def _try(kind: str, number: int, seed: int, corpus: Path, work: Path) -> None:
    """Make the input and hand it over; leaves by SystemExit, as the command line does."""
    import fuzz_files
    from fuzz_onnx import mutate_onnx
    from fuzz_uses import USES

    dice = random.Random(f"{seed} {number}")
    (work / "tmp").mkdir()
    tempfile.tempdir = str(work / "tmp")
    os.environ["REPEDGE_CACHE"] = str(work / "cache")
    source = dice.choice(sorted((corpus / kind).iterdir()))
    file = work / f"input{source.suffix}"
    mutate = {
        "onnx": mutate_onnx,
        "weights": fuzz_files.mutate_weights,
        "images": fuzz_files.mutate_image,
        "archives": fuzz_files.mutate_archive,
        "datasets": fuzz_files.mutate_dataset,
        "bundles": fuzz_files.mutate_bundle,
    }[kind]
    mutate(source, file, dice)
    USES[kind](file, work, dice)


def main() -> int:
    """Run a campaign; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", default="", help="one kind, such as onnx or archives")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no more inputs after these")
    parser.add_argument(
        "--keep", type=Path, default=Path("build/fuzz"), help="where inputs that fail are kept"
    )
    parser.add_argument("--jobs", type=int, default=1, help="inputs tried at once")
    result = run(Plan(**vars(parser.parse_args())))
    print(json.dumps(result.as_json(), indent=1))
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
