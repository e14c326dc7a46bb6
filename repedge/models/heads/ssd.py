"""SSD (Liu et al., ECCV 2016, arXiv:1512.02325): SSD300 on VGG16, and SSDLite on RepViT.

State-dict keys of `SSD300` are those of the widely used PyTorch port, ``vgg.*``, ``L2Norm.weight``,
``extras.*``, ``loc.*`` and ``conf.*``. Both networks give boxes and class scores of each prior box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import nn

from repedge.models.repvit import RepViTFeatures

VARIANCES = (0.1, 0.2)  # of centres and of sizes: what the network's offsets are multiplied by

Cells = Sequence[tuple[int, int]]

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "C", 512, 512, 512, "M", 512, 512, 512)
"""Channels of the 3x3 convolutions; M a pooling, C one that rounds up (38 cells of 75)."""


class Detections(TypedDict):
    """What an SSD gives in eval mode.

    Attributes:
        boxes: Left, top, right, bottom of each prior box as corrected, relative to the input's width and
            height, [n, priors, 4].
        scores: Probabilities of each class, background first, [n, priors, classes].
    """

    boxes: torch.Tensor
    scores: torch.Tensor


def priors(
    cells: Cells,
    steps: Sequence[tuple[float, float]],
    sizes: Sequence[float],
    ratios: Sequence[Sequence[float]],
) -> torch.Tensor:
    """The prior boxes of all maps (section 2.2) by map, row, column, box: relative centre and size in 0..1.

    A cell has a box of size ``s``, one of ``sqrt(s * s')`` with the next map's size, and for each ratio ``r``
    one ``s sqrt(r)`` wide and ``s / sqrt(r)`` high and one the other way round.

    Args:
        cells: Rows and columns of each map.
        steps: Height and width of a cell of each map, relative to the input.
        sizes: Of each map and one more, relative.
        ratios: Width over height of each map's further boxes.

    Returns:
        float32 [priors, 4].
    """
    boxes = []
    for (rows, columns), (dy, dx), size, following, further in zip(
        cells, steps, sizes[:-1], sizes[1:], ratios, strict=True
    ):
        shapes = [(size, size), (math.sqrt(size * following),) * 2]
        for ratio in further:
            root = math.sqrt(ratio)
            shapes += [(size * root, size / root), (size / root, size * root)]
        boxes += [
            ((x + 0.5) * dx, (y + 0.5) * dy, *shape)
            for y in range(rows)
            for x in range(columns)
            for shape in shapes
        ]
    return torch.tensor(boxes, dtype=torch.float64).clamp(0, 1).float()


def corrected(offsets: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Boxes of the network's offsets (equation 2 turned round).

    Args:
        offsets: [n, priors, 4].
        prior: As `priors` gives them.

    Returns:
        Left, top, right, bottom, [n, priors, 4].
    """
    centre = prior[:, :2] + offsets[..., :2] * VARIANCES[0] * prior[:, 2:]
    half = prior[:, 2:] * torch.exp(offsets[..., 2:] * VARIANCES[1]) / 2
    return torch.cat((centre - half, centre + half), -1)


def gathered(maps: Sequence[torch.Tensor], entries: int) -> torch.Tensor:
    """Heads' maps [n, boxes * entries, H, W] as rows [n, priors, entries] in the order of `priors`."""
    n = maps[0].shape[0]
    return torch.cat([m.permute(0, 2, 3, 1).reshape(n, -1, entries) for m in maps], 1)


class _SSD(nn.Module):
    """What both networks do with their maps.

    Args:
        cells: Rows and columns of each map, for an input of the usual size.
        num_classes: Background included.
    """

    priors: torch.Tensor

    def __init__(self, cells: Cells, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cells = tuple(cells)
        self.register_buffer(
            "priors", self.boxes(cells), persistent=False
        )  # they follow from the architecture

    def boxes(self, cells: Cells) -> torch.Tensor:
        """The prior boxes of maps of a size."""
        raise NotImplementedError

    def answer(
        self, loc: Sequence[torch.Tensor], conf: Sequence[torch.Tensor]
    ) -> Detections | tuple[torch.Tensor, torch.Tensor]:
        """Boxes and probabilities; in training mode offsets [n, priors, 4], logits [n, priors, classes]."""
        offsets, logits = gathered(loc, 4), gathered(conf, self.num_classes)
        if self.training:
            return offsets, logits
        cells = tuple((int(m.shape[2]), int(m.shape[3])) for m in loc)
        usual = self.priors if cells == self.cells else self.boxes(cells).to(offsets)
        return {"boxes": corrected(offsets, usual), "scores": logits.softmax(-1)}


class L2Norm(nn.Module):
    """Each position's vector at length 1, times a learned scale a channel (ParseNet, arXiv:1506.04579)."""

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10
        return x / length * self.weight[:, None, None]


def vgg16(in_channels: int = 3) -> nn.ModuleList:
    """VGG16 up to fc7 as SSD has it: pool5 3x3 of stride 1, fc6 a dilated 3x3, fc7 a 1x1 convolution."""
    layers: list[nn.Module] = []
    inp = in_channels
    for entry in VGG16:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=entry == "C"))
        else:
            layers += [nn.Conv2d(inp, entry, 3, padding=1), nn.ReLU()]
            inp = entry
    layers += [nn.MaxPool2d(3, 1, 1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.ReLU()]
    return nn.ModuleList([*layers, nn.Conv2d(1024, 1024, 1), nn.ReLU()])


class SSD300(_SSD):
    """SSD300 on VGG16: 8732 priors.

    Args:
        num_classes: Background included.
        in_channels: Channels of the input image, 300x300.
    """

    BOXES = (4, 6, 6, 6, 4, 4)
    CONV4_3 = 22  # the layer of `vgg16` whose map is taken, beside its last

    def __init__(self, *, num_classes: int = 21, in_channels: int = 3) -> None:
        super().__init__([(c, c) for c in (38, 19, 10, 5, 3, 1)], num_classes)
        self.vgg = vgg16(in_channels)
        self.L2Norm = L2Norm(512)
        self.extras = nn.ModuleList(
            [
                nn.Conv2d(1024, 256, 1), nn.Conv2d(256, 512, 3, 2, 1),
                nn.Conv2d(512, 128, 1), nn.Conv2d(128, 256, 3, 2, 1),
                nn.Conv2d(256, 128, 1), nn.Conv2d(128, 256, 3),
                nn.Conv2d(256, 128, 1), nn.Conv2d(128, 256, 3),
            ]
        )  # fmt: skip
        channels = (512, 1024, 512, 256, 256, 256)
        pairs = list(zip(channels, self.BOXES, strict=True))
        self.loc = nn.ModuleList(nn.Conv2d(c, b * 4, 3, padding=1) for c, b in pairs)
        self.conf = nn.ModuleList(nn.Conv2d(c, b * num_classes, 3, padding=1) for c, b in pairs)

    def boxes(self, cells: Cells) -> torch.Tensor:
        """Sizes of 0.2 to 0.88 of the image and 0.1 for conv4_3 (section 3.1, its roundings).

        Cells are of the maps' strides, and those of the last two are a third of the image and all of it.
        """
        steps = [(s / 300, s / 300) for s in (8, 16, 32, 64, 100, 300)]
        sizes = [s / 300 for s in (30, 60, 111, 162, 213, 264, 315)]
        return priors(cells, steps, sizes, [(2,), (2, 3), (2, 3), (2, 3), (2,), (2,)])

    def forward(self, x: torch.Tensor) -> Detections | tuple[torch.Tensor, torch.Tensor]:
        maps = []
        for i, layer in enumerate(self.vgg):
            x = layer(x)
            if i == self.CONV4_3:
                maps.append(self.L2Norm(x))
        maps.append(x)
        for i, layer in enumerate(self.extras):
            x = torch.relu(layer(x))
            if i % 2:
                maps.append(x)
        return self.answer(
            [layer(m) for layer, m in zip(self.loc, maps, strict=True)],
            [layer(m) for layer, m in zip(self.conf, maps, strict=True)],
        )


def _step(inp: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalization, ReLU6."""
    conv = nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out, eps=1e-3, momentum=0.03), nn.ReLU6())


def _smaller(inp: int, out: int) -> nn.Sequential:
    """Half the cells: a pointwise, a depthwise of stride 2 and a pointwise convolution."""
    hidden = out // 2
    return nn.Sequential(_step(inp, hidden), _step(hidden, hidden, 3, 2, hidden), _step(hidden, out))


def _head(inp: int, out: int) -> nn.Sequential:
    return nn.Sequential(_step(inp, inp, 3, groups=inp), nn.Conv2d(inp, out, 1))


class SSDLite(_SSD):
    """SSDLite (MobileNetV2, section 6.2; extra maps and box sizes as in MobileNetV3's) on RepViT.

    Args:
        widths, depths: Of the RepViT; its maps of strides 16 and 32 are the first two.
        num_classes: Background included.
        in_channels: Channels of the input image.
    """

    EXTRAS = (512, 256, 256, 128)
    BOXES = 6

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        *,
        num_classes: int = 91,
        in_channels: int = 3,
    ) -> None:
        super().__init__([(c, c) for c in (20, 10, 5, 3, 2, 1)], num_classes)
        self.backbone = RepViTFeatures(widths, depths, in_channels=in_channels)
        channels = (widths[2], widths[3], *self.EXTRAS)
        self.extras = nn.ModuleList(_smaller(i, o) for i, o in zip(channels[1:], self.EXTRAS, strict=False))
        self.loc = nn.ModuleList(_head(c, self.BOXES * 4) for c in channels)
        self.conf = nn.ModuleList(_head(c, self.BOXES * num_classes) for c in channels)

    def boxes(self, cells: Cells) -> torch.Tensor:
        """Sizes of 0.2 to 0.95 of the image, cells that divide it evenly."""
        sizes = [0.2 + 0.75 * i / 5 for i in range(6)] + [1.0]
        return priors(cells, [(1 / r, 1 / c) for r, c in cells], sizes, [(2, 3)] * 6)

    def forward(self, x: torch.Tensor) -> Detections | tuple[torch.Tensor, torch.Tensor]:
        maps = self.backbone(x)[2:]
        for layer in self.extras:
            maps.append(layer(maps[-1]))
        return self.answer(
            [layer(m) for layer, m in zip(self.loc, maps, strict=True)],
            [layer(m) for layer, m in zip(self.conf, maps, strict=True)],
        )
