"""Constants that stand for windows over channels, for targets that have no operator for them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import shape_of


def channel_band(node: ir.Node) -> np.ndarray:
    """Weights [C, C] of an LRN's sum: alpha / size where channel j is in the window of channel i."""
    channels, size = shape_of(node.inputs[0])[1], attr(node, "size")
    apart = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    inside = (apart >= -((size - 1) // 2)) & (apart <= size // 2)
    return np.where(inside, attr(node, "alpha", 1e-4) / size, 0.0).astype(np.float32)
