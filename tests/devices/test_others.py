"""iPhones and AI Hub's phones: what can be shown without a Mac and without an account."""

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from profile_helpers import asked

from repedge import devices
from repedge.devices import base
from repedge.devices.aihub import AIHub
from repedge.devices.iphone import agent
from repedge.devices.iphone.device import IPhone
from repedge.errors import DeviceError, MissingExtra, UserError

# --- AI Hub: a stand-in for the module qai_hub with the names, arguments and answers of its release 0.56.


class HubError(Exception):
    pass


class HubUserError(HubError):
    pass


PROFILE = {
    "execution_summary": {
        "estimated_inference_time": 372,
        "estimated_inference_peak_memory": 14_450_688,
        "first_load_time": 311_671,
        "warm_load_time": 198_597,
        "all_inference_times": [372, 380, 1087],
    },
    "execution_detail": [
        {"name": "conv_1", "type": "Conv2d", "compute_unit": "NPU", "execution_time": 300},
        {"name": "softmax", "type": "Softmax", "compute_unit": "CPU", "execution_time": 100},
    ],
}


def fake_hub(profile=PROFILE, success=True, message="", new=True, slow=False):
    """The module; ``calls`` keeps what was submitted."""
    hub: Any = types.ModuleType("qai_hub")
    hub.calls = []
    phones = [
        types.SimpleNamespace(name="Samsung Galaxy S24", os="14"),
        types.SimpleNamespace(name="Google Pixel 8", os="14"),
    ]

    class Job:
        url = "https://workbench.aihub.qualcomm.com/jobs/j1/"

        def wait(self, timeout=None):
            if slow:
                raise TimeoutError
            code = "SUCCESS" if success else "FAILED"
            return types.SimpleNamespace(success=success, code=code, message=message)

        def download_profile(self):
            return profile

    def submit_inference_job(
        model, device, inputs=None, name=None, options="", retry=True, profile=True, project=None
    ):
        hub.calls.append((model, device.name, options))
        return Job()

    def old_submit_inference_job(model, device, inputs, name=None, options="", retry=True):
        raise AssertionError("needs inputs")

    def submit_profile_job(model, device, name=None, options="", retry=True):
        hub.calls.append((model, device.name, options))
        return Job()

    hub.Error, hub.UserError = HubError, HubUserError
    hub.get_devices = lambda name="", os="", attributes=None: [p for p in phones if name in ("", p.name)]
    hub.set_verbose = lambda verbose=True: None
    hub.submit_inference_job = submit_inference_job if new else old_submit_inference_job
    hub.submit_profile_job = submit_profile_job
    return hub


def request(**more):
    return asked(**{"runtime": "tflite", "runs": 100, **more})


@pytest.mark.parametrize("new", [True, False])
def test_a_hosted_phone(monkeypatch, new):
    hub: Any = fake_hub(new=new)
    monkeypatch.setitem(sys.modules, "qai_hub", hub)
    device = devices.get("aihub://Samsung Galaxy S24", {"compute-unit": "npu"})
    result = device.profile(Path("m.tflite"), request(per_op=True))
    assert result.samples_ms == pytest.approx((0.372, 0.380, 1.087))
    assert result.load_ms == pytest.approx(311.671)
    assert result.peak_rss_bytes == 14_450_688
    assert result.residency == pytest.approx({"npu": 0.75, "cpu": 0.25})
    assert result.outside == ("softmax",)
    assert [(op.name, op.type, op.ms, op.where) for op in result.ops] == [
        ("conv_1", "Conv2d", 0.3, "npu"),
        ("softmax", "Softmax", 0.1, "cpu"),
    ]
    assert result.host.model == "Samsung Galaxy S24"
    assert hub.calls == [
        ("m.tflite", "Samsung Galaxy S24", "--max_profiler_iterations 100 --compute_unit npu")
    ]


def test_layers_without_times_are_counted(monkeypatch):
    detail = [{"name": str(i), "type": "x", "compute_unit": "NPU" if i else "GPU"} for i in range(4)]
    monkeypatch.setitem(sys.modules, "qai_hub", fake_hub({**PROFILE, "execution_detail": detail}))
    result = devices.get("aihub://Samsung Galaxy S24").profile(Path("m.tflite"), request())
    assert result.residency == pytest.approx({"npu": 0.75, "gpu": 0.25})
    assert result.ops == ()


@pytest.mark.parametrize(
    ("hub", "uri", "error", "message"),
    [
        ({}, "aihub://Samsung Galaxy S25", UserError, r"did you mean 'aihub://Samsung Galaxy S24'\?"),
        (
            {"success": False, "message": "no such op"},
            "",
            DeviceError,
            "Galaxy S24 failed: no such op .https://",
        ),
        ({"profile": {}}, "", DeviceError, "answered with garbage: 'execution_summary'"),
        ({"profile": None}, "", DeviceError, "answered with garbage"),
        ({"profile": {"execution_summary": {"all_inference_times": ["x"]}}}, "", DeviceError, "garbage"),
        ({"slow": True}, "", DeviceError, "did not finish in 3600 s; the option wait allows more"),
    ],
)
def test_aihub_failures(monkeypatch, hub, uri, error, message):
    monkeypatch.setitem(sys.modules, "qai_hub", fake_hub(**hub))
    with pytest.raises(error, match=message):
        devices.get(uri or "aihub://Samsung Galaxy S24").profile(Path("m.tflite"), request())


