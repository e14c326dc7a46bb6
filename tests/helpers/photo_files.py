"""Random photos, as arrays and as files, and what the network would see of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from repedge.config import Preprocess
from repedge.photos.choice import CalibrationImages
from repedge.photos.photos import demo_photos

PRE = Preprocess(size=(8, 12), resize=None)


def photos(count: int, height: int = 10, width: int = 14, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def folder(path: Path, arrays: np.ndarray) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(path / f"{i:03}.png")
    return path


def pixels(data: CalibrationImages) -> np.ndarray:
    return np.concatenate(list(data.batches(True)))


def demo_files(folder: Path, count: int = 64, classes: bool = True) -> Path:
    """The first bundled photos as files, in class folders or all in one."""
    for i, item in demo_photos().read(range(count)):
        file = (folder / item.name if classes else folder / f"{i:02}").with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        assert isinstance(item.content, Image.Image)
        item.content.save(file)
    return folder
