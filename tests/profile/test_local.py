"""Measuring on this machine: every runtime, the raw samples, and every way in which it can go wrong."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from profile_helpers import NAN, NET, ScriptedTransport, answer, asked, engine_of, module, save_onnx

import repedge
from repedge import devices, targets
from repedge.devices.base import AgentSession
from repedge.devices.local import Subprocess
from repedge.devices.pack import agent_bytes
from repedge.errors import DeviceError, UserError
from repedge.profile.measure import compare, measure

FAST: dict[str, Any] = {"runs": 4, "warmup": 1, "threads": 1}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles")
    report = repedge.compile(module(), targets=["tflite", "openvino", "gpu"], out=out, input_size=32, count=2)
    return {b.target: b.path for b in report.bundles}


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    """No process and no temporary file outlives a measurement, whatever happened."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "runtime", "kinds"),
    [
        ("tflite", "tflite", {"CONV_2D", "FULLY_CONNECTED"}),
        ("openvino", "openvino", {"Convolution", "FullyConnected"}),
        ("gpu", "onnxruntime", {"Conv"}),
    ],
)
def test_every_runtime_is_measured_by_the_same_protocol(bundles, target, runtime, kinds):
    p = measure(bundles[target], runs=6, warmup=2, threads=1, per_op=True)
    assert (p.runtime, p.target, p.device, p.threads, p.runs, p.warmup) == (runtime, target, "local", 1, 6, 2)
    assert len(p.samples_ms) == 6
    assert len(p.warmup_ms) == 2
    assert p.p50_ms == pytest.approx(float(np.median(p.samples_ms)), rel=1e-12)
    assert p.min_ms == min(p.samples_ms) > 0
    assert p.load_ms > 0
    assert p.first_ms > 0
    assert p.peak_rss_bytes > 10e6  # the runtime's own code alone is more
    assert p.runtime_version
    assert p.host.cores == os.cpu_count()
    assert kinds <= {op.type for op in p.ops}
    assert all(op.ms is not None and op.ms >= 0 for op in p.ops)
    assert any(len(op.shape) == 4 and op.shape[0] == 1 for op in p.ops)


@pytest.mark.slow
def test_tflite_says_what_the_delegate_took(bundles):
    p = measure(bundles["tflite"], **FAST)
    assert (p.partitions, p.outside) == (1, ())
    assert p.residency == {"xnnpack": 1.0}


@pytest.mark.slow
def test_openvino_computes_as_verified_and_shipped_unless_told_otherwise(bundles):
    p = measure(bundles["openvino"], **FAST)
    own = measure(bundles["openvino"], infer_precision="auto", **FAST)
    assert p.precision_used == "f32"
    assert own.precision_used in ("f32", "bf16", "f16")  # the CPU decides
    with pytest.raises(UserError, match="infer_precision"):
        measure(bundles["openvino"], infer_precision="f8", **FAST)


@pytest.mark.slow
def test_openvino_takes_the_throughput_hint(bundles):
    p = measure(bundles["openvino"], hint="throughput", **FAST)
    assert p.throughput_per_s > 0
    assert p.hint == "throughput"


@pytest.mark.slow
def test_torch_eager_is_the_reference():
    p = measure("demo", per_op=True, runs=2, warmup=1, threads=1)
    assert (p.runtime, p.precision) == ("torch", "fp32")
    assert {"Conv2d", "BatchNorm2d", "Linear"} <= {op.type for op in p.ops}


def test_warm_up_goes_on_until_the_times_are_stable_and_is_bounded(bundles):
    p = measure(bundles["tflite"], runs=2, threads=1)
    assert 3 <= p.warmup <= 200


def test_a_bare_artifact_needs_no_bundle(tmp_path):
    p = measure(save_onnx(tmp_path / "net.onnx"), **FAST)
    assert (p.name, p.target, p.precision, p.runtime) == ("net.onnx", "gpu", "", "onnxruntime")


@pytest.mark.slow
def test_comparison_takes_turns_and_keeps_every_run(tmp_path):
    a = save_onnx(tmp_path / "a.onnx")
    b = save_onnx(tmp_path / "b.onnx")
    result = compare([a, b], rounds=2, runs=5, warmup=0, threads=1)
    first, second = result.profiles
    assert (len(first.samples_ms), len(second.samples_ms), result.rounds) == (5, 5, 2)
    assert first.verdict is None
    low, high = second.ratio_p50_interval
    assert 0 < low <= second.ratio_p50 <= high
    assert second.verdict in ("faster", "slower", "no difference shown")


