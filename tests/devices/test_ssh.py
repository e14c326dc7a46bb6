"""Measuring over SSH, against a real OpenSSH server on loopback."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import ssh_server
from onnx import TensorProto, helper, numpy_helper
from profile_helpers import asked

from repedge import devices
from repedge.devices.protocol import SampleFile
from repedge.devices.ssh.device import SSH
from repedge.devices.ssh.keys import user_hosts
from repedge.errors import DeviceError, UserError

pytest.importorskip("asyncssh")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if ssh_server.SSHD is None:
        pytest.skip("there is no OpenSSH server here (the package openssh-server)")
    running = ssh_server.Server(tmp_path_factory.mktemp("sshd")).start()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No key, agent, configuration or known host of the one who runs the tests is used."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small .onnx with its weights in a file beside it."""
    folder = tmp_path_factory.mktemp("model")
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 14, 14])],
        [weight],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "small.onnx"
    onnx.save(built, path, save_as_external_data=True, location="small.weights", size_threshold=0)
    return path


FILES = ("small.onnx", "small.weights")


def request(**more):
    return asked(
        **{
            "runtime": "onnxruntime",
            "runs": 5,
            "warmup": 2,
            "threads": 1,
            "timeout_s": 60,
            "files": FILES,
            **more,
        }
    )


def device(server, **options):
    return devices.get(server.uri, server.options(**options))


