"""Words that are no text, and empty words where a path stands: one line, exit code 2, nothing written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import repedge
from repedge.errors import LONGEST, UserError


@pytest.mark.parametrize(
    "words",
    [
        ("compile", "-t", "tflite", "--out", ""),
        ("compile", "-t", "tflite", "-o", ""),
        ("compile", "-t", "tflite", "--out="),
        ("compile", "-t", "tflite", "--images", "", "-o", "out"),
        ("compile", "-t", "tflite", "--weights=", "-o", "out"),
        ("ship", "bundle", "--to", "ios", "--out", ""),
        ("profile", "repvit_demo", "--html", ""),
    ],
)
def test_empty_paths_do_not_mean_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*words)
    assert code == 2
    assert err.endswith(" is empty; is a variable of the shell not set?\n")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_text_is_a_text(cli) -> None:
    code, _, err = cli("compile", "no_such_model", "-t", "tflite", "--description", "", "--author=")
    assert code == 2
    assert "no_such_model" in err


def test_an_empty_folder_in_python() -> None:
    with pytest.raises(UserError, match="out is empty"):
        repedge.compile(targets="tflite", out="")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere paths are text")
@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_paths_that_are_no_text(cli, verb: str) -> None:
    code, _, err = cli(verb, os.fsdecode(b"caf\xe9.onnx"))
    assert code == 2
    assert err == (
        "error: 'caf\\udce9.onnx' is no UTF-8 text, which every artifact and manifest is written in; "
        "rename the file\n"
    )


def test_messages_are_bounded_and_printable() -> None:
    message = str(UserError("a\x1b[2J" + "b" * 10_000_000 + "\udce9; do this"))
    assert len(message) < LONGEST + 100
    assert message.startswith("a\\x1b[2Jbbb")
    assert message.endswith("bbb\\udce9; do this")
