"""Training-form blocks of re-parameterizable networks, written from the papers' equations.

The class names are not what fusing looks at: the graphs of these modules are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(
    inp: int,
    out: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    bias: bool = False,
) -> nn.Sequential:
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    pad = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
    conv = nn.Conv2d(inp, out, (height, width), stride, pad, dilation, groups, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class Parallel(nn.Module):
    """The sum of branches."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(branch(x) for branch in self.branches)  # begins with 0 + ..., as the authors' code does


class MobileOne(Parallel):
    """k kxk branches, a 1x1 scale branch and a BN skip (arXiv:2206.04040, 3.2)."""

    def __init__(self, inp: int, out: int, *, stride: int = 1, groups: int = 1, k: int = 3) -> None:
        branches: list[nn.Module] = [conv_bn(inp, out, 3, stride, groups) for _ in range(k)]
        branches.append(conv_bn(inp, out, 1, stride, groups))
        if inp == out and stride == 1:
            branches.append(nn.BatchNorm2d(inp))
        super().__init__(*branches)


class ACNet(Parallel):
    """3x3 + 1x3 + 3x1 (arXiv:1908.03930)."""

    def __init__(self, inp: int, out: int, *, stride: int = 1, groups: int = 1, dilation: int = 1) -> None:
        shapes: tuple[int | tuple[int, int], ...] = (3, (1, 3), (3, 1))
        super().__init__(*(conv_bn(inp, out, k, stride, groups, dilation) for k in shapes))


class BNAndPad(nn.Module):
    """BN, then a border of what the BN makes of zero (the authors' form for DBB)."""

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.bn, self.pad = nn.BatchNorm2d(channels), pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(x)
        if self.pad == 0:
            return y
        bn, p = self.bn, self.pad
        assert bn.running_mean is not None
        assert bn.running_var is not None
        border = bn.bias.detach() - bn.running_mean * bn.weight.detach() / torch.sqrt(bn.running_var + bn.eps)
        border = border.view(1, -1, 1, 1)
        y = F.pad(y, [p] * 4)
        y[:, :, :p, :] = border
        y[:, :, -p:, :] = border
        y[:, :, :, :p] = border
        y[:, :, :, -p:] = border
        return y


class DBB(Parallel):
    """kxk, 1x1, 1x1-kxk and 1x1-average branches (arXiv:2103.13425, figure 3)."""

    def __init__(self, inp: int, out: int, *, k: int = 3, stride: int = 1, groups: int = 1) -> None:
        p = k // 2
        super().__init__(
            conv_bn(inp, out, k, stride, groups),
            conv_bn(inp, out, 1, stride, groups),
            nn.Sequential(
                nn.Conv2d(inp, inp, 1, groups=groups, bias=False),
                BNAndPad(inp, p),
                nn.Conv2d(inp, out, k, stride, groups=groups, bias=False),
                nn.BatchNorm2d(out),
            ),
            nn.Sequential(
                nn.Conv2d(inp, out, 1, groups=groups, bias=False),
                BNAndPad(out, p),
                nn.AvgPool2d(k, stride),
                nn.BatchNorm2d(out),
            ),
        )


class QARepVGG(nn.Module):
    """BN(BN(3x3) + 1x1 without BN + x) (arXiv:2212.01593)."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.dense = conv_bn(channels, channels, 3, groups=groups)
        self.point = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.dense(x) + self.point(x) + x)


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class CSLA(nn.Module):
    """RepOptimizer's block: constant scales in place of BN, one BN after the sum (arXiv:2205.15242)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.scale3, self.scale1, self.scale0 = Scale(channels), Scale(channels), Scale(channels)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.scale3(self.conv3(x)) + self.scale1(self.conv1(x)) + self.scale0(x)
        return self.bn(y)


class RepMixer(nn.Module):
    """FastViT's token mixer x + scale (mixer(x) - norm(x)) (arXiv:2303.14189, 3.2)."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mixer = Parallel(
            conv_bn(channels, channels, kernel, groups=channels),
            conv_bn(channels, channels, 1, groups=channels),
            nn.BatchNorm2d(channels),
        )
        self.scale = Scale(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale(self.mixer(x) - self.norm(x))


class RepGhost(Parallel):
    """Depthwise conv + BN of the input (arXiv:2211.06088, figure 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__(conv_bn(channels, channels, 3, groups=channels), nn.BatchNorm2d(channels))


class Detector(nn.Module):
    """Blocks inside a larger net: two scales, an upsampled skip and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = MobileOne(3, 8, stride=2)
        self.deep = ACNet(8, 16, stride=2)
        self.lateral = conv_bn(16, 8, 1)
        self.neck = QARepVGG(8)
        self.boxes = nn.Sequential(MobileOne(8, 8, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.scores = nn.Sequential(ACNet(16, 16, dilation=2), nn.ReLU(), nn.Conv2d(16, 5, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.stem(x).relu()
        deep = self.deep(fine).relu()
        merged = fine + F.interpolate(self.lateral(deep), size=fine.shape[2:], mode="nearest")
        return self.boxes(self.neck(merged).relu()), self.scores(deep).sigmoid()


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Eval mode with BN statistics far from the defaults."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            assert m.running_mean is not None
            assert m.running_var is not None
            for tensor, low, high in (
                (m.weight.data, -1.5, 1.5),
                (m.bias.data, -1, 1),
                (m.running_mean, -1, 1),
                (m.running_var, 0.05, 4),
            ):
                tensor.uniform_(low, high, generator=generator)
    return module.eval()
