"""Core ML packages opened for running: in Core ML itself, or in repedge's interpreter."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repedge.errors import DeviceError, RepedgeError
from repedge.targets.base import Job, Runner

EXECUTOR = "Core ML" if sys.platform == "darwin" else "repedge's MIL interpreter"
"""What runs packages on this host."""


class _PackageRunner(Runner):
    """Feeds a batch to a single-image model, one image at a time."""

    def __init__(self, outputs: Sequence[str]) -> None:
        self._outputs = list(outputs)

    def _predict(self, item: np.ndarray) -> dict[str, Any]:
        """Outputs for one image: uint8 [H, W, C], or float32 [C, H, W]."""
        raise NotImplementedError

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        try:
            results = [self._predict(np.ascontiguousarray(item)) for item in batch]
        except RepedgeError:
            raise
        except Exception as error:
            raise DeviceError(f"{EXECUTOR} failed on the package: {error}") from error
        return [np.concatenate([_numbers(r[name]) for r in results]) for name in self._outputs]


def _numbers(output: Any) -> np.ndarray:
    """An output as float32, or as the whole numbers that it holds."""
    array = np.asarray(output)
    return array if array.dtype.kind in "iu" else array.astype(np.float32)


class InterpreterRunner(_PackageRunner):
    """The saved package in repedge's own interpreter, which rounds like the program's precision."""

    def __init__(self, path: Path, job: Job, outputs: Sequence[str]) -> None:
        from repedge.targets.coreml.interpreter.interpreter import load

        super().__init__(outputs)
        self._program = load(path)
        self._feature = self._program.inputs[0]

    def _predict(self, item: np.ndarray) -> dict[str, Any]:
        feed = item if self._feature.kind == "image" else item[None]
        return self._program.run({self._feature.name: feed})


class CoreMLRunner(_PackageRunner):
    """The saved package in Core ML itself."""

    def __init__(self, path: Path, job: Job, outputs: Sequence[str]) -> None:
        from repedge.targets.coreml.package import import_coremltools

        super().__init__(outputs)
        self._model = import_coremltools().models.MLModel(str(path))
        self._input = self._model.get_spec().description.input[0].name
        self._image = job.input_kind == "uint8"

    def _predict(self, item: np.ndarray) -> dict[str, Any]:
        if not self._image:
            return self._model.predict({self._input: item[None]})
        from PIL import Image

        pixels = item if item.shape[2] == 3 else item[..., 0]
        return self._model.predict({self._input: Image.fromarray(pixels)})
