"""What the rows of the OpenVINO lowering table are made of: the builder, constants, refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.values import const
from repedge.targets import qdq
from repedge.targets.openvino.importing import import_openvino

Refusal = Callable[[ir.Node], str | None]
"""Says in a sentence why a node can't be lowered, or None if it can."""


class Builder:
    """What is lowered so far.

    Attributes:
        ops: OpenVINO's operator set.
        values: OpenVINO outputs by the name of the ONNX value.
        named: Names of ONNX nodes whose main operator has their name already.
    """

    def __init__(self) -> None:
        self.ops: Any = import_openvino().opset13
        self.values: dict[str, Any] = {}
        self.named: set[str] = set()
        self._numbers: dict[bytes, Any] = {}
        self._ints: dict[tuple[int, ...], Any] = {}

    def x(self, node: ir.Node, index: int) -> Any:
        """The OpenVINO output for a node's input; a constant is made on its first use."""
        name = str(node.inputs[index].name)  # type: ignore[union-attr]
        if name not in self.values:  # the graph is sorted: what no node made is a constant
            quantized = qdq.weight(node.inputs[index])
            made = self.const(needed(node, index), name) if quantized is None else self.quantized(quantized)
            self.values[name] = made.output(0)
        return self.values[name]

    def const(self, array: np.ndarray, name: str | None = None) -> Any:
        """A Constant node; it shares the array's memory where OpenVINO can, that is, if it is writable."""
        array = array if array.flags.c_contiguous else array.copy()  # ascontiguousarray has no scalars
        node = self.ops.constant(array, shared_memory=array.flags.writeable)
        if name:
            node.set_friendly_name(name)
        return node

    def plus(self, node: ir.Node, product: Any, bias: Any) -> Any:
        """The sum; the product gets the node's name, for that is what plugins call the two fused."""
        product.set_friendly_name(node.name)
        self.named.add(str(node.name))
        return self.ops.add(product, bias)

    def quantized(self, weight: qdq.Quantized, shape: Sequence[int] | None = None) -> Any:
        """int8 -> Convert -> Multiply: the form that the low-precision passes and compressed files have.

        All of them get numbers for names, which keeps the .xml small.

        Args:
            weight: The integers and their scale.
            shape: What the integers are reshaped to, by splitting their first axis.
        """
        values, scale = weight.values, weight.along()
        if shape is not None:
            parts = tuple(shape[: len(shape) - values.ndim + 1])
            front = parts if scale.ndim and scale.shape[0] > 1 else (1,) * len(parts)
            values, scale = (
                values.reshape(shape),
                scale.reshape(*front, *scale.shape[1:]) if scale.ndim else scale,
            )
        wide = self.ops.convert(self.const(values), np.float32)
        return self.ops.multiply(wide, self.const(scale.astype(np.float32)))

    def ints(self, *numbers: int) -> Any:
        """An int64 vector; equal ones are one Constant."""
        if numbers not in self._ints:
            self._ints[numbers] = self.const(np.array(numbers, np.int64))
        return self._ints[numbers]

    def number(self, value: float) -> Any:
        """A float32 scalar; equal ones are one Constant."""
        array = np.array(value, np.float32)
        key = array.tobytes()
        if key not in self._numbers:
            self._numbers[key] = self.const(array)
        return self._numbers[key]


Lowering = Callable[[Builder, ir.Node], Any]
"""Returns the OpenVINO node whose outputs stand for the ONNX node's outputs, in order."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    lower: Lowering
    refuse: Refusal = lambda node: None


def arg(node: ir.Node, index: int) -> np.ndarray | None:
    """The constant at an input position, None where the optional input is absent."""
    return const(node.inputs[index]) if given(node, index) else None


def needed(node: ir.Node, index: int) -> np.ndarray:
    """The constant at an input position that has one, by the node's refusals.

    Raises:
        UserError: It is not there, so the graph is not a valid one.
    """
    array = arg(node, index)
    if array is None:
        raise UserError(f"{node.op_type} node {node.name!r}: input {index} should be a constant and is not")
    return array


def given(node: ir.Node, index: int) -> bool:
    """Whether the optional input is there."""
    return index < len(node.inputs) and node.inputs[index] is not None


def require_const(*indices: int) -> Refusal:
    """Refuses a node unless these inputs, where given, are constants."""

    def refuse(node: ir.Node) -> str | None:
        for i in indices:
            if given(node, i) and const(node.inputs[i]) is None and qdq.weight(node.inputs[i]) is None:
                return f"its input {i} ({node.inputs[i].name!r}) is not a constant"  # type: ignore[union-attr]
        return None

    return refuse


def first(*refusals: Refusal) -> Refusal:
    """The first reason that any of the refusals gives."""
    return lambda node: next((why for refuse in refusals if (why := refuse(node))), None)
