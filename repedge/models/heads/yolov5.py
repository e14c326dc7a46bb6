"""YOLOv5 (Ultralytics, v6 and v7) from its table of layers, with RepViT as the backbone if the table says so.

A table is what their ``.yaml`` files hold: rows of ``[from, number, module, args]`` under ``backbone``
and ``head``, with ``nc``, ``anchors``, ``depth_multiple`` and ``width_multiple``. State-dict keys are
theirs (``model.9.cv1.conv.weight``). A RepViT row follows the custom of the tutorials that put one there:
it is one layer, ``model.0``, but counts as five, 0 to 4, whose maps have strides 2 (none), 4, 8, 16, 32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from repedge.errors import UserError
from repedge.models.repvit import RepViTFeatures

Body = tuple[tuple[int, int, int, int], tuple[int, int, int, int]]

ANCHORS = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))
"""Width and height of three boxes for each stride, pixels, fitted to COCO (their ``yolov5s.yaml``)."""

NECK = (
    (-1, 1, "Conv", (512, 1, 1)),
    (-1, 1, "nn.Upsample", (None, 2, "nearest")),
    ((-1, 3), 1, "Concat", (1,)),
    (-1, 3, "C3", (512, False)),
    (-1, 1, "Conv", (256, 1, 1)),
    (-1, 1, "nn.Upsample", (None, 2, "nearest")),
    ((-1, 2), 1, "Concat", (1,)),
    (-1, 3, "C3", (256, False)),
    (-1, 1, "Conv", (256, 3, 2)),
    ((-1, 10), 1, "Concat", (1,)),
    (-1, 3, "C3", (512, False)),
    (-1, 1, "Conv", (512, 3, 2)),
    ((-1, 6), 1, "Concat", (1,)),
    (-1, 3, "C3", (1024, False)),
    ((13, 16, 19), 1, "Detect", ("nc", "anchors")),
)
"""Their path aggregation neck, its numbers those of a table that begins with RepViT and SPPF."""

EPS, MOMENTUM = 1e-3, 0.03  # of every BatchNorm, the backbone's too: their initialize_weights


class Conv(nn.Module):
    """Bias-free convolution ``conv``, batch normalization ``bn`` and SiLU."""

    def __init__(
        self, inp: int, out: int, kernel: int = 1, stride: int = 1, padding: int | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inp, out, kernel, stride, kernel // 2 if padding is None else padding, bias=False
        )
        self.bn = nn.BatchNorm2d(out)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolution, added to the input if ``shortcut``."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels), Conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """Cross-stage partial block of three convolutions around ``number`` bottlenecks."""

    def __init__(self, inp: int, out: int, number: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        hidden = out // 2
        self.cv1, self.cv2, self.cv3 = Conv(inp, hidden), Conv(inp, hidden), Conv(2 * hidden, out)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut) for _ in range(number)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling: three poolings in a row, all four maps concatenated."""

    def __init__(self, inp: int, out: int, kernel: int = 5) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(inp, inp // 2), Conv(inp // 2 * 4, out)
        self.m = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.cv1(x)]
        for _ in range(3):
            maps.append(self.m(maps[-1]))
        return self.cv2(torch.cat(maps, 1))


