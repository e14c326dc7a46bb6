"""Functions as modules, and an exported graph held against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from repedge.graph.export import Exported
from repedge.graph.run import Session
from repedge.graph.serde import to_proto
from repedge.graph.values import shape_of

SHAPE = (1, 4, 8, 10)


class Fn(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def check(exported: Exported, tolerance: float = 1e-5) -> None:
    """The graph is valid, gives torch's shapes and torch's numbers."""
    onnx.checker.check_model(to_proto(exported.model), full_check=True)
    for value in exported.model.graph.outputs:
        shape_of(value)
    got = Session(exported.model, 1, optimize=False).run(exported.input)
    for g, want, value in zip(got, exported.outputs, exported.model.graph.outputs, strict=True):
        assert g.shape == want.shape == shape_of(value)
        assert g.dtype == want.dtype
        apart = np.abs(g.astype(np.float64) - want).max()
        assert apart <= tolerance * max(np.abs(want).max(), 1e-6)
