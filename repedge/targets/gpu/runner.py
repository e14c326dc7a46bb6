"""Running the GPU artifact in ONNX Runtime, and, on a CPU, with float16 arithmetic beside that.

What runs is the file as it ships, in ONNX Runtime's default settings. Its CPU kernels have no float16: it
runs such a graph in float32 and takes out the Casts in between, so that nothing is rounded after the
weights and nothing overflows. To see what a GPU will compute, a second run on a CPU has the rounding
written into the graph: each operator computes in float32, as tensor cores accumulate, and its result is
rounded to float16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import DeviceError
from repedge.graph.values import const
from repedge.targets.base import NONE, Runner

CHUNK = 16
"""Images that the runner passes at once, to bound memory."""

MOVES = {"Concat", "DepthToSpace", "Flatten", "MaxPool", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split"}
MOVES |= {"GlobalMaxPool", "Max", "Min", "Pad", "Transpose"}
"""Operators that only pick among float16 numbers, so that rounding changes nothing."""

ROUNDED = "with float16 rounding after every operator, as on a GPU"
"""What the second run is called."""


class ONNXRuntimeRunner(Runner):
    """An ONNX Runtime session on CUDA without TF32, else on the CPU; a fixed batch is filled up."""

    def __init__(self, path: Path, outputs: Sequence[str], threads: int | None) -> None:
        import onnxruntime as ort

        self._path, self._outputs, self._threads = path, list(outputs), threads
        self._cuda = "CUDAExecutionProvider" in ort.get_available_providers()
        self._session = _session(path, path.name, threads, self._cuda)
        self._input = self._session.get_inputs()[0].name  # the image comes first
        first = self._session.get_inputs()[0].shape[0]
        self._fixed = first if isinstance(first, int) else 0

    def run(self, batch: np.ndarray, tensors: Mapping[str, np.ndarray] = NONE) -> list[np.ndarray]:
        """See `Runner.run`."""
        return self._run(self._session, batch, tensors)

    def others(
        self, batch: np.ndarray, tensors: Mapping[str, np.ndarray] = NONE
    ) -> Mapping[str, list[np.ndarray]]:
        """See `Runner.others`: a float16 file on a CPU, rounded as on a GPU."""
        model = None if self._cuda else rounding(self._path)
        if model is None:
            return {}
        source = ir.to_proto(model).SerializeToString()
        session = _session(source, self._path.name, self._threads, False)
        return {ROUNDED: self._run(session, batch, tensors)}

    def _run(self, session: Any, batch: np.ndarray, tensors: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        parts, step = [], 1 if tensors else self._fixed or CHUNK  # tensors have no axis for images
        for i in range(0, len(batch), step):
            chunk = batch[i : i + step]
            missing = self._fixed - len(chunk) if self._fixed else 0
            filled = np.concatenate([chunk, np.repeat(chunk[-1:], missing, 0)]) if missing else chunk
            feeds = {self._input: np.ascontiguousarray(filled)}
            feeds |= {name: np.ascontiguousarray(array[i]) for name, array in tensors.items()}
            try:
                parts.append([y[: len(chunk)] if missing else y for y in session.run(self._outputs, feeds)])
            except Exception as error:  # onnxruntime raises a class of its own for each status code
                raise DeviceError(f"ONNX Runtime failed to run: {error}") from error
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def rounding(path: Path) -> ir.Model | None:
    """The float16 network of a file as float32 operators, each with its result rounded to float16.

    Returns:
        None if nothing in the file is float16.
    """
    model = ir.load(path)
    graph = model.graph
    weights = [v for v in graph.initializers.values() if v.dtype == ir.DataType.FLOAT16]
    if not weights and not any(_to_half(node) for node in graph):
        return None
    for value in weights:
        array = const(value)
        if array is not None:
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in list(graph):
        if node.op_type == "Cast":
            if _to_half(node):
                _follow(graph, node, node.outputs[0], (ir.DataType.FLOAT,))
            continue
        for value in [v for v in node.outputs if v.dtype in (None, ir.DataType.FLOAT16)]:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if node.op_type not in MOVES:
                _follow(graph, node, value, (ir.DataType.FLOAT16, ir.DataType.FLOAT))
    return model


def _to_half(node: ir.Node) -> bool:
    return node.op_type == "Cast" and node.attributes["to"].value == ir.DataType.FLOAT16


def _follow(graph: ir.Graph, node: ir.Node, value: ir.Value, dtypes: Sequence[ir.DataType]) -> None:
    """Cast a value to one type after the other, and let its readers read the last."""
    readers, last, after = list(value.uses()), value, node
    for dtype in dtypes:
        name = f"{value.name}/as {dtype.name}"
        out = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
        cast = ir.node("Cast", [last], {"to": int(dtype)}, outputs=[out], name=name)
        graph.insert_after(after, cast)
        last, after = out, cast
    for use in readers:
        use.node.replace_input_with(use.idx, last)


def _session(model: Path | bytes, name: str, threads: int | None, cuda: bool) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised, not printed
    if threads is not None:
        options.intra_op_num_threads = threads
    providers: list[Any] = ["CPUExecutionProvider"]
    if cuda:
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
    try:
        source = model if isinstance(model, bytes) else str(model)
        return ort.InferenceSession(source, options, providers=providers)
    except Exception as error:  # as above
        raise DeviceError(f"ONNX Runtime could not load {name}: {error}") from error
