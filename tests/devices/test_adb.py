"""Measuring on Android phones: the real adb client against a scripted adb server; the tool's report."""

import hashlib
import socket

import numpy as np
import pytest
from adb_reports import GPU, HEAD, PEAK, RUNS, TABLES, UNUSED, WARM, XNNPACK
from adb_server import AdbServer, Cut, Hang, Phone
from profile_helpers import asked

from repedge import devices
from repedge.devices.adb.device import ADB
from repedge.devices.adb.report import Unreadable, parse
from repedge.devices.protocol import SampleFile
from repedge.errors import DeviceError, UserError

pytest.importorskip("adbutils")

TOOL = b"\x7fELF" + bytes(60)


def report(delegates=XNNPACK, warmup=WARM, runs=RUNS, tail=""):
    return HEAD.format(delegates=delegates, warmup=warmup, runs=runs) + tail


def benchmark(arguments):
    """What the tool prints for its flags."""
    tail = PEAK if "--report_peak_memory_footprint=true" in arguments else ""
    tail += TABLES if "--enable_op_profiling=true" in arguments else ""
    return report(GPU if "--use_gpu=true" in arguments else XNNPACK, tail=tail)


@pytest.fixture
def serve(monkeypatch):
    servers = []

    def start(*phones):
        server = AdbServer(list(phones))
        servers.append(server)
        monkeypatch.setenv("ANDROID_ADB_SERVER_HOST", "127.0.0.1")
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.port))
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"not looked at by the scripted phone")
    return path


@pytest.fixture
def tool(tmp_path):
    path = tmp_path / "benchmark_model"
    path.write_bytes(TOOL)
    return path


def request(**more):
    return asked(**{"runtime": "tflite", "runs": 100, "timeout_s": 20, **more})


def profile(artifact, tool, uri="adb://A1", asked=None, **options):
    given = {"benchmark-model": str(tool), **{k.replace("_", "-"): v for k, v in options.items()}}
    return devices.get(uri, given).profile(artifact, asked or request())


@pytest.mark.slow
def test_a_profile_with_operators_and_memory(serve, artifact, tool):
    phone = Phone("A1", program=benchmark)
    serve(phone)
    result = profile(artifact, tool, asked=request(per_op=True, threads=2), cpu_mask="f0")
    assert result.samples_ms == pytest.approx((10.51,) * 10)
    assert (result.load_ms, result.first_ms) == pytest.approx((87.639, 10.643))
    assert (result.partitions, result.unit) == (2, "XNNPACK")
    assert result.residency == pytest.approx({"delegate": 28 / 31})
    assert result.peak_rss_bytes == int(93.25 * 2**20)
    assert [(op.name, op.where) for op in result.ops] == [
        ("Delegate/Convolution (NHWC, QU8) IGEMM:0", "XNNPACK"),
        ("concat_1", "CPU"),
    ]
    assert [op.ms for op in result.ops] == pytest.approx([0.278, 0.008])  # called twice
    assert result.outside == ("concat_1",)
    assert (result.host.model, result.host.cpu, result.host.affinity) == ("Acme P1", "X9", (4, 5, 6, 7))
    assert any("single runs, 100 in all: min 10.400" in note for note in result.notes)
    assert len(phone.ran) == 11
    for arguments in phone.ran:
        assert arguments[:2] == ["taskset", "f0"]
        assert "--num_threads=2" in arguments
    timed = phone.ran[:10]
    assert all("--num_runs=10" in a and "--min_secs=0" in a for a in timed)
    assert not any("profiling" in flag or "memory" in flag for a in timed for flag in a)


@pytest.mark.slow
def test_what_is_on_the_phone_is_not_copied_again_and_can_be_forgotten(serve, artifact, tool):
    phone = Phone("A1", program=benchmark)
    serve(phone)
    profile(artifact, tool)
    sha = hashlib.sha256(TOOL).hexdigest()
    assert phone.modes[f"/data/local/tmp/repedge/{sha}"] == 0o755
    assert phone.pushed == len(TOOL) + artifact.stat().st_size
    profile(artifact, tool)
    assert phone.pushed == len(TOOL) + artifact.stat().st_size
    for path in phone.files:
        phone.files[path] = b"damaged"
    profile(artifact, tool, cache="no")
    assert phone.pushed == 2 * (len(TOOL) + artifact.stat().st_size)
    assert phone.files == {}


