"""What a network answered, drawn over the photo: SVG elements in the pixels of its input. No script."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from repedge.tasks.boxes import Detections, Objects

QUALITY = 88
"""Of the JPEG that a photo becomes."""

LETTERS = 26
"""Lines of text that a picture is high, or letters wide by two."""

TURN = 137.508
"""Degrees of hue from a class to the next: the golden angle keeps neighbours apart."""

VEIL = 0.55
"""How much of a photo classes of pixels cover."""


def photo(pixels: np.ndarray, name: str) -> str:
    """A photo, uint8 [H, W, C], as an element with an id, which pictures use."""
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels)
    height, width = pixels.shape[:2]
    return _image(image.convert("RGB"), "JPEG", width, height, f' id="{escape(name)}"')


def picture(name: str, size: tuple[int, int], over: str) -> str:
    """A picture of the photo with this id, and what is drawn over it."""
    height, width = size
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img"><use href="#{escape(name)}"/>'
        f'<svg viewBox="0 0 {width} {height}" overflow="hidden">{over}</svg></svg>'
    )


def colour(index: int) -> str:
    """Of a class."""
    red, green, blue = rgb(index)
    return f"#{red:02x}{green:02x}{blue:02x}"


def rgb(index: int) -> tuple[int, int, int]:
    """Of a class: red, green, blue."""
    import colorsys

    lightness = (0.52, 0.66, 0.42)[index // 8 % 3]
    found = colorsys.hls_to_rgb(index * TURN % 360 / 360, lightness, 0.78)
    red, green, blue = (round(255 * v) for v in found)
    return red, green, blue


def boxes(found: Detections | Objects, labels: Sequence[str], size: tuple[int, int]) -> str:
    """Frames with the name and the score of each; of objects that are to be ignored, dashed."""
    unit = max(size) / LETTERS
    scores: Sequence[float | None] = [None] * len(found)
    ignored = np.zeros(len(found), bool)
    if isinstance(found, Detections):
        scores = found.scores.tolist()
    else:
        ignored = found.ignored
    drawn = []
    for box, c, score, idle in zip(
        found.boxes.tolist(), found.classes.tolist(), scores, ignored, strict=True
    ):
        x0, y0, x1, y1 = box
        name = labels[c] if c < len(labels) else str(c)
        text = name if score is None else f"{name} {score:.2f}"
        dash = f' stroke-dasharray="{unit / 3:.2f}"' if idle else ""
        drawn.append(
            f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{max(x1 - x0, 0):.1f}" height="{max(y1 - y0, 0):.1f}" '
            f'fill="none" stroke="{colour(c)}" stroke-width="{unit / 8:.2f}"{dash}/>'
            + tag(text, min(x0, size[1] - _width(text, unit)), max(y0, unit), unit, colour(c))
        )
    return "".join(reversed(drawn))  # the best on top


def tag(text: str, x: float, y: float, unit: float, back: str) -> str:
    """A line of text on a colour, its bottom left at a point."""
    width = _width(text, unit)
    return (
        f'<rect x="{x:.1f}" y="{y - unit:.1f}" width="{width:.1f}" height="{unit:.1f}" fill="{back}"/>'
        f'<text x="{x + 0.2 * unit:.1f}" y="{y - 0.26 * unit:.1f}" textLength="{width - 0.4 * unit:.1f}" '
        f'lengthAdjust="spacingAndGlyphs" style="font-size:{0.8 * unit:.2f}px;fill:#fff">'
        f"{escape(text)}</text>"
    )


def _width(text: str, unit: float) -> float:
    """Of a tag."""
    return 0.5 * unit * len(text) + 0.4 * unit


def veil(ids: np.ndarray, classes: int, size: tuple[int, int]) -> str:
    """Classes of pixels as colours over the photo; what is of no class stays bare."""
    palette = np.array([[*rgb(c), round(255 * VEIL)] for c in range(classes)] + [[0, 0, 0, 0]], np.uint8)
    image = Image.fromarray(palette[np.minimum(ids, classes)], "RGBA")
    return _image(image, "PNG", size[1], size[0], ' style="image-rendering:pixelated"')


def bars(rows: Sequence[tuple[str, float, int]], size: tuple[int, int]) -> str:
    """Bars over the lower part of a photo.

    Args:
        rows: (text, length from 0 to 1, number of the colour) of each.
        size: Height and width of the photo.
    """
    height, width = size
    unit = height / LETTERS * 1.5
    top = height - unit * (len(rows) + 0.5)
    drawn = [
        f'<rect y="{top:.2f}" width="{width}" height="{height - top:.2f}" fill="#000" fill-opacity=".6"/>'
    ]
    for i, (text, share, index) in enumerate(rows):
        y = top + unit * (i + 0.25)
        drawn.append(
            f'<rect x="{0.3 * unit:.2f}" y="{y:.2f}" width="{share * (width - 0.6 * unit):.2f}" '
            f'height="{0.85 * unit:.2f}" fill="{colour(index)}" fill-opacity=".8"/>'
            f'<text x="{0.5 * unit:.2f}" y="{y + 0.62 * unit:.2f}" '
            f'style="font-size:{0.6 * unit:.2f}px;fill:#fff">{escape(text)}</text>'
        )
    return "".join(drawn)


def relative_errors(outputs: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> np.ndarray:
    """Of each image, over all outputs [n, ...]: the error's length over that of the float network's. [n]."""
    noise = signal = np.zeros(len(exact[0]))
    for got, want in zip(outputs, exact, strict=True):
        rows = want.reshape(len(want), -1).astype(np.float64)
        noise = noise + ((got.reshape(rows.shape) - rows) ** 2).sum(1)
        signal = signal + (rows**2).sum(1)
    return np.sqrt(noise / np.maximum(signal, 1e-30))


def _image(image: Image.Image, form: str, width: int, height: int, more: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": QUALITY} if form == "JPEG" else {}))
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = f"image/{form.lower()}"
    return f'<image{more} width="{width}" height="{height}" href="data:{kind};base64,{data}"/>'
