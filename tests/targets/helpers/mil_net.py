"""A small net in the manner of RepViT, and its Core ML programs by coremltools' own converter."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from mil_programs import ct
from torch import nn


class Net(nn.Module):
    """A depthwise block with squeeze-excite and GELU, strides, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.bn = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, 2, 1, groups=16)
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.widen, self.narrow = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.bn(self.stem(x)))
        x = self.depthwise(x)
        se = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        x = x * torch.sigmoid(se)
        x = x + self.narrow(nn.functional.gelu(self.widen(x)))
        return self.head(x.mean((2, 3)))


@functools.cache
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def converted(precision: str, target: str = "iOS16", **options: Any) -> Any:
    exported = torch.export.export(net(), (torch.zeros(1, 3, 32, 32),)).run_decompositions({})
    return ct.convert(
        exported,
        outputs=[ct.TensorType(name="logits")] if "classifier_config" not in options else None,
        compute_precision=getattr(ct.precision, precision),
        minimum_deployment_target=getattr(ct.target, target),
        skip_model_load=True,
        **options,
    )


@functools.cache
def fp16_model(target: str = "iOS18") -> Any:
    return converted("FLOAT16", target, inputs=[ct.TensorType(name="x", shape=(1, 3, 32, 32))])


def logits(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return net()(torch.from_numpy(x)).numpy()


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())
