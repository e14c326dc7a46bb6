"""Reading and writing the values of an ``onnx_ir`` graph: shapes, constants, initializers."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """The static shape of a value.

    Raises:
        UserError: The shape is unknown or has a symbolic dimension.
    """
    if value is None:
        raise UserError("an optional input that is needed here is absent from the graph")
    if value.shape is None or not all(isinstance(d, int) for d in value.shape):
        raise UserError(
            f"the shape of {value.name!r} is {value.shape}, not fixed; give the model a fixed --input-size"
        )
    return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]


def const(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant (an initializer or a Constant node's output), or None if it is none.

    A graph input that also has an initializer is not a constant: the caller may override it.
    """
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def unused(name: str, taken: Container[str | None]) -> str:
    """``name``, or the first of ``name_1``, ``name_2``, ... where that is taken."""
    unique, n = name, 1
    while unique in taken:
        unique, n = f"{name}_{n}", n + 1
    return unique


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Register ``array`` under ``name`` (made unique if taken) and return its value."""
    unique = unused(name, graph.initializers)
    tensor = ir.tensor(np.asarray(array, order="C"), name=unique)  # ascontiguousarray would make scalars 1-D
    value = ir.Value(
        name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``; None if several do, none does, or it is a graph output."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0].node


def check_weights(model: ir.Model) -> None:
    """Refuse NaN and infinite weights; single numbers (a clip bound) may be infinite.

    Raises:
        UserError: A float initializer of more than one element has such a value.
    """
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.size < 2 or not tensor.dtype.is_floating_point():
            continue
        flat = tensor.numpy().reshape(-1)
        # In pieces: np.isfinite of a whole weight would allocate a quarter of its bytes.
        bad = sum(int((~np.isfinite(flat[i : i + _PIECE])).sum()) for i in range(0, flat.size, _PIECE))
        if bad:
            raise UserError(
                f"weight {name!r} has {bad} NaN or infinite values of {flat.size}; train or convert it again"
            )


_PIECE = 1 << 20
