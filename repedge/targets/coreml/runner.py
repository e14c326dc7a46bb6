"""Core ML packages opened for running: in Core ML itself, or in repedge's interpreter."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repedge.errors import DeviceError, RepedgeError
from repedge.targets.base import NONE, Job, Runner

EXECUTOR = "Core ML" if sys.platform == "darwin" else "repedge's MIL interpreter"
"""What runs packages on this host."""


class _PackageRunner(Runner):
    """Feeds a batch to a single-image model, one image at a time."""

    def __init__(self, outputs: Sequence[str]) -> None:
        self._outputs = list(outputs)

    def _predict(self, item: np.ndarray, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Outputs for one image, uint8 [H, W, C] or float32 [C, H, W], and what is beside it."""
        raise NotImplementedError

    def run(self, batch: np.ndarray, tensors: Mapping[str, np.ndarray] = NONE) -> list[np.ndarray]:
        """See `Runner.run`."""
        try:
            results = [
                self._predict(np.ascontiguousarray(item), {n: a[i] for n, a in tensors.items()})
                for i, item in enumerate(batch)
            ]
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

    def _predict(self, item: np.ndarray, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        feature = next(f for f in self._program.inputs if f.name not in tensors)
        feed = item if feature.kind == "image" else item[None]
        return self._program.run({feature.name: feed, **tensors})


class CoreMLRunner(_PackageRunner):
    """The saved package in Core ML itself."""

    def __init__(self, path: Path, job: Job, outputs: Sequence[str]) -> None:
        from repedge.targets.coreml.package import import_coremltools

        super().__init__(outputs)
        self._model = import_coremltools().models.MLModel(str(path))
        self._takes = [f.name for f in self._model.get_spec().description.input]
        self._image = job.input_kind == "uint8"

    def _predict(self, item: np.ndarray, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        image = next(name for name in self._takes if name not in tensors)
        if not self._image:
            return self._model.predict({image: item[None], **tensors})
        from PIL import Image

        pixels = item if item.shape[2] == 3 else item[..., 0]
        return self._model.predict({image: Image.fromarray(pixels), **tensors})
