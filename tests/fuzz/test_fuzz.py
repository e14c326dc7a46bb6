"""A few hundred damaged files and a few kills on every run; `make fuzz` and `make kills` do thousands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="workers are limited by Linux' means"),
]


def run(script: str, *words: object) -> dict:
    """What a campaign found; in a process of its own, which forks as long as it has no threads."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(HERE / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stdout.startswith("{"), done.stderr[-2000:]
    return json.loads(done.stdout)


def test_damaged_and_crafted_files(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    count, seed = request.config.getoption("fuzz"), request.config.getoption("fuzz_seed")
    found = run("campaign.py", "--count", count, "--seed", seed, "--keep", tmp_path)
    assert found["inputs"] == count
    assert found["failures"] == []
    assert found["slowest_cpu_s"] < 60


def test_kills(request: pytest.FixtureRequest) -> None:
    count, seed = request.config.getoption("kills"), request.config.getoption("fuzz_seed")
    found = run("kills.py", "--count", count, "--seed", seed)
    assert found["kills"] == count
    assert found["failures"] == []


@pytest.mark.parametrize("fault", ["traceback", "hang", "crash", "memory", "leftover", "verbose"])
def test_faults_are_seen(tmp_path: Path, fault: str) -> None:
    """A campaign that can't fail proves nothing."""
    script = f"""
import os, sys, time
from pathlib import Path
import campaign
campaign.PATIENCE = 3
work = Path({str(tmp_path)!r})
(work / "tmp").mkdir()
def job():
    if {fault!r} == "traceback":
        raise IndexError("a surprise")
    if {fault!r} == "hang":
        time.sleep(60)
    if {fault!r} == "crash":
        os.kill(os.getpid(), 11)
    if {fault!r} == "memory":
        return bytearray(campaign.MEMORY + 2**31)
    if {fault!r} == "leftover":
        (work / "tmp" / "repedge-scratch-1-01234567").mkdir()
    if {fault!r} == "verbose":
        print("x" * 100000)
print(campaign.in_child(job, work / "log").trouble(work))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *(p for p in sys.path if p)])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    expected = {
        "traceback": "traceback: .*a surprise",
        "hang": "hang",
        "crash": "killed by SIGSEGV",
        "memory": "traceback: .*MemoryError",
        "leftover": "left behind",
        "verbose": "[0-9]+ characters",
    }
    assert re.match(expected[fault], done.stdout), (done.stdout, done.stderr)