def eventually(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def runs_left(server):
    return sorted(p.name for p in server.cache.glob("run-*")) if server.cache.exists() else []


@pytest.mark.slow
def test_a_profile_comes_back_and_a_second_one_uploads_nothing(server, model, tmp_path):
    samples = tmp_path / "samples"
    np.zeros((2, 1, 16, 16, 3), np.uint8).tofile(samples)
    asked = request(samples=SampleFile(path=str(samples), dtype="uint8", shape=(1, 16, 16, 3), count=2))
    with device(server).open(model, asked) as session:
        first = session.uploaded_bytes
        session.warm()
        times = session.time(5)
        result = session.finish()
    assert result.samples_ms == pytest.approx(times)
    assert len(result.warmup_ms) == 2
    assert result.load_ms > 0
    assert result.runtime_version
    assert first >= sum(p.stat().st_size for p in model.parent.iterdir()) + samples.stat().st_size
    with device(server).open(model, asked) as session:
        assert session.uploaded_bytes == 0
        assert len(session.time(3)) == 3
    assert runs_left(server) == []
    assert eventually(lambda: server.children() == [])


@pytest.mark.slow
def test_a_damaged_cached_file_is_uploaded_again(server, model):
    device(server).profile(model, request())
    for blob in server.cache.iterdir():
        if blob.stat().st_size == (model.parent / "small.weights").stat().st_size:
            blob.write_bytes(b"x")
    with device(server).open(model, request()) as session:
        assert session.uploaded_bytes == (model.parent / "small.weights").stat().st_size
        assert len(session.time(1)) == 1


def test_without_the_cache_nothing_stays(server, model):
    before = sorted(server.cache.iterdir()) if server.cache.exists() else []
    assert len(device(server, cache="no").profile(model, request()).samples_ms) == 5
    assert (sorted(server.cache.iterdir()) if server.cache.exists() else []) == before


def test_what_is_installed_there_is_probed(server):
    found = device(server).probe({"onnxruntime": "onnxruntime"})
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["runtimes"]["onnxruntime"]


def test_a_missing_runtime_names_its_package_before_anything_is_uploaded(server, model, tmp_path):
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # without site-packages
    bare.chmod(0o755)
    with pytest.raises(UserError, match=r"^ssh://.*: no runtime .* pip install onnxruntime$"):
        device(server, python=str(bare), cache="no").open(model, request())
    assert runs_left(server) == []


def test_python_missing_and_python_too_old(server, model, tmp_path):
    with pytest.raises(UserError, match=r"has no python-none: install Python 3\.9"):
        device(server, python="python-none").open(model, request())
    old = tmp_path / "python3"
    patch = "import sys; sys.version_info = (3, 7, 3, 'final', 0)"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -u -c "{patch};$3"\n')
    old.chmod(0o755)
    with pytest.raises(UserError, match=r"has Python 3\.7 as .*, but 3\.9 or newer"):
        device(server, python=str(old)).open(model, request())


def test_a_device_that_falls_silent_is_given_up(server, model, tmp_path):
    deaf = tmp_path / "python3"
    deaf.write_text("#!/bin/sh\ncat >/dev/null\n")  # ends with its stdin, as a login shell does
    deaf.chmod(0o755)
    with pytest.raises(DeviceError, match=r"said nothing for 0\.5 s and was given up"):
        device(server, python=str(deaf)).open(model, request(timeout_s=0.5))
    assert eventually(lambda: server.children() == [])


def test_wrong_key(server, model, tmp_path):
    other = ssh_server.keypair(tmp_path / "other")
    with pytest.raises(UserError, match="refused the login: none of the keys is accepted"):
        device(server, identity=str(other)).open(model, request())


@pytest.mark.slow
def test_unknown_host_key_is_refused_and_added_by_its_fingerprint_only(server, model, tmp_path):
    hosts = tmp_path / "new" / "known_hosts"
    shown = ssh_server.fingerprint(server.folder / "host_key")
    with pytest.raises(UserError, match="is not known: SHA256:") as e:
        device(server, **{"known-hosts": str(hosts)}).open(model, request())
    assert f"--accept-host-key {shown}" in str(e.value)
    assert not hosts.exists()
    wrong = "SHA256:" + "A" * 43
    with pytest.raises(UserError, match="not the one to accept"):
        device(server, **{"known-hosts": str(hosts), "accept-host-key": wrong}).open(model, request())
    assert not hosts.exists()
    device(server, **{"known-hosts": str(hosts), "accept-host-key": shown}).probe()
    assert hosts.stat().st_mode & 0o777 == 0o600
    device(server, **{"known-hosts": str(hosts)}).probe()
    listed = subprocess.run(
        ["ssh-keygen", "-f", str(hosts), "-F", f"[127.0.0.1]:{server.port}"], capture_output=True, text=True
    )
    assert listed.returncode == 0  # OpenSSH finds it as well


def test_changed_host_key_is_refused_even_with_its_fingerprint(server, tmp_path):
    other = ssh_server.keypair(tmp_path / "host_key")
    hosts = tmp_path / "known_hosts"
    kind, data = Path(f"{other}.pub").read_text().split()[:2]
    hosts.write_text(f"[127.0.0.1]:{server.port} {kind} {data}\n")
    before = hosts.read_text()
    shown = ssh_server.fingerprint(server.folder / "host_key")
    with pytest.raises(UserError, match="THE HOST KEY OF .* HAS CHANGED"):
        device(server, **{"known-hosts": str(hosts), "accept-host-key": shown}).probe()
    assert hosts.read_text() == before


def test_a_known_key_of_another_port_is_not_a_changed_key(server, tmp_path):
    other = ssh_server.keypair(tmp_path / "host_key")
    hosts = tmp_path / "known_hosts"
    kind, data = Path(f"{other}.pub").read_text().split()[:2]
    hosts.write_text(f"127.0.0.1 {kind} {data}\n")
    with pytest.raises(UserError, match="is not known: SHA256:"):
        device(server, **{"known-hosts": str(hosts)}).probe()


@pytest.mark.slow
def test_connection_cut_in_mid_run_leaves_nothing_running(server, model):
    session = device(server).open(model, request())
    assert eventually(lambda: len(runs_left(server)) == 1)
    agents = [p for p in server.children() if "agent.pyz" in ssh_server.command_of(p)]
    assert agents
    timer = threading.Timer(0.5, server.cut)
    timer.start()
    with session, pytest.raises(DeviceError, match="ended early .*SSH connection was") as e:
        session.time(10_000_000)
    assert e.value.exit_code == 4
    assert eventually(lambda: not any(ssh_server.command_of(p) for p in agents))
    assert eventually(lambda: runs_left(server) == [])


@pytest.mark.slow
def test_a_run_that_was_killed_outright_is_swept_up_by_the_next(server, model):
    session = device(server).open(model, request())
    supervisor = [p for p in server.children() if "compile(f.read" in ssh_server.command_of(p)]
    for pid in supervisor:
        os.kill(pid, 9)
    with session, pytest.raises(DeviceError):
        session.time(10_000_000)
    assert eventually(lambda: server.children() == [])  # the agent ended with its stdin
    assert len(runs_left(server)) == 1
    device(server).profile(model, request(runs=1))
    assert runs_left(server) == []


def test_full_remote_disk(server, model, tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root can mount the small file system that this needs")
    small = server.folder / "cache"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        samples = tmp_path / "samples"
        np.zeros((1, 1, 1024, 1024, 3), np.uint8).tofile(samples)
        asked = request(
            samples=SampleFile(path=str(samples), dtype="uint8", shape=(1, 1024, 1024, 3), count=1)
        )
        with pytest.raises(DeviceError, match="the upload failed: its disk is full"):
            device(server).open(model, asked)
        assert not list(server.cache.glob("part-*"))
        assert runs_left(server) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_unreachable_host():
    with pytest.raises(DeviceError, match=r"ssh://127\.0\.0\.1:1 can't be reached"):
        devices.get("ssh://127.0.0.1:1").probe()  # type: ignore[attr-defined]


@pytest.mark.parametrize("uri", ["ssh://user:secret-word@host", "ssh://user:secret-word@host:22"])
def test_a_password_in_the_address_is_refused_and_not_repeated(uri):
    with pytest.raises(UserError, match="password does not belong") as e:
        devices.get(uri)
    assert "secret-word" not in str(e.value)


@pytest.mark.parametrize(
    "uri", ["ssh://", "ssh", "ssh://host:port", "ssh://host/path", "ssh://host:0", "ssh://[::1"]
)
def test_malformed_addresses(uri):
    with pytest.raises(UserError, match=r"write ssh://user@host"):
        devices.get(uri)


def test_bad_options(tmp_path):
    with pytest.raises(UserError, match="no private key at"):
        devices.get("ssh://host", {"identity": str(tmp_path / "none")})
    with pytest.raises(UserError, match="takes a fingerprint such as SHA256"):
        devices.get("ssh://host", {"accept-host-key": "yes"})
    with pytest.raises(UserError, match="--on takes iphone"):
        devices.get("ssh://host", {"on": "android"})
    with pytest.raises(UserError, match="Core ML models only"):
        devices.get("ssh://mac", {"on": "iphone"}).open(tmp_path / "m.tflite", request(runtime="tflite"))


def test_hosts_of_the_users_configuration_are_listed(tmp_path):
    config = tmp_path / ".ssh" / "config"
    config.parent.mkdir()
    config.write_text(
        "Host pi board\n  HostName 10.0.0.7\nHost *.lan\n  User x\nMatch all\n  HostName no\nHost mac\n"
    )
    assert [f.uri for f in SSH.found()] == ["ssh://pi", "ssh://board", "ssh://mac"]
    assert SSH.found()[0].note == "10.0.0.7"
    assert user_hosts(tmp_path / "none") == []
