"""The photos of bench/int8.py: which calibrate, which are evaluated; and the float network's logits."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from repedge.config import Preprocess
from repedge.models.source import Source, resolve
from repedge.photos import images
from repedge.photos.photos import open_photos, stacked

CIFAR10 = {
    "input_size": 48,
    "resize": "none",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mobileone": ("examples.mobileone:mobileone_s0", {}),
    "repvgg_a0_cifar10": ("repvgg_a0", CIFAR10),  # as examples/train_cifar10.py trains it
}
"""Short name -> model and options, for what is not `repedge models`' name alone."""


@dataclass(frozen=True)
class Photo:
    """An image file that may lie in an archive."""

    name: str
    read: Callable[[], bytes]
    label: int


@dataclass(frozen=True)
class Work:
    """A folder with everything of one run: photos, logits, artifacts, finished rows.

    Files: ``task.json`` (model, weights, seed, counts), ``calib/`` (photos to calibrate on), ``eval.npz``
    (pixels uint8 [n, H, W, 3], labels int64 [n]), ``float.npy`` (logits of the torch model on them).
    """

    folder: Path

    @cached_property
    def task(self) -> dict[str, Any]:
        """What was asked for."""
        return json.loads((self.folder / "task.json").read_text())

    @cached_property
    def source(self) -> Source:
        """The float model."""
        name, options = source_of(self.task["model"], self.task["weights"])
        return resolve(name, **options)

    @property
    def pre(self) -> Preprocess:
        """The model's preprocessing."""
        return self.source.preprocess

    @cached_property
    def evaluation(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 [n, H, W, 3] and labels int64 [n]."""
        data = np.load(self.folder / "eval.npz")
        return data["pixels"], data["labels"]

    def calibration(self) -> list[np.ndarray]:
        """Normalised inputs float32 [1, 3, H, W], as the peers take them."""
        pre = self.pre
        return [images.normalise(x[None], pre) for x in stacked(open_photos(self.folder / "calib"), pre)]

    def rows(self) -> dict[str, Any]:
        """The finished rows by method."""
        file = self.folder / "rows.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def logits(self) -> np.ndarray:
        """The float network's logits of the evaluation photos, float32 [n, classes]."""
        return np.load(self.folder / "float.npy")


def source_of(model: str, weights: str | None) -> tuple[str, dict[str, Any]]:
    """Model and options as `repedge.models.source.resolve` takes them."""
    name, options = MODELS.get(model, (model, {}))
    return name, options if weights is None else {**options, "weights": weights}


def prepare(
    folder: Path, model: str, weights: Path | None, data: Path, calib: int, limit: int | None, seed: int
) -> Work:
    """Split the photos and run the float network, unless ``folder`` has the same task already."""
    # A relative path would change its meaning with the directory that a resumed run starts in.
    task = {
        "model": model,
        "weights": None if weights is None else str(weights.absolute()),
        "data": data.name,
        "calib": calib,
        "limit": limit,
        "seed": seed,
    }
    work = Work(folder)
    if (folder / "task.json").exists():
        if work.task != task:
            raise SystemExit(f"{folder} holds another run ({work.task}); give another --work")
        return work
    chosen, others = split(photos(data), calib, limit, seed)
    (folder / "calib").mkdir(parents=True, exist_ok=True)
    for i, photo in enumerate(chosen):
        (folder / "calib" / f"{i:04}-{Path(photo.name).name}").write_bytes(photo.read())
    name, options = source_of(model, task["weights"])  # type: ignore[arg-type]
    source = resolve(name, **options)
    pixels = np.stack(
        [images.pixels(Image.open(BytesIO(p.read())).convert("RGB"), source.preprocess) for p in others]
    )
    np.savez(folder / "eval.npz", pixels=pixels, labels=np.array([p.label for p in others]))
    np.save(folder / "float.npy", torch_logits(source, pixels))
    write_json(folder / "task.json", task)
    return work


def photos(data: Path) -> tuple[list[Photo], list[Photo]]:
    """Photos to calibrate on and photos to evaluate on; the same list twice where there is one set.

    Two sets are ``train/CLASS/*`` and ``test/CLASS/*`` of a folder or .zip; one set is a folder with a
    labels.json.
    """
    if data.is_dir() and (data / "labels.json").exists():
        table = json.loads((data / "labels.json").read_text())
        found = [Photo(n, (data / n).read_bytes, label) for n, label in sorted(table.items())]
        return found, found
    if data.is_dir():
        names = sorted(p.relative_to(data).as_posix() for p in data.rglob("*") if p.is_file())
        read = _reader(data)
    else:
        archive = zipfile.ZipFile(data)
        names, read = sorted(archive.namelist()), archive.read
    names = [n for n in names if Path(n).suffix.lower() in images.SUFFIXES]
    classes = sorted({n.split("/")[1] for n in names})
    both = [
        [
            Photo(n, lambda n=n: read(n), classes.index(n.split("/")[1]))  # type: ignore[misc]
            for n in names
            if n.startswith(f"{part}/")
        ]
        for part in ("train", "test")
    ]
    return both[0], both[1]


def _reader(folder: Path) -> Callable[[str], bytes]:
    return lambda name: (folder / name).read_bytes()


def split(
    sets: tuple[list[Photo], list[Photo]], calib: int, limit: int | None, seed: int
) -> tuple[list[Photo], list[Photo]]:
    """``calib`` photos by a seeded choice, and the others of the evaluation set (``limit`` of them)."""
    order = np.random.default_rng(seed).permutation(len(sets[0]))
    chosen = [sets[0][i] for i in order[:calib]]
    names = {p.name for p in chosen}
    others = [p for p in sets[1] if p.name not in names]
    if limit is not None and limit < len(others):
        keep = np.random.default_rng(seed).permutation(len(others))[:limit]
        others = [others[i] for i in sorted(keep)]
    return chosen, others


def torch_logits(source: Source, pixels: np.ndarray) -> np.ndarray:
    """The torch module itself, eager float32, on uint8 pixels [n, H, W, 3]."""
    import torch

    assert source.module is not None
    rows = []
    with torch.inference_mode():
        for i in range(0, len(pixels), 16):
            x = torch.from_numpy(images.normalise(pixels[i : i + 16], source.preprocess))
            rows.append(torch.utils._pytree.tree_leaves(source.module.eval()(x))[0].numpy())
    return np.concatenate(rows)


def write_json(path: Path, content: Any) -> None:
    """Atomically: a run that is cut off leaves the old file."""
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(draft, path)
