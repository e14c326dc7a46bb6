"""Small detectors, one for each way to put boxes and scores into outputs.

Convolutions give what `PLAN` says: the objects are known without decoding anything. All else are candidates
of next to no score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

SIZE, CLASSES, BINS = 64, 5, 8
STRIDES = (8, 16, 32)
CELLS = sum((SIZE // s) ** 2 for s in STRIDES)
ANCHORS = ((10.0, 14.0), (24.0, 20.0)), ((20.0, 30.0), (40.0, 32.0)), ((40.0, 44.0), (60.0, 50.0))
"""Width and height of two boxes for each stride."""


@dataclass(frozen=True)
class Thing:
    """An object: left, top, right, bottom in pixels, class and probability; and who is to find it."""

    box: tuple[float, float, float, float]
    label: int
    score: float
    stride: int
    row: int
    column: int


PLAN = (
    Thing((4, 4, 20, 28), 1, 0.9, 8, 2, 1),
    Thing((24, 8, 56, 40), 3, 0.75, 16, 1, 2),
    Thing((16, 16, 48, 48), 0, 0.6, 32, 1, 1),
)
"""Sides are whole strides away from the centers of the cells, and from their corners."""


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def bins_of(distance: float) -> list[float]:
    """Logits of bins whose mean is a distance of whole or half strides."""
    low, high = math.floor(distance), math.ceil(distance)
    return [60.0 if i in (low, high) else -60.0 for i in range(BINS)]


def sides(thing: Thing, offset: float) -> list[float]:
    """Strides from the point of the cell to left, top, right, bottom."""
    x, y = thing.column + offset, thing.row + offset
    left, top, right, bottom = (v / thing.stride for v in thing.box)
    return [x - left, y - top, right - x, bottom - y]


def middle(thing: Thing) -> tuple[float, float, float, float]:
    """Center and size, pixels."""
    left, top, right, bottom = thing.box
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


class Planned(nn.Module):
    """A map for each stride: ``numbers(thing)`` where a thing is to be found, ``usual`` elsewhere.

    Args:
        numbers: Of a cell, in the order of its channels.
        usual: Of all other cells.
        vary: How much photos change them.
    """

    def __init__(
        self, numbers: Callable[[Thing], list[float]], usual: list[float], vary: float = 0.0
    ) -> None:
        super().__init__()
        self.layers, self.stems = nn.ModuleList(), nn.ModuleList()
        for stride in STRIDES:
            side = SIZE // stride
            wanted = torch.tensor(usual).repeat(side * side, 1)
            for thing in PLAN:
                if thing.stride == stride:
                    wanted[thing.row * side + thing.column] = torch.tensor(numbers(thing))
            layer = nn.Conv2d(4 + side * side, len(usual), 1)
            with torch.no_grad():
                layer.weight[:, :4].normal_(std=vary or 1.0).mul_(float(vary > 0))
                layer.weight[:, 4:] = wanted.T[..., None, None]
                layer.bias.zero_()  # type: ignore[union-attr]
            self.layers.append(layer)
            self.stems.append(nn.Conv2d(3, 4, stride, stride))
            cells = torch.eye(side * side).reshape(1, -1, side, side)
            self.register_buffer(f"cells{stride}", cells, persistent=False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for stride, stem, layer in zip(STRIDES, self.stems, self.layers, strict=True):
            cells = getattr(self, f"cells{stride}").expand(len(x), -1, -1, -1)
            found.append(layer(torch.cat([stem(x), cells], 1)))
        return found


def scored(thing: Thing, background: bool = False) -> list[float]:
    found = [-8.0] * (CLASSES + background)
    found[thing.label + background] = logit(thing.score)
    return found


NOTHING = [-8.0] * CLASSES


def points(offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of all cells in pixels [2, CELLS], and strides [CELLS]."""
    places, strides = [], []
    for s in STRIDES:
        axis = (torch.arange(SIZE // s) + offset) * s
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        places.append(torch.stack([x.flatten(), y.flatten()]))
        strides.append(torch.full((len(axis) ** 2,), float(s)))
    return torch.cat(places, 1), torch.cat(strides)


def flat(maps: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([m.flatten(2) for m in maps], 2)


class Binned(nn.Module):
    """YOLOv8, v9, 11: distance bins; what comes of them is said by subclasses."""

    def __init__(self, vary: float = 0.0) -> None:
        super().__init__()
        self.box = Planned(
            lambda t: [v for side in sides(t, 0.5) for v in bins_of(side)], bins_of(0.5) * 4, vary
        )
        self.cls = Planned(scored, NOTHING, vary)
        self.mean = nn.Conv2d(BINS, 1, 1, bias=False)
        with torch.no_grad():
            self.mean.weight.copy_(torch.arange(BINS).float().reshape(1, -1, 1, 1))

    def decoded(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Left top, and right bottom, pixels [n, 2, CELLS] each."""
        place, stride = points(0.5)
        bins = flat(self.box(x)).reshape(len(x), 4, BINS, CELLS).transpose(1, 2).softmax(1)
        near, far = (self.mean(bins).reshape(len(x), 4, CELLS) * stride).chunk(2, 1)
        return place - near, place + far


class Yolo8(Binned):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near, far = self.decoded(x)
        return torch.cat([(near + far) / 2, far - near, flat(self.cls(x)).sigmoid()], 1)


class Yolo8Maps(Binned):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.cat(pair, 1) for pair in zip(self.box(x), self.cls(x), strict=True))


class Yolo10(Binned):
    """The 20 best, chosen by the network."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        boxes = torch.cat(self.decoded(x), 1).transpose(1, 2)
        scores = flat(self.cls(x)).sigmoid().transpose(1, 2)
        best, place = scores.flatten(1).topk(20, 1)
        row, label = place // CLASSES, place % CLASSES
        boxes = torch.gather(boxes, 1, row[..., None].repeat(1, 1, 4))
        return torch.cat([boxes, best[..., None], label[..., None].float()], 2)


class PPYoloe(Binned):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat(self.decoded(x), 1).transpose(1, 2), flat(self.cls(x)).sigmoid()


class Yolo6(Binned):
    """Objectness that is always 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near, far = self.decoded(x)
        ones = torch.ones(1, 1, CELLS).expand(len(x), -1, -1)
        found = [(near + far) / 2, far - near, ones, flat(self.cls(x)).sigmoid()]
        return torch.cat(found, 1).transpose(1, 2)


class Yolox(nn.Module):
    """Boxes without their cells; objectness takes the root of the score, the class the other."""

    def __init__(self, vary: float = 0.0) -> None:
        super().__init__()

        def box(t: Thing) -> list[float]:
            x, y, w, h = (v / t.stride for v in middle(t))
            return [x - t.column, y - t.row, math.log(w), math.log(h)]

        def cls(t: Thing) -> list[float]:
            return [logit(math.sqrt(t.score)) if i == t.label else -8.0 for i in range(CLASSES)]

        self.box = Planned(box, [0.5, 0.5, 0.0, 0.0], vary)
        self.obj = Planned(lambda t: [logit(math.sqrt(t.score))], [-8.0], vary)
        self.cls = Planned(cls, NOTHING, vary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = zip(self.box(x), self.obj(x), self.cls(x), strict=True)
        return flat([torch.cat([b, o.sigmoid(), c.sigmoid()], 1) for b, o, c in both]).transpose(1, 2)


class YoloxMaps(Yolox):
    """As its authors' training code and MMDetection give them."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return (*self.cls(x), *self.box(x), *self.obj(x))


class Yolo5(nn.Module):
    """Two anchors a cell; things are found by the second."""

    def __init__(self, vary: float = 0.0) -> None:
        super().__init__()

        def numbers(t: Thing) -> list[float]:
            x, y, w, h = middle(t)
            aw, ah = ANCHORS[STRIDES.index(t.stride)][1]
            box = [(x / t.stride - t.column + 0.5) / 2, (y / t.stride - t.row + 0.5) / 2]
            box += [math.sqrt(w / aw) / 2, math.sqrt(h / ah) / 2]
            root = logit(math.sqrt(t.score))
            return [
                *nothing,
                *map(logit, box),
                root,
                *(root if i == t.label else -8.0 for i in range(CLASSES)),
            ]

        nothing = [0.0, 0.0, 0.0, 0.0, -8.0, *NOTHING]
        self.maps = Planned(numbers, nothing * 2, vary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for stride, anchors, y in zip(STRIDES, ANCHORS, self.maps(x), strict=True):
            side = SIZE // stride
            y = y.reshape(len(x), 2, 5 + CLASSES, side, side).permute(0, 1, 3, 4, 2).sigmoid()
            rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
            corner = torch.stack([columns, rows], -1).float()
            center = (y[..., :2] * 2 - 0.5 + corner) * stride
            sizes = (y[..., 2:4] * 2) ** 2 * torch.tensor(anchors).reshape(1, 2, 1, 1, 2)
            found.append(torch.cat([center, sizes, y[..., 4:]], -1).reshape(len(x), -1, 5 + CLASSES))
        return torch.cat(found, 1)


class Yolo5Relative(Yolo5):
    """As TFLite exports have it: shares of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return torch.cat([y[..., :4] / SIZE, y[..., 4:]], -1)


class Yolo5Maps(Yolo5):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(self.maps(x))


class RTMDet(nn.Module):
    """Distances in pixels from the corners of the cells."""

    def __init__(self, vary: float = 0.0) -> None:
        super().__init__()
        self.box = Planned(lambda t: [math.log(v) for v in sides(t, 0.0)], [-2.0] * 4, vary)
        self.cls = Planned(scored, NOTHING, vary)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*self.cls(x), *(b.exp() * s for b, s in zip(self.box(x), STRIDES, strict=True)))


class NanoDet(nn.Module):
    """Scores first, then distance bins from the corners of the cells."""

    def __init__(self, vary: float = 0.0) -> None:
        super().__init__()

        def numbers(t: Thing) -> list[float]:
            return [*scored(t), *(v for side in sides(t, 0.0) for v in bins_of(side))]

        self.maps = Planned(numbers, [*NOTHING, *bins_of(0.5) * 4], vary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = [torch.cat([m[:, :CLASSES].sigmoid(), m[:, CLASSES:]], 1) for m in self.maps(x)]
        return flat(split).permute(0, 2, 1)


class SSD(nn.Module):
    """Prior boxes around the centers of the cells, two strides wide; shares of the input; softmax."""

    logits = False

    def __init__(self, vary: float = 0.0) -> None:
        super().__init__()

        def offsets(t: Thing) -> list[float]:
            x, y, w, h = (v / (2 * t.stride) for v in middle(t))
            x, y = x - (t.column + 0.5) / 2, y - (t.row + 0.5) / 2
            return [x / 0.1, y / 0.1, math.log(w) / 0.2, math.log(h) / 0.2]

        def scores(t: Thing) -> list[float]:
            rest = (1 - t.score) / CLASSES
            return [math.log(t.score if i == t.label + 1 else rest) for i in range(CLASSES + 1)]

        self.box = Planned(offsets, [0.0] * 4, vary)
        self.cls = Planned(scores, [8.0] + [0.0] * CLASSES, vary)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        place, stride = points(0.5)
        prior = (place / SIZE).T, (stride * 2 / SIZE)[:, None]
        y = flat(self.box(x)).transpose(1, 2)
        center = prior[0] + y[..., :2] * 0.1 * prior[1]
        half = prior[1] * (y[..., 2:] * 0.2).exp() / 2
        scores = flat(self.cls(x)).transpose(1, 2)
        boxes = torch.cat([center - half, center + half], -1)
        return boxes, scores if self.logits else scores.softmax(-1)


class TransposedSSD(SSD):
    """As TensorFlow has them: y first."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes, scores = super().forward(x)
        return boxes[..., [1, 0, 3, 2]], scores


class Lively(nn.Module):
    """Maps of random layers that answer to photos, as strongly as trained ones."""

    def __init__(self, boxes: list[bool]) -> None:
        super().__init__()
        self.stems = nn.ModuleList(nn.Conv2d(3, 24, s, s) for s in STRIDES)
        self.layers = nn.ModuleList(nn.Conv2d(24, len(boxes), 1) for _ in STRIDES)
        for stem, layer in zip(self.stems, self.layers, strict=True):
            with torch.no_grad():
                stem.weight.normal_(std=1.0 / math.sqrt(stem.weight[0].numel()))  # type: ignore[union-attr, operator, index]
                scores = ~torch.tensor(boxes)  # spread wide, and seldom high
                layer.weight.normal_(std=1 / math.sqrt(24)).mul_((1 + 5 * scores)[:, None, None, None])  # type: ignore[union-attr, operator]
                layer.bias.copy_(-4.0 * scores)  # type: ignore[union-attr, operator]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        both = zip(self.stems, self.layers, strict=True)
        return [layer(stem(x).relu()) for stem, layer in both]


def lively(form: type[nn.Module], seed: int = 0) -> nn.Module:
    """A head of a form on layers that answer to photos."""
    torch.manual_seed(seed)
    net = form()
    for name, module in list(net.named_children()):
        if isinstance(module, Planned):
            channels = module.layers[0].weight.shape[0]  # type: ignore[union-attr, index]
            boxes = [
                name == "box" or (name == "maps" and c % (5 + CLASSES) < 4) for c in range(int(channels))
            ]
            setattr(net, name, Lively(boxes))
    return net.eval()
