"""Signals where they are usually lost: while packages load, in code that swallows them, at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from repedge import cli, interrupts

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="POSIX signals")]

LINE = "interrupted; nothing half-written is left\n"

PRELUDE = """
import os, signal, sys, time
def heed():
    # what a shell starts in the background, as CI may be, ignores interrupts
    signal.signal(signal.SIGINT, signal.default_int_handler)
def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep(0.01)
heed()
"""


def program(body: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a verb whose work is ``body``, as the program runs it."""
    body, _, after = textwrap.dedent(body).strip().partition("\n---\n")
    lines = [
        PRELUDE,
        "from repedge import __main__, cli",
        "@cli.app.command()",
        "def work(as_json: cli.check.Json = False) -> int:",
        textwrap.indent(body, "    "),
        "    cli.about.show(as_json, {'done': 1}, print)",
        "    return 0",
        "sys.argv = ['repedge', 'work', '--json']",
        after,
        "__main__.main()",
    ]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True, text=True, cwd=cwd, timeout=60, check=False,
    )  # fmt: skip


def ended_by(done: subprocess.CompletedProcess[str], number: int) -> None:
    """It ended by the signal, with one line and one object."""
    assert done.stderr == LINE
    assert done.returncode == 128 + number
    assert json.loads(done.stdout)["exit_code"] == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_work(tmp_path: Path, number: signal.Signals) -> None:
    ended_by(program(f"send({int(number)}); time.sleep(30)", tmp_path), number)


def test_while_native_code_loads(tmp_path: Path) -> None:
    """What raises in an extension's initialization comes out as an ImportError, or aborts."""
    (tmp_path / "native.py").write_text(
        PRELUDE.partition("heed()\n")[0]
        + "try:\n    send(); [i for i in range(100000)]\n"
        + "except BaseException as e:\n    raise ImportError('initialization failed') from None\n"
        + "print('loaded', file=sys.stderr)\n"
    )
    body = """
    try:
        import native
    except ImportError:
        raise RuntimeError("no runtime is installed")
    time.sleep(30)
    """
    done = program(body, tmp_path)
    assert done.stderr.startswith("loaded\n")  # the import was left to end
    done.stderr = done.stderr.removeprefix("loaded\n")
    ended_by(done, signal.SIGTERM)


def test_an_import_that_takes_long_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(30)\n"
    )
    ended_by(
        program("import training\n---\nfrom repedge import interrupts; interrupts.PATIENCE = 0.3", tmp_path),
        signal.SIGTERM,
    )


def test_an_error_that_native_code_made_of_it(tmp_path: Path) -> None:
    body = """
    try:
        send(); time.sleep(30)
    except KeyboardInterrupt:
        raise RuntimeError("exception in a callback") from None
    """
    ended_by(program(body, tmp_path), signal.SIGTERM)


def test_code_that_swallows_it(tmp_path: Path) -> None:
    body = """
    try:
        send(); time.sleep(30)
    except BaseException:
        pass
    time.sleep(30)
    """
    ended_by(program(body, tmp_path), signal.SIGTERM)


def test_what_removes_half_written_files_is_left_to_it(tmp_path: Path) -> None:
    """It takes longer than a reminder."""
    body = """
    open("half", "w").close()
    try:
        send(); time.sleep(30)
    finally:
        for _ in range(5): time.sleep(0.1)
        os.remove("half")
    """
    ended_by(program(body, tmp_path), signal.SIGTERM)
    assert not (tmp_path / "half").exists()


def test_a_second_one_ends_a_program_that_does_not_end(tmp_path: Path) -> None:
    body = """
    try:
        send(signal.SIGINT); time.sleep(30)
    finally:
        time.sleep(1.2); send(signal.SIGINT); time.sleep(30)
    """
    done = program(body, tmp_path)
    assert done.returncode == 130
    assert done.stderr == "interrupted\n"


def test_while_python_shuts_down(tmp_path: Path) -> None:
    """The answer is out and right: the signal changes nothing."""
    done = program("import atexit; atexit.register(send)", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["done"] == 1


def test_what_was_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    body = "send(signal.SIGHUP)\n---\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert json.loads(program(body, tmp_path).stdout)["exit_code"] == 0


def test_handlers_of_a_program_that_calls_it_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with pytest.raises(SystemExit):
        cli.main(["models", "--json"])
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
    assert json.loads(capsys.readouterr().out)["models"]