LARGE = """
<ir_version: 8, opset_import: ["" : 17]>
net (uint8[1, 16, 16, 3] image) => (float[1, 3, 256, 256] y) {
  x = Cast<to = 1>(image)
  t = Transpose<perm = [0, 3, 1, 2]>(x)
  c = Constant<value = float {0.01}>()
  s = Constant<value = int64[4] {3, 3, 7, 7}>()
  w = Expand(c, s)
  sizes = Constant<value = int64[4] {1, 3, 256, 256}>()
  u = Resize<mode = "nearest">(t, , , sizes)
  y = Conv<pads = [3, 3, 3, 3]>(u, w)
}
"""


@pytest.mark.slow
def test_a_much_larger_network_is_slower(tmp_path):
    small = save_onnx(tmp_path / "small.onnx")
    large = save_onnx(tmp_path / "large.onnx", LARGE)
    p = compare([small, large], rounds=3, runs=6, warmup=1, threads=1).profiles[1]
    assert p.ratio_p50 > 3  # 29 million multiply-accumulates against twelve


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing.tflite", "there is no artifact"),
        ("no/such/bundle", "there is nothing at"),
        ("repvit_m7", "no bundle, no artifact file and no model"),
    ],
)
def test_what_is_not_there(what, message):
    with pytest.raises(UserError, match=message):
        measure(what, **FAST)


def test_a_bundle_whose_hash_is_wrong(bundles, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundles["tflite"], copy)
    file = next(copy.glob("*.tflite"))
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="sha256 differs"):
        measure(copy, **FAST)


def test_zero_runs(tmp_path):
    with pytest.raises(UserError, match="--runs 0"):
        measure(save_onnx(tmp_path / "net.onnx"), runs=0)


def test_outputs_that_are_not_numbers(tmp_path):
    with pytest.raises(DeviceError, match="output 'logits' has NaN or infinite values"):
        measure(save_onnx(tmp_path / "nan.onnx", NAN), **FAST)


@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".xml"])
def test_a_damaged_artifact(tmp_path, suffix):
    file = tmp_path / f"damaged{suffix}"
    file.write_bytes(b"this is no network" * 10)
    with pytest.raises(UserError, match="does not load the artifact|is not an ONNX model|beside it"):
        measure(file, **FAST)


def test_an_artifact_newer_than_the_runtime(tmp_path):
    model = onnx.parser.parse_model(NET)
    model.opset_import[0].version = 99
    file = tmp_path / "newer.onnx"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="may be newer than the runtime"):
        measure(file, **FAST)


def test_no_runtime_for_the_artifact_names_the_package(tmp_path):
    """A folder before all others hides the installed runtime, as on a machine that lacks it."""
    from repedge.devices.agent import engine

    missing = engine_of("onnxruntime").model_copy(update={"needs": ("not_there",)}).model_dump()
    with pytest.raises(engine.AgentError, match="pip install onnxruntime") as caught:
        engine.open_engine(
            str(save_onnx(tmp_path / "net.onnx")), {"runtime": "onnxruntime", "engine": missing}
        )
    assert caught.value.kind == "user"


@pytest.mark.slow
def test_an_unknown_unit_names_the_known_ones(bundles):
    with pytest.raises(UserError, match="sees no device 'NPUX'.*CPU"):
        measure(bundles["openvino"], unit="NPUX", **FAST)
    with pytest.raises(UserError, match="no provider 'Cuda'.*CPUExecutionProvider"):
        measure(bundles["gpu"], unit="Cuda", **FAST)


def test_core_ml_on_other_systems(tmp_path):
    (tmp_path / "net.mlpackage").mkdir()
    if sys.platform == "darwin":
        pytest.skip("runs there")
    with pytest.raises(UserError, match="Apple's systems only"):
        measure(tmp_path / "net.mlpackage", **FAST)


