"""Folders under attack: kill -9 while they are replaced, races, links, odd names, odd places."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from bundles import make, manifest

from repedge.bundle.folder import Bundle, check_destination, writing
from repedge.disk import atomic
from repedge.errors import UserError

REPLACER = """
    import sys
    from pathlib import Path
    from bundles import make
    print("ready", flush=True)
    for i in range(100000):
        make(Path(sys.argv[1]), b"%d" % i * 1000, force=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_kill_while_replacing_never_loses_the_bundle(tmp_path: Path) -> None:
    """At any moment the name is a whole bundle, and the next write leaves nothing else beside it."""
    final = tmp_path / "net"
    make(final, b"first")
    dice = random.Random(0)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(6):
        command = [sys.executable, "-c", textwrap.dedent(REPLACER), str(final)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            ends = time.monotonic() + dice.uniform(0.02, 0.2)
            while time.monotonic() < ends:
                assert (final / "manifest.json").is_file()  # whatever a reader does at this moment
            process.send_signal(signal.SIGKILL)
            process.wait()
        Bundle.open(final)
    make(final, b"last", force=True)
    assert Bundle.open(final).artifact.read_bytes() == b"last"
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_replacing_is_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old bundle has its name until the new one has it: nothing is renamed away."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not atomic.swap(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system can't swap two names")
    assert (tmp_path / "a" / "b").exists()
    assert (tmp_path / "b" / "a").exists()
    make(tmp_path / "net", b"old")
    monkeypatch.setattr(atomic, "_replace", lambda *paths: pytest.fail("renamed in two steps"))
    make(tmp_path / "net", b"new", force=True)
    assert Bundle.open(tmp_path / "net").artifact.read_bytes() == b"new"


def test_kill_between_two_renames_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system can't swap two folders."""
    monkeypatch.setattr(atomic, "swap", lambda a, b: False)
    make(tmp_path / "net", b"old")
    make(tmp_path / "net", b"new", force=True)
    assert Bundle.open(tmp_path / "net").artifact.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    (tmp_path / "net").rename(tmp_path / ".net.old-12345678")
    with pytest.raises(UserError, match="exists"):
        check_destination(tmp_path / "net", force=False)
    assert Bundle.open(tmp_path / "net").artifact.read_bytes() == b"new"


@pytest.mark.parametrize("force", [False, True])
def test_two_at_once(tmp_path: Path, force: bool) -> None:
    """The slower one replaces with force, and else leaves what the faster one wrote."""
    with writing(tmp_path / "net", force) as draft:
        (draft.path / "net.tflite").write_bytes(b"slow")
        draft.seal(manifest())
        make(tmp_path / "net", b"fast", force=force)
        if force:
            draft.publish()
        else:
            with pytest.raises(UserError, match="appeared while it was being made"):
                draft.publish()
    assert Bundle.open(tmp_path / "net").artifact.read_bytes() == (b"slow" if force else b"fast")
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_a_link_to_a_bundle_is_replaced_not_followed(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", b"old")
    (tmp_path / "net").symlink_to(tmp_path / "elsewhere")
    make(tmp_path / "net", b"new", force=True)
    assert Bundle.open(tmp_path / "elsewhere").artifact.read_bytes() == b"old"
    assert Bundle.open(tmp_path / "net").artifact.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "net"]


def test_a_link_to_nowhere_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "net").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists"):
        make(tmp_path / "net")
    assert (tmp_path / "net").is_symlink()


def test_leftovers_of_other_names_are_swept_too(tmp_path: Path) -> None:
    """Whoever was killed while it wrote beside this bundle may never be started again."""
    for name in (".net[1].partial-99-0123abcd", ".net1.partial-1-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half")
    mine = [".net1.partial-of-a-thesis", ".net[1].old-backup", "net1.partial-99-0123abcd"]
    for name in mine:
        (tmp_path / name).mkdir()
    make(tmp_path / "net[1]")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*mine, "net[1]"])


@pytest.mark.parametrize("name", ["n" * 300, "loop/net", "file/net"])
def test_impossible_places_are_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write .*choose another --out"):
        check_destination(tmp_path / name, force=False)


def test_a_folder_that_vanishes_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't write .*No such file"), writing(tmp_path / "net") as draft:
        draft.path.rmdir()
        (draft.path / "net.tflite").write_bytes(b"x")
