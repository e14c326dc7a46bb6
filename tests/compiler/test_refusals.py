"""What one target refuses, the others are still built; the summary names it, and the exit code is 2."""

from __future__ import annotations

import json

import pytest

import repedge
from repedge import cli, targets
from repedge.errors import UnsupportedModel, UserError
from repedge.targets.base import Unsupported, in_words

MISSING = [
    Unsupported("Acosh", "a", "no lowering for it", "stem.act"),
    Unsupported("Sinh", "b", "not in its table"),
    Unsupported("Acosh", "c", "no lowering for it"),
    Unsupported("Acosh", "d", "no lowering for it"),
]
SAID = "3 Acosh nodes, the first 'a' (from stem.act): no lowering for it; Sinh node 'b': not in its table"


def refuse(monkeypatch, *names):
    for name in names:
        monkeypatch.setattr(type(targets.get(name)), "unsupported", lambda self, model: MISSING)


def compile_cli(capsys, *args):
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as done:
        cli.main(["compile", *args])
    return (done.value.code, *capsys.readouterr())


def test_each_operator_once_with_a_count_and_the_first_node():
    assert in_words(MISSING) == SAID


@pytest.mark.slow
def test_the_others_are_built(tmp_path, monkeypatch, capsys):
    refuse(monkeypatch, "gpu")
    args = ["-t", "gpu", "-t", "tflite", "-p", "fp32", "--out", str(tmp_path / "out"), "--json"]
    code, out, _ = compile_cli(capsys, *args)
    assert code == 2
    said = json.loads(out)  # one object, and nothing else
    assert [b["target"] for b in said["bundles"]] == ["tflite"]
    assert said["bundles"][0]["verify"]["passed"]
    why = f"the model has operators without a lowering: {SAID}"
    assert said["refused"] == [{"target": "gpu", "precision": "fp32", "why": why}]
    assert said["exit_code"] == 2
    assert said["error"] == f"gpu fp32 was not built: {why}"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["repvit_demo-tflite-fp32"]
    args[-2:] = [str(tmp_path / "again")]
    code, _, err = compile_cli(capsys, *args)
    assert code == 2
    assert "gpu fp32: not built" in " ".join(err.split())
    assert (tmp_path / "again" / "repvit_demo-tflite-fp32").is_dir()


@pytest.mark.slow
def test_a_precision_that_a_target_lacks_stops_only_that_target(tmp_path, capsys):
    args = ["-t", "gpu", "-t", "coreml", "-p", "palette4", "--json", "--out", str(tmp_path / "out")]
    code, out, _ = compile_cli(capsys, *args, "--dry-run")
    why = "gpu does not offer palette4; it offers fp16"
    refused = json.loads(out)["refused"]
    assert (code, [r["target"] for r in refused]) == (2, ["gpu"])
    code, out, _ = compile_cli(capsys, *args)
    said = json.loads(out)
    assert [(b["target"], b["precision"]) for b in said["bundles"]] == [("coreml", "palette4")]
    assert said["refused"][0]["precision"] == "palette4"
    assert said["refused"][0]["why"].startswith(why)
    assert (code, said["exit_code"]) == (2, 2)
    assert said["error"].startswith(f"gpu palette4 was not built: {why}")
    code, out, _ = compile_cli(capsys, "-t", "gpu,tflite", *args[4:])
    assert (code, len(json.loads(out)["error"].split("; it offers"))) == (2, 3)  # both are named


@pytest.mark.slow
def test_what_a_target_finds_while_it_compiles_stops_only_itself(tmp_path, monkeypatch):
    """Such as a weight beyond float16."""

    def compile(self, model, job, out):
        (out / "half").write_bytes(b"written")
        raise UserError("a weight is beyond float16's largest number")

    monkeypatch.setattr(type(targets.get("gpu")), "compile", compile)
    with pytest.warns(UserWarning, match="gpu fp16 was not built: a weight is beyond"):
        report = repedge.compile(targets=["gpu", "tflite"], precisions=["fp16"], out=tmp_path)
    assert [b.target for b in report.bundles] == ["tflite"]
    assert not report.passed
    assert [p.name for p in tmp_path.iterdir()] == ["repvit_demo-tflite-fp16"]


@pytest.mark.slow
def test_nothing_that_can_be_built_is_an_error(tmp_path, monkeypatch):
    refuse(monkeypatch, "gpu", "tflite")
    with pytest.raises(UnsupportedModel) as error:
        repedge.compile(targets=["gpu", "tflite"], precisions=["fp32"], out=tmp_path)
    assert str(error.value) == (
        f"the model has operators without a lowering: gpu, tflite: {SAID}; "
        "these targets have them all: coreml, openvino"
    )
    assert list(tmp_path.iterdir()) == []
