"""RepVGG and RepVGGplus in training and deploy form (Ding et al., CVPR 2021, arXiv:2101.03697).

State-dict keys are those of the authors' release (``stage1.0.rbr_dense.conv.weight``), so their
checkpoints load as they are. ``repedge.models.layouts`` maps other layouts onto these names.
"""

from __future__ import annotations

import torch
from torch import nn

GROUPWISE_LAYERS = range(2, 27, 2)  # the "g2"/"g4" variants group every second 3x3 layer (paper, 3.4)


def conv_bn(inp: int, out: int, kernel: int, stride: int, padding: int, groups: int = 1) -> nn.Sequential:
    """Bias-free convolution named ``conv`` followed by batch normalization named ``bn``."""
    block = nn.Sequential()
    block.add_module("conv", nn.Conv2d(inp, out, kernel, stride, padding, groups=groups, bias=False))
    block.add_module("bn", nn.BatchNorm2d(out))
    return block


class SqueezeExcite(nn.Module):
    """Channel gate ``x * sigmoid(up(relu(down(mean_hw(x)))))`` (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, hidden, 1)
        self.up = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.up(torch.relu(self.down(pooled))))


class RepVGGBlock(nn.Module):
    """3x3 + 1x1 + identity branches, each with its own BN, summed; one 3x3 conv in deploy form.

    ``se`` gates before the ReLU (RepVGG-D2se), ``post_se`` after it (RepVGGplus).
    """

    def __init__(
        self,
        inp: int,
        out: int,
        stride: int,
        *,
        groups: int = 1,
        se: int = 0,
        post_se: int = 0,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.deploy = deploy
        self.nonlinearity = nn.ReLU()
        self.se = SqueezeExcite(out, out // se) if se else nn.Identity()
        self.post_se = SqueezeExcite(out, out // post_se) if post_se else nn.Identity()
        if deploy:
            self.rbr_reparam = nn.Conv2d(inp, out, 3, stride, 1, groups=groups)
        else:
            self.rbr_identity: nn.Module | None = nn.BatchNorm2d(inp) if inp == out and stride == 1 else None
            self.rbr_dense = conv_bn(inp, out, 3, stride, 1, groups)
            self.rbr_1x1: nn.Module = conv_bn(inp, out, 1, stride, 0, groups)

    def linear_part(self, x: torch.Tensor) -> torch.Tensor:
        """The part of the block that fuses to one convolution."""
        if self.deploy:
            return self.rbr_reparam(x)
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return y if self.rbr_identity is None else y + self.rbr_identity(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.post_se(self.nonlinearity(self.se(self.linear_part(x))))


class RepVGG(nn.Module):
    """Five stages of RepVGG blocks, global average pooling and a linear classifier.

    Args:
        depths: Blocks in stages 1 to 4.
        widths: Width multipliers of (64, 128, 256, 512).
        groups: Groups of every second 3x3 layer (1, 2 or 4).
        se: Squeeze-excite reduction before the ReLU, 0 for none (D2se uses 16).
        in_channels: Channels of the input image.
        deploy: Build the fused form.

    Attributes:
        block: What the stages are made of; subclasses have another one.
    """

    block: type[nn.Module] = RepVGGBlock

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        widths: tuple[float, float, float, float],
        *,
        num_classes: int = 1000,
        groups: int = 1,
        se: int = 0,
        in_channels: int = 3,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        stem, *channels = stage_channels(widths)
        self.stage0 = self.block(in_channels, stem, 2, se=se, deploy=deploy)
        inp, layer = stem, 1
        for number, (depth, out) in enumerate(zip(depths, channels, strict=True), start=1):
            blocks = nn.ModuleList()
            for i in range(depth):
                g = groups if layer in GROUPWISE_LAYERS else 1
                blocks.append(self.block(inp, out, 2 if i == 0 else 1, groups=g, se=se, deploy=deploy))
                inp, layer = out, layer + 1
            self.add_module(f"stage{number}", blocks)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inp, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage0(x)
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            for block in stage:  # type: ignore[union-attr]
                x = block(x)
        return self.linear(self.gap(x).flatten(1))


class RepVGGplusStage(nn.Module):
    """A run of blocks; the first one has the stage's stride."""

    def __init__(self, inp: int, out: int, depth: int, stride: int, *, post_se: int, deploy: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            RepVGGBlock(inp if i == 0 else out, out, stride if i == 0 else 1, post_se=post_se, deploy=deploy)
            for i in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class RepVGGplus(nn.Module):
    """RepVGG with squeeze-excite after the ReLU and auxiliary heads that only training uses.

    In eval mode ``forward`` returns the main logits alone: the auxiliary heads are no part of what
    ships. In training mode it returns the dict that the authors' loss expects.

    Args:
        aux: Build the auxiliary heads (training form only).
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        widths: tuple[float, float, float, float],
        *,
        num_classes: int = 1000,
        post_se: int = 4,
        in_channels: int = 3,
        aux: bool = True,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        stem, c1, c2, c3, c4 = stage_channels(widths)
        d1, d2, d3, d4 = depths
        half = d3 // 2

        def stage(inp: int, out: int, depth: int, stride: int) -> RepVGGplusStage:
            return RepVGGplusStage(inp, out, depth, stride, post_se=post_se, deploy=deploy)

        self.stage0 = RepVGGBlock(in_channels, stem, 2, post_se=post_se, deploy=deploy)
        self.stage1 = stage(stem, c1, d1, 2)
        self.stage2 = stage(c1, c2, d2, 2)
        self.stage3_first = stage(c2, c3, half, 2)
        self.stage3_second = stage(c3, c3, d3 - half, 1)
        self.stage4 = stage(c3, c4, d4, 2)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(c4, num_classes)
        self.has_aux = aux and not deploy
        if self.has_aux:
            self.stage1_aux = _aux_head(c1, num_classes)
            self.stage2_aux = _aux_head(c2, num_classes)
            self.stage3_first_aux = _aux_head(c3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        taps: dict[str, torch.Tensor] = {}
        x = self.stage0(x)
        for name in ("stage1", "stage2", "stage3_first", "stage3_second", "stage4"):
            x = taps[name] = getattr(self, name)(x)
        main = self.linear(self.gap(x).flatten(1))
        if not (self.has_aux and self.training):
            return main
        aux = {f"{n}_aux": getattr(self, f"{n}_aux")(taps[n]) for n in ("stage1", "stage2", "stage3_first")}
        return {"main": main, **aux}


def _aux_head(channels: int, num_classes: int) -> nn.Sequential:
    down = conv_bn(channels, channels, 3, 2, 1)
    down.add_module("relu", nn.ReLU())
    return nn.Sequential(down, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def stage_channels(widths: tuple[float, float, float, float]) -> tuple[int, int, int, int, int]:
    """Channels of stages 0 to 4 for the width multipliers (paper, 3.4)."""
    stem = min(64, int(64 * widths[0]))
    return (stem, *(int(base * w) for base, w in zip((64, 128, 256, 512), widths, strict=True)))  # type: ignore[return-value]
