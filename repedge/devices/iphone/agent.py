"""The agent for an iPhone cabled to this Mac: Core ML's timings through coremltools' remote device.

Runs on the Mac, where repedge need not be installed: one file, Python 3.9, coremltools 8.3 or newer and
Xcode. Speaks the protocol of ``repedge.devices.agent`` on stdin and stdout. coremltools builds and
signs a small app, starts it on the phone and has it load and run the model; per-operator times are its
estimates (time of the run x share in the compute plan).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import sys
import tempfile
import threading
import time
from typing import Any

MARK = "@repedge "
WINDOW, STEADY, WARM_S, WARM_RUNS = 5, 0.03, 5.0, 200  # as in repedge.devices.agent.clock
UNITS = {"": "ALL", "all": "ALL", "ane": "CPU_AND_NE", "gpu": "CPU_AND_GPU", "cpu": "CPU_ONLY"}


class Failed(Exception):
    """A failure in one sentence; ``kind`` as in the agent's errors."""

    def __init__(self, message: str, kind: str = "runtime") -> None:
        super().__init__(message)
        self.kind = kind


def pick(devices: list[Any], udid: str) -> Any:
    """The connected iPhone that is meant."""
    if udid:
        for device in devices:
            if device.udid == udid or device.identifier == udid:
                return device
        seen = ", ".join(d.udid for d in devices) or "none"
        raise Failed(f"no iPhone {udid} is connected to this Mac (connected: {seen})", "user")
    if not devices:
        raise Failed("no iPhone is connected to this Mac: cable one, unlock it and trust the Mac", "user")
    if len(devices) > 1:
        seen = ", ".join(f"{d.udid} ({d.name})" for d in devices)
        raise Failed(f"several iPhones are connected; name one: {seen}", "user")
    return devices[0]


def unit_of(device: Any) -> str:
    """``ane``, ``gpu`` or ``cpu`` for a compute device of coremltools."""
    name = type(device).__name__.lower()
    return "ane" if "neuralengine" in name else "gpu" if "gpu" in name else "cpu"


