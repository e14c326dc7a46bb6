"""RepViT in training and deploy form (Wang et al., CVPR 2024, arXiv:2307.09283).

State-dict keys are those of the authors' release, in training form
(``features.1.token_mixer.0.conv.c.weight``) and after their ``replace_batchnorm``
(``features.1.token_mixer.0.weight``), so their checkpoints load as they are.
``repedge.models.layouts`` maps other layouts onto these.
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


def conv_bn(
    inp: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, deploy: bool = False
) -> nn.Module:
    """A `ConvBN`, or in deploy form the one convolution (with bias) that it fuses to."""
    if deploy:
        return nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups)
    return ConvBN(inp, out, kernel, stride, groups)


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

    def __init__(self, inp: int, out: int, stride: int, use_se: bool, *, deploy: bool = False) -> None:
        super().__init__()
        se = SqueezeExcite(inp) if use_se else nn.Identity()
        if stride == 2:
            depthwise = conv_bn(inp, inp, 3, 2, groups=inp, deploy=deploy)
            self.token_mixer = nn.Sequential(depthwise, se, conv_bn(inp, out, deploy=deploy))
        else:
            mixer = conv_bn(inp, inp, 3, groups=inp, deploy=True) if deploy else RepVGGDW(inp)
            self.token_mixer = nn.Sequential(mixer, se)
        expand, project = conv_bn(out, 2 * out, deploy=deploy), conv_bn(2 * out, out, deploy=deploy)
        self.channel_mixer = Residual(nn.Sequential(expand, nn.GELU(), project))

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


def has_se(index: int, depth: int) -> bool:
    """SE in every other stride-1 block of a stage, never in the last of several (the authors' tables)."""
    return index % 2 == 0 and (index != depth - 1 or depth == 1)


def body(
    widths: tuple[int, int, int, int],
    depths: tuple[int, int, int, int],
    in_channels: int = 3,
    *,
    deploy: bool = False,
) -> nn.ModuleList:
    """The stem and the blocks, one after the other; see `RepViT` for the arguments."""
    inp = widths[0]
    stem = conv_bn(in_channels, inp // 2, 3, 2, deploy=deploy)
    layers: list[nn.Module] = [nn.Sequential(stem, nn.GELU(), conv_bn(inp // 2, inp, 3, 2, deploy=deploy))]
    for stage, (out, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage > 0:
            layers.append(RepViTBlock(inp, out, 2, use_se=False, deploy=deploy))
            inp = out
        layers.extend(RepViTBlock(inp, out, 1, has_se(i, depth), deploy=deploy) for i in range(depth))
    return nn.ModuleList(layers)


class RepViT(nn.Module):
    """RepViT classifier.

    Args:
        widths: Channels of the four stages; the stem has ``widths[0] // 2`` and ``widths[0]``.
        depths: Stride-1 blocks of the four stages; stages 2 to 4 begin with one stride-2 block more.
        num_classes: Classes of each head.
        distillation: Second head, averaged with the first in eval mode.
        in_channels: Channels of the input image.
        deploy: Build the fused form: plain convolutions and one linear head.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        *,
        num_classes: int = 1000,
        distillation: bool = False,
        in_channels: int = 3,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.features = body(widths, depths, in_channels, deploy=deploy)
        self.classifier = (
            nn.Linear(widths[-1], num_classes)
            if deploy
            else Classifier(widths[-1], num_classes, distillation)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        for layer in self.features:
            x = layer(x)
        return self.classifier(x.mean((2, 3)))


class RepViTFeatures(nn.Module):
    """RepViT without its classifier, for networks with other heads; arguments as of `RepViT`.

    Returns:
        The last maps [n, ``widths[i]``, H, W] at strides 4, 8, 16 and 32.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        *,
        in_channels: int = 3,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.features = body(widths, depths, in_channels, deploy=deploy)
        ends = [0]
        for stage, depth in enumerate(depths):
            ends.append(ends[-1] + depth + (stage > 0))
        self.ends = tuple(ends[1:])
        self.channels = tuple(widths)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.ends:
                maps.append(x)
        return maps
