"""YOLOv5's loss: which anchors of which cells answer for an object, and how far their answers are off.

As Ultralytics' YOLOv5 (v6 and v7) defines it; the matching is that of its ``build_targets``, the overlap CIoU
(Zheng et al., AAAI 2020, arXiv:1911.08287). All shapes are fixed, objects are filled up with
invalid ones, so that a GPU never waits for a count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

RATIO = 4.0
"""An anchor answers for objects of up to so many times, or as small a part of, its width and height."""

BALANCE = (4.0, 1.0, 0.4)
"""Weight of the objectness of the maps of stride 8, 16, 32."""


@dataclass(frozen=True)
class Gains:
    """Weights of the loss's terms."""

    box: float = 0.05
    objectness: float = 1.0
    classes: float = 0.1


def ciou(a: torch.Tensor, b: torch.Tensor, eps: float = 1e-7) -> torch.Tensor:
    """Complete IoU of boxes given by centre and size, [..., 4] each -> [...], at most 1.

    IoU, less the centres' distance over the enclosing box's diagonal (squares of both), less a term of the
    difference of the aspect ratios, whose weight is no part of the gradient.
    """
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.unbind(-1), b.unbind(-1)
    left, right = torch.minimum(ax - aw / 2, bx - bw / 2), torch.maximum(ax + aw / 2, bx + bw / 2)
    top, bottom = torch.minimum(ay - ah / 2, by - bh / 2), torch.maximum(ay + ah / 2, by + bh / 2)
    across = (torch.minimum(ax + aw / 2, bx + bw / 2) - torch.maximum(ax - aw / 2, bx - bw / 2)).clamp(0)
    down = (torch.minimum(ay + ah / 2, by + bh / 2) - torch.maximum(ay - ah / 2, by - bh / 2)).clamp(0)
    inter = across * down
    iou = inter / (aw * ah + bw * bh - inter + eps)
    distance = ((ax - bx) ** 2 + (ay - by) ** 2) / ((right - left) ** 2 + (bottom - top) ** 2 + eps)
    aspect = 4 / math.pi**2 * (torch.atan(bw / (bh + eps)) - torch.atan(aw / (ah + eps))) ** 2
    with torch.no_grad():
        weight = aspect / (aspect - iou + 1 + eps)
    return iou - distance - weight * aspect


@dataclass(frozen=True)
class Matches:
    """The cells of one map that answer for objects, in a fixed number of places, of which some count.

    Attributes:
        image, anchor, row, column: Of the cell, int64 [n].
        box: Of the object, from the cell's corner to its centre, and its size; in cells, [n, 4].
        classes: Of the object, int64 [n].
        valid: Which places count, [n].
    """

    image: torch.Tensor
    anchor: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    box: torch.Tensor
    classes: torch.Tensor
    valid: torch.Tensor


def match(
    boxes: torch.Tensor, classes: torch.Tensor, anchors: torch.Tensor, stride: int, rows: int, columns: int
) -> Matches:
    """Which cells and anchors of a map answer for which objects.

    Every anchor of nearly the object's size (`RATIO`), in the cell that its centre is in and in the
    nearest neighbour to the left or right and above or below, where there is one.

    Args:
        boxes: Left, top, right, bottom, pixels of the input, [n, most, 4].
        classes: int64 [n, most]; -1 where there is no object.
        anchors: Width and height in cells, [anchors, 2].
        stride: Pixels of a cell.
        rows, columns: Of the map.
    """
    device, n = boxes.device, len(classes)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 / stride
    size = (boxes[..., 2:] - boxes[..., :2]) / stride
    ratio = size[:, :, None] / anchors  # [n, most, anchors, 2]
    near = torch.maximum(ratio, 1 / ratio.clamp(1e-9)).amax(-1) < RATIO
    offsets = torch.tensor([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]], device=device)
    far = torch.tensor([columns, rows], device=device) - centre
    low = (centre % 1 < 0.5) & (centre > 1)  # there is a nearer neighbour on the left, above
    high = (far % 1 < 0.5) & (far > 1)
    own = torch.ones_like(low[..., :1])
    take = torch.cat((own, low, high), -1)  # [n, most, offsets]
    cell = centre.floor().long()[:, :, None] + offsets  # [n, most, offsets, 2]
    valid = (classes >= 0)[:, :, None, None] & near[:, :, :, None] & take[:, :, None, :]
    shape = valid.shape  # [n, most, anchors, offsets]
    corner = cell[:, :, None].expand(*shape, 2)
    box = torch.cat((centre[:, :, None, None] - corner, size[:, :, None, None].expand(*shape, 2)), -1)
    column = corner[..., 0].clamp(0, columns - 1)
    row = corner[..., 1].clamp(0, rows - 1)
    image = torch.arange(n, device=device)[:, None, None, None].expand(shape)
    anchor = torch.arange(len(anchors), device=device)[:, None].expand(shape)
    of = classes.clamp(0)[:, :, None, None].expand(shape)
    image, anchor, row, column, of = (x.reshape(-1) for x in (image, anchor, row, column, of))
    return Matches(image, anchor, row, column, box.reshape(-1, 4), of, valid.reshape(-1))