@pytest.mark.slow
def test_the_only_ready_phone_needs_no_name(serve, artifact, tool):
    serve(Phone("A1", "offline"), Phone("B2", program=benchmark))
    assert profile(artifact, tool, "adb").samples_ms


@pytest.mark.slow
def test_delegates(serve, artifact, tool):
    phone = Phone("A1", program=benchmark)
    serve(phone)
    result = profile(artifact, tool, delegate="gpu")
    assert "--use_gpu=true" in phone.ran[0]
    assert (result.unit, result.partitions, result.residency) == ("GPU", 1, {"delegate": 1.0})
    with pytest.raises(DeviceError, match="nnapi delegate was not applied on A1"):
        profile(artifact, tool, delegate="nnapi", accelerator="acme-npu")
    assert "--nnapi_accelerator_name=acme-npu" in phone.ran[-1]
    phone.program = lambda arguments: report(UNUSED)
    with pytest.raises(UserError, match="nnapi delegate of A1 takes nothing of this model"):
        profile(artifact, tool, delegate="nnapi")


@pytest.mark.parametrize(
    ("phones", "uri", "error", "message"),
    [
        ([], "adb", DeviceError, "no Android phone is connected"),
        ([("A1", "device"), ("B2", "device")], "adb", UserError, "name one: adb://A1, adb://B2"),
        ([("A1", "unauthorized")], "adb", DeviceError, "A1 has not authorized this computer: unlock it"),
        ([("A1", "offline")], "adb://A1", DeviceError, "A1 is offline: replug it"),
        ([("R58M12A", "device")], "adb://R58M12B", UserError, r"no phone R58M12B.*mean adb://R58M12A\?"),
        ([("A1", "device")], "adb://ZZZ", UserError, "no phone ZZZ is connected; connected: A1"),
        ([("A1", "strange")], "adb://A1", DeviceError, "A1 is not ready: strange"),
    ],
)
def test_which_phone(serve, artifact, tool, phones, uri, error, message):
    serve(*(Phone(serial, state) for serial, state in phones))
    with pytest.raises(error, match=message):
        profile(artifact, tool, uri)


def test_full_storage_leaves_nothing(serve, artifact, tool):
    phone = Phone("A1", program=benchmark, room=80)
    serve(phone)
    with pytest.raises(
        DeviceError, match="copying to /data/local/tmp/repedge failed, its storage may be full"
    ):
        profile(artifact, tool)
    assert sum(map(len, phone.files.values())) <= 80
    assert not any(path.endswith(".part") for path in phone.files)


@pytest.mark.slow
def test_silence_is_given_up_and_the_program_killed(serve, artifact, tool):
    phone = Phone("A1", program=lambda arguments: Hang("INFO: STARTING!\n"))
    serve(phone)
    with pytest.raises(DeviceError, match="did not answer in time") as e:
        profile(artifact, tool, asked=request(timeout_s=0.5))
    assert e.value.exit_code == 4
    assert phone.killed == ["4321"]


def test_a_pulled_cable(serve, artifact, tool):
    serve(Phone("A1", program=lambda arguments: Cut("INFO: STARTING!\n")))
    with pytest.raises(DeviceError, match="A1 was disconnected in mid-run"):
        profile(artifact, tool)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ERROR: Didn't find op for builtin opcode 'CONV_2D' version '9'\n",
            "Didn't find op for builtin opcode",
        ),
        ("CANNOT LINK EXECUTABLE: library not found\n", "CANNOT LINK EXECUTABLE"),
        ("", "it printed nothing"),
        ("\x00\xff garbage", "garbage"),
        (report(runs="INFO: count=10 first=x"), "damaged report"),
    ],
)
def test_a_tool_that_fails_or_prints_garbage(serve, artifact, tool, text, message):
    serve(Phone("A1", program=lambda arguments: text))
    with pytest.raises(DeviceError, match=f"benchmark_model failed on A1.*{message}"):
        profile(artifact, tool)


