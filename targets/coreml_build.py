"""From a clean graph to a MIL program, written directly in the precision it computes in.

coremltools would build the program in float32 and cast it with a pass; writing float16 constants and
ops at once gives the same program without that pass: one cast behind the input, one before each output.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.values import const, shape_of
from repedge.targets import qdq
from repedge.targets.coreml_ops import LOWERINGS
from repedge.targets.coreml_rounding import first_weights, round_keeping_sums

FLOAT16_MAX = 65504.0
PROBABILITIES = "classLabel_probabilities"
"""The tensor that coremltools turns into the outputs ``classLabel`` and ``classLabel_probs``."""


@dataclass(frozen=True)
class Built:
    """A MIL program and its signature.

    Attributes:
        program: ``coremltools.converters.mil.Program`` with one function, ``main``.
        input: Name of the input, float32 [1, C, H, W].
        outputs: Names of the float32 outputs in the order of the graph's.
        classifier: Whether `PROBABILITIES` is the program's last output.
    """

    program: Any
    input: str
    outputs: tuple[str, ...]
    classifier: bool


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
        self.dtype = np.dtype(dtype)
        self._first_weights = first_weights
        self._blockwise = blockwise
        self._vars: dict[ir.Value, Any] = {}
        self._names: set[str] = set(reserved)

    def unique(self, name: str) -> str:
        """``name`` as an identifier that no other op or constant has."""
        stem = candidate = identifier(name)
        n = 0
        while candidate in self._names:
            n += 1
            candidate = f"{stem}_{n}"
        self._names.add(candidate)
        return candidate

    def name(self, node: ir.Node) -> str:
        """A fresh op name after the node's first output."""
        return self.unique(str(node.outputs[0].name))

    def bind(self, value: ir.Value, var: Any) -> None:
        self._vars[value] = var

    def var(self, node: ir.Node, i: int) -> Any:
        """MIL variable of the node's i-th input; a constant is written on its first use."""
        value = node.inputs[i]
        if value is None:
            raise UserError(f"{node.op_type} node {node.name!r} lacks its input {i}")
        integers = qdq.weight(value)
        if value not in self._vars and integers is not None:
            self._vars[value] = self.quantized(integers, str(value.name))
        if value not in self._vars:
            array = const(value)
            if array is None:
                raise UserError(
                    f"{node.op_type} node {node.name!r} reads {value.name!r}, which nothing computes"
                )
            if value in self._first_weights and self.dtype == np.float16:
                self.cast(array, str(value.name))  # for its check
                array = round_keeping_sums(array)
            self._vars[value] = self.weight(array, str(value.name))
        return self._vars[value]

    def weight(self, array: np.ndarray, name: str) -> Any:
        """A constant in the program's precision, called after the initializer ``name``.

        Raises:
            UserError: A value does not fit into float16.
        """
        return self.mb.const(val=self.cast(array, name), name=self.unique(name))

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
        """``array`` in the program's precision; ``name`` is for the error of `weight`."""
        if self.dtype == np.float16 and array.size:
            largest = max(float(array.max()), -float(array.min()))
            if largest > FLOAT16_MAX and np.isfinite(largest):
                raise UserError(
                    f"tensor {name!r} holds {largest:.6g}, too much for float16; compile with fp32 precision"
                )
        return np.ascontiguousarray(array, dtype=self.dtype)

    def scalar(self, value: float) -> Any:
        """A scalar attribute in the program's precision, clamped to its finite range."""
        limit = float(np.finfo(self.dtype).max)
        return self.dtype.type(min(max(value, -limit), limit))


def build(model: ir.Model, dtype: Any, opset: Any, classes: int = 0) -> Built:
    """Lower a clean graph whose nodes all have a lowering.

    Args:
        model: A clean graph with one input [1, C, H, W].
        dtype: ``np.float16`` or ``np.float32``: constants and computation. Input and outputs are float32.
        opset: A ``coremltools.target`` member.
        classes: Add class probabilities over the first output [1, classes]; 0 for none.
    """
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program, types

    graph = model.graph
    if len(graph.inputs) != 1:
        raise UserError(f"the graph has {len(graph.inputs)} inputs; an artifact takes exactly one")
    mb.name_count.clear()  # a counter of the class: without this, names depend on earlier conversions
    source = graph.inputs[0]
    input_name = identifier(str(source.name))
    outputs = tuple(identifier(str(v.name)) for v in graph.outputs)
    _check_signature(input_name, outputs, bool(classes))

    placeholder = mb.placeholder(shape=shape_of(source), dtype=types.fp32)
    import coremltools

    blockwise = opset >= coremltools.target.iOS18
    c = Lowerer(mb, dtype, (input_name, *outputs, PROBABILITIES), first_weights(graph), blockwise)
    with Function({input_name: placeholder}, opset_version=opset) as function:
        x = function.inputs[input_name]
        if c.dtype == np.float16:
            x = mb.cast(x=x, dtype="fp16", name=c.unique(f"{input_name}_fp16"))
        c.bind(source, x)
        for node in graph:
            if qdq.weight(node.outputs[0]) is None:  # those are made where they are read
                _lower(c, node)
        results = [_output(c, v, name) for v, name in zip(graph.outputs, outputs, strict=True)]
        if classes:
            results.append(_probabilities(mb, graph.outputs[0], results[0]))
        function.set_outputs(results)
    program = Program()
    program.add_function("main", function)
    return Built(program, input_name, outputs, bool(classes))


def _check_signature(input_name: str, outputs: Sequence[str], classifier: bool) -> None:
    names = [input_name, *outputs, *(("classLabel", "classLabel_probs") if classifier else ())]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(
            f"two inputs or outputs would both be called {twice[0]!r} in Core ML; rename one in the graph"
        )


def _lower(c: Lowerer, node: ir.Node) -> None:
    result = LOWERINGS[node.op_type].emit(c, node)
    produced = tuple(result) if isinstance(result, list | tuple) else (result,)
    for value, var in zip(node.outputs, produced, strict=True):
        if tuple(var.shape) != shape_of(value):
            raise UserError(
                f"{node.op_type} node {node.name!r} became shape {tuple(var.shape)} in MIL instead of "
                f"{shape_of(value)}; please report this graph"
            )
        c.bind(value, var)


def _output(c: Lowerer, value: ir.Value, name: str) -> Any:
    """The value as a float32 output of exactly this name."""
    var = c._vars.get(value)
    if var is None:
        raise UserError(f"output {value.name!r} is a constant; a Core ML model has to compute its outputs")
    if c.dtype == np.float16:
        return c.mb.cast(x=var, dtype="fp32", name=name)
    return c.mb.identity(x=var, name=name)


def _probabilities(mb: Any, output: ir.Value, logits: Any) -> Any:
    """softmax(logits) in float32, unless the graph ends in a softmax already."""
    producer = output.producer()
    if producer is not None and producer.op_type == "Softmax":
        return mb.identity(x=logits, name=PROBABILITIES)
    return mb.softmax(x=logits, axis=-1, name=PROBABILITIES)
