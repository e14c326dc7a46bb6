"""The whole way: model in, verified bundles out, through the command line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from photo_files import demo_files
from PIL import Image

import repedge
from repedge import cli
from repedge.bundle.folder import Bundle
from repedge.errors import CheckFailed, UserError

ALL = ["coreml", "tflite", "openvino", "gpu"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict, str]:
    """Run with --json in this process: (exit code, the JSON object, stderr)."""
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--json"])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), json.loads(captured.out), captured.err


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model compiled for all targets."""
    out = tmp_path_factory.mktemp("build")
    assert repedge.compile(targets=ALL, out=out).passed
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled photos as files in class folders."""
    return demo_files(tmp_path_factory.mktemp("photos"))


def bundles(out: Path) -> list[Path]:
    return sorted(p for p in out.iterdir() if p.is_dir())


@pytest.mark.slow
def test_demo_compiles_for_all_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = [word for name in ALL for word in ("--target", name)]
    code, answer, _ = call(capsys, "compile", *targets, "--out", str(tmp_path))
    assert code == 0
    assert [b["target"] for b in answer["bundles"]] == ALL
    for b in answer["bundles"]:
        assert set(b) == {"path", "target", "precision", "size_bytes", "verify", "seconds"}
        assert {"passed", "n", "max_abs_err", "sqnr_db", "agree_top1"} <= set(b["verify"])
        assert b["verify"]["passed"]
        assert b["verify"]["agree_top1"] == 1.0
        assert {"export", "fuse", "compile", "verify"} <= set(b["seconds"])
        assert Path(b["path"]).name == f"repvit_demo-{b['target']}-{b['precision']}"
        assert b["size_bytes"] == Bundle.open(b["path"]).size_bytes
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        Path(b["path"]).name for b in answer["bundles"]
    )


@pytest.mark.slow
def test_manifest_says_what_an_app_developer_needs(built: Path) -> None:
    for path in bundles(built):
        m = Bundle.open(path).manifest
        assert m.inputs[0].shape[-3:] in [(64, 64, 3), (3, 64, 64)]
        assert m.labels[:3] == ("airplane", "automobile", "bird")
        assert m.preprocess.size == (64, 64)
        assert m.requires
        assert m.toolchain["torch"]
        assert m.fusion is not None
        assert m.fusion["merges"]
        golden = np.load(path / "golden" / "golden.npz")
        assert golden["pixels"].shape == (4, 64, 64, 3)
        assert (path / "golden" / "3.png").exists()


@pytest.mark.slow
def test_verify_and_eval_from_the_bundle_alone(
    built: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in bundles(built):
        code, answer, _ = call(capsys, "verify", str(path))
        assert code == 0
        assert answer["passed"]
        code, answer, _ = call(capsys, "eval", str(path), str(photos))
        assert code == 0
        assert answer["n"] == 64
        assert answer["agree_top1"] >= 0.96  # fp16 may flip a tie
        assert answer["top1"] >= 0.8
        assert answer["top5"] > answer["top1"]


@pytest.mark.slow
def test_same_inputs_same_bytes(built: Path, tmp_path: Path) -> None:
    """Every file of the bundle but the manifest, which records the command line."""
    repedge.compile(targets=ALL, out=tmp_path)
    for path in bundles(built):
        twin = tmp_path / path.name
        for entry in Bundle.open(path).manifest.files:
            digest = hashlib.sha256((twin / entry.path).read_bytes()).hexdigest()
            assert digest == entry.sha256, entry.path


@pytest.mark.slow
def test_a_flipped_byte_is_refused_by_every_reader(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in bundles(built):
        copy = tmp_path / path.name
        shutil.copytree(path, copy)
        artifact = Bundle.open(copy).artifact
        file = next(p for p in sorted(artifact.rglob("*")) if p.is_file()) if artifact.is_dir() else artifact
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        for arguments in (["verify", str(copy)], ["eval", str(copy), str(tmp_path)], ["inspect", str(copy)]):
            code, answer, _ = call(capsys, *arguments)
            assert code == 2
            assert "sha256" in answer["error"]


@pytest.mark.slow
def test_existing_output_is_kept_without_force(built: Path) -> None:
    before = Bundle.open(built / "repvit_demo-tflite-fp32").manifest
    with pytest.raises(UserError, match="--force"):
        repedge.compile(targets=["tflite"], out=built)
    assert Bundle.open(built / "repvit_demo-tflite-fp32").manifest == before


@pytest.mark.slow
def test_integer_activations_from_a_few_photos(photos: Path, tmp_path: Path) -> None:
    """From pixels, on every target; the plan's origin is in the manifest."""
    report = repedge.compile(
        targets=ALL, precisions=["w8a8"], calib=photos, calib_count=16, recipe="fast", out=tmp_path
    )
    for built_one in report.bundles:
        assert built_one.verify.passed
        assert built_one.verify.sqnr_db > 10  # on photos that were not calibrated on
        manifest = Bundle.open(built_one.path).manifest
        assert manifest.quantization is not None
        assert manifest.quantization["images"] == 16
        assert manifest.inputs[0].dtype == "uint8"


