"""``aihub://DEVICE NAME``: a phone hosted by Qualcomm AI Hub, through its own client (the extra ``aihub``).

The artifact is uploaded to that service, by the user's own account and token, which only the client
reads. The service runs it about a hundred times and hands back each time.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

from repedge.devices.base import Device, DeviceURI, Listed
from repedge.devices.protocol import HostInfo, Op, ProfileRequest, RawProfile
from repedge.errors import DeviceError, MissingExtra, UserError

TAKES = (".tflite", ".onnx", ".mlpackage")
"""Endings of artifacts that the service runs."""

MOST_RUNS = 1000  # the service's own bound of max_profiler_iterations is not published


class AIHub(Device):
    """A phone hosted by Qualcomm AI Hub."""

    scheme: ClassVar[str] = "aihub"
    title: ClassVar[str] = "a phone hosted by Qualcomm AI Hub"
    example: ClassVar[str] = "aihub://Samsung Galaxy S24"
    options: ClassVar[Mapping[str, str]] = {
        "os": "version of its system, such as 14, or a range such as [13,15)",
        "compute-unit": "all (the default), npu, gpu or cpu; also several, such as npu,cpu",
        "wait": "seconds to wait for the hosted phone (3600)",
    }
    live: ClassVar[bool] = False

    def __init__(self, uri: DeviceURI, options: Mapping[str, str]) -> None:
        super().__init__(uri, options)
        self.name = unquote(uri.rest).strip()
        if not self.name:
            raise UserError(f"name the hosted device, such as '{self.example}'; 'repedge devices' lists them")
        units = options.get("compute-unit", "all").split(",")
        if not set(units) <= {"all", "npu", "gpu", "cpu"}:
            raise UserError(f"compute-unit is all, npu, gpu or cpu, but got {options['compute-unit']!r}")
        try:
            self._wait_s = int(options.get("wait", "3600"))
        except ValueError as e:
            raise UserError(f"wait takes whole seconds, but got {options['wait']!r}") from e

    def describe(self) -> str:
        """See `Device.describe`."""
        return f"{self.name} at Qualcomm AI Hub"

    @classmethod
    def found(cls) -> Sequence[Listed]:
        """Every hosted device, where the client is installed and has a token. See `Device.found`."""
        if not Path("~/.qai_hub/client.ini").expanduser().exists():
            return ()
        try:
            devices = _client().get_devices()
        except Exception:  # not installed, no network, an expired token: nothing to list
            return ()
        return [Listed(f"aihub://{d.name}", "ready", f"OS {d.os}") for d in devices]

    def profile(self, artifact: Path, request: ProfileRequest) -> RawProfile:
        """See `Device.profile`."""
        if artifact.suffix not in TAKES:
            raise UserError(
                f"AI Hub runs {', '.join(TAKES)} artifacts, and {artifact.name} is for {request.runtime}"
            )
        hub = _client()
        try:
            return self._measure(hub, artifact, request)
        except hub.UserError as e:
            raise UserError(f"AI Hub refused: {_line(e)}") from e
        except TimeoutError as e:
            raise DeviceError(
                f"{self.name} did not finish in {self._wait_s} s; the option wait allows more"
            ) from e
        except (hub.Error, OSError) as e:
            raise DeviceError(f"AI Hub failed: {_line(e)}") from e

    def _measure(self, hub: Any, artifact: Path, request: ProfileRequest) -> RawProfile:
        device = self._device(hub)
        hub.set_verbose(False)
        flags = f"--max_profiler_iterations {min(request.runs, MOST_RUNS)}"
        flags += f" --compute_unit {self.given.get('compute-unit', 'all')}"
        given = {
            "model": str(artifact),
            "device": device,
            "name": f"repedge {artifact.name}",
            "options": flags,
        }
        if "profile" in inspect.signature(hub.submit_inference_job).parameters:
            job = hub.submit_inference_job(**given, profile=True)
        else:  # before qai-hub 0.56
            job = hub.submit_profile_job(**given)
        status = job.wait(timeout=self._wait_s)
        if not status.success:
            raise DeviceError(f"{self.name} failed: {_line(status.message or status.code)} ({job.url})")
        notes = [f"measured by Qualcomm AI Hub with random input: {job.url}"]
        if request.threads is not None or request.warmup is not None:
            notes.append("AI Hub chooses threads and warm-up by itself")
        return read_profile(job.download_profile(), self.name, request, notes)

    def _device(self, hub: Any) -> Any:
        if found := hub.get_devices(name=self.name, os=self.given.get("os", "")):
            return found[-1]  # the newest system is last
        names = sorted({d.name for d in hub.get_devices()})
        close = difflib.get_close_matches(self.name, names, n=1, cutoff=0.4)
        hint = f"did you mean 'aihub://{close[0]}'?" if close else "'repedge devices' lists them"
        raise UserError(f"AI Hub has no device {self.name!r} with that system; {hint}")


def read_profile(profile: Any, device: str, request: ProfileRequest, notes: Sequence[str]) -> RawProfile:
    """A `RawProfile` from what ``download_profile`` returns (times in microseconds, memory in bytes).

    Raises:
        DeviceError: It is not of that form.
    """
    try:
        summary, detail = profile["execution_summary"], profile.get("execution_detail") or []
        samples = [t / 1000 for t in summary.get("all_inference_times") or []]
        if not samples:  # older jobs keep the estimate alone
            samples = [summary["estimated_inference_time"] / 1000]
            notes = [*notes, "AI Hub gave its estimate of the median only, no single times"]
        ops = [_op(layer) for layer in detail]
        load = summary.get("first_load_time")
        return RawProfile(
            runtime=request.runtime,
            unit="AI Hub",
            load_ms=None if load is None else load / 1000,
            samples_ms=tuple(samples),
            peak_rss_bytes=summary.get("estimated_inference_peak_memory"),
            outside=tuple(op.name for op in ops if op.where != "npu"),
            residency=_residency(ops),
            ops=tuple(ops) if request.per_op else (),
            ops_note="AI Hub's own times per layer" if request.per_op else "",
            host=HostInfo(model=device),
            notes=tuple(notes),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DeviceError(f"AI Hub answered with garbage: {_line(e)}") from e


def _op(layer: Mapping[str, Any]) -> Op:
    time_us = layer.get("execution_time")
    ms = None if time_us is None else time_us / 1000
    return Op(name=layer["name"], type=layer["type"], ms=ms, where=str(layer["compute_unit"]).lower())


def _residency(ops: Sequence[Op]) -> dict[str, float]:
    """Share of each unit: of the time where layers have times, else of the layers."""
    timed = sum(op.ms or 0.0 for op in ops)
    shares: dict[str, float] = {}
    for op in ops:
        share = (op.ms or 0.0) / timed if timed else 1 / len(ops)
        shares[op.where] = shares.get(op.where, 0.0) + share
    return {unit: min(1.0, share) for unit, share in shares.items()}


def _client() -> Any:
    try:
        return importlib.import_module("qai_hub")
    except ImportError as e:
        raise MissingExtra("qai-hub", "aihub", "measuring on phones hosted by Qualcomm AI Hub") from e


def _line(what: object) -> str:
    return " ".join(str(what).split())[:300]