class Concat(nn.Module):
    """Maps joined along ``axis``."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(maps), self.axis)


class Detect(nn.Module):
    """A 1x1 convolution for each map, and in eval mode what it means.

    Args:
        num_classes: Classes.
        anchors: Of each map, width and height of each box, pixels.
        channels: Of each map.
        strides: Of each map, pixels.

    Returns:
        In eval mode [n, boxes, 5 + classes]: centre x and y, width and height in pixels of the input,
        objectness and class scores in 0..1; boxes in the order map, anchor, row, column. In training mode
        the maps, [n, anchors * (5 + classes), H, W].
    """

    anchors: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        anchors: Sequence[Sequence[float]],
        channels: Sequence[int],
        strides: Sequence[int],
    ) -> None:
        super().__init__()
        self.entries = 5 + num_classes
        self.strides = tuple(strides)
        pixels = torch.tensor([list(a) for a in anchors], dtype=torch.float32).reshape(len(anchors), -1, 2)
        cells = pixels / torch.tensor(self.strides).reshape(-1, 1, 1)
        self.register_buffer("anchors", cells)  # in cells of its map, as in their checkpoints
        self.m = nn.ModuleList(nn.Conv2d(c, cells.shape[1] * self.entries, 1) for c in channels)
        self._rare()

    def _rare(self) -> None:
        """Biases of a network that expects few objects (RetinaNet, section 3.3; their numbers)."""
        for layer, stride in zip(self.m, self.strides, strict=True):
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            bias = layer.bias.detach().view(self.anchors.shape[1], -1)
            bias[:, 4] += math.log(8 / (640 / stride) ** 2)
            bias[:, 5:] += math.log(0.6 / (self.entries - 5 - 0.99999))

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        raw = [layer(x) for layer, x in zip(self.m, maps, strict=True)]
        if self.training:
            return raw
        return torch.cat([self._boxes(x, i) for i, x in enumerate(raw)], 1)

    def _boxes(self, x: torch.Tensor, i: int) -> torch.Tensor:
        n, _, rows, columns = x.shape
        anchors, stride = self.anchors[i], self.strides[i]
        cells = x.reshape(n, len(anchors), self.entries, rows * columns).transpose(2, 3).sigmoid()
        xy, wh, scores = cells.split((2, 2, self.entries - 4), -1)
        xy = (xy * 2 + corners(rows, columns, x)) * stride
        wh = (wh * 2) ** 2 * (anchors * stride)[:, None]
        return torch.cat((xy, wh, scores), -1).reshape(n, -1, self.entries)


def corners(rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    """x and y of each cell of a map less half a cell, [rows * columns, 2]."""
    y, x = torch.meshgrid(
        torch.arange(rows, device=like.device, dtype=like.dtype),
        torch.arange(columns, device=like.device, dtype=like.dtype),
        indexing="ij",
    )
    return torch.stack((x, y), -1).reshape(-1, 2) - 0.5


class YOLOv5(nn.Module):
    """The network of a table.

    Args:
        table: As their ``.yaml`` files have it.
        bodies: Widths and depths of each RepViT that a row may name.
        num_classes: Instead of the table's ``nc``.
        in_channels: Channels of the input image.

    Raises:
        UserError: The table names a module that is not known here, or its numbers don't fit.
    """

    def __init__(
        self,
        table: Mapping[str, Any],
        bodies: Mapping[str, Body],
        *,
        num_classes: int | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        layers = _Layers(table, bodies, int(table["nc"]) if num_classes is None else num_classes, in_channels)
        self.model = layers.build()
        self.sources = layers.sources
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = EPS, MOMENTUM

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        maps: list[torch.Tensor | None] = []
        for layer, sources in zip(self.model, self.sources, strict=True):
            taken = [x if s == -1 else maps[s] for s in sources]
            y = layer(taken if isinstance(layer, (Concat, Detect)) else taken[0])
            if isinstance(layer, RepViTFeatures):
                maps += [None, *y]
                x = y[-1]
            else:
                maps.append(y)
                x = y
        return x


@dataclass(frozen=True)
class _Map:
    """What a layer gives."""

    channels: int
    stride: float


def wide(channels: int, width: float) -> int:
    """Channels of a row under a ``width_multiple``, rounded up to a multiple of 8."""
    return math.ceil(channels * width / 8) * 8


class _Layers:
    """Builds the layers of a table, one row after the other."""

    def __init__(
        self, table: Mapping[str, Any], bodies: Mapping[str, Body], num_classes: int, in_channels: int
    ) -> None:
        self.rows = [tuple(row) for row in (*table["backbone"], *table["head"])]
        self.anchors = table.get("anchors") or ANCHORS
        self.depth, self.width = float(table["depth_multiple"]), float(table["width_multiple"])
        self.bodies = bodies
        self.num_classes = num_classes
        self.last = _Map(in_channels, 1)
        self.maps: list[_Map | None] = []
        self.sources: list[tuple[int, ...]] = []

    def build(self) -> nn.ModuleList:
        layers = []
        for number, row in enumerate(self.rows):
            try:
                source, repeats, name, args = row
                self.sources.append(tuple(source) if isinstance(source, (list, tuple)) else (int(source),))
                layers.append(self._layer(str(name).removeprefix("nn."), int(repeats), list(args)))
            except (ValueError, TypeError, IndexError) as error:
                raise UserError(
                    f"row {number} of the YOLOv5 table, {list(row)}, can't be built: {error}"
                ) from error
        return nn.ModuleList(layers)

    def _inputs(self) -> list[_Map]:
        found = [self.last if s == -1 else self.maps[s] for s in self.sources[-1]]
        if None in found:
            raise ValueError("it takes the map of stride 2, which the backbone doesn't give")
        return [f for f in found if f is not None]

    def _layer(self, name: str, repeats: int, args: list[Any]) -> nn.Module:
        inputs = self._inputs()
        if name in self.bodies:
            return self._backbone(name, inputs[0])
        makers = {
            "Conv": self._conv, "C3": self._c3, "SPPF": self._sppf, "Upsample": self._upsample,
            "Concat": self._concat, "Detect": self._detect,
        }  # fmt: skip
        if name not in makers:
            raise ValueError(f"it names {name}; known are {', '.join((*makers, *self.bodies))}")
        layer, given = makers[name](inputs, repeats, args)
        self.maps.append(given)
        self.last = given
        return layer

    def _backbone(self, name: str, image: _Map) -> nn.Module:
        widths, depths = self.bodies[name]
        self.maps += [None, *(_Map(c, 4 << i) for i, c in enumerate(widths))]
        self.last = self.maps[-1] or image
        return RepViTFeatures(widths, depths, in_channels=image.channels)

    def _conv(self, inputs: list[_Map], repeats: int, args: list[Any]) -> tuple[nn.Module, _Map]:
        out, stride = wide(args[0], self.width), args[2] if len(args) > 2 else 1
        layer = Conv(inputs[0].channels, out, *args[1:4])
        return layer, _Map(out, inputs[0].stride * stride)

    def _c3(self, inputs: list[_Map], repeats: int, args: list[Any]) -> tuple[nn.Module, _Map]:
        out = wide(args[0], self.width)
        number = max(round(repeats * self.depth), 1) if repeats > 1 else repeats
        return C3(inputs[0].channels, out, number, *args[1:2]), _Map(out, inputs[0].stride)

    def _sppf(self, inputs: list[_Map], repeats: int, args: list[Any]) -> tuple[nn.Module, _Map]:
        out = wide(args[0], self.width)
        return SPPF(inputs[0].channels, out, *args[1:2]), _Map(out, inputs[0].stride)

    def _upsample(self, inputs: list[_Map], repeats: int, args: list[Any]) -> tuple[nn.Module, _Map]:
        _, factor, mode = args
        layer = nn.Upsample(scale_factor=factor, mode=mode)
        return layer, _Map(inputs[0].channels, inputs[0].stride / factor)

    def _concat(self, inputs: list[_Map], repeats: int, args: list[Any]) -> tuple[nn.Module, _Map]:
        if len({m.stride for m in inputs}) > 1:
            raise ValueError(f"it joins maps of strides {', '.join(f'{m.stride:g}' for m in inputs)}")
        return Concat(*args[:1]), _Map(sum(m.channels for m in inputs), inputs[0].stride)

    def _detect(self, inputs: list[_Map], repeats: int, args: list[Any]) -> tuple[nn.Module, _Map]:
        if len(self.anchors) != len(inputs) or any(len(a) % 2 for a in self.anchors):
            raise ValueError(f"there are anchors for {len(self.anchors)} maps, and it takes {len(inputs)}")
        strides = [int(m.stride) for m in inputs]
        layer = Detect(self.num_classes, self.anchors, [m.channels for m in inputs], strides)
        return layer, inputs[-1]


def on_repvit(
    widths: tuple[int, int, int, int],
    depths: tuple[int, int, int, int],
    width: float,
    *,
    num_classes: int = 80,
    in_channels: int = 3,
) -> YOLOv5:
    """YOLOv5 with a RepViT backbone, as `table` has it."""
    return YOLOv5(
        table("repvit", width), {"repvit": (widths, depths)}, num_classes=num_classes, in_channels=in_channels
    )


def table(backbone: str, width: float, depth: float = 0.33, num_classes: int = 80) -> dict[str, Any]:
    """The table of YOLOv5 with a RepViT backbone: n has ``width`` 0.25, s 0.5."""
    return {
        "nc": num_classes,
        "depth_multiple": depth,
        "width_multiple": width,
        "anchors": ANCHORS,
        "backbone": ((-1, 1, backbone, ()), (-1, 1, "SPPF", (1024, 5))),
        "head": NECK,
    }
