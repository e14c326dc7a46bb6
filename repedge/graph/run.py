"""Reference execution of a graph on the CPU by ONNX Runtime."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import DeviceError, UserError
from repedge.graph.inputs import Form
from repedge.graph.serde import skeleton
from repedge.photos.tensors import NONE

TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's word for an input's type -> numpy's."""

LARGE = 256 * 2**20
"""Bytes of weights from which a session saves memory instead of time per image."""


class Session:
    """A graph ready to run.

    Weights of an ``onnx_ir.Model`` are handed to the runtime by reference, so a model of any size
    costs no copy beyond what the runtime itself makes.

    Args:
        model: A graph, or the path of an ``.onnx`` file.
        threads: CPU threads; None leaves it to the runtime.
        optimize: Whether the runtime may rewrite the graph; False runs every node as it is written
            (for comparing nodes one by one). None: yes, unless the weights exceed ``LARGE``, for its
            rewritten copies cost 2.5 times the weights and more seconds than a few images take.
        outputs: Names of the values to return instead of the graph's outputs; intermediate values
            of an ``onnx_ir.Model`` may be named.
        form: How a file wants its inputs; None: the image comes first, as it is.

    Attributes:
        outputs: Names of the values that `run` returns, in order.

    Raises:
        DeviceError: The runtime refuses the graph.
        UserError: A name in ``outputs`` is no value of the graph.
    """

    def __init__(
        self,
        model: ir.Model | str | os.PathLike,
        threads: int | None = None,
        *,
        optimize: bool | None = None,
        outputs: Sequence[str] | None = None,
        form: Form | None = None,
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        if optimize is False or (optimize is None and _weight_bytes(model) > LARGE):
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # The graph's arrays and the OrtValues that borrow their memory live as long as the session.
        self._borrowed: list[Any] = []
        try:
            source = self._source(model, options, outputs)
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except UserError:
            raise
        except Exception as error:
            raise DeviceError(f"ONNX Runtime can't load the graph: {_first_line(error)}") from error
        known = [o.name for o in self._session.get_outputs()]
        missing = [name for name in outputs or () if name not in known]
        if missing:
            raise UserError(f"the graph has no output {missing[0]!r}; it has {', '.join(known)}")
        self.outputs = tuple(known if outputs is None else outputs)
        self._own_outputs = self.outputs if outputs is None else ()  # values inside may have any shape
        taken = {i.name: i for i in self._session.get_inputs()}
        self._form = form or Form(next(iter(taken)))
        self._input = taken.pop(self._form.image or next(iter(taken)))
        held = self._form.constants.items()
        self._held = {n: a.astype(TYPES[taken.pop(n).type], copy=False) for n, a in held if n in taken}
        self._others = {n: TYPES.get(i.type, "float32") for n, i in taken.items()}

    def _source(self, model: Any, options: Any, outputs: Sequence[str] | None) -> str | bytes:
        import onnxruntime as ort

        if not isinstance(model, ir.Model):
            return os.fspath(model)
        proto, arrays = skeleton(model, location="weights")
        if arrays:
            aligned = [np.require(a, requirements=["C", "A"]) for a in arrays.values()]
            tensors = [ort.OrtValue.ortvalue_from_numpy(a) for a in aligned]
            options.add_external_initializers(list(arrays), tensors)
            self._borrowed += [*aligned, *tensors]
        if outputs is not None:
            _expose(model, proto, outputs)
        return proto.SerializeToString()

    def run(self, x: np.ndarray, tensors: Mapping[str, np.ndarray] = NONE) -> list[np.ndarray]:
        """Run a batch of any size.

        Args:
            x: float32 [N, C, H, W], N >= 1. A graph of fixed batch B runs N / B times.
            tensors: What the graph takes beside the image, by name, [N, ...] each; then every image runs
                alone.

        Returns:
            One array per name in ``outputs``, with leading axis N.

        Raises:
            UserError: The shape does not fit the graph's input, or an output's first axis is no batch.
            DeviceError: The runtime failed.
        """
        x, shape = self._form.of_image(x), self._input.shape
        lacking = [name for name in self._others if name not in tensors]
        if lacking:
            raise UserError(f"the graph takes {lacking[0]!r} beside the image {self._input.name!r}")
        fits = len(shape) == x.ndim and all(
            not isinstance(want, int) or want == got for want, got in zip(shape[1:], x.shape[1:], strict=True)
        )
        step = shape[0] if fits and isinstance(shape[0], int) else max(1, len(x))
        if not fits or len(x) == 0 or len(x) % step:
            raise UserError(f"the graph's input {self._input.name!r} is {list(shape)}, not {list(x.shape)}")
        step = 1 if self._others else step
        x = np.ascontiguousarray(x, dtype=TYPES.get(self._input.type, "float32"))
        further = {n: tensors[n].astype(dtype, copy=False) for n, dtype in self._others.items()}
        parts = [
            self._call(x[i : i + step], {n: a[i] for n, a in further.items()}) for i in range(0, len(x), step)
        ]
        if len(parts) == 1:
            return parts[0]
        for arrays in parts:
            self.require_batches(arrays, step)
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _call(self, x: np.ndarray, further: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return self._session.run(list(self.outputs), {self._input.name: x, **further, **self._held})
        except Exception as error:
            raise DeviceError(f"ONNX Runtime failed: {_first_line(error)}") from error

    def require_batches(self, outputs: Sequence[np.ndarray], count: int) -> None:
        """Check that the first axis of the graph's outputs is ``count`` images long.

        Raises:
            UserError: It is not, in one of them.
        """
        for name, output in zip(self._own_outputs, outputs, strict=False):
            if output.ndim == 0 or len(output) != count:
                raise UserError(
                    f"output {name!r} is {list(output.shape)} for a batch of {count}: its first axis is not "
                    "the batch; keep that axis, as y.flatten(1) does and y.squeeze() does not"
                )


@contextlib.contextmanager
def as_brought(what: str) -> Iterator[None]:
    """A graph that fails before anything was done to it is the user's, not the runtime's.

    Raises:
        UserError: In place of `DeviceError`.
    """
    try:
        yield
    except DeviceError as error:
        raise UserError(f"{what} does not run as it is: {error}") from error


def _weight_bytes(model: ir.Model | str | os.PathLike) -> int:
    if isinstance(model, ir.Model):
        return sum(
            v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
        )
    return os.path.getsize(model) if os.path.isfile(model) else 0


def _expose(model: ir.Model, proto: Any, names: Sequence[str]) -> None:
    """Make the named values outputs of the message."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    present = {output.name for output in proto.graph.output}
    for name in names:
        if name in present:
            continue
        if name not in values:
            raise UserError(f"the graph has no value {name!r} to return")
        proto.graph.output.append(ir.serde.serialize_value(values[name]))
        present.add(name)


def _first_line(error: Exception) -> str:
    line = str(error).strip().split("\n", 1)[0]
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    return re.sub(r"Load model from \S+ failed:", "", line)