def loss(
    maps: Sequence[torch.Tensor],
    anchors: torch.Tensor,
    strides: Sequence[int],
    boxes: torch.Tensor,
    classes: torch.Tensor,
    gains: Gains,
) -> torch.Tensor:
    """The loss of a batch: CIoU of the answering boxes, objectness of all cells, classes of the answering.

    Args:
        maps: The network's, [n, anchors * (5 + classes), rows, columns] each.
        anchors: Of each map, in its cells, [maps, anchors, 2].
        strides: Of each map, pixels.
        boxes, classes: Of the objects, see `match`.
        gains: Of the three terms.
    """
    total = torch.zeros((), device=boxes.device)
    for raw, own, stride, balance in zip(maps, anchors, strides, BALANCE, strict=True):
        n, _, rows, columns = raw.shape
        cells = raw.float().view(n, len(own), -1, rows, columns).permute(0, 1, 3, 4, 2)
        m = match(boxes, classes, own, stride, rows, columns)
        answer = cells[m.image, m.anchor, m.row, m.column]
        counted, number = m.valid.float(), m.valid.sum().clamp(1)
        xy = answer[:, :2].sigmoid() * 2 - 0.5
        wh = (answer[:, 2:4].sigmoid() * 2) ** 2 * own[m.anchor]
        overlap = torch.where(m.valid, ciou(torch.cat((xy, wh), -1), m.box), 0)
        wanted = torch.zeros(cells.shape[:-1], device=raw.device)
        place = ((m.image * len(own) + m.anchor) * rows + m.row) * columns + m.column
        wanted.view(-1).scatter_reduce_(0, place, overlap.detach().clamp(0), "amax")
        objectness = F.binary_cross_entropy_with_logits(cells[..., 4], wanted)
        kinds = F.one_hot(m.classes, cells.shape[-1] - 5).float()
        wrong = F.binary_cross_entropy_with_logits(answer[:, 5:], kinds, reduction="none").mean(-1)
        total = total + gains.box * ((1 - overlap) * counted).sum() / number
        total = total + gains.objectness * balance * objectness
        total = total + gains.classes * (wrong * counted).sum() / number
    return total


def fitted_anchors(sizes: np.ndarray, maps: int = 3, each: int = 3, seed: int = 0) -> np.ndarray:
    """Anchors for boxes of these sizes: k-means on the logarithms, small ones first.

    Args:
        sizes: Width and height, [n, 2], as large as in the network's input.
        maps: Maps of the network, that of the smallest stride first.
        each: Anchors of each.

    Returns:
        Width and height, float32 [maps, each, 2].
    """
    points, rng = np.log(sizes.astype(np.float64)), np.random.default_rng(seed)
    centres = points[rng.choice(len(points), maps * each, replace=False)]
    for _ in range(100):
        nearest = ((points[:, None] - centres) ** 2).sum(-1).argmin(1)
        centres = np.stack(
            [points[nearest == k].mean(0) if (nearest == k).any() else c for k, c in enumerate(centres)]
        )
    order = centres.sum(1).argsort()
    return np.exp(centres[order]).reshape(maps, each, 2).astype(np.float32)