def factory(tmp_path, monkeypatch, body):
    """A torch model that misbehaves, found by the agent on its path."""
    (tmp_path / "badnet.py").write_text(
        "import os, sys, time, torch\nclass Net(torch.nn.Module):\n"
        f"    def forward(self, x):\n        {body}\n"
        "def make(**args): return Net(), (1, 3, 4, 4)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return asked("torch", factory="badnet:make", runs=3, warmup=0, threads=1, timeout_s=20)


@pytest.mark.slow
def test_a_process_that_dies_says_how(tmp_path, monkeypatch):
    request = factory(tmp_path, monkeypatch, "os.kill(os.getpid(), 9)")
    with pytest.raises(DeviceError, match="ended early.*SIGKILL"):
        devices.get("local").profile(tmp_path, request)


@pytest.mark.slow
def test_a_runtime_that_fails_is_quoted(tmp_path, monkeypatch):
    request = factory(tmp_path, monkeypatch, "raise RuntimeError('out of tiles')")
    with pytest.raises(DeviceError, match="out of tiles"):
        devices.get("local").profile(tmp_path, request)


@pytest.mark.slow
def test_silence_is_given_up(tmp_path, monkeypatch):
    request = factory(tmp_path, monkeypatch, "time.sleep(60)").model_copy(update={"timeout_s": 6})
    with pytest.raises(DeviceError, match="said nothing for 6 s"):
        devices.get("local").profile(tmp_path, request)


@pytest.mark.slow
def test_what_the_network_prints_is_no_answer(tmp_path, monkeypatch):
    request = factory(tmp_path, monkeypatch, "print('@repedge {}'); os.write(1, b'x'); return x")
    assert len(devices.get("local").profile(tmp_path, request).samples_ms) == 3


def test_the_agent_ends_when_the_other_side_is_gone(tmp_path, monkeypatch):
    request = factory(tmp_path, monkeypatch, "time.sleep(60)")
    transport = Subprocess([sys.executable, "-m", "repedge.devices.agent"])
    transport.send(json.dumps({"do": "open", "artifact": "x", "request": request.model_dump(mode="json")}))
    transport._process.stdin.close()  # as when this process is killed
    assert transport._process.wait(30) == 0
    transport._process.stdin = None
    transport.close()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["hello", "@repedge {not json"], "answered with garbage"),
        (["@repedge [1, 2]"], "answered with garbage"),
        (["login banner", None], "ended early.*login banner"),
        ([TimeoutError], "said nothing for 3 s"),
        ([answer(error="no space left", kind="runtime")], "board: no space left"),
    ],
)
def test_an_agent_that_misbehaves(lines, message):
    transport = ScriptedTransport(*lines)
    request = asked("tflite")
    with pytest.raises(DeviceError, match=message):
        AgentSession(transport, "board", 3).start("x.tflite", request)
    assert transport.closed == 1


@pytest.mark.parametrize(
    "samples", [[1.0], [1.0, float("nan")], [1.0, -1.0], ["fast", "slow"], None, [1.0, True], {"a": 1}]
)
def test_times_that_are_no_times(samples):
    session = AgentSession(ScriptedTransport(answer(done="time", samples_ms=samples)), "board", 3)
    with pytest.raises(DeviceError, match="garbage instead of 2 times"):
        session.time(2)


@pytest.mark.parametrize("profile", [None, {}, {"runtime": "tflite", "samples_ms": []}, {"runtime": 3}])
def test_a_profile_that_is_no_profile(profile):
    session = AgentSession(ScriptedTransport(answer(profile=profile)), "board", 3)
    with pytest.raises(DeviceError, match="answered with garbage"):
        session.finish()


def test_signs_of_life_and_strange_lines_are_skipped():
    lines = ["motd", answer(progress=3), "warning: x", answer(done="time", samples_ms=[1.5])]
    session = AgentSession(ScriptedTransport(*lines), "board", 3)
    assert session.time(1) == [1.5]


def test_the_agent_is_one_file_that_runs_without_repedge(tmp_path, monkeypatch):
    engine = engine_of("onnxruntime")
    modules = [engine.agent.partition(":")[0], *engine.modules]
    content = agent_bytes(modules)
    assert content == agent_bytes(modules)
    agent = tmp_path / "agent.pyz"
    agent.write_bytes(content)
    with zipfile.ZipFile(agent) as z:
        assert not any("protocol" in n or "measure" in n for n in z.namelist())
    net = save_onnx(tmp_path / "net.onnx")
    asked = {"runtime": "onnxruntime", "engine": engine.model_dump(), "runs": 3, "warmup": 1, "threads": 1}
    job = {"artifact": str(net), "request": asked}
    (tmp_path / "request.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-P", str(agent), str(tmp_path / "request.json")] if sys.version_info >= (3, 11)
        else [sys.executable, str(agent), str(tmp_path / "request.json")],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # ONNX Runtime leaves a file .ses where it is imported
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1].removeprefix("@repedge "))
    assert len(last["profile"]["samples_ms"]) == 3


def _rooms(modules):
    """The packages that the modules are in: `from room import module`."""
    return {m.rpartition(".")[0] for m in modules}


def test_the_agent_keeps_to_python_3_9():
    import ast

    from repedge.devices.pack import FOLDER

    engines = [t.engine for t in targets.installed() if t.engine is not None]
    modules = [m for e in engines for m in (e.agent.partition(":")[0], *e.modules)]
    sent = [Path(importlib.util.find_spec(m).origin) for m in modules]
    assert len(sent) >= 5
    for file in [*FOLDER.glob("*.py"), *sent]:
        tree = ast.parse(file.read_text(), feature_version=(3, 9))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                )
                own = [n for n in names if n.startswith("repedge")]
                allowed = ("repedge.devices.agent", *modules)
                assert all(n.startswith(allowed) or n in _rooms(modules) for n in own), (file.name, own)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "zip":
                assert not any(k.arg == "strict" for k in node.keywords), file.name
            assert not isinstance(node, ast.Match), file.name
