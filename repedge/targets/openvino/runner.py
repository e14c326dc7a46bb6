"""An IR opened in OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repedge.errors import DeviceError
from repedge.targets.base import NONE, Runner
from repedge.targets.openvino.importing import import_openvino


class OpenVINORunner(Runner):
    """A compiled IR with batch size 1; batches are looped over."""

    def __init__(self, path: Path, outputs: Sequence[str], threads: int | None) -> None:
        openvino = import_openvino()

        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            compiled = openvino.Core().compile_model(path, "CPU", config)
            self._ports = [compiled.output(name) for name in outputs]
            self._takes = [port.get_any_name() for port in compiled.inputs]
            self._request = compiled.create_infer_request()
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO could not load {path.name}: {_first_line(error)}") from error

    def run(self, batch: np.ndarray, tensors: Mapping[str, np.ndarray] = NONE) -> list[np.ndarray]:
        """See `Runner.run`."""
        image = next((name for name in self._takes if name not in tensors), "")
        results: list[list[np.ndarray]] = [[] for _ in self._ports]
        for i in range(len(batch)):
            try:
                feeds = {image: np.ascontiguousarray(batch[i : i + 1])}
                feeds |= {name: np.ascontiguousarray(array[i]) for name, array in tensors.items()}
                self._request.infer(feeds)
            except RuntimeError as error:
                raise DeviceError(f"OpenVINO failed to run: {_first_line(error)}") from error
            for found, port in zip(results, self._ports, strict=True):
                found.append(self._request.get_tensor(port).data.copy())
        return [np.concatenate(found) for found in results]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
