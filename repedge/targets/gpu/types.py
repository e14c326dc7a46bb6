"""The types of the GPU artifact: float16 throughout, or pixels at the input.

Everything works on the graph in place and keeps it strictly typed: no operator gets inputs of two float
types. Casts stand at the graph's ends and around norms, which stay float32.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr
from repedge.graph.values import add_initializer, const
from repedge.targets.wide import wide_nodes

FLOAT16_MAX = float(np.finfo(np.float16).max)

LOSSY = 2e-3
"""Relative rounding error of a whole weight tensor from which on the user is told. Rounding to float16
costs 2e-4 on average; much more means that most of the tensor is denormal in float16 (below 6e-5)."""

STAYS_FLOAT32 = {("Resize", 1), ("Resize", 2)}
"""Inputs (operator, index) whose type is float32 whatever the activations are: roi and scales."""


def to_float16(graph: ir.Graph) -> tuple[str, ...]:
    """Make all weights and activations float16, and cast the outputs back to float32.

    The input's type is left to `enter`. What `wide_nodes` names stays float32, between Casts.

    Returns:
        A sentence for each weight that float16 holds badly.

    Raises:
        UserError: A weight is beyond float16's range.
    """
    wide = wide_nodes(graph)
    notes = [note for value in list(graph.initializers.values()) if (note := _halve(graph, value, wide))]
    for node in graph:
        if node in wide:
            continue
        if node.op_type == "Cast" and attr(node, "to") == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(ir.DataType.FLOAT16)
    _border(graph, wide)
    for i, value in enumerate(list(graph.outputs)):
        if value.dtype == ir.DataType.FLOAT16:
            name = str(value.name)
            value.name = f"{name}/float16"
            cast = _cast(value, ir.DataType.FLOAT, f"{name}/cast", name)
            graph.append(cast)
            graph.outputs[i] = cast.outputs[0]
    return tuple(notes)


def _border(graph: ir.Graph, wide: Collection[ir.Node]) -> None:
    """Cast what passes between float32 nodes and the float16 ones around them, each value once."""
    inside = {value for node in wide for value in node.outputs if value.dtype == ir.DataType.FLOAT}
    for value in [*graph.inputs, *(v for node in graph for v in node.outputs)]:
        if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            continue
        crossing = [use for use in value.uses() if (use.node in wide) != (value in inside)]
        if not crossing:
            continue
        dtype = ir.DataType.FLOAT16 if value in inside else ir.DataType.FLOAT
        name = f"{value.name}/{dtype.name.lower()}"
        cast = _cast(value, dtype, f"{name}/cast", name)
        for use in crossing:
            use.node.replace_input_with(use.idx, cast.outputs[0])
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], cast)
        else:
            graph.insert_after(producer, cast)


def enter(graph: ir.Graph, pixels: bool, half: bool) -> None:
    """Put in front what turns the artifact's input into the network's.

    Args:
        graph: Its first input is float32 [N, C, H, W]; there may be tensors beside it.
        pixels: Take uint8 [N, H, W, C] instead, under the same name.
        half: The network wants float16.
    """
    value, dtype = graph.inputs[0], ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
    name, readers, planes = str(value.name), list(value.uses()), value.shape
    made: list[ir.Node] = []
    if pixels:
        n, c, h, w = planes  # type: ignore[misc]
        value.shape, value.type = ir.Shape([n, h, w, c]), ir.TensorType(ir.DataType.UINT8)
    if pixels or half:  # TensorRT takes uint8 only as the input of a Cast, so it comes first
        made.append(_cast(value, dtype, f"{name}/cast", f"{name}/{dtype.name.lower()}"))
    if pixels:
        out = ir.Value(name=f"{name}/nchw", shape=planes, type=ir.TensorType(dtype))
        attributes = {"perm": (0, 3, 1, 2)}
        made.append(
            ir.node("Transpose", made[-1].outputs, attributes, outputs=[out], name=f"{name}/transpose")
        )
    _read(readers, made)
    for beside in graph.inputs[1:] if half else ():
        if beside.dtype == ir.DataType.FLOAT:
            name, readers = str(beside.name), list(beside.uses())
            made.append(_cast(beside, dtype, f"{name}/cast", f"{name}/float16"))
            _read(readers, made)
    if made:
        graph.insert_before(graph[0], made)


def _read(readers: Sequence[Any], made: Sequence[ir.Node]) -> None:
    """Let them read the last of what was made, if anything was."""
    for use in readers if made else ():
        use.node.replace_input_with(use.idx, made[-1].outputs[0])


def _halve(graph: ir.Graph, value: ir.Value, wide: Collection[ir.Node]) -> str | None:
    """Make one initializer float16 where its readers want that; a sentence if much is lost."""
    array = const(value)
    if array is None or array.dtype != np.float32:
        return None
    readers = [
        use
        for use in value.uses()
        if (use.node.op_type, use.idx) not in STAYS_FLOAT32 and use.node not in wide
    ]
    if not readers:
        return None
    bounds = all(use.node.op_type == "Clip" for use in readers)
    half, note = _rounded(array, str(value.name), saturate=bounds)
    if len(readers) < len(list(value.uses())):
        value = add_initializer(graph, f"{value.name}_fp16", half)
        for use in readers:
            use.node.replace_input_with(use.idx, value)
    else:
        value.const_value = ir.tensor(half, name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    return note


def _rounded(array: np.ndarray, name: str, saturate: bool) -> tuple[np.ndarray, str | None]:
    """``array`` as float16; bounds of a Clip may saturate, as no float16 value lies beyond."""
    if saturate:
        return np.clip(array, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16), None
    largest = float(np.abs(array).max(initial=0.0))
    if np.isfinite(largest) and largest > FLOAT16_MAX:
        raise UserError(
            f"the weight {name!r} holds {largest:.6g}, beyond float16's largest number 65504; "
            "compile with --precision fp32"
        )
    half = array.astype(np.float16)
    norm = float(np.linalg.norm(array)) if array.ndim > 1 else 0.0  # what is added may be small
    error = float(np.linalg.norm(half.astype(np.float32) - array)) / norm if norm > 0 else 0.0
    if error > LOSSY:
        return (
            half,
            f"float16 holds the weight {name!r} badly: relative error {error:.1e}, most of it underflow",
        )
    return half, None


def _cast(value: ir.Value, dtype: ir.DataType, name: str, output: str) -> ir.Node:
    out = ir.Value(name=output, shape=value.shape, type=ir.TensorType(dtype))
    return ir.node("Cast", [value], {"to": int(dtype)}, outputs=[out], name=name)
