"""What is done with an input of the fuzz, by its kind."""

from __future__ import annotations

import contextlib
import io
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cli(*words: Any) -> None:
    from repedge.cli import main

    with contextlib.redirect_stdout(io.StringIO()):
        main([str(word) for word in words])


def _use_onnx(file: Path, work: Path, dice: random.Random) -> None:
    target = dice.choice(("tflite", "tflite", "openvino", "gpu", "coreml"))
    if dice.random() < 0.15:
        cli("inspect", file)
    cli("compile", file, "-t", target, "-p", "fp32", "-o", work / "out", "--count", 2)


def _use_weights(file: Path, work: Path, dice: random.Random) -> None:
    if dice.random() < 0.5:
        cli("inspect", file)
    cli("compile", "repvgg_demo", "--weights", file, "-t", "tflite", "-o", work / "out")


def _use_bundle(file: Path, work: Path, dice: random.Random) -> None:
    kind = dice.randrange(5)
    if kind == 0:
        cli("inspect", file)
    if kind == 1:
        platform = dice.choice(("ios", "android", "cpp", "python"))
        cli("ship", file, "--to", platform, "-o", work / "out" / "app")
    if kind == 2:
        cli("eval", file, "--data", Path(work).parent / "corpus" / "archives" / "photos.zip")
    cli("verify", file, "--count", 2)


def _use_image(file: Path, work: Path, dice: random.Random) -> None:
    from repedge.config import Preprocess
    from repedge.photos import images

    pre = Preprocess(size=(32, 32), resize=dice.choice((32, None)))
    _refusing(lambda: images.pixels(images.decode(file, upright=dice.random() < 0.5), pre))


def _use_archive(file: Path, work: Path, dice: random.Random) -> None:
    from repedge.config import Preprocess
    from repedge.photos import choice
    from repedge.photos.photos import open_photos
    from repedge.tasks.labels import class_indices

    pre = Preprocess(size=(8, 8), resize=8)

    def use() -> None:
        photos = open_photos(file, pre)
        of = class_indices(photos)
        for _, item in photos.read(range(min(9, photos.total or 0))):
            if of is not None:
                of(item.name, item.told)
        choice.load(file, pre)

    _refusing(use)


def _use_dataset(file: Path, work: Path, dice: random.Random) -> None:
    from repedge.config import Preprocess
    from repedge.photos import images
    from repedge.photos.photos import open_photos
    from repedge.tasks.annotations import Mask, mapping

    pre = Preprocess(size=(32, 32), resize=dice.choice((32, None)))
    masks = any(file.glob("*annot"))
    given = next((f for f in file.rglob("*") if f.suffix in (".json", ".yaml")), file)

    def use() -> None:
        photos = open_photos(given, truth="masks" if masks else "boxes")
        of = mapping.mask_truths(photos) if masks else mapping.box_truths(photos, ("cell", "plate"), 2)
        for name in photos.names or ():
            found, view = of and of(name, None), images.view((40, 20), pre)
            if isinstance(found, Mask):
                mapping.placed_mask(found, view, 2)
            elif found:
                mapping.placed_boxes(found, view)

    _refusing(use)


def _refusing(use: Callable[[], Any]) -> None:
    from repedge.errors import RepedgeError

    try:
        use()
    except RepedgeError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)


USES: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "onnx": _use_onnx,
    "weights": _use_weights,
    "bundles": _use_bundle,
    "images": _use_image,
    "archives": _use_archive,
    "datasets": _use_dataset,
}