@pytest.mark.slow
def test_real_pixels_are_sent_as_the_model_wants_them(serve, tmp_path, tool):
    pytest.importorskip("ai_edge_litert")
    from operators import weights
    from tflite_helpers import build, clean

    text = "g (float[1,3,8,8] x) => (float[1,4,8,8] y) { y = Conv<kernel_shape=[1,1]>(x, w) }"
    model, _ = build(clean(text, w=weights(4, 3, 1, 1)), tmp_path / "built")
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(1, 8, 8, 3)
    samples = tmp_path / "samples"
    np.concatenate([pixels, pixels + 1]).tofile(samples)
    phone = Phone("A1", program=benchmark)
    serve(phone)
    file = SampleFile(path=str(samples), dtype="uint8", shape=(1, 8, 8, 3), count=2)
    result = profile(model, tool, asked=request(runs=2, samples=file))
    flags = dict(f.split("=", 1) for f in phone.ran[0][1:])
    sent = phone.files[flags["--input_layer_value_files"].removeprefix("input:")]
    shape = tuple(map(int, flags["--input_layer_shape"].split(",")))
    assert np.frombuffer(sent, np.float32).reshape(shape) == pytest.approx(pixels.astype(np.float32) / 255)
    assert not any("random" in note for note in result.notes)


def test_listing(serve, monkeypatch):
    serve(Phone("A1"), Phone("B2", "unauthorized"))
    assert [(f.uri, f.state, f.note) for f in ADB.found()] == [
        ("adb://A1", "ready", "P 1"),
        ("adb://B2", "unauthorized", "P 1"),
    ]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(s.getsockname()[1]))
        assert ADB.found() == ()  # no server, and none is started


def test_an_adb_server_that_does_not_start(artifact, tool, monkeypatch, capfd):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(s.getsockname()[1]))
        monkeypatch.setenv("ADBUTILS_ADB_PATH", "false")
        with pytest.raises(DeviceError, match=r"adb server at 127\.0\.0\.1:\d+ does not answer"):
            profile(artifact, tool)
        monkeypatch.setenv("ANDROID_ADB_SERVER_HOST", "127.0.0.2")
        with pytest.raises(DeviceError, match="it runs on another machine"):
            profile(artifact, tool)
    assert capfd.readouterr() == ("", "")  # stdout may be somebody's JSON


def test_options_and_the_tool_are_checked(artifact, tool, tmp_path):
    with pytest.raises(UserError, match="name it with --device-option benchmark-model=PATH or URL"):
        devices.get("adb://A1").profile(artifact, request())
    with pytest.raises(UserError, match="no ELF file"):
        profile(artifact, artifact)
    with pytest.raises(UserError, match="not the expected abc"):
        profile(artifact, tool, benchmark_model_sha256="abc")
    with pytest.raises(UserError, match="over https only"):
        profile(artifact, "http://example.com/benchmark_model")
    with pytest.raises(UserError, match=r"phones run \.tflite artifacts|run .tflite artifacts"):
        devices.get("adb://A1").profile(artifact.with_suffix(".xml"), request(runtime="openvino"))
    for options, message in [
        ({"delegate": "hexagon"}, "delegate is one of"),
        ({"cpu-mask": "big"}, "cpu-mask is hexadecimal"),
        ({"accelerator": "x"}, "goes with delegate=nnapi"),
        ({"cpumask": "f0"}, r"did you mean cpu-mask\?"),
    ]:
        with pytest.raises(UserError, match=message):
            devices.get("adb://A1", options)


def test_older_reports():
    """No prefix, no percentiles, a [start] column; runs that all took the same time."""
    table = (
        "Operator-wise Profiling Info for Regular Benchmark Runs:\n"
        "============================== Run Order ==============================\n"
        "\t[node type]\t[start]\t[first]\t[avg ms]\t[%]\t[cdf%]\t[mem KB]\t[times called]\t[Name]\n"
        "\tCONV_2D\t0.000\t4.269\t4.269\t0.107%\t0.107%\t0.000\t0\t[Conv2d_0/Relu6]:0\n\n"
    )
    runs = "count=50 first=2531 curr=2793 min=1171 max=9925 avg=1885.74 std=870"
    text = report("", "count=5 curr=637079(all same)", runs, table).replace("INFO: ", "")
    read = parse(text)
    assert (read.runs.median, read.runs.avg, read.runs.count) == (None, pytest.approx(1.88574), 50)
    assert (read.warmup.median, read.warmup.avg) == (637.079, 637.079)
    assert [(op.name, op.type, op.ms) for op in read.ops] == [("[Conv2d_0/Relu6]:0", "CONV_2D", 4.269)]
    assert (read.partitions, read.delegates, read.peak_bytes) == (None, ("XNNPACK",), None)
    assert read.overall_bytes == int(15.25 * 2**20)
    with pytest.raises(Unreadable, match="it printed nothing"):
        parse("\n")
