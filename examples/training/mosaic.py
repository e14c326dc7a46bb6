"""Photos with boxes, augmented where the network is trained: four to a mosaic, turned, scaled, recoloured.

A batch is made of a fixed number of places; each shows one photo, by an affine map, in a rectangle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

GREY = 114
"""Of what no photo covers: that of the letterbox."""

LEFT = 0.25
"""Share of a box's area that must be left in view."""


@dataclass(frozen=True)
class Photos:
    """Photos of one size in memory.

    Attributes:
        pixels: uint8 [n, 3, H, W].
        boxes: Left, top, right, bottom, pixels, float32 [n, most, 4].
        classes: int64 [n, most]; -1 where there is no box.
    """

    pixels: torch.Tensor
    boxes: torch.Tensor
    classes: torch.Tensor

    def to(self, device: torch.device) -> Photos:
        """The same on a device."""
        return Photos(self.pixels.to(device), self.boxes.to(device), self.classes.to(device))


@dataclass(frozen=True)
class Places:
    """Where photos are shown; point (x, y) of photo ``index`` is at ``matrix @ (x, y, 1)``.

    Attributes:
        index: int64 [n].
        matrix: From pixels of the photo to pixels of the input, [n, 2, 3].
        window: Left, top, right, bottom of what is shown, pixels of the input, [n, 4].
    """

    index: torch.Tensor
    matrix: torch.Tensor
    window: torch.Tensor


def uniform(shape: tuple[int, ...], low: float, high: float, rng: torch.Generator) -> torch.Tensor:
    """Random numbers on the generator's device."""
    return torch.rand(shape, generator=rng, device=rng.device) * (high - low) + low


