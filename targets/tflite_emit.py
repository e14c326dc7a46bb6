"""What a lowering works with: tensors of ONNX values in the layout it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.values import const, only_reader, shape_of
from repedge.targets.tflite_layout import Layout, natural, same_bytes, stored, transposition
from repedge.targets.tflite_writer import Load, Tensor, Writer, schema

ACTIVATIONS = {
    (0.0, np.inf): schema.ActivationFunctionType.RELU,
    (0.0, 6.0): schema.ActivationFunctionType.RELU6,
    (-1.0, 1.0): schema.ActivationFunctionType.RELU_N1_TO_1,
}
"""Clamping bounds that an operator can apply to its own output."""

NO_ACTIVATION = schema.ActivationFunctionType.NONE
_HALF_MAX = float(np.finfo(np.float16).max)


def bounds(node: ir.Node) -> tuple[float, float]:
    """Lower and upper bound of a Relu or Clip node with constant bounds.

    Raises:
        UserError: A bound is computed.
    """
    if node.op_type == "Relu":
        return 0.0, np.inf
    found = [-np.inf, np.inf]
    for i, value in enumerate(node.inputs[1:3]):
        if value is not None:
            array = const(value)
            if array is None:
                raise UserError("its bounds are computed, not constant")
            found[i] = float(array.reshape(()))
    return found[0], found[1]


class Emitter:
    """The graph while it is lowered.

    Attributes:
        writer: Receives tensors and operators.
        done: Nodes that an earlier node took along.
        flat: Flattened values whose readers take the unflattened tensor: value -> (tensor, layout,
            ONNX shape before flattening).
        notes: Sentences for `Artifact.notes`.
    """

    def __init__(self, writer: Writer, half: bool) -> None:
        self.writer = writer
        self.half = half
        self.done: set[ir.Node] = set()
        self.flat: dict[ir.Value, tuple[int, Layout, tuple[int, ...]]] = {}
        self.notes: list[str] = []
        self._stored: dict[ir.Value, dict[Layout, int]] = {}
        self._ints: dict[tuple[int, ...], int] = {}

    def op(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], version: int = 1, **options: Any
    ) -> None:
        """Add an operator (see `Writer.op`)."""
        self.writer.op(name, inputs, outputs, version, **options)

    # Values of the ONNX graph

    def layout(self, value: ir.Value) -> Layout:
        """The layout that a value was first stored in."""
        found = self._stored.get(value)
        return next(iter(found)) if found else natural(len(shape_of(value)))

    def layouts(self, value: ir.Value) -> dict[Layout, int]:
        """Every tensor that holds a value, by layout, oldest first."""
        return self._stored.get(value, {})

    def read(self, value: ir.Value | None, layout: Layout | None = None) -> int:
        """The tensor of a value in a layout (by default the one it has), made if there is none."""
        shape = shape_of(value)
        assert value is not None
        layout = self.layout(value) if layout is None else layout
        tensors = self._stored.setdefault(value, {})
        if layout not in tensors:
            if const(value) is not None:
                tensors[layout] = self._initializer(value, layout)
            else:
                first, tensor = next(iter(tensors.items()))
                name = f"{value.name}/{''.join(map(str, layout))}"
                tensors[layout] = self.relayout(tensor, shape, first, layout, name)
        return tensors[layout]

    def write(self, value: ir.Value, layout: Layout | None = None) -> int:
        """A new tensor for a value that an operator is about to compute."""
        shape = shape_of(value)
        layout = natural(len(shape)) if layout is None else layout
        tensor = self.scratch(value.name or "", stored(shape, layout))
        self.store(value, layout, tensor)
        return tensor

    def store(self, value: ir.Value, layout: Layout, tensor: int) -> None:
        """Say that a tensor holds a value."""
        self._stored.setdefault(value, {})[layout] = tensor

    def relayout(self, tensor: int, shape: Sequence[int], before: Layout, after: Layout, name: str) -> int:
        """Bring a tensor into another layout: free if only axes of length 1 move, else a TRANSPOSE."""
        if before == after:
            return tensor
        result = self.scratch(name, stored(shape, after))
        if same_bytes(shape, before, after):
            self.reshape(tensor, result)
        else:
            self.op("TRANSPOSE", [tensor, self.ints(transposition(before, after))], [result])
        return result

    def reshape(self, tensor: int, result: int) -> None:
        """RESHAPE a tensor to the shape of ``result``."""
        shape = self.writer.tensors[result].shape
        self.op("RESHAPE", [tensor, self.ints(shape)], [result], newShape=list(shape))

    def tail(self, node: ir.Node) -> tuple[ir.Value, int]:
        """The output of a node and the activation to fuse into it, if the only reader is one."""
        out = node.outputs[0]
        reader = only_reader(out)
        if reader is None or reader.op_type not in ("Relu", "Clip") or reader.inputs[0] is not out:
            return out, NO_ACTIVATION
        activation = ACTIVATIONS.get(bounds(reader))
        if activation is None:
            return out, NO_ACTIVATION
        self.done.add(reader)
        return reader.outputs[0], activation

    # Tensors that ONNX does not have

    def scratch(self, name: str, shape: Sequence[int], dtype: str = "float32") -> int:
        """A tensor that an operator will write."""
        return self.writer.tensor(Tensor(name, tuple(shape), dtype))

    def ints(self, values: Sequence[int]) -> int:
        """An int32 vector such as a shape or axes; equal ones are shared."""
        key = tuple(int(v) for v in values)
        if key not in self._ints:
            array = np.array(key, np.int32)
            name = "int/" + "_".join(map(str, key))
            self._ints[key] = self.writer.tensor(Tensor(name, array.shape, "int32", lambda: array))
        return self._ints[key]

    def floats(self, name: str, array: np.ndarray) -> int:
        """A float32 constant: a bias, a scale, a bound."""
        array = np.asarray(array, np.float32)
        return self.writer.tensor(Tensor(name, array.shape, "float32", lambda: array))

    def weight(self, name: str, shape: Sequence[int], load: Load) -> int:
        """A filter or weight matrix: float32, or float16 behind a DEQUANTIZE in an fp16 artifact.

        That is the form of TensorFlow's float16 post-training quantization: XNNPACK and the GPU
        delegate take the float16 values, other kernels widen them once.
        """
        if not self.half:
            return self.writer.tensor(Tensor(name, tuple(shape), "float32", load))
        values = load()
        if max(float(values.max()), -float(values.min())) > _HALF_MAX:
            self.notes.append(f"{name} stays float32: it has values beyond float16's {_HALF_MAX:.0f}")
            return self.writer.tensor(Tensor(name, tuple(shape), "float32", load))
        half = self.writer.tensor(Tensor(f"{name}/fp16", tuple(shape), "float16", load))
        full = self.scratch(name, shape)
        self.op("DEQUANTIZE", [half], [full], version=3)
        return full

    def _initializer(self, value: ir.Value, layout: Layout) -> int:
        array = const(value)
        assert array is not None
        return self.floats(value.name or "", array.transpose(layout))
