"""Which photos an artifact is judged on: the user's own where there are some, else bundled ones that fit."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.photos import images
from repedge.photos.choice import FEWEST, left_over
from repedge.photos.photos import Photos, bundled_photos, open_photos, pixels_of, spread, with_skipped
from repedge.photos.sources import Item
from repedge.tasks.base import Task

COUNT = 16
"""Photos that an artifact is judged on, if the user does not say how many."""

GOLDEN = 4
"""Golden images of a bundle."""


@dataclass(frozen=True)
class Samples:
    """Photos to run a network on.

    Attributes:
        images: (name, image) of each: those to judge on first.
        judged: How many are judged on. What follows are golden images only, which travel in the bundle and
            in app packages: nobody's photos go there who gave them to calibrate on.
        truths: What is to be found in each that is judged on; None where nobody knows.
        source: A phrase for where those came from.
    """

    images: tuple[tuple[str, Image.Image], ...]
    judged: int
    truths: tuple[object, ...]
    source: str

    @property
    def golden(self) -> slice:
        """Where the golden images stand."""
        start = self.judged if len(self.images) > self.judged else 0
        return slice(start, start + GOLDEN)

    def pixels(self, pre: Preprocess) -> np.ndarray:
        """All of them as uint8 [n, H, W, C]."""
        return np.stack([images.pixels(image, pre) for _, image in self.images])


@dataclass(frozen=True)
class Calibrated:
    """A set of photos, some of which a network was calibrated on.

    Attributes:
        photos: All of them.
        used: sha256 of those.
        seed: Of their choice.
    """

    photos: Photos
    used: Set[str]
    seed: int


def open_judged(given: Any, task: Task, pre: Preprocess) -> Photos:
    """The photos that the user judges on; see `repedge.photos.photos.open_photos`."""
    return open_photos(given, pre, option="--images", truth=task.annotated)


def from_photos(photos: Photos, task: Task, pre: Preprocess, count: int) -> Samples:
    """``count`` photos spread evenly over a set, with what it says of them.

    What can't be read is left out, and `Samples.source` says how many.

    Raises:
        UserError: None can be read.
    """
    upright = photos.annotations is not None and photos.annotations.upright
    items = (item for _, item in photos.read(spread(photos.total, count), upright))
    found = _gathered(photos, items, task, pre, photos.name)
    if isinstance(found, Samples):
        return found
    first = next((f": {name!r}, {why}" for name, why in found.items()), "")
    raise UserError(f"none of the {len(found)} photos of {photos.where} can be read{first}")


def from_bundled(task: Task, pre: Preprocess, count: int) -> Samples:
    """Bundled photos that fit the network."""
    return from_photos(bundled_photos(pre, task.labels), task, pre, count)


def from_calibration(given: Calibrated, task: Task, pre: Preprocess, count: int) -> Samples | None:
    """Photos that were left over when others were chosen to calibrate on; None if they are too few."""
    photos = given.photos
    items = left_over(photos, given.used, given.seed, count)
    if items is None:
        return None
    found = _gathered(photos, items, task, pre, f"{photos.name}, those not calibrated on")
    if not isinstance(found, Samples) or found.judged < min(count, FEWEST):
        return None
    golden = from_bundled(task, pre, GOLDEN)
    return Samples(found.images + golden.images, found.judged, found.truths, found.source)


def _gathered(
    photos: Photos, items: Iterable[Item], task: Task, pre: Preprocess, source: str
) -> Samples | dict[str, str]:
    """Readable items with their truths; name -> why it is not, where none is."""
    try:
        truth_of = task.truths(photos)
    except UserError:  # folders of any other kind: nobody said that they were classes
        truth_of = None
    loaded: list[tuple[str, Image.Image]] = []
    truths: list[object] = []
    skipped: dict[str, str] = {}
    for item in items:
        if item.content is None:
            skipped[item.name] = item.why
            continue
        loaded.append((item.name, _small(item, pre)))
        truth = None if truth_of is None else truth_of(item.name, item.told)
        size = item.content.size if isinstance(item.content, Image.Image) else None
        truths.append(None if truth is None else task.placed(truth, images.view(size, pre)))
    if not loaded:
        return skipped
    return Samples(tuple(loaded), len(loaded), tuple(truths), with_skipped(source, skipped))


def _small(item: Item, pre: Preprocess) -> Image.Image:
    """An item as an image, halved while it is much larger than the network's input.

    They become golden inputs in the bundle, which must stay small. Network inputs become photos of their
    size.
    """
    content = item.content
    if isinstance(content, Image.Image):
        image = content
    else:
        image = Image.fromarray(pixels_of(item, pre).squeeze(-1 if pre.channels == 1 else ()))
    while min(image.size) > 2 * max(*pre.size, pre.resize or 0):
        image = image.reduce(2)
    return image
