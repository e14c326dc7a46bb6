"""Integer precisions in the pipeline: calibrate on the user's photos, then hand a target its QDQ graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repedge import images
from repedge.config import InputKind, Precision, Preprocess
from repedge.errors import UserError

if TYPE_CHECKING:
    import onnx_ir as ir

NEEDS_PHOTOS: frozenset[Precision] = frozenset({"w8a8", "w8a16"})
PIXELS = {"repedge.input": "pixels"}
"""Marks a graph whose preprocessing is folded already; see ``repedge.targets.qdq``."""


@dataclass(frozen=True)
class Calibration:
    """What to calibrate on.

    Attributes:
        folder: Photos like those that the app will see; labels are not needed.
        count: How many of them, spread evenly over the folder.
        recipe: fast, default, best, or a .json file.
    """

    folder: Path
    count: int = 64
    recipe: str = "default"


def quantize(
    graph: ir.Model,
    scheme: str,
    pre: Preprocess,
    kind: InputKind,
    calibration: Calibration | None,
    report: Callable[[str], None] = lambda step: None,
) -> tuple[ir.Model, dict[str, Any]]:
    """Calibrate a clean float graph and return its QDQ graph and a summary for the manifest.

    Args:
        graph: The clean graph; not changed.
        scheme: A name from ``repedge.calib.scheme.SCHEMES``.
        pre: The model's preprocessing; folded in before calibrating for artifacts that take pixels.
        kind: What the artifact takes.
        calibration: The photos.

    Raises:
        UserError: No photos, none that can be decoded, or a graph with nothing to quantize.
    """
    from repedge.calib.qdq import to_qdq
    from repedge.calib.recipe import calibrate
    from repedge.calib.scheme import SCHEMES
    from repedge.passes.preprocess import fold_preprocess

    if calibration is None:
        raise UserError("8-bit activations need photos to calibrate on: pass --calib FOLDER")
    pixels = kind == "uint8"
    model = fold_preprocess(graph, pre) if pixels else graph
    samples = images.spread(images.folder_samples(calibration.folder), calibration.count)
    skipped: list[str] = []
    feed = _batches(samples, pre, pixels, skipped)
    quantized, plan = calibrate(model, feed, SCHEMES[scheme], calibration.recipe, progress=report)
    qdq = to_qdq(quantized, plan)
    if pixels:
        qdq.metadata_props.update(PIXELS)
    summary = {
        "scheme": scheme,
        "recipe": plan.recipe,
        "images": len(samples) - len(skipped),
        "skipped": skipped,
        "folder": calibration.folder.name,
    }
    return qdq, summary


def _batches(
    samples: list[images.Sample], pre: Preprocess, pixels: bool, skipped: list[str]
) -> Iterator[np.ndarray]:
    """Network inputs float32 [1, C, H, W]: raw RGB pixels 0 to 255, or normalised."""
    for sample in samples:
        try:
            array = images.pixels(sample.load(), pre)[None]
        except UserError:
            skipped.append(sample.name)
            continue
        yield array.transpose(0, 3, 1, 2).astype(np.float32) if pixels else images.normalise(array, pre)
