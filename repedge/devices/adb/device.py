"""``adb://SERIAL``: an Android phone, measured by TFLite's own ``benchmark_model``.

The tool keeps no single times: it prints statistics. So the runs are spread over several processes, as
``repedge profile`` does when it compares, and each process gives one sample, its median.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from repedge.devices.adb import benchmark_tool
from repedge.devices.adb.phone import Phone, choose, client, failures, listening
from repedge.devices.adb.report import OpRow, Report, Unreadable, parse
from repedge.devices.base import Device, DeviceURI, Listed
from repedge.devices.protocol import HostInfo, Op, ProfileRequest, RawProfile
from repedge.errors import DeviceError, UserError
from repedge.hashing import sha256

TFLITE = ".tflite"  # what the tool reads
PROCESSES = 10
WARM_S = 0.5  # the tool's own default: at least so long
# delegate -> the tool's flags. --use_xnnpack=false means the reference kernels.
DELEGATES = {
    "xnnpack": ["--use_xnnpack=true"],
    "none": ["--use_xnnpack=false"],
    "gpu": ["--use_gpu=true"],
    "nnapi": ["--use_nnapi=true"],
}
PROPERTIES = ("ro.product.manufacturer", "ro.product.model", "ro.soc.model", "ro.build.version.release")


class ADB(Device):
    """An Android phone on a cable or in the network."""

    scheme: ClassVar[str] = "adb"
    title: ClassVar[str] = "an Android phone over adb"
    example: ClassVar[str] = "adb://R58M12ABCDE"
    options: ClassVar[Mapping[str, str]] = {
        "benchmark-model": "TFLite's benchmark_model for the phone: a file or an https address",
        "benchmark-model-sha256": "refuse any other",
        "delegate": "xnnpack (the default), gpu, nnapi or none",
        "accelerator": "NNAPI accelerator, as the phone names it",
        "cpu-mask": "CPUs to run on, in hexadecimal: f0 is cores 4 to 7",
        "cache": "keep: files are kept on the phone for the next time (the default); no: nothing stays",
    }
    live: ClassVar[bool] = False

    def __init__(self, uri: DeviceURI, options: Mapping[str, str]) -> None:
        super().__init__(uri, options)
        if not re.fullmatch(r"[A-Za-z0-9._:\[\]-]*", uri.rest):
            raise UserError(f"{uri} is no phone; write {self.example}, or 'adb' for the only one connected")
        if options.get("delegate", "xnnpack") not in DELEGATES:
            raise UserError(f"delegate is one of {', '.join(DELEGATES)}, but got {options['delegate']!r}")
        if "cpu-mask" in options and not re.fullmatch(r"(0x)?[0-9a-fA-F]{1,16}", options["cpu-mask"]):
            raise UserError(f"cpu-mask is hexadecimal, such as f0, but got {options['cpu-mask']!r}")
        if "accelerator" in options and options.get("delegate") != "nnapi":
            raise UserError("accelerator goes with delegate=nnapi")
        if options.get("cache", "keep") not in ("keep", "no"):
            raise UserError(f"the option cache is 'keep' or 'no', but got {options['cache']!r}")

    def describe(self) -> str:
        """See `Device.describe`."""
        return f"the Android phone {self.uri.rest}".rstrip()

    @classmethod
    def found(cls) -> Sequence[Listed]:
        """Phones known to the adb server; it is not started for that. See `Device.found`."""
        try:
            adb = client(3)
            if not listening(adb):
                return ()
            with failures("adb"):
                phones = adb.list(extended=True)
        except (UserError, DeviceError):
            return ()
        return [
            Listed(
                f"adb://{p.serial}",
                "ready" if p.state == "device" else p.state,
                p.tags.get("model", "Android phone").replace("_", " "),
            )
            for p in phones
        ]

    def profile(self, artifact: Path, request: ProfileRequest) -> RawProfile:
        """See `Device.profile`."""
        if artifact.suffix != TFLITE:
            raise UserError(
                f"phones over adb run .tflite artifacts, and {artifact.name} is for {request.runtime}"
            )
        where = self.given.get("benchmark-model", "")
        tool, tool_sha = benchmark_tool.locate(where, self.given.get("benchmark-model-sha256", ""))
        adb = client(request.timeout_s)
        serial = choose(adb, self.uri.rest)
        phone = Phone(adb.device(serial=serial), serial, request.timeout_s)
        placed: list[str] = []
        try:
            placed.append(phone.keep(tool, tool_sha, mode=0o755))
            placed.append(phone.keep(artifact, sha256(artifact), TFLITE))
            flags = self._flags(phone, placed, artifact, request)
            return self._measure(phone, placed[0], flags, request, tool_sha)
        finally:
            phone.tidy(placed if self.given.get("cache") == "no" else ())

    def _flags(self, phone: Phone, placed: list[str], artifact: Path, request: ProfileRequest) -> list[str]:
        """The tool's flags that are the same in every process."""
        flags = [f"--graph={placed[1]}", *DELEGATES[self.given.get("delegate", "xnnpack")]]
        flags.append(f"--num_threads={request.threads or 4}")
        flags.append(f"--max_secs={max(1.0, request.timeout_s / 2):g}")  # it is silent while it runs
        if name := self.given.get("accelerator"):
            flags += [f"--nnapi_accelerator_name={name}"]
        if request.samples is not None and (image := image_input(artifact, request)) is not None:
            data, shape = image
            placed.append(phone.keep(data, hashlib.sha256(data).hexdigest(), ".input"))
            flags += ["--input_layer=input", f"--input_layer_shape={','.join(map(str, shape))}"]
            flags += [f"--input_layer_value_files=input:{placed[2]}"]
        return flags

    def _measure(
        self, phone: Phone, tool: str, flags: Sequence[str], request: ProfileRequest, tool_sha: str
    ) -> RawProfile:
        processes = min(PROCESSES, request.runs)
        each = math.ceil(request.runs / processes)
        warm = [f"--warmup_runs={max(1, request.warmup or 0)}"]
        warm.append(f"--warmup_min_secs={WARM_S if request.warmup is None else 0}")
        timed = [*flags, *warm, f"--num_runs={each}", "--min_secs=0"]
        reports = [self._once(phone, tool, timed) for _ in range(processes)]
        memory = [*flags, *warm, "--num_runs=10", "--min_secs=0", "--report_peak_memory_footprint=true"]
        if request.per_op:  # and with the peak memory: neither is timed, both slow the runs down
            memory += ["--enable_op_profiling=true", "--max_profiling_buffer_entries=100000"]
        last = self._once(phone, tool, memory)
        random_input = not any(f.startswith("--input_layer=") for f in flags)
        return self._result(phone, request, reports, last, tool_sha, random_input)

    def _once(self, phone: Phone, tool: str, flags: Sequence[str]) -> Report:
        mask = self.given.get("cpu-mask")
        text = phone.run([*(["taskset", mask.removeprefix("0x")] if mask else []), tool, *flags])
        try:
            report = parse(text)
        except Unreadable as e:
            status = f" (exit status {phone.status})" if phone.status else ""
            raise DeviceError(f"benchmark_model failed on {phone.serial}{status}: {e}") from e
        if phone.status:
            raise DeviceError(f"benchmark_model failed on {phone.serial} (exit status {phone.status})")
        wanted = self.given.get("delegate", "xnnpack")
        if wanted in ("gpu", "nnapi") and report.partitions == 0:
            raise UserError(f"the {wanted} delegate of {phone.serial} takes nothing of this model")
        if wanted in ("gpu", "nnapi") and not any(wanted.upper() in name for name in report.delegates):
            raise DeviceError(f"the {wanted} delegate was not applied on {phone.serial}; it may not have one")
        return report

    def _result(
        self,
        phone: Phone,
        request: ProfileRequest,
        reports: Sequence[Report],
        last: Report,
        tool_sha: str,
        random_input: bool,
    ) -> RawProfile:
        first = reports[0]
        runs = [r.runs for r in reports]
        total = sum(r.count for r in runs)
        word = "median" if all(r.median is not None for r in runs) else "mean (this release prints no median)"
        mean = sum(r.avg * r.count for r in runs) / total
        notes = [
            f"each sample is the {word} of {runs[0].count} runs in a process of its own: benchmark_model "
            f"keeps no single times, so p90 and p99 say how processes differ",
            f"single runs, {total} in all: min {min(r.min for r in runs):.3f}, mean {mean:.3f}, "
            f"max {max(r.max for r in runs):.3f} ms",
            f"benchmark_model {tool_sha[:12]}",
        ]
        if random_input:
            notes.append("the input was the tool's own random numbers")
        share = {} if not first.nodes or first.inside is None else {"delegate": first.inside / first.nodes}
        ops = [_op(row, first.delegates) for row in last.ops]
        return RawProfile(
            runtime="benchmark_model",
            runtime_version=tool_sha[:12],
            threads=request.threads or 4,
            unit="+".join(first.delegates) or "CPU",
            load_ms=first.init_ms,
            first_ms=first.first_ms,
            samples_ms=tuple(r.median if r.median is not None else r.avg for r in runs),
            peak_rss_bytes=last.peak_bytes or last.overall_bytes,
            partitions=first.partitions,
            outside=tuple(op.name for op in ops if op.where == "CPU"),
            residency=share,
            ops=tuple(ops),
            ops_note="benchmark_model's profiler, which slows runs a little" if ops else "",
            host=_host(phone, self.given.get("cpu-mask")),
            notes=tuple(notes),
        )


