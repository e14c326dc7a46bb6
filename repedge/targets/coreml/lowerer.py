"""What the lowerings of Core ML work with: variables, names, constants of a program being built."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.values import const, unused
from repedge.targets import qdq
from repedge.targets.coreml.rounding import round_keeping_sums

FLOAT16_MAX = 65504.0


def identifier(name: str) -> str:
    """A name that MIL and Swift accept: letters, digits and underscores, no digit in front.

    >>> identifier("stage1/0.conv")
    'stage1_0_conv'
    """
    clean = re.sub(r"\W", "_", name, flags=re.ASCII)
    return clean if re.match(r"[A-Za-z_]", clean) else f"_{clean}"


class Lowerer:
    """What a lowering sees: the builder, the values lowered so far, constants in the right precision."""

    def __init__(
        self,
        mb: Any,
        dtype: Any,
        reserved: Sequence[str] = (),
        first_weights: Collection[ir.Value] = (),
        blockwise: bool = False,
    ) -> None:
        self.mb = mb
        self.dtype = self._own = np.dtype(dtype)
        self._first_weights = first_weights
        self._blockwise = blockwise
        self._vars: dict[tuple[ir.Value, str], Any] = {}
        self._names: set[str] = set(reserved)

    def unique(self, name: str) -> str:
        """``name`` as an identifier that no other op or constant has."""
        unique = unused(identifier(name), self._names)
        self._names.add(unique)
        return unique

    def name(self, node: ir.Node) -> str:
        """A fresh op name after the node's first output."""
        return self.unique(str(node.outputs[0].name))

    @contextlib.contextmanager
    def computing_in(self, dtype: Any) -> Iterator[None]:
        """Lower nodes in another precision than the program's."""
        self.dtype = np.dtype(dtype)
        try:
            yield
        finally:
            self.dtype = self._own

    def bind(self, value: ir.Value, var: Any) -> None:
        """From now on, a value is this MIL variable."""
        self._vars[value, self.dtype.name] = var

    def computed(self, value: ir.Value) -> Any:
        """The MIL variable that a node made of a value, in whatever precision; None if none did."""
        kinds = (self.dtype.name, "float32", "float16")
        return next((self._vars[value, k] for k in kinds if (value, k) in self._vars), None)

    def var(self, node: ir.Node, i: int) -> Any:
        """MIL variable of the node's i-th input; a constant is written on its first use."""
        value = node.inputs[i]
        if value is None:
            raise UserError(f"{node.op_type} node {node.name!r} lacks its input {i}")
        key = (value, self.dtype.name)
        if key not in self._vars:
            self._vars[key] = self._made(node, value)
        return self._vars[key]

    def _made(self, node: ir.Node, value: ir.Value) -> Any:
        """A value that this precision does not have yet: a constant, or cast from the other one."""
        integers = qdq.weight(value)
        if integers is not None:
            return self.quantized(integers, str(value.name))
        array = const(value)
        if array is not None:
            if value in self._first_weights and self.dtype == np.float16:
                self.cast(array, str(value.name))  # for its check
                array = round_keeping_sums(array)
            return self.weight(array, str(value.name))
        other = self.computed(value)
        if other is None:
            raise UserError(f"{node.op_type} node {node.name!r} reads {value.name!r}, which nothing computes")
        if value.dtype not in (None, ir.DataType.FLOAT):
            return other
        word = self.float_word
        return self.mb.cast(x=other, dtype=word, name=self.unique(f"{value.name}_{word}"))

    def weight(self, array: np.ndarray, name: str) -> Any:
        """A constant in the program's precision, called after the initializer ``name``.

        Raises:
            UserError: A value does not fit into float16.
        """
        val = self.cast(array, name)
        return self.mb.const(val=val if val.ndim else val[()], name=self.unique(name))

    def quantized(self, weight: qdq.Quantized, name: str) -> Any:
        """An int8 constant that Core ML widens: by iOS 18's operator if that may be used, else iOS 16's.

        Raises:
            UserError: A scale does not fit into float16.
        """
        if self.dtype == np.float16:
            self.cast(weight.scale, name)
            weight = weight.half()
        name = self.unique(name)
        if self._blockwise:  # the scale has the rank of the weight
            scale = (
                np.broadcast_to(weight.along(), [1] * weight.values.ndim)
                if weight.axis is None
                else weight.along()
            )
            return self.mb.constexpr_blockwise_shift_scale(
                data=weight.values, scale=scale.astype(self.dtype), name=name
            )
        return self.mb.constexpr_affine_dequantize(
            quantized_data=weight.values,
            zero_point=np.int8(0),
            scale=weight.scale.astype(self.dtype),
            axis=np.int32(weight.axis or 0),
            name=name,
        )

    def cast(self, array: np.ndarray, name: str) -> np.ndarray:
        """``array`` in the program's precision, whole numbers as int32; ``name`` is for `weight`'s error."""
        if array.dtype.kind == "b":
            return array
        if array.dtype.kind in "iu":
            limits = np.iinfo(np.int32)
            return np.asarray(array.clip(limits.min, limits.max), np.int32, order="C")
        if self.dtype == np.float16 and array.size:
            largest = max(float(array.max()), -float(array.min()))
            if largest > FLOAT16_MAX and np.isfinite(largest):
                raise UserError(
                    f"tensor {name!r} holds {largest:.6g}, too much for float16; compile with fp32 precision"
                )
        return np.asarray(array, self.dtype, order="C")  # ascontiguousarray would make scalars 1-D

    @property
    def float_word(self) -> str:
        """What MIL calls the program's precision."""
        return "fp16" if self.dtype == np.float16 else "fp32"

    def like(self, value: float, var: Any) -> Any:
        """A scalar attribute of the type of another variable."""
        from coremltools.converters.mil.mil import types

        return np.int32(value) if types.is_int(var.dtype) else self.scalar(value)

    def scalar(self, value: float) -> Any:
        """A scalar attribute in the program's precision, clamped to its finite range."""
        limit = float(np.finfo(self.dtype).max)
        return self.dtype.type(min(max(value, -limit), limit))
