"""Runs a .tflite file, and says which of its operators the XNNPACK delegate took."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repedge import native
from repedge.errors import DeviceError
from repedge.targets.base import NONE, Runner

RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")
"""In order of preference; both hold the same Interpreter class."""

_SIGNATURE = "serving_default"
_BANNER = re.compile(rb"INFO: (Initialized|Created|Applying)[^\n]* delegate[^\n]*\n")
"""What the runtime's C++ code says of its delegate; there is no switch for it."""


def open_interpreter(path: Path, threads: int | None = None) -> Any:
    """An allocated interpreter of whichever runtime is installed.

    Raises:
        DeviceError: No runtime is installed, or it does not take the file.
    """
    for name in RUNTIMES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        try:
            with native.without(_BANNER):
                interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
                interpreter.allocate_tensors()
        except (RuntimeError, ValueError, OSError) as error:
            raise DeviceError(f"{name.partition('.')[0]} does not load {path}: {error}") from error
        return interpreter
    raise DeviceError("no TensorFlow Lite runtime is installed: pip install ai-edge-litert")


class TFLiteRunner(Runner):
    """One image at a time through the signature ``serving_default``."""

    def __init__(self, path: Path, outputs: Sequence[str], channels_first: bool, threads: int | None) -> None:
        self._interpreter = open_interpreter(path, threads)
        self._channels_first = channels_first
        try:
            signature = self._interpreter.get_signature_runner(_SIGNATURE)
            self._takes = signature.get_input_details()
            details = signature.get_output_details()
        except (ValueError, StopIteration) as error:
            raise DeviceError(f"{path} has no usable signature {_SIGNATURE!r}: {error}") from error
        missing = [name for name in outputs if name not in details]
        if missing:
            raise DeviceError(f"{path} has no output {', '.join(missing)}; it has {', '.join(details)}")
        self._outputs = [details[name]["index"] for name in outputs]

    def run(self, batch: np.ndarray, tensors: Mapping[str, np.ndarray] = NONE) -> list[np.ndarray]:
        """See `Runner.run`."""
        if self._channels_first and batch.ndim == 4:
            batch = batch.transpose(0, 2, 3, 1)
        image = self._image(tensors)
        rows = [
            self._one({image: batch[i : i + 1], **{n: a[i] for n, a in tensors.items()}})
            for i in range(len(batch))
        ]
        return [np.concatenate(column) for column in zip(*rows, strict=True)]

    def _image(self, tensors: Mapping[str, np.ndarray]) -> str:
        """The input that is none of the tensors."""
        free = [name for name in self._takes if name not in tensors]
        if len(free) != 1 or len(self._takes) != len(tensors) + 1:
            raise DeviceError(
                f"the artifact takes {', '.join(self._takes)}, but was given an image"
                + "".join(f" and {name}" for name in tensors)
            )
        return free[0]

    def _one(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for name, given in feeds.items():
            taken = self._takes[name]
            expected = tuple(map(int, taken["shape"]))
            if given.shape != expected or given.dtype != taken["dtype"]:
                raise DeviceError(
                    f"the artifact takes {np.dtype(taken['dtype']).name} {list(expected)}, "
                    f"but was given {given.dtype.name} {list(given.shape)}"
                )
        try:
            for name, given in feeds.items():
                self._interpreter.set_tensor(self._takes[name]["index"], np.ascontiguousarray(given))
            self._interpreter.invoke()
            found = [self._interpreter.get_tensor(index) for index in self._outputs]
        except (RuntimeError, ValueError) as error:
            raise DeviceError(f"TensorFlow Lite failed while running the model: {error}") from error
        return [y.transpose(0, 3, 1, 2) if y.ndim == 4 else y for y in found]

    def close(self) -> None:
        """See `Runner.close`."""
        self._interpreter = None


@dataclass(frozen=True)
class Partitions:
    """How the XNNPACK delegate divided a graph.

    Attributes:
        count: Parts that run inside the delegate.
        outside: Names of the operators that run outside of it, in order.
    """

    count: int
    outside: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether the delegate runs everything in one part."""
        return self.count == 1 and not self.outside


def partitions(path: Path) -> Partitions:
    """Load a file and see what the delegate that the runtime applies by itself took.

    The interpreter lists the original operators and, after them, one DELEGATE operator per part,
    without saying what is inside. An original operator is inside a part if the part's outputs can be
    computed backwards to the part's inputs through it.
    """
    interpreter = open_interpreter(path, 1)
    ops = interpreter._get_ops_details()  # the runtime has no public way to ask
    parts = [op for op in ops if op["op_name"] == "DELEGATE"]
    plain = [op for op in ops if op["op_name"] != "DELEGATE"]
    producer = {int(tensor): op for op in plain for tensor in op["outputs"]}
    inside: set[int] = set()
    for part in parts:
        sources = {int(tensor) for tensor in part["inputs"]}
        pending = [int(tensor) for tensor in part["outputs"]]
        while pending:
            op = producer.get(pending.pop())
            if op is not None and op["index"] not in inside:
                inside.add(op["index"])
                pending += [int(t) for t in op["inputs"] if int(t) not in sources]
    return Partitions(len(parts), tuple(op["op_name"] for op in plain if op["index"] not in inside))