def turned(
    n: int, size: tuple[int, int], scales: tuple[float, float], quarter: bool, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random scales, flips and (if ``quarter``) quarter turns of photos.

    Returns:
        Matrices [n, 2, 3] that bring photos of ``size`` (H, W) to coordinates from 0 on, and width and
        height there, [n, 2].
    """
    height, width = size
    scale = torch.exp(uniform((n,), math.log(scales[0]), math.log(scales[1]), rng))
    flip = uniform((n, 2), 0, 1, rng) < 0.5
    swap = (uniform((n,), 0, 1, rng) < 0.5) & quarter
    sign = torch.where(flip, -1.0, 1.0) * scale[:, None]
    extent = torch.tensor([width, height], device=rng.device) * scale[:, None]
    shift = torch.where(flip, extent, torch.zeros_like(extent))
    matrix = torch.cat((torch.diag_embed(sign), shift[..., None]), -1)
    matrix = torch.where(swap[:, None, None], matrix.flip(1), matrix)
    return matrix, torch.where(swap[:, None], extent.flip(1), extent)


def mosaics(n: int, photos: int, size: tuple[int, int], side: int, rng: torch.Generator) -> Places:
    """Places of ``n`` mosaics: four photos whose corners meet; what is too large is cut anywhere.

    Returns:
        Places [4 * n], those of a mosaic one after the other.
    """
    index = torch.randint(photos, (4 * n,), generator=rng, device=rng.device)
    matrix, extent = turned(4 * n, size, (0.6, 1.5), True, rng)
    centre = uniform((n, 1, 2), 0.25 * side, 0.75 * side, rng)
    right = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=rng.device)  # x, y of each quadrant
    low = torch.where(right > 0, centre, torch.zeros_like(centre)).view(-1, 2)
    high = torch.where(right > 0, torch.full_like(centre, side), centre).view(-1, 2)
    room = (extent - (high - low)).clamp(0) * uniform((4 * n, 2), 0, 1, rng)
    toward = right.repeat(n, 1) > 0
    shift = torch.where(toward, low - room, high - extent + room)
    return Places(index, moved(matrix, shift), torch.cat((low, high), 1))


def singles(index: torch.Tensor, size: tuple[int, int], side: int, rng: torch.Generator) -> Places:
    """Places of one photo each, near to where the letterbox has it."""
    n = len(index)
    matrix, extent = turned(n, size, (0.85, 1.2), False, rng)
    shift = (side - extent) / 2 + uniform((n, 2), -0.08, 0.08, rng) * side
    window = torch.tensor([0.0, 0.0, side, side], device=rng.device).expand(n, 4)
    return Places(index, moved(matrix, shift), window)


def moved(matrix: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """An affine map [n, 2, 3], then a translation [n, 2]."""
    return torch.cat((matrix[:, :, :2], matrix[:, :, 2:] + shift[..., None]), -1)


def shown(photos: Photos, places: Places, side: int, each: int) -> torch.Tensor:
    """Pixels float32 [n, 3, side, side] in 0..255; ``each`` places following one another make one."""
    device, n = photos.pixels.device, len(places.index) // each
    height, width = photos.pixels.shape[2:]
    middle = torch.arange(side, device=device) + 0.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    out = torch.full((n, 3, side, side), float(GREY), device=device)
    linear, shift = places.matrix[:, :, :2], places.matrix[:, :, 2]
    back = torch.linalg.inv_ex(linear).inverse  # `inv` waits for the device
    for k in range(each):
        m, t, window = back[k::each], shift[k::each], places.window[k::each]
        dx, dy = x - t[:, 0, None, None], y - t[:, 1, None, None]
        (a, b), (c, d) = ((e[:, None, None] for e in row.unbind(1)) for row in m.unbind(1))
        source = torch.stack((a * dx + b * dy, c * dx + d * dy), -1)  # pixels of the photo
        grid = source / torch.tensor([width, height], device=device) * 2 - 1
        chosen = photos.pixels[places.index[k::each]].float()
        drawn = F.grid_sample(chosen, grid, mode="bilinear", padding_mode="border", align_corners=False)
        left, top, right, bottom = window[:, :, None, None].unbind(1)
        inside = (grid.abs() <= 1).all(-1) & (x >= left) & (x < right) & (y >= top) & (y < bottom)
        out = torch.where(inside[:, None], drawn, out)
    return out


def found(photos: Photos, places: Places, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes and classes of what `shown` shows, [n, each * most, ...]; what is cut off too far is -1."""
    boxes, classes = photos.boxes[places.index], photos.classes[places.index]
    corners = boxes.view(*boxes.shape[:2], 2, 2)
    linear, shift = places.matrix[:, None, None, :, :2], places.matrix[:, None, None, :, 2]
    corners = (linear @ corners[..., None])[..., 0] + shift
    whole = torch.cat((corners.amin(2), corners.amax(2)), -1)
    low, high = places.window[:, None, :2], places.window[:, None, 2:]
    cut = torch.cat((whole[..., :2].clamp(low, high), whole[..., 2:].clamp(low, high)), -1)
    area, left = areas(whole), areas(cut)
    thick = (cut[..., 2:] - cut[..., :2]).amin(-1) >= 2
    classes = torch.where((left >= LEFT * area) & thick, classes, torch.full_like(classes, -1))
    n, most = len(classes) // each, each * classes.shape[1]
    return cut.reshape(n, most, 4), classes.reshape(n, most)


def areas(boxes: torch.Tensor) -> torch.Tensor:
    """Of boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def recoloured(
    pixels: torch.Tensor, rng: torch.Generator, hue: float, saturation: float, value: float
) -> torch.Tensor:
    """Hue (a turn about grey, radians), saturation and brightness of each picture changed at random.

    Args:
        pixels: float32 [n, 3, H, W] in 0..255.
        rng: On the same device.
        hue, saturation, value: The largest changes.
    """
    n = len(pixels)
    angle = uniform((n, 1, 1), -hue, hue, rng)
    more = uniform((n, 1, 1), 1 - saturation, 1 + saturation, rng)
    bright = uniform((n, 1, 1, 1), 1 - value, 1 + value, rng)
    third = torch.full((3, 3), 1 / 3, device=pixels.device)  # what takes out the grey
    root = 3**-0.5
    across = torch.tensor([[0, -root, root], [root, 0, -root], [-root, root, 0]], device=pixels.device)
    colour = torch.eye(3, device=pixels.device) - third
    turn = third + more * (angle.cos() * colour + angle.sin() * across)
    return (torch.einsum("nij,njhw->nihw", turn, pixels) * bright).clamp(0, 255)
