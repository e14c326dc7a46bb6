"""From what a data set says of a photo to what a network should answer: its classes, its input's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from repedge.errors import UserError
from repedge.tasks.annotations.base import Annotations, Marked, Mask
from repedge.tasks.base import Truths
from repedge.tasks.boxes import Objects
from repedge.tasks.view import View

LEFT = 0.25
"""An object counts where a crop leaves this share of its box."""

VOID = 255
"""The number that masks have where nobody knows, in every data set; and the one behind the last class."""

SHAPES_APART = 0.01
"""How far a photo's shape may be from the one that its data set says, for it was resized."""


def box_truths(photos: Any, labels: Sequence[str], classes: int) -> Truths | None:
    """What `placed_boxes` takes, of each photo of a data set with boxes; None if it is none.

    Args:
        photos: A `repedge.photos.photos.Photos`.
        labels: The model's class names; they are matched with the data set's.
        classes: How many it has; 0 where nobody knows.

    Raises:
        UserError: The data set has classes that the model can't answer with.
    """
    found: Annotations | None = getattr(photos, "annotations", None)
    if found is None or found.kind != "boxes":
        return None
    numbers = class_numbers(found, labels, classes)

    def truth(name: str, told: Any) -> Marked | None:
        marked = found.of(name)
        if not isinstance(marked, Marked):
            return None
        return Marked(marked.boxes, numbers[marked.classes], marked.ignored, marked.size, marked.where)

    return truth


def class_numbers(found: Annotations, labels: Sequence[str], classes: int) -> np.ndarray:
    """Index of a data set's class -> index of the model's, int64; by name, or as they are without names.

    Raises:
        UserError: A class of the data set is none of the model's, or there are more or fewer.
    """
    names = found.classes or ()
    numbered = names == tuple(map(str, range(len(names))))
    if labels and not numbered:
        known = {_plain(label): i for i, label in reversed(list(enumerate(labels)))}
        strange = [n for n in names if _plain(n) not in known]
        if strange:
            raise UserError(
                f"the class {strange[0]!r} of {found.where} is none of the model's {len(labels)}, "
                f"{', '.join(labels[:3])}{', ...' if len(labels) > 3 else ''}; compile with --labels that "
                "are named as there"
            )
        return np.array([known[_plain(n)] for n in names], np.int64)
    if classes and len(names) != classes:
        raise UserError(
            f"{found.where} has {len(names)} classes, and the model {classes}, and names don't say which is "
            "which; compile it with --labels, or give the data set that it was trained on"
        )
    return np.arange(len(names))


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def placed_boxes(marked: Marked, view: View) -> Objects:
    """The objects of a photo in the pixels of the network's input.

    What a crop cuts off is gone, and so is an object of which less than `LEFT` is left.

    Raises:
        UserError: The photo has another shape than the data set says, or a box is outside it.
    """
    width, height = view.photo
    size = marked.size or (float(width), float(height))
    check_shape(size, view, marked.where)
    if marked.size is None:
        from repedge.tasks.annotations.base import objects

        rows = zip(marked.boxes, marked.classes, marked.ignored, strict=True)
        marked = objects([(tuple(b), int(c), bool(i)) for b, c, i in rows], size, marked.where)
    scale = np.array(view.scaled) / np.array(size)
    boxes = marked.boxes * np.tile(scale, 2) + np.tile([view.left, view.top], 2)
    rows_, columns = view.size
    cut = np.clip(boxes, 0, [columns, rows_, columns, rows_])
    kept = _areas(cut) >= LEFT * _areas(boxes)
    return Objects(cut[kept].astype(np.float32), marked.classes[kept].astype(np.int32), marked.ignored[kept])


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def check_shape(size: tuple[float, float], view: View, where: str) -> None:
    """Refuse a photo of another shape than its data set says; (1, 1) says nothing.

    Raises:
        UserError: It has.
    """
    width, height = view.photo
    if size == (1, 1):
        return
    apart = abs(size[0] * height - size[1] * width)
    rounding = size[0] + size[1] + width + height  # of either to whole pixels
    if apart > SHAPES_APART * size[0] * height + rounding:
        raise UserError(
            f"{where} speaks of a photo of {size[0]:g}x{size[1]:g} pixels, and the photo has "
            f"{width}x{height}; label it again, or turn it as its labels are"
        )


def mask_truths(photos: Any) -> Truths | None:
    """What `placed_mask` takes, of each photo of a data set with masks; None if it is none.

    Args:
        photos: A `repedge.photos.photos.Photos`.
    """
    found: Annotations | None = getattr(photos, "annotations", None)
    if found is None or found.kind != "masks":
        return None
    return lambda name, told: found.of(name)


def placed_mask(mask: Mask, view: View, classes: int) -> np.ndarray:
    """The class of each pixel of the network's input, by the nearest pixel of the photo.

    Args:
        mask: Ids from 0; `VOID` and ``classes``, the id behind the last, are of pixels that nobody knows.
        view: Where the photo is in the input.
        classes: How many the model has.

    Returns:
        uint8 [H, W], uint16 of more than 255 classes; the largest number of its type where nobody knows, or
        where there is no photo.

    Raises:
        UserError: The mask has another size than its photo, or an id that is no class.
    """
    height, width = mask.ids.shape
    if (width, height) != view.photo:
        raise UserError(
            f"{mask.where} has {width}x{height} pixels, and its photo {view.photo[0]}x{view.photo[1]}; save "
            "it in the photo's size"
        )
    dtype = np.uint8 if classes <= VOID else np.uint16
    void = np.iinfo(dtype).max
    unknown = (mask.ids == classes) | (mask.ids == VOID if classes <= VOID else mask.ids == void)
    strange = np.unique(mask.ids[(mask.ids > classes) & ~unknown])
    if len(strange):
        named = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
        raise UserError(
            f"{mask.where} has the ids {named}, and the model {classes} classes, numbered from 0; void is "
            f"{classes} or {void}"
        )
    ids = np.where(unknown, void, mask.ids).astype(dtype)
    image = Image.fromarray(ids).resize(view.scaled, Image.Resampling.NEAREST)
    rows, columns = view.size
    canvas = Image.new(image.mode, (columns, rows), int(void))
    canvas.paste(image, (view.left, view.top))
    return np.asarray(canvas).astype(dtype)
