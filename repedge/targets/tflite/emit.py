"""What a lowering works with: tensors of ONNX values in the layout it asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.values import const, only_reader, shape_of
from repedge.targets.tflite.layout import Layout, natural, same_bytes, stored, transposition
from repedge.targets.tflite.model import Load, Quant, Tensor
from repedge.targets.tflite.writer import Writer, schema

ACTIVATIONS = {
    (0.0, np.inf): schema.ActivationFunctionType.RELU,
    (0.0, 6.0): schema.ActivationFunctionType.RELU6,
    (-1.0, 1.0): schema.ActivationFunctionType.RELU_N1_TO_1,
}
"""Clamping bounds that an operator can apply to its own output."""

NO_ACTIVATION = schema.ActivationFunctionType.NONE
_HALF_MAX = float(np.finfo(np.float16).max)

DTYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.INT64: "int32",
    ir.DataType.INT32: "int32",
    ir.DataType.UINT8: "uint8",
    ir.DataType.BOOL: "bool",
}
"""Type of a value -> of its tensor. The int64 numbers of a graph are indices and sizes, which 32 bits hold;
few kernels take 64."""


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
        quants: Values that hold integers (see ``integers.graph``).
        dynamic: Types of layers that, with 8-bit weights, round a float input to 8 bits at run time, too.
        notes: Sentences for `Artifact.notes`.
    """

    def __init__(
        self,
        writer: Writer,
        half: bool,
        quants: Mapping[ir.Value, Quant] | None = None,
        dynamic: Collection[str] = (),
    ) -> None:
        self.writer = writer
        self.half = half
        self.quants = quants or {}
        self.dynamic = dynamic
        self.done: set[ir.Node] = set()
        self.flat: dict[ir.Value, tuple[int, Layout, tuple[int, ...]]] = {}
        self.notes: list[str] = []
        self._stored: dict[ir.Value, dict[Layout, int]] = {}
        self._ints: dict[tuple[tuple[int, ...], bytes], int] = {}

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
        tensor = self.scratch(
            value.name or "", stored(shape, layout), self.quants.get(value), self.dtype(value)
        )
        self.store(value, layout, tensor)
        return tensor

    def store(self, value: ir.Value, layout: Layout, tensor: int) -> None:
        """Say that a tensor holds a value."""
        self._stored.setdefault(value, {})[layout] = tensor

    def relayout(self, tensor: int, shape: Sequence[int], before: Layout, after: Layout, name: str) -> int:
        """Bring a tensor into another layout: free if only axes of length 1 move, else a TRANSPOSE."""
        if before == after:
            return tensor
        result = self.like(name, stored(shape, after), tensor)
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

    def scratch(
        self, name: str, shape: Sequence[int], quant: Quant | None = None, dtype: str = "float32"
    ) -> int:
        """A tensor that an operator will write: float32 or another type, or integers that stand for reals."""
        dtype = quant.dtype if quant is not None else dtype
        return self.writer.tensor(Tensor(name, tuple(shape), dtype, None, quant))

    def like(self, name: str, shape: Sequence[int], tensor: int) -> int:
        """A tensor that an operator will write, of the type of another."""
        return self.scratch(name, shape, self.quant(tensor), self.writer.tensors[tensor].dtype)

    def step(
        self,
        op: str,
        inputs: Sequence[int],
        name: str,
        shape: Sequence[int] | None = None,
        dtype: str | None = None,
        version: int = 1,
        **options: Any,
    ) -> int:
        """An operator on the way to a node's result; its tensor is by default as its first input is."""
        first = self.writer.tensors[inputs[0]]
        result = self.scratch(name, first.shape if shape is None else shape, None, dtype or first.dtype)
        self.op(op, inputs, [result], version, **options)
        return result

    @staticmethod
    def dtype(value: ir.Value) -> str:
        """The type of a value's tensor where it holds no integers that stand for reals."""
        return DTYPES.get(value.dtype or ir.DataType.FLOAT, "float32")

    def quant(self, tensor: int) -> Quant | None:
        """What the integers of a tensor stand for; None if it is float32."""
        return self.writer.tensors[tensor].quant

    def integer(self, node: ir.Node) -> bool:
        """Whether a node computes with integers."""
        return node.inputs[0] in self.quants

    def rounds(self, node: ir.Node) -> bool:
        """Whether a layer rounds its float input to 8 bits at run time (see `dynamic`)."""
        return node.inputs[1] in self.quants and not self.integer(node) and node.op_type in self.dynamic

    def ints(self, values: Sequence[int] | np.ndarray) -> int:
        """An int32 array such as a shape, axes or pads; equal ones are shared."""
        array = np.array(values, np.int32)
        key = (array.shape, array.tobytes())
        if key not in self._ints:
            name = "int/" + "_".join(map(str, array.ravel().tolist()))
            self._ints[key] = self.writer.tensor(Tensor(name, array.shape, "int32", lambda: array))
        return self._ints[key]

    def floats(self, name: str, array: np.ndarray | float) -> int:
        """A float32 constant: a bias, a scale, a bound."""
        array = np.asarray(array, np.float32)
        return self.writer.tensor(Tensor(name, array.shape, "float32", lambda: array))

    def number(self, name: str, value: float, like: int) -> int:
        """A single number of the type of another tensor (which holds no integers that stand for reals)."""
        dtype = self.writer.tensors[like].dtype
        array = np.asarray(value, dtype)
        return self.writer.tensor(Tensor(name, (), dtype, lambda: array))

    def integers(self, name: str, array: np.ndarray, quant: Quant) -> int:
        """An integer constant."""
        array = np.asarray(array, quant.dtype)
        return self.writer.tensor(Tensor(name, array.shape, quant.dtype, lambda: array, quant))

    def constant(self, name: str, array: np.ndarray, like: int) -> int:
        """Real numbers in the form that another tensor has."""
        quant = self.quant(like)
        return (
            self.floats(name, array) if quant is None else self.integers(name, quant.integers(array), quant)
        )

    def weight(
        self, node: ir.Node, name: str, shape: Sequence[int], load: Load, axis: int = 0, fold: bool = True
    ) -> int:
        """A filter or weight matrix: float32, int8, or float16 behind a DEQUANTIZE in an fp16 artifact.

        The last is the form of TensorFlow's float16 post-training quantization: XNNPACK and the GPU
        delegate take the float16 values, other kernels widen them once. int8 weights of a layer that
        computes with floats stand behind a DEQUANTIZE in the same way.

        Args:
            node: The layer; its second input is the weight.
            name: Name of the tensor.
            shape: Stored shape.
            load: Reads the stored weight.
            axis: Stored axis of the output channels.
            fold: Whether the kernel can round its float input at run time (`dynamic`).
        """
        quant = self.quants.get(node.inputs[1])  # type: ignore[arg-type]
        if quant is not None:
            quant = quant.along(axis)
            kept = self.integer(node) or (self.rounds(node) and fold)
            own_name = name if kept else f"{name}/int8"
            small = self.writer.tensor(Tensor(own_name, tuple(shape), quant.dtype, load, quant))
            return small if kept else self._widened(small, name)
        if not self.half:
            return self.writer.tensor(Tensor(name, tuple(shape), "float32", load))
        values = load()
        if max(float(values.max()), -float(values.min())) > _HALF_MAX:
            self.notes.append(f"{name} stays float32: it has values beyond float16's {_HALF_MAX:.0f}")
            return self.writer.tensor(Tensor(name, tuple(shape), "float32", load))
        half = self.writer.tensor(Tensor(f"{name}/fp16", tuple(shape), "float16", load))
        return self._widened(half, name)

    def bias(self, node: ir.Node, count: int, real: np.ndarray | None) -> int:
        """The bias of a layer; XNNPACK wants one even if it is zero.

        Integers of a layer that computes with integers are in the graph already; ``real`` is the bias
        of any other.
        """
        if not self.integer(node):
            return self.floats(f"{node.name}/bias", np.zeros(count) if real is None else real)
        given = node.inputs[2] if len(node.inputs) > 2 else None
        array = const(given)
        if given is not None and array is not None:
            return self.integers(f"{node.name}/bias", array, self.quants[given].along(0))
        x, w = (self.quants[v] for v in node.inputs[:2])  # type: ignore[index]
        scales = tuple(float(np.float32(x.scale[0] * s)) for s in w.scale)
        dtype = "int64" if x.dtype == "int16" else "int32"
        return self.integers(f"{node.name}/bias", np.zeros(count), Quant(dtype, scales))

    def _widened(self, small: int, name: str) -> int:
        full = self.scratch(name, self.writer.tensors[small].shape)
        version = 3 if self.quant(small) is None else 1
        self.op("DEQUANTIZE", [small], [full], version)
        return full

    def _initializer(self, value: ir.Value, layout: Layout) -> int:
        array = const(value)
        assert array is not None
        return self.stated(value, array.transpose(layout))

    def stated(self, value: ir.Value, array: np.ndarray) -> int:
        """A constant of the graph, its array brought into some other shape or order."""
        quant = self.quants.get(value)
        if quant is not None:
            return self.integers(value.name or "", array, quant)
        dtype = DTYPES.get(ir.DataType.from_numpy(array.dtype), "float32")
        if dtype == "int32":
            limits = np.iinfo(np.int32)
            array = array.clip(limits.min, limits.max)
        array = np.asarray(array, dtype)
        return self.writer.tensor(Tensor(value.name or "", array.shape, dtype, lambda: array))
