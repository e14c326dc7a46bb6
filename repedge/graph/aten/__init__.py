"""ATen operator -> ONNX nodes: the table, its rows in files by kind.

A key is the operator as PyTorch's dispatcher names it, without ``aten::`` and without ``.default``;
``relu_`` and the like are looked up without the underscore. A lowering takes the builder and the
operator's own arguments, with the defaults of its ATen schema (native_functions.yaml), and returns
the value(s) of its result. A missing row is a missing feature: the stock exporter takes the model then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from repedge.graph.aten import index, math, matrix, reduce, spatial, structure

TABLE: dict[str, Callable[..., Any]] = {
    **structure.TABLE,  # arithmetic; joining, cutting, reshaping
    **math.TABLE,  # functions of numbers
    **reduce.TABLE,  # sums, norms, normalization, extremes
    **index.TABLE,  # positions, comparisons, masks
    **matrix.TABLE,  # products, attention
    **spatial.TABLE,  # windows, padding, resizing
}
