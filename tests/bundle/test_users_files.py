"""What users keep beside and in what repedge writes is never removed, with --force or without."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from bundles import change_manifest, make, manifest

import repedge
from repedge.bundle.folder import Bundle, writing
from repedge.disk import atomic, leftovers
from repedge.errors import UserError
from repedge.html import write_whole


def reject(final: Path, content: bytes = b"bad") -> Path:
    with writing(final) as draft:
        (draft.path / "net.tflite").write_bytes(content)
        draft.seal(manifest())
        return draft.reject()


def test_a_rejected_bundle_takes_the_place_of_a_rejected_bundle_only(tmp_path: Path) -> None:
    thesis = tmp_path / "net.rejected" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("precious")
    assert reject(tmp_path / "net").name == "net.rejected-2"
    assert reject(tmp_path / "net", b"worse").name == "net.rejected-2"
    (tmp_path / "net.rejected-2" / "notes.txt").write_text("why it failed")
    assert reject(tmp_path / "net").name == "net.rejected-3"
    assert thesis.read_text() == "precious"
    assert (tmp_path / "net.rejected-2" / "notes.txt").read_text() == "why it failed"
    assert (tmp_path / "net.rejected-2" / "net.tflite").read_bytes() == b"worse"


def test_force_needs_a_bundle_of_ours_not_any_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    for content in ("{}", '{"files": [], "repedge": "1", "digest": "0"}', "[]", '{"manifest_version": 3}'):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=r"is no bundle that repedge wrote.*move it away"):
            make(folder, force=True)
        assert (folder / "manifest.json").read_text() == content


@pytest.mark.parametrize("place", ["notes.txt", "golden/mine.png", "sub/folder/x", ".hidden"])
def test_force_names_files_that_are_not_in_the_manifest_and_leaves_all(tmp_path: Path, place: str) -> None:
    make(tmp_path / "net", b"old")
    (tmp_path / "net" / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "net" / place).write_text("mine")
    with pytest.raises(UserError, match=f"holds '{place}', which repedge did not write"):
        make(tmp_path / "net", b"new", force=True)
    assert (tmp_path / "net" / place).read_text() == "mine"
    assert (tmp_path / "net" / "net.tflite").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_a_folder_behind_a_link_is_not_emptied(tmp_path: Path) -> None:
    make(tmp_path / "net", b"old")
    (tmp_path / "net" / "golden").rename(tmp_path / "elsewhere")
    (tmp_path / "net" / "golden").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds 'golden'"):
        make(tmp_path / "net", b"new", force=True)
    assert (tmp_path / "elsewhere" / "0.png").exists()


def test_a_damaged_bundle_and_one_of_another_version_may_be_replaced(tmp_path: Path) -> None:
    make(tmp_path / "net", b"old")
    (tmp_path / "net" / "net.tflite").write_bytes(b"flipped")
    (tmp_path / "net" / "golden" / "0.png").unlink()
    change_manifest(tmp_path / "net", {"schema_version": 99, "of a later version": 1})
    make(tmp_path / "net", b"new", force=True)
    assert Bundle.open(tmp_path / "net").artifact.read_bytes() == b"new"


def test_a_file_that_comes_while_the_bundle_is_swapped_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "net", b"old")
    swap = atomic.swap

    def late(a: Path, b: Path) -> bool:
        (b / "late.txt").write_text("mine")
        return swap(a, b)

    monkeypatch.setattr(atomic, "swap", late)
    make(tmp_path / "net", b"new", force=True)
    assert Bundle.open(tmp_path / "net").artifact.read_bytes() == b"new"
    (kept,) = (p for p in tmp_path.iterdir() if p.name != "net")
    assert kept.name.startswith("net.kept-")
    assert [p.name for p in kept.iterdir()] == ["late.txt"]


def test_a_bundle_that_is_removed_while_it_is_written_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="removed while it was being written"),
        writing(tmp_path / "net") as draft,
    ):
        (draft.path / "net.tflite").write_bytes(b"x")
        draft.seal(manifest())
        (draft.path / "net.tflite").unlink()
        draft.publish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_bundles_that_vanish_before_the_run_ends_are_an_error(tmp_path: Path) -> None:
    """The first is whole, and gone when the second is compiled."""

    def report(stage: str) -> None:
        if stage.startswith("openvino") and stage.endswith("compile"):
            shutil.rmtree(tmp_path / "out" / "repvit_demo-tflite-fp32")

    with pytest.raises(UserError, match="tflite-fp32 was written, and something removed it before the end"):
        repedge.compile(
            targets=["tflite", "openvino"], precisions=["fp32"], out=tmp_path / "out", on_stage=report
        )


@pytest.mark.parametrize("content", ["my thesis", "{}", "<html>about repedge</html>"])
def test_reports_replace_reports_only(tmp_path: Path, content: str) -> None:
    file = tmp_path / "page.html"
    file.write_text(content)
    with pytest.raises(UserError, match="is no report that repedge wrote"):
        write_whole(file, "new", force=True)
    assert file.read_text() == content
    report = '<meta charset="utf-8">\n<meta name="generator" content="repedge">\n'
    file.write_text(report + "old")
    write_whole(file, report + "new", force=True)
    assert file.read_text() == report + "new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_reports_never_replace_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is no report"):
        write_whole(tmp_path / "pipe", "new", force=True)


KILLED = """
    import sys, time
    from pathlib import Path
    from repedge.disk.atomic import scratch
    from repedge.bundle.folder import writing
    with scratch() as folder, writing(Path(sys.argv[1])) as draft:
        (folder / "weights").write_bytes(b"x" * 1000)
        (draft.path / "half").write_text("half")
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_the_next_process_removes_what_a_killed_one_left_and_nothing_of_a_living_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, out = tmp_path / "tmp", tmp_path / "out"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(place)}
    mine = [place / "repedge-photos", place / "repedge-scratch-x-0123abcd"]
    for folder in mine:
        folder.mkdir()
    processes = []
    for name in ("dies", "lives"):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(out / name)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        processes.append(process)
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait()
    assert len(list(place.iterdir())) == len(mine) + 2
    assert len(list(out.iterdir())) == 2
    make(out / "net")
    try:
        (living,) = (p for p in place.iterdir() if p not in mine)
        assert (living / "weights").stat().st_size == 1000
        assert sorted(p.name.partition(".partial")[0] for p in out.iterdir()) == [".lives", "net"]
    finally:
        processes[1].kill()
        processes[1].wait()
    leftovers.sweep_temporary()
    assert sorted(place.iterdir()) == sorted(mine)


def test_folders_of_other_users_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "repedge-scratch-1-0123abcd").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        leftovers.sweep_temporary()
        assert len(list(tmp_path.iterdir())) == 1
    leftovers.sweep_temporary()
    assert list(tmp_path.iterdir()) == []


def test_manifests_are_no_way_out_of_the_folder(tmp_path: Path) -> None:
    """Whoever means harm lists a file of the user's."""
    make(tmp_path / "net", b"old")
    (tmp_path / "thesis.txt").write_text("precious")
    entries = json.loads((tmp_path / "net" / "manifest.json").read_text())["files"]
    harm = [{"path": p, "size": 1, "sha256": "0"} for p in ("../thesis.txt", str(tmp_path / "thesis.txt"))]
    change_manifest(tmp_path / "net", {"files": [*entries, *harm]})
    make(tmp_path / "net", b"new", force=True)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
