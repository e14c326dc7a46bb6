"""ONNX Runtime: CUDA where the build has it, else the CPU; its own profiler for operators."""

from __future__ import annotations

import json
import os
import tempfile

from repedge.devices.agent.engine import AgentError, Engine, default_threads, refused

TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class ONNXRuntime(Engine):
    """See Engine."""

    def __init__(self, artifact: str, request: dict) -> None:
        import numpy as np
        import onnxruntime as ort

        self._ort, self._path = ort, artifact
        self.version = ort.__version__
        if hasattr(ort, "disable_telemetry_events"):
            ort.disable_telemetry_events()
        self.threads = default_threads(request)
        available = ort.get_available_providers()
        self.unit = request.get("unit") or next(
            (p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available), available[0]
        )
        if self.unit not in available:
            known = ", ".join(available)
            raise AgentError(f"ONNX Runtime has no provider {self.unit!r} there; it has {known}", "user")
        self._session = self._open(None)
        self.unit = self._session.get_providers()[0]
        odd = [i.type for i in self._session.get_inputs() if i.type not in TYPES]
        if odd:
            raise AgentError(f"inputs of type {odd[0]} can't be filled", "user")
        self.inputs = [
            (i.name, np.dtype(TYPES[i.type]), tuple(d if isinstance(d, int) else -1 for d in i.shape))
            for i in self._session.get_inputs()
        ]
        self._feeds: dict = {}
        self._last: list = []

    def _open(self, trace: str | None):  # type: ignore[no-untyped-def]
        options = self._ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self.threads
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = trace
        try:
            fallback = [] if self.unit == "CPUExecutionProvider" else ["CPUExecutionProvider"]
            return self._ort.InferenceSession(self._path, options, providers=[self.unit, *fallback])
        except Exception as e:  # a class of its own for each status code
            raise refused("ONNX Runtime", e, self.version) from e

    def feed(self, arrays: list) -> None:
        """See Engine.feed."""
        self._feeds = {name: array for (name, _, _), array in zip(self.inputs, arrays)}  # noqa: B905

    def invoke(self) -> None:
        """See Engine.invoke."""
        self._last = self._session.run(None, self._feeds)

    def outputs(self) -> list:
        """See Engine.outputs."""
        return [(o.name, a) for o, a in zip(self._session.get_outputs(), self._last)]  # noqa: B905

    def operators(self, runs: int) -> tuple:
        """See Engine.operators."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(os.path.join(folder, "trace"))
            session.run(None, self._feeds)
            for _ in range(runs):
                session.run(None, self._feeds)
            with open(session.end_profiling(), encoding="utf-8") as f:
                events = json.load(f)
        ops = summarise(events, runs)
        return ops, f"ONNX Runtime's own profiler, median of {runs} runs; profiling slows a run a little"


def summarise(events: list, runs: int) -> list:
    """Rows of operators from a trace of ``runs`` runs after a first one that does not count."""
    rows: dict = {}
    for e in events:
        args = e.get("args") or {}
        if e.get("cat") != "Node" or not str(e.get("name", "")).endswith("_kernel_time"):
            continue
        name = e["name"][: -len("_kernel_time")]
        row = rows.setdefault(name, {"name": name, "type": args.get("op_name", ""), "times": []})
        row["where"] = str(args.get("provider", "")).replace("ExecutionProvider", "")
        shapes = args.get("output_type_shape") or [{}]
        row["shape"] = next(iter(shapes[0].values()), []) if isinstance(shapes[0], dict) else []
        row["times"].append(e["dur"] / 1000)
    for row in rows.values():
        times = row.pop("times")[1:]
        row["ms"] = sorted(times)[len(times) // 2] if times else None
    return list(rows.values())
