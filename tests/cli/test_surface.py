"""The command line as a user meets it: help, JSON, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from repedge import cli
from repedge.errors import UserError


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "repedge", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The program in this process: (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_help_loads_no_heavy_package() -> None:
    code = (
        "import sys, repedge, repedge.cli\n"
        "try: repedge.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'coremltools', 'openvino', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"
    for verb in ("compile", "verify", "eval", "inspect", "models", "targets", "doctor"):
        assert verb in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["compile", "verify", "eval", "inspect", "models", "targets", "doctor"])
def test_every_verb_has_help_and_json(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, _ = call(capsys, verb, "--help")
    assert code == 0
    assert "--json" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compil"], "Did you mean 'compile'"),
        (["compile"], "name at least one --target"),
        (["compile", "-t", "tflit"], "did you mean tflite?"),
        (["compile", "-t", "tflite", "-p", "fp61"], "did you mean fp16?"),
        (["compile", "-t", "tflite", "-p", "int8"], "did you mean w8a8?"),
        (["compile", "-t", "tflite", "-p", "fp16", "--recipe", "best"], "pass --calib FOLDER"),
        (["compile", "-t", "tflite", "-p", "palette4"], "tflite does not offer palette4; it offers fp32"),
        (["compile", "-t", "tflite", "--input", "int8"], "did you mean uint8?"),
        (["compile", "-t", "tflite", "--count", "0"], "at least one image"),
        (["verify", "nowhere"], "is not a bundle"),
        (["compile", "--bogus"], "No such option"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.splitlines()[-1].startswith("error: ")
    assert err.count("error") == 1


@pytest.mark.parametrize(
    ("words", "targets"),
    [
        (["tflite,coreml"], ["tflite", "coreml"]),
        (["ios"], ["coreml"]),
        (["Core ML"], ["coreml"]),
        (["android , onnx", "ios"], ["tflite", "gpu", "coreml"]),
        (["TensorRT", "gpu"], ["gpu"]),
        (["OpenVINO", "intel"], ["openvino"]),
    ],
)
def test_targets_by_other_names(words: list[str], targets: list[str]) -> None:
    from repedge.compiler.builds import choose_builds

    assert list(dict.fromkeys(t for t, _ in choose_builds(words, []).chosen)) == targets
    several = choose_builds(words, ["fp16,fp32", "fp16"]).chosen
    assert several == tuple((t, p) for t in targets for p in ("fp16", "fp32"))


def test_a_precision_that_a_deployment_target_cannot_hold_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repedge.api._resolve", lambda *a, **k: pytest.fail("it went on"))
    calib = ["--calib", "nowhere"]
    code, _, err = call(capsys, "compile", "-t", "ios", "-p", "w8a8", "--deployment-target", "iOS16", *calib)
    assert code == 2
    assert "needs deployment_target iOS17 or later, not iOS16; for older systems choose w8a32 or fp16" in err


def test_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "verify", "nowhere", "--json")
    assert code == 2
    answer = json.loads(out)
    assert answer["exit_code"] == 2
    assert "is not a bundle" in answer["error"]
    assert answer["repedge"]


def test_json_is_one_object_of_one_shape(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the run passes, a check fails, or the user's input is wrong."""
    from profile_helpers import profile

    from repedge.bundle.manifest import Verification

    fair: dict[str, Any] = {
        "n": 1,
        "max_abs_err": 0.0,
        "max_rel_err": 0.0,
        "sqnr_db": 9.0,
        "executor": "x",
        "images": "y",
    }
    monkeypatch.setattr("repedge.profile.measure.measure", lambda *a, **k: profile())
    runs: list[tuple[list[str], Any, int]] = [
        (["verify", "b"], Verification(passed=True, **fair), 0),
        (["verify", "b"], Verification(passed=False, failures=("SQNR is low",), **fair), 3),
        (["verify", "b"], UserError("there is no bundle"), 2),
        (["profile", "b"], None, 0),
        (["profile", "b", "--require", "partitions<=1"], None, 3),
        (["profile", "b", "--require", "nonsense"], None, 2),
        (["compile", "--bogus"], None, 2),
    ]
    for arguments, result, expected in runs:

        def verify(*a: Any, result: Any = result, **k: Any) -> Any:
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr("repedge.api.verify", verify)
        code, out, _ = call(capsys, *arguments, "--json")
        found = json.loads(out)  # exactly one
        assert code == found["exit_code"] == expected
        assert (found["error"] is None) == (code == 0)
        assert found["repedge"]
        if code != 2:
            assert found["sqnr_db" if arguments[0] == "verify" else "p50_ms"]
        if arguments[0] == "verify" and code == 3:
            assert "SQNR is low" in found["error"]


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "verify", "nowhere", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_models_targets_and_doctor_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "models", "--json")
    names = {row["name"] for row in json.loads(out)["models"]}
    assert {"repvgg_a0", "repvit_m0_9", "repvit_demo"} <= names
    _, out, _ = call(capsys, "targets", "--json")
    assert [row["name"] for row in json.loads(out)["targets"]][:4] == ["coreml", "tflite", "openvino", "gpu"]
    _, out, _ = call(capsys, "doctor", "--json")
    health = json.loads(out)
    assert all(t["compiles"] for t in health["targets"])
    assert health["packages"]["torch"]


def test_version() -> None:
    assert run("--version").stdout.startswith("repedge 0.")


def test_ctrl_c_is_json_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("repedge.api.doctor", interrupted)
    code, out, err = call(capsys, "doctor", "--json")
    assert code == 130
    assert json.loads(out)["exit_code"] == 130
    assert err == "interrupted; nothing half-written is left\n"


def test_ctrl_c_while_packages_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    command = [sys.executable, "-c", "from repedge.__main__ import main; main()"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 130
    assert done.stderr == "interrupted; nothing half-written is left\n"


@pytest.mark.parametrize("program", ["-m", "/usr/bin/repedge", "repedge.exe"])
def test_an_older_python_gets_one_sentence(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    import ast

    import repedge

    sentence = "repedge needs Python 3.10 or later; this is Python 3.9"
    with pytest.raises(SystemExit) as stop:
        repedge._require_python((3, 9), program)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
    with pytest.raises(ImportError, match=sentence):
        repedge._require_python((3, 9), "my_script.py")
    repedge._require_python((3, 10), program)
    for name in ("__init__.py", "version.py"):  # else they get a SyntaxError before it
        ast.parse((Path(str(repedge.__file__)).parent / name).read_text(), feature_version=(3, 7))
