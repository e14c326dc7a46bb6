"""MobileOne-S0 in deploy form, as an example of a network that repedge does not know.

    repedge compile examples.mobileone:mobileone_s0 --weights mobileone_s0_in1k.safetensors --target tflite

The weights may also be named by the environment variable ``MOBILEONE_WEIGHTS``. Their keys are those
of timm's re-parameterized MobileOne: ``stageS.B.reparam_conv.weight`` and ``.bias``, ``linear.*``.
Vasu et al., "MobileOne: An Improved One millisecond Mobile Backbone", CVPR 2023, arXiv:2206.04040.
"""

from __future__ import annotations

import os

import torch
from torch import nn

# (blocks, width) of stages 1 to 4; a block is a depthwise 3x3 and a pointwise 1x1. The first depthwise
# convolution of a stage has stride 2.
S0 = ((2, 48), (8, 128), (10, 256), (1, 1024))
STEM = 48


class ReparamConv(nn.Module):
    """One convolution and a ReLU: what a multi-branch MobileOne block becomes after training."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.reparam_conv = nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.reparam_conv(x))


class MobileOne(nn.Module):
    """MobileOne in deploy form: float [N, 3, H, W] -> logits [N, num_classes]."""

    def __init__(self, stages: tuple[tuple[int, int], ...] = S0, num_classes: int = 1000) -> None:
        super().__init__()
        self.stage0 = ReparamConv(3, STEM, 3, stride=2)
        inp = STEM
        for number, (blocks, out) in enumerate(stages, start=1):
            layers: list[nn.Module] = []
            for i in range(blocks):
                layers.append(ReparamConv(inp, inp, 3, stride=2 if i == 0 else 1, groups=inp))
                layers.append(ReparamConv(inp, out, 1))
                inp = out
            self.add_module(f"stage{number}", nn.Sequential(*layers))
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inp, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, stage in self.named_children():
            if name.startswith("stage"):
                x = stage(x)
        return self.linear(self.gap(x).flatten(1))


def mobileone_s0() -> MobileOne:
    """MobileOne-S0, with the weights of ``$MOBILEONE_WEIGHTS`` where that is set."""
    net = MobileOne()
    if path := os.environ.get("MOBILEONE_WEIGHTS"):
        from safetensors.torch import load_file

        net.load_state_dict(load_file(path))
    return net.eval()
