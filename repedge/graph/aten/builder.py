"""Building an ``onnx_ir`` graph node by node while a torch module runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import onnx_ir as ir

from repedge.graph.values import unused

if TYPE_CHECKING:
    import torch

OPSET = 20
FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
Operand = Union[ir.Value, "torch.Tensor", float, int, bool]
"""What an ATen argument can be here: a value of the graph, a constant tensor, a Python number."""


class Unlowerable(Exception):
    """This use of an operator is outside the table; the text says why."""


class Builder:
    """Collects nodes and initializers; a lowering calls `node` and friends.

    Attributes:
        path: Module that is running, such as ``stage1.0.rbr_dense.conv``; names what is emitted.
        result: What torch computed for the operator being lowered: a tensor or a sequence of them.
        arguments: The operator's arguments, as torch had them.
        normalizes_instances: Whether torch's instance_norm is running, which is a batch_norm underneath.
    """

    def __init__(self, names: Mapping[tuple, str]) -> None:
        """Args: names: `tensor_key` of each parameter and buffer -> its dotted name."""
        self.path = ""
        self.result: Any = None
        self.arguments: tuple = ()
        self.normalizes_instances = False
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._names = names
        self._constants: dict[tuple, ir.Value] = {}
        self._kept: list[Any] = []  # keeps constants alive: a key holds a memory address
        self._taken: set[str] = set()

    def input(self, name: str, like: torch.Tensor) -> ir.Value:
        """A graph input of the tensor's shape and type."""
        self._taken.add(name)
        dtype = ir.DataType.from_numpy(like.numpy().dtype)
        return ir.Value(name=name, shape=ir.Shape(tuple(like.shape)), type=ir.TensorType(dtype))

    def shape(self, i: int | None = None) -> tuple[int, ...]:
        """Shape of torch's result, or of its ``i``-th tensor."""
        return tuple((self.result if i is None else self.result[i]).shape)

    def node(
        self,
        op: str,
        inputs: Sequence[Operand | None],
        shape: Sequence[int] | None = None,
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Emit a node with one output of ``shape`` (torch's own result if None) and return the output."""
        return self.nodes_out(op, inputs, [self.shape() if shape is None else shape], dtype, **attributes)[0]

    def nodes_out(
        self,
        op: str,
        inputs: Sequence[Operand | None],
        shapes: Sequence[Sequence[int]],
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> list[ir.Value]:
        """Emit a node with an output per shape, of ``dtype`` or else that of the first graph value."""
        first = next((x.dtype for x in inputs if isinstance(x, ir.Value)), None) or FLOAT
        operands = [None if x is None else self.value(x, first) for x in inputs]
        while operands and operands[-1] is None:
            operands.pop()
        name = self._unique(f"{self.path}/{op}" if self.path else op)
        outputs = [
            ir.Value(
                name=name if len(shapes) == 1 else f"{name}.{i}",
                shape=ir.Shape(shape),
                type=ir.TensorType(dtype or first),
            )
            for i, shape in enumerate(shapes)
        ]
        source = {"source": self.path} if self.path else None
        given = [_attribute(key, value) for key, value in attributes.items()]
        node = ir.Node("", op, operands, given, outputs=outputs, name=name, metadata_props=source)
        self.nodes.append(node)
        return outputs

    def value(self, x: Operand, dtype: ir.DataType = FLOAT) -> ir.Value:
        """A graph value as it is; a constant tensor or number as an initializer of ``dtype``."""
        if isinstance(x, ir.Value):
            return x
        if isinstance(x, (bool, int, float)):
            return self.array(np.asarray(x, dtype.numpy()))
        return self.tensor(x, dtype)

    def tensor(self, x: torch.Tensor, dtype: ir.DataType = FLOAT) -> ir.Value:
        """A constant tensor as an initializer that shares the tensor's memory where the type is the same."""
        key = (*tensor_key(x), dtype)
        if key not in self._constants:
            array = x.detach().contiguous().numpy().astype(dtype.numpy(), copy=False)
            self._constants[key] = self._initializer(self._name(x), array)
            self._kept.append(x)
        return self._constants[key]

    def cast(self, x: Operand, dtype: ir.DataType) -> ir.Value:
        """``x`` in another element type."""
        value = self.value(x, dtype)
        return (
            value if value.dtype == dtype else self.node("Cast", [value], dims(value), dtype, to=int(dtype))
        )

    @property
    def dtype(self) -> ir.DataType:
        """Element type of torch's result (of its first tensor)."""
        return type_of(self.result if not isinstance(self.result, (tuple, list)) else self.result[0])

    def _name(self, x: torch.Tensor) -> str:
        if x.ndim == 2 and tensor_key(x.t()) in self._names:
            return f"{self._names[tensor_key(x.t())]}.T"
        return self._names.get(tensor_key(x), "const")

    def borrows(self, storage: int) -> bool:
        """Whether a constant of the graph shares the storage (its ``_cdata``)."""
        return any(x.untyped_storage()._cdata == storage for x in self._kept)

    def ints(self, *numbers: int) -> ir.Value:
        """An int64 vector: a shape, axes, pads."""
        return self.array(np.asarray(numbers, np.int64))

    def array(self, array: np.ndarray) -> ir.Value:
        """A small constant, shared by all that ask for the same one."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._initializer("const", array)
        return self._constants[key]

    def _initializer(self, name: str, array: np.ndarray) -> ir.Value:
        name = self._unique(name)
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.initializers[name] = value
        return value

    def _unique(self, name: str) -> str:
        unique = unused(name, self._taken)
        self._taken.add(unique)
        return unique

    def reshape(self, x: Operand, shape: Sequence[int] | None = None) -> ir.Value:
        """``x`` in another shape: nothing, one Flatten or one Reshape, whose batch axis is 0.

        Reshape(Reshape(x)) becomes one Reshape of x.
        """
        target = self.shape() if shape is None else tuple(shape)
        value = self.value(x)
        while value.producer() is not None and value.producer().op_type in ("Reshape", "Flatten"):  # type: ignore[union-attr]
            value = value.producer().inputs[0]  # type: ignore[union-attr, assignment]
        source = dims(value)
        if source == target:
            return value
        if len(target) == 2 and len(source) > 2 and source[0] == target[0]:
            return self.node("Flatten", [value], target, axis=1)
        keeps_batch = bool(source) and bool(target) and source[0] == target[0]
        return self.node(
            "Reshape", [value, self.ints(*((0, *target[1:]) if keeps_batch else target))], target
        )

    def transpose(self, x: Operand, perm: Sequence[int]) -> ir.Value:
        """``x`` with its axes in another order."""
        value = self.value(x)
        perm = tuple(p % len(perm) for p in perm)
        if perm == tuple(range(len(perm))):
            return value
        return self.node("Transpose", [value], [dims(value)[p] for p in perm], perm=perm)

    def slice(self, x: Operand, axis: int, start: int, end: int, step: int = 1) -> ir.Value:
        """``x[start:end:step]`` along ``axis``; bounds within the axis."""
        value = self.value(x)
        shape = list(dims(value))
        shape[axis] = max(0, math.ceil((end - start) / step))
        if shape[axis] == dims(value)[axis]:
            return value
        parts = (start, end, axis, step)
        return self.node("Slice", [value, *(self.ints(n) for n in parts)], shape)

    def finish(self, inputs: Sequence[ir.Value], outputs: Mapping[str, ir.Value]) -> ir.Model:
        """The model: outputs renamed, unused nodes and initializers dropped."""
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        self.path = ""
        final: list[ir.Value] = []
        for value in outputs.values():
            # An input, a constant or a value that is an output already can't be renamed.
            taken = value.producer() is None or value in final
            final.append(self.node("Identity", [value], dims(value)) if taken else value)
        own = {value.name for value in inputs}
        names = [f"{name}_out" if name in own else name for name in outputs]
        self._taken.update(names)
        for value in [*self.initializers.values(), *(v for node in self.nodes for v in node.outputs)]:
            if value.name in names:
                value.name = self._unique(value.name)
        for value, name in zip(final, names, strict=True):
            value.name = name
        graph = ir.Graph(
            list(inputs),
            final,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET},
            name="repedge",
        )
        model = ir.Model(graph, ir_version=10, producer_name="repedge")
        return RemoveUnusedNodesPass()(model).model


def _attribute(name: str, value: str | float | Sequence[int]) -> ir.Attr:
    if isinstance(value, str):
        return ir.AttrString(name, value)
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    return ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrInt64s(name, list(value))


def type_of(x: Operand) -> ir.DataType:
    """Element type of an operand; numbers take part as the narrowest type that holds them."""
    if isinstance(x, ir.Value):
        return x.dtype or FLOAT
    if isinstance(x, bool):
        return BOOL
    if isinstance(x, (int, float)):
        return INT64 if isinstance(x, int) else FLOAT
    return _TYPES.get(str(x.dtype).removeprefix("torch."), FLOAT)


_TYPES = {"int64": INT64, "int32": ir.DataType.INT32, "bool": BOOL}
"""What is not among them becomes float32: bytes and small integers are constants here."""


def common_type(*operands: Operand) -> ir.DataType:
    """The type that operands are brought to ahead of an operator: float before integer before truth value."""
    kinds = [type_of(x) for x in operands]
    return next((k for k in (FLOAT, INT64, ir.DataType.INT32) if k in kinds), BOOL)


def finite_mask(x: Operand) -> Operand:
    """A constant that is added, its -inf as the lowest float32: to a softmax behind it that is the same."""
    if isinstance(x, (ir.Value, bool, int, float)) or not x.is_floating_point():
        return x
    return x.clamp(min=float(np.finfo(np.float32).min)) if (x == -math.inf).any() else x


def dims(value: ir.Value) -> tuple[int, ...]:
    """Static shape of a value that a `Builder` made."""
    return tuple(int(d) for d in value.shape)  # type: ignore[union-attr, arg-type]


def tensor_key(x: torch.Tensor) -> tuple:
    """Equal for two tensors that are the same view of the same memory."""
    return (x.data_ptr(), tuple(x.shape), x.stride(), x.dtype) if x.numel() else (id(x),)
