"""A bundle is whole or absent, and every reader notices a changed byte."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from bundles import change_manifest, make, manifest

from repedge import targets
from repedge.bundle.folder import Bundle, writing
from repedge.errors import UserError


def test_round_trip(tmp_path: Path) -> None:
    make(tmp_path / "net")
    bundle = Bundle.open(tmp_path / "net")
    assert bundle.artifact.read_bytes() == b"artifact"
    assert bundle.size_bytes == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net"]


@pytest.mark.parametrize("file", ["net.tflite", "golden/0.png"])
def test_flipped_byte_is_refused(tmp_path: Path, file: str) -> None:
    make(tmp_path / "net")
    path = tmp_path / "net" / file
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="sha256"):
        Bundle.open(tmp_path / "net")


def test_missing_extra_and_linked_files_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / "golden" / "0.png").unlink()
    with pytest.raises(UserError, match="lacks 'golden/0.png'"):
        Bundle.open(tmp_path / "a")
    make(tmp_path / "b")
    (tmp_path / "b" / "stray").write_text("x")
    with pytest.raises(UserError, match="'stray', which its manifest does not list"):
        Bundle.open(tmp_path / "b")
    make(tmp_path / "c")
    (tmp_path / "c" / "net.tflite").rename(tmp_path / "elsewhere")
    (tmp_path / "c" / "net.tflite").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="lacks 'net.tflite'"):
        Bundle.open(tmp_path / "c")


def test_what_file_managers_write_is_no_part_of_a_bundle(tmp_path: Path) -> None:
    """Finder writes .DS_Store into any folder that it shows."""
    make(tmp_path / "a")
    for place in (".DS_Store", "golden/.DS_Store", "._net.tflite", "Thumbs.db", "golden/desktop.ini"):
        (tmp_path / "a" / place).write_bytes(b"\0")
    Bundle.open(tmp_path / "a")
    package = tmp_path / "net.mlpackage"
    package.mkdir()
    for name in (".DS_Store", "Manifest.json"):
        (package / name).write_bytes(b"{}")
    assert targets.files_of("coreml", package) == [package / "Manifest.json"]  # what ship copies
    (tmp_path / "a" / ".DS_Store").unlink()
    (tmp_path / "a" / ".DS_Store").symlink_to(tmp_path / "a" / "net.tflite")  # not as Finder writes it
    with pytest.raises(UserError, match="'.DS_Store', which its manifest does not list"):
        Bundle.open(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "newer than this repedge reads"),
        ({"files": [{"path": "../x", "size": 1, "sha256": "0"}]}, "outside the bundle"),
        ({"unknown_key": 1}, "damaged"),
        ({"preprocess": {"std": [0, 1, 1]}}, "damaged"),
    ],
)
def test_untrusted_manifest(tmp_path: Path, change: dict, message: str) -> None:
    make(tmp_path / "net")
    change_manifest(tmp_path / "net", change)
    with pytest.raises(UserError, match=message):
        Bundle.open(tmp_path / "net")


def test_a_flipped_byte_in_the_manifest(tmp_path: Path) -> None:
    """Wherever it is: in a key, a hash, a number of the preprocessing, a label."""
    make(tmp_path / "net")
    file = tmp_path / "net" / "manifest.json"
    good = file.read_bytes()
    for i in range(0, len(good) - 1, 5):
        file.write_bytes(good[:i] + bytes([good[i] ^ 4]) + good[i + 1 :])
        if json_or_none(file) == json.loads(good):
            continue  # white space
        with pytest.raises(UserError):
            Bundle.open(tmp_path / "net")


def json_or_none(file: Path) -> object:
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"schema_version": 1'])
def test_garbage_manifest(tmp_path: Path, content: bytes) -> None:
    make(tmp_path / "net")
    (tmp_path / "net" / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        Bundle.open(tmp_path / "net")


def test_no_overwrite_without_force(tmp_path: Path) -> None:
    make(tmp_path / "net", b"old")
    with pytest.raises(UserError, match="--force"):
        make(tmp_path / "net", b"new")
    assert Bundle.open(tmp_path / "net").artifact.read_bytes() == b"old"
    make(tmp_path / "net", b"new", force=True)
    assert Bundle.open(tmp_path / "net").artifact.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net"]


def test_force_never_replaces_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is no bundle that repedge wrote"):
        make(tmp_path / "net", force=True)
    assert (tmp_path / "net" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_failure_leaves_nothing_and_keeps_the_old(tmp_path: Path, error: BaseException) -> None:
    make(tmp_path / "net", b"old")
    with pytest.raises(type(error)), writing(tmp_path / "net", force=True) as draft:
        (draft.path / "half").write_text("half")
        raise error
    assert Bundle.open(tmp_path / "net").artifact.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net"]


def test_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk is full"), writing(tmp_path / "net"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_out_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        make(tmp_path / "file" / "net")


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_kill_in_the_middle_leaves_no_bundle_and_is_swept(tmp_path: Path) -> None:
    script = f"""
        import sys, time
        from pathlib import Path
        from repedge.bundle.folder import writing
        with writing(Path({str(tmp_path / "net")!r})) as draft:
            (draft.path / "half").write_text("half")
            print("ready", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "net").exists()
    make(tmp_path / "net")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net"]


def test_interrupted_replacement_is_put_back(tmp_path: Path) -> None:
    """A kill between the two renames of --force leaves the old bundle under a hidden name."""
    make(tmp_path / "net", b"old")
    (tmp_path / "net").rename(tmp_path / ".net.old-12345678")
    with pytest.raises(UserError, match="exists"):
        make(tmp_path / "net", b"new")
    assert Bundle.open(tmp_path / "net").artifact.read_bytes() == b"old"


def test_rejected_is_kept_aside(tmp_path: Path) -> None:
    with writing(tmp_path / "net") as draft:
        (draft.path / "net.tflite").write_bytes(b"bad")
        draft.seal(manifest())
        aside = draft.reject()
    assert aside.name == "net.rejected"
    assert not (tmp_path / "net").exists()
    assert (aside / "net.tflite").read_bytes() == b"bad"


@pytest.mark.parametrize(
    "verification",
    [
        None,
        {"passed": False, "n": 4, "max_abs_err": 3.0, "max_rel_err": 1.0, "sqnr_db": 3.5, "executor": "x",
         "images": "y", "failures": ["output 'logits': SQNR 3.5 dB is under 8 dB"]},
    ],
)  # fmt: skip
def test_every_reader_refuses_what_is_not_verified(
    tmp_path: Path, verification: dict | None, capsys: pytest.CaptureFixture[str]
) -> None:
    import repedge
    from repedge.cli import main

    make(tmp_path / "net")
    other = make(tmp_path / "other").path
    change_manifest(tmp_path / "net", {"verification": verification})
    bundle, photos = str(tmp_path / "net"), str(tmp_path)
    why = "3.5 dB is under 8 dB" if verification else "never verified"
    for arguments in (
        ["profile", bundle],
        ["profile", str(other), bundle],
        ["profile", bundle, "--predict", "iphone12"],
        ["eval", bundle, photos],
        ["eval", "--compare", str(other), bundle],
        ["ship", bundle, "--to", "android", "--out", str(tmp_path / "app")],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        message = capsys.readouterr().err
        assert (stop.value.code, why in message) == (2, True), (arguments, message)
        assert "pass --allow-unverified" in message
    with pytest.raises(UserError, match="not verified"):
        repedge.Bundle.open(bundle)
    assert why in Bundle.open(bundle, allow_unverified=True).unverified
    assert why in repedge.inspect(bundle).found  # which is for a look
