"""Core ML on macOS, through coremltools: its benchmarker for times, its compute plan for places."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from repedge.devices.agent.engine import AgentError, Engine, refused

UNITS = {"": "ALL", "all": "ALL", "ane": "CPU_AND_NE", "gpu": "CPU_AND_GPU", "cpu": "CPU_ONLY"}


class CoreML(Engine):
    """See Engine. Times are Core ML's own, of the prediction alone."""

    def __init__(self, artifact: str, request: dict) -> None:
        if sys.platform != "darwin":
            raise AgentError(
                "Core ML runs on Apple's systems only: use ssh:// to a Mac, or iphone://", "user"
            )
        import coremltools as ct
        from coremltools.models.ml_program.experimental import perf_utils

        self.version = ct.__version__
        wanted = (request.get("unit") or "").lower()
        if wanted not in UNITS:
            raise AgentError("the compute unit is one of all, ane, gpu, cpu", "user")
        self.unit = wanted or "all"
        self.threads = None  # type: ignore[assignment]
        self._loop: Any = asyncio.new_event_loop()
        try:
            units = getattr(ct.ComputeUnit, UNITS[wanted])
            self._model: Any = ct.models.MLModel(artifact, compute_units=units)
        except Exception as e:  # coremltools wraps Core ML's errors in several classes
            raise refused("Core ML", e, self.version) from e
        self._bench: Any = perf_utils.MLModelBenchmarker(self._model)
        self._plan: list = []
        self._described: list = list(self._model.get_spec().description.input)
        self.inputs = [_input(d) for d in self._described]
        self._values: dict = {}

    def feed(self, arrays: list) -> None:
        """See Engine.feed."""
        self._values = {}
        for described, array in zip(self._described, arrays):  # noqa: B905
            if described.type.WhichOneof("Type") == "imageType":
                from PIL import Image

                pixels = array[0] if array.shape[3] == 3 else array[0, :, :, 0]
                self._values[described.name] = Image.fromarray(pixels)
            else:
                self._values[described.name] = array

    def invoke(self) -> None:
        """See Engine.invoke."""
        self.timed()

    def timed(self) -> float:
        """See Engine.timed: Core ML's own measure, without Python's part of the call."""
        measured = self._loop.run_until_complete(
            self._bench.benchmark_predict(inputs=self._values, iterations=1)
        )
        return float(measured.samples[0])

    def outputs(self) -> list:
        """See Engine.outputs."""
        return [(k, v) for k, v in self._model.predict(self._values).items() if hasattr(v, "dtype")]

    def _operations(self, runs: int) -> list:
        if not self._plan:
            self._plan = self._loop.run_until_complete(
                self._bench.benchmark_operation_execution(inputs=self._values, iterations=runs)
            )
        return self._plan

    def facts(self) -> dict:
        """See Engine.facts: the share of the estimated work on each unit, and stretches on the ANE."""
        shares: dict = {}
        places = []
        for row in rows(self._operations(5)):
            if row["where"]:
                places.append(row)
                shares[row["where"]] = shares.get(row["where"], 0.0) + (row["ms"] or 0.0)
        total = sum(shares.values()) or 1.0
        return {
            "residency": {k: v / total for k, v in shares.items()},
            "outside": [r["type"] + " " + r["name"] for r in places if r["where"] != "ane"],
        }

    def operators(self, runs: int) -> tuple:
        """See Engine.operators."""
        found = rows(self._operations(runs))
        return found, "coremltools' benchmarker: time of the run times the plan's weight, an estimate"


def rows(operations: list) -> list:
    """Rows of the benchmarker's answer; constants, which have no place, are left out."""
    found = []
    for info in operations:
        usage, statistics = info.compute_device_usage, info.measurement.statistics
        if usage is None and statistics is None:
            continue
        names = [str(o.name) for o in info.spec.outputs]
        found.append(
            {
                "name": names[0] if names else "",
                "type": str(info.spec.type),
                "ms": float(statistics.median) if statistics is not None else None,
                "where": unit_of(usage.preferred_compute_device) if usage is not None else "",
            }
        )
    return found


def unit_of(device: object) -> str:
    """``ane``, ``gpu`` or ``cpu`` for a compute device of coremltools."""
    name = type(device).__name__.lower()
    return "ane" if "neuralengine" in name else "gpu" if "gpu" in name else "cpu"


def _input(described) -> tuple:  # type: ignore[no-untyped-def]
    """(name, dtype, shape): an image is asked for as RGB (or grey) pixels."""
    import numpy as np

    kind = described.type.WhichOneof("Type")
    if kind == "imageType":
        image = described.type.imageType
        grey = image.colorSpace == image.ColorSpace.Value("GRAYSCALE")
        return described.name, np.dtype("uint8"), (1, image.height, image.width, 1 if grey else 3)
    if kind != "multiArrayType":
        raise AgentError("input %r is neither an image nor an array" % described.name, "user")  # noqa: UP031
    array = described.type.multiArrayType
    names = {array.FLOAT16: "float16", array.INT32: "int32", array.DOUBLE: "float64"}
    return described.name, np.dtype(names.get(array.dataType, "float32")), tuple(array.shape)
