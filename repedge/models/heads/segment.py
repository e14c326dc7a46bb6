"""Segmenters: dilated VGG16 with a context module, and LR-ASPP on RepViT.

The first is Yu and Koltun's (ICLR 2016, arXiv:1511.07122), its layers named as in their release
(``conv1_1``, ``fc6``, ``ctx_conv1_1``); the second Howard et al.'s head (ICCV 2019, arXiv:1905.02244,
section 6.4), named as torchvision does.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import interpolate

from repedge.models.repvit import RepViTFeatures

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CONTEXT = (1, 1, 2, 4, 8, 16, 1)
"""Dilations of the context module's 3x3 convolutions (their table 1); a 1x1 follows."""
CONTEXT_NAMES = ("conv1_1", "conv1_2", "conv2_1", "conv3_1", "conv4_1", "conv5_1", "fc1")


def enlarged(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """A map of class scores at the size of the photo."""
    return interpolate(x, size=list(size), mode="bilinear", align_corners=False)


class DilatedVGG16(nn.Module):
    """VGG16 without its last two poolings, whose convolutions are dilated instead (their section 4).

    Maps keep their size, an eighth of the photo's, by padding with zeros; their release pads the photo by
    reflection instead.

    Args:
        num_classes: Classes.
        in_channels: Channels of the input image.
        context: With the context module behind (section 3).

    Returns:
        Scores of each class at the size of the input, [n, classes, H, W].
    """

    def __init__(self, *, num_classes: int = 21, in_channels: int = 3, context: bool = False) -> None:
        super().__init__()
        self.plan: list[tuple[str, bool]] = []  # layer, whether a pooling comes before it
        inp = in_channels
        for i, widths in enumerate(STAGES, 1):
            dilation = 2 if i == 5 else 1
            for j, out in enumerate(widths, 1):
                self._add(
                    f"conv{i}_{j}", nn.Conv2d(inp, out, 3, 1, dilation, dilation), i in (2, 3, 4) and j == 1
                )
                inp = out
        self._add("fc6", nn.Conv2d(512, 4096, 7, 1, 12, 4))
        self._add("fc7", nn.Conv2d(4096, 4096, 1))
        self.final = nn.Conv2d(4096, num_classes, 1)
        self.context = context
        if context:
            self._context(num_classes)

    def _add(self, name: str, layer: nn.Module, pooled: bool = False) -> None:
        self.add_module(name, layer)
        self.plan.append((name, pooled))

    def _context(self, classes: int) -> None:
        for name, dilation in zip(CONTEXT_NAMES, CONTEXT, strict=True):
            self.add_module(f"ctx_{name}", nn.Conv2d(classes, classes, 3, 1, dilation, dilation))
        self.ctx_final = nn.Conv2d(classes, classes, 1)
        for name, layer in self.named_children():
            if name.startswith("ctx_"):
                assert isinstance(layer, nn.Conv2d)
                nn.init.dirac_(layer.weight)  # the identity: their equation 4
                nn.init.zeros_(layer.bias) if layer.bias is not None else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2:]
        for name, pooled in self.plan:
            x = torch.relu(self.get_submodule(name)(torch.max_pool2d(x, 2) if pooled else x))
        x = self.final(x)
        if self.context:
            for name in CONTEXT_NAMES:
                x = torch.relu(self.get_submodule(f"ctx_{name}")(x))
            x = self.ctx_final(x)
        return enlarged(x, size)


class LRASPPHead(nn.Module):
    """Lite reduced atrous pyramid: the deep map, gated by its mean, added to the shallow one's scores.

    Args:
        low, high: Channels of the maps of stride 8 and 32.
        num_classes: Classes.
        inner: Channels in between.
    """

    def __init__(self, low: int, high: int, num_classes: int, inner: int = 128) -> None:
        super().__init__()
        self.cbr = nn.Sequential(nn.Conv2d(high, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(high, inner, 1, bias=False), nn.Sigmoid()
        )
        self.low_classifier = nn.Conv2d(low, num_classes, 1)
        self.high_classifier = nn.Conv2d(inner, num_classes, 1)

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        x = self.cbr(high) * self.scale(high)
        return self.low_classifier(low) + self.high_classifier(enlarged(x, low.shape[2:]))


class LRASPP(nn.Module):
    """LR-ASPP on RepViT.

    Args:
        widths, depths: Of the RepViT.
        num_classes: Classes.
        in_channels: Channels of the input image.

    Returns:
        Scores of each class at the size of the input, [n, classes, H, W].
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        *,
        num_classes: int = 21,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.backbone = RepViTFeatures(widths, depths, in_channels=in_channels)
        self.classifier = LRASPPHead(widths[1], widths[3], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, low, _, high = self.backbone(x)
        return enlarged(self.classifier(low, high), x.shape[2:])