@pytest.mark.slow
def test_integer_activations_need_photos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--calib FOLDER"):
        repedge.compile(targets=["tflite"], precisions=["w8a8"], out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_float_input_no_reference_and_every_precision(photos: Path, tmp_path: Path) -> None:
    for target in ALL:
        report = repedge.compile(
            "repvgg_demo",
            targets=[target],
            precisions=repedge.targets.get(target).precisions,
            input_kind="float32",
            reference=False,
            count=4,
            calib=photos,
            calib_count=8,
            recipe="fast",
            out=tmp_path,
        )
        assert report.passed, [b.verify.failures for b in report.bundles]
    for path in bundles(tmp_path):
        bundle = Bundle.open(path)
        assert bundle.manifest.inputs[0].dtype == "float32"
        assert bundle.reference is None
    with pytest.raises(UserError, match="--no-reference"):
        repedge.verify(tmp_path / "repvgg_demo-tflite-fp32")


@pytest.mark.slow
def test_a_failed_check_is_exit_3_and_kept_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer, _ = call(
        capsys, "compile", "-t", "tflite", "-p", "fp16", "--min-sqnr", "150", "-o", str(tmp_path)
    )
    assert code == 3
    assert not answer["bundles"][0]["verify"]["passed"]
    assert [p.name for p in tmp_path.iterdir()] == ["repvit_demo-tflite-fp16.rejected"]


@pytest.mark.slow
def test_a_lying_export_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is held against the torch module, the fused graph against the graph."""
    from repedge.graph import export

    real = export.export_module

    def wrong(module, *given):
        model = real(module, *given)
        value = next(v for v in model.graph.initializers.values() if len(v.shape) == 4)
        array = value.const_value.numpy().copy()
        array[0, 0] += 0.5
        import onnx_ir as ir

        value.const_value = ir.tensor(array, name=value.name)
        return model

    monkeypatch.setattr(export, "export_module", wrong)
    with pytest.raises(CheckFailed, match="differs from the torch model"):
        repedge.compile(targets=["tflite"], out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_odd_sizes_and_own_photos(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)).resize((700, 900)).save(
            photos / f"{i}.jpg"
        )
    report = repedge.compile(
        "repvgg_demo", input_size="33x57", targets=["tflite", "openvino"], images=photos, out=tmp_path / "out"
    )
    assert report.passed
    assert report.bundles[0].verify.n == 3
    assert Bundle.open(report.bundles[0].path).manifest.preprocess.size == (33, 57)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_interrupted_compile_leaves_no_bundle(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, sent: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "repedge", "compile", "-t", "tflite", "-o", str(tmp_path)]
    temporary = tmp_path_factory.mktemp("temporary")
    env = {**os.environ, "TMPDIR": str(temporary)}

    def heed() -> None:
        """What a shell starts in the background, as CI may be, and all that it starts, ignores interrupts."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=heed) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "compile" in line or "verify" in line:
                break
        process.send_signal(sent)
        rest = process.stderr.read()
        assert process.wait() == code
    visible = [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")]
    assert visible == []
    if sent != signal.SIGKILL:
        assert "interrupted" in rest
        assert list(temporary.glob("repedge*")) == []
        assert list(tmp_path.iterdir()) == []
    assert repedge.compile(targets=["tflite"], out=tmp_path).passed
    assert [p.name for p in tmp_path.iterdir()] == ["repvit_demo-tflite-fp32"]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("mount") is None or os.name != "posix" or os.geteuid() != 0, reason="needs root"
)
def test_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine lets no one mount a small disk")
    try:
        code, answer, _ = call(capsys, "compile", "-t", "tflite", "-o", str(disk))
        assert code == 2
        assert "disk is full" in answer["error"]
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
