"""RepViT in training form (Wang et al., CVPR 2024, arXiv:2307.09283).

State-dict keys are those of the authors' release (``features.1.token_mixer.0.conv.c.weight``), so
their checkpoints load as they are. ``repedge.models.checkpoints`` maps other layouts onto these.
"""

from __future__ import annotations

import torch
from torch import nn


class ConvBN(nn.Sequential):
    """Bias-free convolution ``c`` and batch normalization ``bn``."""

    def __init__(self, inp: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(out))


class BNLinear(nn.Sequential):
    """Batch normalization ``bn`` and linear layer ``l``: one of the classifier heads."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.add_module("bn", nn.BatchNorm1d(inp))
        self.add_module("l", nn.Linear(inp, out))


class Residual(nn.Module):
    """``x + m(x)``."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.m(x)


class SqueezeExcite(nn.Module):
    """Channel gate with a quarter of the channels, rounded to a multiple of 8, in between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, int(channels * 0.25 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class RepVGGDW(nn.Module):
    """Depthwise token mixer ``bn(conv3x3_bn(x) + conv1x1(x) + x)``; fuses to one depthwise 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvBN(channels, channels, 3, groups=channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x) + self.conv1(x) + x)


class RepViTBlock(nn.Module):
    """Token mixer (depthwise, optional SE; with stride 2 a pointwise on top) and channel mixer."""

    def __init__(self, inp: int, out: int, stride: int, use_se: bool) -> None:
        super().__init__()
        se = SqueezeExcite(inp) if use_se else nn.Identity()
        if stride == 2:
            self.token_mixer = nn.Sequential(ConvBN(inp, inp, 3, 2, groups=inp), se, ConvBN(inp, out))
        else:
            self.token_mixer = nn.Sequential(RepVGGDW(inp), se)
        self.channel_mixer = Residual(nn.Sequential(ConvBN(out, 2 * out), nn.GELU(), ConvBN(2 * out, out)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.channel_mixer(self.token_mixer(x))


class Classifier(nn.Module):
    """One BN-linear head, or two that are averaged in eval mode (distillation)."""

    def __init__(self, channels: int, num_classes: int, distillation: bool) -> None:
        super().__init__()
        self.classifier = BNLinear(channels, num_classes)
        self.distillation = distillation
        if distillation:
            self.classifier_dist = BNLinear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if not self.distillation:
            return self.classifier(x)
        heads = self.classifier(x), self.classifier_dist(x)
        return heads if self.training else (heads[0] + heads[1]) / 2


class RepViT(nn.Module):
    """RepViT classifier.

    Args:
        widths: Channels of the four stages; the stem has ``widths[0] // 2`` and ``widths[0]``.
        depths: Stride-1 blocks of the four stages; stages 2 to 4 begin with one stride-2 block more.
        num_classes: Classes of each head.
        distillation: Second head, averaged with the first in eval mode.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        *,
        num_classes: int = 1000,
        distillation: bool = False,
    ) -> None:
        super().__init__()
        inp = widths[0]
        layers: list[nn.Module] = [
            nn.Sequential(ConvBN(3, inp // 2, 3, 2), nn.GELU(), ConvBN(inp // 2, inp, 3, 2))
        ]
        for stage, (out, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage > 0:
                layers.append(RepViTBlock(inp, out, 2, use_se=False))
                inp = out
            for i in range(depth):
                # SE in every other block, never in the last of several (the authors' tables).
                use_se = i % 2 == 0 and (i != depth - 1 or depth == 1)
                layers.append(RepViTBlock(inp, out, 1, use_se))
        self.features = nn.ModuleList(layers)
        self.classifier = Classifier(inp, num_classes, distillation)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        for layer in self.features:
            x = layer(x)
        return self.classifier(x.mean((2, 3)))