def test_aihub_refusals(monkeypatch):
    hub: Any = fake_hub()
    monkeypatch.setitem(sys.modules, "qai_hub", hub)

    def refuse(**_):
        raise HubUserError("Failed to authenticate.\n bad token")

    hub.get_devices = refuse
    with pytest.raises(UserError, match=r"^AI Hub refused: Failed to authenticate\. bad token$"):
        devices.get("aihub://X").profile(Path("m.tflite"), request())
    with pytest.raises(UserError, match="AI Hub runs .tflite, .onnx, .mlpackage artifacts"):
        devices.get("aihub://X").profile(Path("m.xml"), request(runtime="openvino"))
    monkeypatch.setitem(sys.modules, "qai_hub", None)
    with pytest.raises(MissingExtra, match=r"pip install 'repedge\[aihub\]'"):
        devices.get("aihub://X").profile(Path("m.tflite"), request())
    for options, message in [
        ({"wait": "soon"}, "whole seconds"),
        ({"compute-unit": "dsp"}, "compute-unit is"),
    ]:
        with pytest.raises(UserError, match=message):
            devices.get("aihub://X", options)
    with pytest.raises(UserError, match="name the hosted device"):
        devices.get("aihub")


def test_hosted_phones_are_listed_only_with_a_token(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "qai_hub", fake_hub())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert AIHub.found() == ()
    (tmp_path / ".qai_hub").mkdir()
    (tmp_path / ".qai_hub" / "client.ini").write_text("[api]\n")
    assert [f.uri for f in AIHub.found()] == ["aihub://Samsung Galaxy S24", "aihub://Google Pixel 8"]


# --- iPhones


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_an_iphone_without_a_mac_says_what_to_do():
    with pytest.raises(
        UserError, match=r"this is no Mac: .* use --device ssh://user@mac --on iphone from here$"
    ):
        devices.get("iphone://00008110-000A").open(Path("m.mlpackage"), request(runtime="coreml"))
    assert list(IPhone.found()) == []


def phone(udid):
    return types.SimpleNamespace(udid=udid, identifier=f"id-{udid}", name=f"phone {udid}")


def test_the_agent_picks_the_iphone():
    one, two = phone("A"), phone("B")
    assert agent.pick([one], "") is one
    assert agent.pick([one, two], "B") is two
    for found, udid, message in [
        ([], "", "no iPhone is connected"),
        ([one, two], "", r"several iPhones are connected; name one: A \(phone A\), B"),
        ([one], "C", r"no iPhone C is connected to this Mac \(connected: A\)"),
    ]:
        with pytest.raises(agent.Failed, match=message):
            agent.pick(found, udid)


def test_the_agent_fills_the_inputs_of_a_core_ml_program(tmp_path):
    import coremltools as ct

    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 1, 4, 4, 3)
    pixels.tofile(tmp_path / "samples")
    spec = ct.proto.Model_pb2.Model()
    image = spec.description.input.add(name="image")
    image.type.imageType.width, image.type.imageType.height = 4, 4
    array = spec.description.input.add(name="array")
    array.type.multiArrayType.shape.extend([1, 3])
    array.type.multiArrayType.dataType = ct.proto.FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Value(
        "FLOAT16"
    )
    samples = {"path": str(tmp_path / "samples"), "dtype": "uint8", "shape": [1, 4, 4, 3], "count": 2}
    values = agent.inputs(spec.description.input, samples)
    assert (np.asarray(values["image"]) == pixels[0, 0]).all()
    assert (values["array"].shape, values["array"].dtype) == ((1, 3), np.float16)
    noise = agent.inputs(spec.description.input, None)
    assert np.asarray(noise["image"]).shape == (4, 4, 3)


