"""From a clean graph to a MIL program, written directly in the precision it computes in.

coremltools would build the program in float32 and cast it with a pass; writing float16 constants and
ops at once gives the same program without that pass: one cast behind the input, one before each output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.values import shape_of
from repedge.targets import qdq
from repedge.targets.coreml.lowerer import Lowerer, identifier
from repedge.targets.coreml.ops import LOWERINGS
from repedge.targets.coreml.rounding import first_weights
from repedge.targets.wide import wide_nodes

PROBABILITIES = "classLabel_probabilities"
"""The tensor that coremltools turns into the outputs ``classLabel`` and ``classLabel_probs``."""


@dataclass(frozen=True)
class Built:
    """A MIL program and its signature.

    Attributes:
        program: ``coremltools.converters.mil.Program`` with one function, ``main``.
        input: Name of the image, float32 [1, C, H, W].
        tensors: Names of the inputs beside it, in the order of the graph's.
        outputs: Names of the float32 outputs in the order of the graph's.
        scores: Index of the output whose softmax `PROBABILITIES`, the program's last output, is; or None.
    """

    program: Any
    input: str
    outputs: tuple[str, ...]
    scores: int | None = None
    tensors: tuple[str, ...] = ()

    @property
    def classifier(self) -> bool:
        """Whether the program names the best class."""
        return self.scores is not None


def build(model: ir.Model, dtype: Any, opset: Any, scores: int | None = None) -> Built:
    """Lower a clean graph whose nodes all have a lowering.

    Args:
        model: A clean graph; its first input is the image [1, C, H, W].
        dtype: ``np.float16`` or ``np.float32``: constants and computation. Input and outputs are float32.
        opset: A ``coremltools.target`` member.
        scores: Index of the output [1, classes] to add class probabilities over; None for none.
    """
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program, types

    graph = model.graph
    mb.name_count.clear()  # a counter of the class: without this, names depend on earlier conversions
    names = tuple(identifier(str(v.name)) for v in graph.inputs)
    outputs = tuple(identifier(str(v.name)) for v in graph.outputs)
    _check_signature(names, outputs, scores is not None)

    placeholders = {
        name: mb.placeholder(shape=shape_of(value), dtype=types.fp32)
        for name, value in zip(names, graph.inputs, strict=True)
    }
    import coremltools

    blockwise = opset >= coremltools.target.iOS18
    c = Lowerer(mb, dtype, (*names, *outputs, PROBABILITIES), first_weights(graph), blockwise)
    with Function(placeholders, opset_version=opset) as function:
        for name, value in zip(names, graph.inputs, strict=True):
            x = function.inputs[name]
            if c.dtype == np.float16:
                x = mb.cast(x=x, dtype="fp16", name=c.unique(f"{name}_fp16"))
            c.bind(value, x)
        wide = wide_nodes(graph)
        for node in graph:
            if qdq.weight(node.outputs[0]) is None:  # those are made where they are read
                with c.computing_in(np.float32 if node in wide else dtype):
                    _lower(c, node)
        results = [_output(c, v, name) for v, name in zip(graph.outputs, outputs, strict=True)]
        if scores is not None:
            results.append(_probabilities(mb, graph.outputs[scores], results[scores]))
        function.set_outputs(results)
    program = Program()
    program.add_function("main", function)
    return Built(program, names[0], outputs, scores, names[1:])


def _check_signature(inputs: Sequence[str], outputs: Sequence[str], classifier: bool) -> None:
    names = [*inputs, *outputs, *(("classLabel", "classLabel_probs") if classifier else ())]
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
    """The value as an output of exactly this name: float32, or int32 for whole numbers and truths."""
    from coremltools.converters.mil.mil import types

    var = c.computed(value)
    if var is None:
        raise UserError(f"output {value.name!r} is a constant; a Core ML model has to compute its outputs")
    if value.dtype == ir.DataType.BOOL:
        return c.mb.cast(x=var, dtype="int32", name=name)
    if var.dtype is types.fp16:
        return c.mb.cast(x=var, dtype="fp32", name=name)
    return c.mb.identity(x=var, name=name)


def _probabilities(mb: Any, output: ir.Value, logits: Any) -> Any:
    """softmax(logits) in float32, unless the graph ends in a softmax already."""
    producer = output.producer()
    if producer is not None and producer.op_type == "Softmax":
        return mb.identity(x=logits, name=PROBABILITIES)
    return mb.softmax(x=logits, axis=-1, name=PROBABILITIES)