class Phone:
    """One model, loaded on one phone."""

    def __init__(self, artifact: str, request: dict[str, Any], udid: str, team: str) -> None:
        import coremltools as ct
        from coremltools.models.ml_program.experimental import perf_utils, remote_device

        if not artifact.rstrip("/").endswith((".mlpackage", ".mlmodelc", ".mlmodel")):
            raise Failed("an iPhone runs Core ML models only", "user")
        if request["unit"].lower() not in UNITS:
            raise Failed("the compute unit is one of all, ane, gpu, cpu", "user")
        self._request, self._version = request, str(ct.__version__)
        self._work = tempfile.TemporaryDirectory(prefix="repedge-iphone-")
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        found = remote_device.Device.get_connected_devices(remote_device.DeviceType.IPHONE)
        credentials = remote_device.AppSigningCredentials(development_team=team)
        self._device = self._do(
            pick(found, udid).prepare_for_model_debugging(
                credentials=credentials, working_directory=self._work.name
            )
        )
        units = getattr(ct.ComputeUnit, UNITS[request["unit"].lower()])
        model = ct.models.MLModel(artifact, compute_units=units, skip_model_load=True)
        self._inputs = inputs(model.get_spec().description.input, request.get("samples"))
        self._bench = perf_utils.MLModelBenchmarker(model, device=self._device)
        self._load_ms = float(self._do(self._bench.benchmark_load(iterations=1)).samples[0])
        self._first_ms = self._run(1)[0]
        self._warmup: list[float] = []
        self._samples: list[float] = []
        self._stable: bool | None = None

    def _do(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    def _run(self, runs: int) -> list[float]:
        measured = self._do(self._bench.benchmark_predict(inputs=self._inputs, iterations=runs))
        return [float(ms) for ms in measured.samples]

    def summary(self) -> dict[str, Any]:
        """What ``open`` answers."""
        return {"load_ms": self._load_ms, "first_ms": self._first_ms, "runtime_version": self._version}

    def warm(self) -> list[float]:
        """Untimed runs: a fixed number, or until two windows in a row have the same median."""
        count = self._request.get("warmup")
        if count is not None:
            self._warmup = self._run(count) if count else []
            return self._warmup
        self._stable, began = False, time.monotonic()
        while len(self._warmup) < WARM_RUNS and time.monotonic() - began < WARM_S:
            previous = sorted(self._warmup[-WINDOW:])
            self._warmup += self._run(WINDOW)
            last = sorted(self._warmup[-WINDOW:])
            middle = WINDOW // 2
            if previous and abs(last[middle] - previous[middle]) <= STEADY * previous[middle]:
                self._stable = True
                break
        return self._warmup

    def time(self, runs: int, prime: int) -> list[float]:
        """Timed runs, each after ``prime`` untimed ones."""
        times = [self._run(prime + 1)[-1] for _ in range(runs)] if prime else self._run(runs)
        self._samples += times
        return times

    def finish(self) -> dict[str, Any]:
        """The profile; see RawProfile of repedge.devices.protocol."""
        ops: list[dict[str, Any]] = []
        residency: dict[str, float] = {}
        for info in self._do(self._bench.benchmark_operation_execution(inputs=self._inputs, iterations=5)):
            usage, statistics = info.compute_device_usage, info.measurement.statistics
            where = unit_of(usage.preferred_compute_device) if usage is not None else ""
            ms = float(statistics.median) if statistics is not None else None
            if where and ms is not None:
                residency[where] = residency.get(where, 0.0) + ms
            names = [str(o.name) for o in info.spec.outputs]
            ops.append(
                {"name": names[0] if names else "", "type": str(info.spec.type), "ms": ms, "where": where}
            )
        total = sum(residency.values()) or 1.0
        return {
            "protocol": 1,
            "runtime": self._request["runtime"],
            "runtime_version": self._version,
            "unit": self._request["unit"].lower() or "all",
            "load_ms": self._load_ms,
            "first_ms": self._first_ms,
            "warmup_ms": self._warmup,
            "stable": self._stable,
            "samples_ms": self._samples,
            "residency": {where: ms / total for where, ms in residency.items()},
            "outside": [op["name"] for op in ops if op["where"] and op["where"] != "ane"],
            "ops": ops if self._request.get("per_op") else [],
            "ops_note": "coremltools' estimate: time of the run x the operator's share in the compute plan",
            "host": {"model": str(self._device.name), "os": f"iOS {self._device.os_version}"},
            "notes": ["measured by coremltools' model runner app on the phone"],
        }

    def close(self) -> None:
        """Stop the app on the phone and remove what was built."""
        if getattr(self._device, "session", None) is not None:
            self._device.session.stop()
        self._work.cleanup()


def inputs(descriptions: Any, samples: Any) -> dict[str, Any]:
    """One value per input: the first sample for the image, seeded noise for the rest."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    values: dict[str, Any] = {}
    for d in descriptions:
        if d.type.WhichOneof("Type") == "imageType":
            size = (d.type.imageType.width, d.type.imageType.height)
            if isinstance(samples, dict) and samples["dtype"] == "uint8":
                shape = tuple(samples["shape"])
                pixels = np.fromfile(samples["path"], np.uint8, count=int(np.prod(shape))).reshape(shape)[0]
                pixels = pixels if samples.get("layout", "NHWC") == "NHWC" else pixels.transpose(1, 2, 0)
            else:
                pixels = noise.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            values[d.name] = Image.fromarray(pixels).resize(size)
        else:
            array = d.type.multiArrayType
            # ArrayDataType of Core ML's FeatureTypes.proto
            kinds = {
                65568: np.float32,
                65600: np.float64,
                65552: np.float16,
                131104: np.int32,
                131080: np.int8,
            }
            if array.dataType not in kinds:
                raise Failed(f"input {d.name} has a type that can't be filled", "user")
            values[d.name] = noise.standard_normal(tuple(array.shape)).astype(kinds[array.dataType])
    return values


def answer(phone: Phone, command: dict[str, Any]) -> dict[str, Any]:
    """What a command gives, once its artifact is open."""
    if command["do"] == "open":
        return phone.summary()
    if command["do"] == "warm":
        return {"warmup_ms": phone.warm()}
    if command["do"] == "time":
        return {"samples_ms": phone.time(command["runs"], command["prime"])}
    if command["do"] == "finish":
        return {"profile": phone.finish()}
    raise Failed(f"unknown command {command['do']!r}")


def main(arguments: list[str]) -> int:
    """Serve stdin until it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--udid", default="")
    parser.add_argument("--team", default="")
    given = parser.parse_args(arguments)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what coremltools and xcodebuild print is no answer

    def say(message: dict[str, Any]) -> None:
        answers.write(MARK + json.dumps(message) + "\n")
        answers.flush()

    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    phones: list[Phone] = []

    def read() -> None:
        for line in sys.stdin:
            if line.strip():
                commands.put(json.loads(line))
        for phone in phones:
            phone.close()
        os._exit(0)  # the other side is gone

    threading.Thread(target=read, daemon=True).start()
    while True:
        command = commands.get()
        try:
            if command["do"] == "open":
                phones.append(Phone(command["artifact"], command["request"], given.udid, given.team))
            say({"done": command["do"], **answer(phones[0], command)})
        except Failed as e:
            say({"error": str(e), "kind": e.kind})
        except Exception as e:  # the other side must hear of it in any case
            say({"error": f"{type(e).__name__}: {e}", "kind": "runtime"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
