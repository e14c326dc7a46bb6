"""OpenVINO: latency and throughput hints, the plugin's own per-operator counters."""

from __future__ import annotations

import sys

from repedge.devices.agent.engine import AgentError, Engine, default_threads, refused


class OpenVINO(Engine):
    """See Engine."""

    def __init__(self, artifact: str, request: dict) -> None:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it forks, to phone home
        import openvino

        self._ov, self._path = openvino, artifact
        self.version = openvino.__version__.partition("-")[0]
        self.unit = request.get("unit") or "CPU"
        self.threads = default_threads(request)
        self._config: dict = {"PERFORMANCE_HINT": (request.get("hint") or "latency").upper()}
        if self.unit == "CPU":
            self._config["INFERENCE_NUM_THREADS"] = self.threads
            precision = request.get("infer_precision") or "f32"
            if precision != "auto":  # left alone, bf16 or f16 where the CPU has it, which nobody verified
                self._config["INFERENCE_PRECISION_HINT"] = precision
        core = openvino.Core()
        if self.unit.partition(":")[0].partition(".")[0] not in (
            *core.available_devices,
            "AUTO",
            "HETERO",
            "MULTI",
        ):
            known = ", ".join(core.available_devices)
            raise AgentError(f"OpenVINO sees no device {self.unit!r} there; it sees {known}", "user")
        try:
            model = core.read_model(artifact)
            dynamic = {p: _shape(p) for p in model.inputs if p.partial_shape.is_dynamic}
            if dynamic:
                model.reshape(dynamic)
            self._compiled = core.compile_model(model, self.unit, self._config)
        except RuntimeError as e:
            raise refused("OpenVINO", e, self.version) from e
        self._core, self._model = core, model
        self._request = self._compiled.create_infer_request()
        self.inputs = [
            (p.get_any_name(), p.get_element_type().to_dtype(), tuple(int(d) for d in p.get_shape()))
            for p in self._compiled.inputs
        ]
        if self.unit == "CPU":
            self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))

    def feed(self, arrays: list) -> None:
        """See Engine.feed."""
        self._feed(self._request, arrays)

    def _feed(self, request, arrays: list) -> None:  # type: ignore[no-untyped-def]
        for i, array in enumerate(arrays):
            request.get_input_tensor(i).data[...] = array

    def invoke(self) -> None:
        """See Engine.invoke. In this thread, as apps do: a request handed to another waits for it to wake."""
        self._request.infer()

    def timed(self) -> float:
        """See Engine.timed: by the request's own clock, as benchmark_app does: without Python's share."""
        self.invoke()
        return float(self._request.latency)

    def outputs(self) -> list:
        """See Engine.outputs."""
        found = []
        for i, port in enumerate(self._compiled.outputs):
            name = next(iter(port.get_names()), str(i))
            found.append((name, self._request.get_output_tensor(i).data))
        return found

    def facts(self) -> dict:
        """See Engine.facts."""
        try:
            used = str(self._compiled.get_property("INFERENCE_PRECISION_HINT")).strip("<>").split("'")
            precision = used[1] if len(used) > 2 else used[0]
        except RuntimeError:
            precision = ""
        return {"precision_used": precision.replace("float32", "f32").replace("bfloat16", "bf16")}

    def operators(self, runs: int) -> tuple:
        """See Engine.operators."""
        compiled = self._core.compile_model(self._model, self.unit, {**self._config, "PERF_COUNT": True})
        request = compiled.create_infer_request()
        for i in range(len(self.inputs)):
            request.get_input_tensor(i).data[...] = self._request.get_input_tensor(i).data
        rows: dict = {}
        request.infer()  # the first run allocates
        for _ in range(runs):
            request.infer()
            for c in request.profiling_info:
                row = rows.setdefault((c.node_name, c.node_type), [c, []])
                row[1].append(c.real_time.total_seconds() * 1000)
        shapes = _output_shapes(compiled)
        ran = [(c, ms) for c, ms in rows.values() if str(c.status).endswith("EXECUTED")]
        ops = [
            {
                "name": c.node_name,
                "type": c.node_type,
                "ms": sorted(ms)[len(ms) // 2],
                "where": c.exec_type,
                "precision": _precision(c),
                "shape": shapes.get(c.node_name, []),
            }
            for c, ms in ran
        ]
        return (
            ops,
            f"the plugin's own counters (PERF_COUNT), median of {runs} runs; counting slows a run a little",
        )

    def saturate(self, runs: int, arrays: list) -> tuple:
        """See Engine.saturate."""
        import time

        count = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        requests = [self._compiled.create_infer_request() for _ in range(count)]
        for i, request in enumerate(requests):
            self._feed(request, arrays[i % len(arrays)])
            request.infer()
        times: list = []
        began = time.perf_counter()
        for request in requests[: min(count, runs)]:
            request.start_async()
        started = min(count, runs)
        while len(times) < runs:
            request = requests[len(times) % count]
            request.wait()
            times.append(request.latency)
            if started < runs:
                request.start_async()
                started += 1
        return times, runs / (time.perf_counter() - began)


def _shape(port) -> list:  # type: ignore[no-untyped-def]
    dims = [d.get_length() if d.is_static else 0 for d in port.partial_shape]
    last = len(dims) == 4 and dims[3] in (1, 3)
    defaults = [1, 224, 224, 3] if last else [1, 3, 224, 224]
    return [d or (defaults[i] if i < 4 else 1) for i, d in enumerate(dims)]


def _output_shapes(compiled) -> dict:  # type: ignore[no-untyped-def]
    """Node name -> shape of its first output, of the graph that runs."""
    found = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        if node.get_output_size() and node.get_output_partial_shape(0).is_static:
            found[node.get_friendly_name()] = [int(d) for d in node.get_output_shape(0)]
    return found


def _precision(counter) -> str:  # type: ignore[no-untyped-def]
    """``brgconv_avx512_f32`` ends in what it computed in."""
    return counter.exec_type.rpartition("_")[2].lower()
