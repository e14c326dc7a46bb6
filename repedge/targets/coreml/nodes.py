"""Reading the constants and attributes of an ONNX node, for the Core ML lowerings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.targets import qdq

Refuse = Callable[[ir.Node], "str | None"]


def ints(n: ir.Node, i: int, default: Sequence[int] | None = None) -> tuple[int, ...] | None:
    """The i-th input as a tuple of constants; ``default`` where it is absent.

    Raises:
        UserError: It is computed.
    """
    if i >= len(n.inputs) or n.inputs[i] is None:
        return None if default is None else tuple(default)
    array = const(n.inputs[i])
    if array is None:
        raise UserError(f"its input {i} is computed, not a constant")
    return tuple(int(v) for v in array.ravel())


def real(n: ir.Node, i: int, default: float) -> float:
    """The i-th input as a constant scalar."""
    if i >= len(n.inputs) or n.inputs[i] is None:
        return default
    array = const(n.inputs[i])
    if array is None or array.size != 1:
        raise UserError(f"its input {i} is not a constant scalar")
    return float(array.reshape(()))


def axis_of(n: ir.Node, default: int) -> int:
    """The attribute ``axis``, counted from the front."""
    rank = len(shape_of(n.inputs[0]))
    return int(attr(n, "axis", default)) % rank


def needs_constant(*indices: int) -> Refuse:
    """Refuse nodes whose inputs at these positions are computed."""

    def refuse(n: ir.Node) -> str | None:
        for i in indices:
            if i < len(n.inputs) and n.inputs[i] is not None and not is_constant(n.inputs[i]):
                return f"its input {i} ({n.inputs[i].name!r}) is computed, not a constant"  # type: ignore[union-attr]
        return None

    return refuse


def is_constant(value: ir.Value | None) -> bool:
    """Whether it is a constant in float or, as a layer's weight, in integers."""
    return const(value) is not None or qdq.weight(value) is not None
