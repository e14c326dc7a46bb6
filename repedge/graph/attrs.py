"""Operator attributes with the ONNX defaults filled in once, for every target.

Sources: the ONNX operator specification, opset 20.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.values import shape_of


def attr(node: ir.Node, name: str, default: Any = None) -> Any:
    """The plain Python value of an attribute (str, int, float, tuple or array), or ``default``."""
    found = node.attributes.get(name)
    if found is None or found.value is None:
        return default
    value = found.value
    if isinstance(value, bytes):
        return value.decode()
    return tuple(value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Window:
    """A 2-D sliding window.

    Attributes:
        kernel, strides, dilations: (height, width).
        pads: (top, left, bottom, right), zeros or ignored cells at the border.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def symmetric(self) -> bool:
        """Whether top equals bottom and left equals right."""
        return self.pads[:2] == self.pads[2:]


@dataclass(frozen=True)
class ConvAttrs(Window):
    """Attributes of Conv and ConvTranspose."""

    group: int = 1
    output_padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class PoolAttrs(Window):
    """Attributes of MaxPool and AveragePool."""

    ceil_mode: bool = False
    count_include_pad: bool = False


def conv_attrs(node: ir.Node) -> ConvAttrs:
    """Attributes of a 2-D Conv or ConvTranspose node whose input and weight shapes are known."""
    kernel = attr(node, "kernel_shape") or shape_of(node.inputs[1])[2:]
    return ConvAttrs(
        **_window(node, tuple(kernel)),
        group=attr(node, "group", 1),
        output_padding=tuple(attr(node, "output_padding", (0, 0))),  # type: ignore[arg-type]
    )


def pool_attrs(node: ir.Node) -> PoolAttrs:
    """Attributes of a 2-D MaxPool or AveragePool node."""
    return PoolAttrs(
        **_window(node, tuple(attr(node, "kernel_shape"))),
        ceil_mode=bool(attr(node, "ceil_mode", 0)),
        count_include_pad=bool(attr(node, "count_include_pad", 0)),
    )


def _window(node: ir.Node, kernel: tuple[int, ...]) -> dict[str, Any]:
    if len(kernel) != 2:
        raise UserError(
            f"{node.op_type} node {node.name!r} has {len(kernel)} spatial axes; only 2-D is supported"
        )
    strides = tuple(attr(node, "strides", (1, 1)))
    dilations = tuple(attr(node, "dilations", (1, 1)))
    pads = _pads(node, kernel, strides, dilations)
    return {"kernel": kernel, "strides": strides, "dilations": dilations, "pads": pads}


def _pads(node: ir.Node, kernel: Any, strides: Any, dilations: Any) -> tuple[int, ...]:
    auto = attr(node, "auto_pad", "NOTSET")
    if auto == "NOTSET":
        return tuple(attr(node, "pads", (0, 0, 0, 0)))
    if auto == "VALID":
        return (0, 0, 0, 0)
    begin, end = [], []
    for size, k, s, d in zip(shape_of(node.inputs[0])[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if auto == "SAME_UPPER" else large)
        end.append(large if auto == "SAME_UPPER" else small)
    return (*begin, *end)
