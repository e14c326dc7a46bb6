"""What XNNPACK leaves to TensorFlow Lite's own kernels, said of a written graph.

Source: the XNNPACK delegate's checks (LiteRT 2.0 to 2.3) and XNNPACK's subgraph operators; the tests
compare with what a loaded file's delegate really took.
"""

from __future__ import annotations

from collections.abc import Sequence

from repedge.targets.tflite.integers.rules import (
    MAX_ADD,
    MAX_CONVERT,
    MAX_MUL,
    MIN_ADD,
    MIN_CONVERT,
    MIN_MUL,
)
from repedge.targets.tflite.model import Operator, Quant
from repedge.targets.tflite.versions import OPS
from repedge.targets.tflite.writer import Writer

OUTSIDE = frozenset(
    {
        *("CUMSUM", "FLOOR_MOD", "GATHER", "GATHER_ND", "LOG_SOFTMAX", "MIRROR_PAD", "PADV2", "POW"),
        *("REDUCE_PROD", "RESIZE_NEAREST_NEIGHBOR", "SELECT_V2", "SIGN", "STRIDED_SLICE", "TILE", "TOPK_V2"),
    }
)
"""Operators that are left whatever their data (measured with LiteRT 2.3)."""

WHOLE = frozenset({"int32", "uint8", "bool"})
"""Types of indices and truths, which it does not compute with."""

OUTSIDE_INT8 = ("AVERAGE_POOL_2D", "MAXIMUM", "MINIMUM", "RELU", "RELU6", "RELU_N1_TO_1")
"""Operators that are left if their data are 8-bit integers."""


def outside_notes(writer: Writer) -> list[str]:
    """Sentences about operators that split the delegate's graph."""
    left = sorted({o.name for o in writer.operators if _left(writer, o)})
    notes = [f"{', '.join(left)} runs outside the XNNPACK delegate, which splits the graph"] if left else []
    wide = any(_sixteen(_quants(writer, o)) for o in writer.operators)
    if wide:
        notes.append("XNNPACK has no 16-bit integers: those operators run in TensorFlow Lite's own kernels")
    return notes + [note for o in writer.operators if (note := _ratio_note(writer, o))]


def _quants(writer: Writer, o: Operator) -> list[Quant | None]:
    return [writer.tensors[t].quant for t in (*o.inputs, *o.outputs)]


def _sixteen(quants: Sequence[Quant | None]) -> bool:
    return any(q is not None and q.dtype == "int16" for q in quants)


def _left(writer: Writer, o: Operator) -> bool:
    if _sixteen(_quants(writer, o)):
        return False  # said in one sentence for all of them
    ends = [writer.tensors[t] for t in (*o.inputs[OPS[o.name].data :][:1], *o.outputs[:1])]
    if any(t.dtype in WHOLE and t.quant is None for t in ends):
        return True
    data = ends[0].quant if o.inputs else None
    return o.name in OUTSIDE or (data is not None and o.name in OUTSIDE_INT8)


def _ratio_note(writer: Writer, o: Operator) -> str | None:
    """The sentence on scales that are too far apart for XNNPACK's arithmetic."""
    quants = _quants(writer, o)
    if _sixteen(quants):
        return None
    *operands, result = quants
    if result is None or operands[0] is None:
        return None
    out = result.scale[0]
    ratios, low, high = [], 0.0, 0.0
    if o.name in ("ADD", "SUB"):
        ratios, low, high = [q.scale[0] / out for q in operands if q is not None], MIN_ADD, MAX_ADD
    elif o.name == "MUL":
        scales = [q.scale[0] for q in operands if q is not None]
        ratios, low, high = [scales[0] * scales[-1] / out], MIN_MUL, MAX_MUL
    elif o.name in ("QUANTIZE", "LEAKY_RELU"):
        ratios, low, high = [operands[0].scale[0] / out], MIN_CONVERT, MAX_CONVERT
    bad = [r for r in ratios if not low <= r < high]
    if not bad:
        return None
    name = writer.tensors[o.outputs[0]].name
    return f"{o.name} {name!r} runs outside the XNNPACK delegate: its scales have a ratio of {bad[0]:.3g}"