@pytest.mark.slow
def test_the_agent_measures_through_coremltools(monkeypatch, tmp_path):
    """The calls that the agent makes exist in coremltools with these arguments; the phone is a stand-in."""
    from coremltools.models.ml_program.experimental import perf_utils, remote_device

    stopped = []
    session = types.SimpleNamespace(stop=lambda: stopped.append(True))

    async def prepare(self, credentials=None, working_directory=None, clean=False):
        assert credentials.development_team == "TEAM"
        assert Path(working_directory).is_dir()
        return types.SimpleNamespace(name="iPhone 12", os_version="18.1", session=session)

    device = remote_device.Device(
        "iPhone 12", remote_device.DeviceType.IPHONE, "id", "UDID", "18.1", "22B", "enabled",
        remote_device.DeviceState.CONNECTED, None,
    )  # fmt: skip
    monkeypatch.setattr(remote_device.Device, "prepare_for_model_debugging", prepare)
    monkeypatch.setattr(remote_device.Device, "get_connected_devices", staticmethod(lambda kind: [device]))

    class Loaded:
        load_duration_in_nano_seconds = 5_000_000
        last_predict_duration_in_nano_seconds = 2_000_000

        def make_state_if_needed(self):
            return None

        async def predict(self, inputs, state=None):
            return {}

    async def create(model, device):
        return Loaded()

    class MLNeuralEngineComputeDevice:
        pass

    class MLCPUComputeDevice:
        pass

    def info(name, unit, ms):
        return perf_utils.MLModelBenchmarker.OperationExecutionInfo(
            spec=types.SimpleNamespace(outputs=[types.SimpleNamespace(name=name)], type="conv"),
            path=None,
            compute_device_usage=types.SimpleNamespace(preferred_compute_device=unit()),
            measurement=perf_utils.MLModelBenchmarker.Measurement.from_samples([ms] * 3),
        )

    async def operations(self, inputs=None, iterations=1, warmup=False):
        return [info("a", MLNeuralEngineComputeDevice, 1.5), info("b", MLCPUComputeDevice, 0.5)]

    monkeypatch.setattr(perf_utils.MLModelBenchmarker, "_create_loaded_model", staticmethod(create))
    monkeypatch.setattr(perf_utils.MLModelBenchmarker, "benchmark_operation_execution", operations)
    asked = request(runtime="coreml", runs=7, per_op=True).model_dump(mode="json")
    runner = agent.Phone(str(small_program(tmp_path)), asked, "", "TEAM")
    assert runner.summary()["load_ms"] == 5.0
    assert runner.warm() == [2.0] * 10
    assert runner.time(7, 0) == [2.0] * 7
    assert runner.time(2, 3) == [2.0] * 2
    raw = base.RawProfile.model_validate(runner.finish())
    assert (raw.samples_ms, raw.stable) == ((2.0,) * 9, True)
    assert raw.residency == pytest.approx({"ane": 0.75, "cpu": 0.25})
    assert raw.outside == ("b",)
    assert [(op.name, op.ms, op.where) for op in raw.ops] == [("a", 1.5, "ane"), ("b", 0.5, "cpu")]
    runner.close()
    assert stopped == [True]


def small_program(folder):
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))], opset_version=ct.target.iOS16)
    def program(x):
        return mb.relu(x=x)

    model = ct.convert(
        program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS16, skip_model_load=True
    )
    path = folder / "m.mlpackage"
    model.save(str(path))
    return path


def test_the_agent_speaks_the_protocol_and_ends_with_its_stdin():
    """As one file, with another Python that has no repedge on its path."""
    opened = {"do": "open", "artifact": "none", "request": request().model_dump(mode="json")}
    command = [sys.executable, agent.__file__, "--udid", "A"]
    done = subprocess.run(
        command, input=json.dumps(opened) + "\n", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0


# --- all of them


@pytest.mark.slow
def test_every_scheme_loads_and_says_what_it_is_without_its_extra():
    for scheme in devices.DEVICES:
        cls = devices.load_class(scheme)
        assert (cls.scheme, bool(cls.title), cls.example.startswith(scheme)) == (scheme, True, True)
    code = (
        "import sys; from repedge import devices; [devices.load_class(s).found for s in devices.DEVICES];"
        "print([m for m in ('asyncssh', 'adbutils', 'qai_hub', 'torch', 'coremltools') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert importlib.util.find_spec("repedge.devices.ssh.remote") is not None


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(MissingExtra, match=r"pip install 'repedge\[devices\]'"):
        devices.get("ssh://host").probe()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "adbutils", None)
    tool = tmp_path / "tool"
    tool.write_bytes(b"\x7fELF")
    with pytest.raises(MissingExtra, match=r"pip install 'repedge\[devices\]'"):
        devices.get("adb", {"benchmark-model": str(tool)}).profile(tmp_path / "m.tflite", request())


def test_each_of_several_devices_gets_the_options_of_its_kind():
    local, remote = devices.get_all(["local", "ssh://host"], {"python": "python3.11"})
    assert (dict(local.given), dict(remote.given)) == ({}, {"python": "python3.11"})
    with pytest.raises(
        UserError, match=r"local and ssh devices have no option 'pyhton'; did you mean python\?"
    ):
        devices.get_all(["local", "ssh://host"], {"pyhton": "x"})


@pytest.mark.parametrize("text", ["shh://host", "andb://A1", "ihpone://1", "://x", "ssh:/host"])
def test_unknown_and_malformed_uris(text):
    with pytest.raises(UserError, match="did you mean|write one of|write "):
        devices.get(text)