def image_input(artifact: Path, request: ProfileRequest) -> tuple[bytes, tuple[int, ...]] | None:
    """The first sample as the model's only input wants it; None where the model has another form.

    Raises:
        UserError: The artifact is no TFLite model.
    """
    from ai_edge_litert.interpreter import Interpreter

    from repedge.devices.agent.samples import prepare

    assert request.samples is not None
    try:
        details = Interpreter(model_path=str(artifact)).get_input_details()
    except (ValueError, RuntimeError) as e:
        raise UserError(f"{artifact} is no TFLite model: {' '.join(str(e).split())[:200]}") from e
    shapes = [tuple(int(x) for x in d["shape"]) for d in details]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        return None
    spec = request.samples.model_dump(mode="json")
    first = prepare([(details[0]["name"], details[0]["dtype"], shapes[0])], spec)[0]
    return first[0].tobytes(), shapes[0]


def _op(row: OpRow, delegates: Sequence[str]) -> Op:
    """Operators inside a delegate are named ``Delegate/...`` by the tool; whole delegates by their type."""
    inside = row.name.startswith("Delegate/") or "delegate" in row.type.lower()
    where = (delegates[0] if delegates else "delegate") if inside else "CPU"
    name = re.sub(r"^\[(.*)\]:\d+$", r"\1", row.name)  # [tensors that it computes]:number of the node
    return Op(name=name, type=row.type, ms=row.ms, where=where)


def _host(phone: Phone, mask: str | None) -> HostInfo:
    _, output = phone.shell("; ".join(f"getprop {name}" for name in PROPERTIES) + "; nproc")
    maker, model, soc, release, cores, *_ = [line.strip() for line in output.split("\n")] + [""] * 5
    bits = int(mask, 16) if mask else 0
    return HostInfo(
        model=f"{maker} {model}".strip() or phone.serial,
        cpu=soc,
        cores=int(cores) if cores.isdigit() else None,
        affinity=tuple(i for i in range(64) if bits >> i & 1) if mask else None,
        os=f"Android {release}".strip(),
    )
