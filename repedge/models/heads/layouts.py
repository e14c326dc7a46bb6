"""What a state dict's shapes say of a network with a head."""

from __future__ import annotations

import re
from typing import Any

from repedge.models.layouts import Anatomy, Shapes, repvit_body
from repedge.models.registry import Family

STEM = "features.0.0.c.weight"


def official(keys: list[str]) -> dict[str, str]:
    """Keys of a YOLOv5 whose common beginning, ``model.``, was taken off as a wrapper's: put on again."""
    if f"0.{STEM}" in keys:
        return {k: f"model.{k}" for k in keys}
    return {k: k for k in keys}


def anatomy(shapes: Shapes) -> Anatomy | None:
    """Read a state dict's shapes (official names); None where they are of no network with a head."""
    if f"model.0.{STEM}" in shapes:
        return _yolov5(shapes)
    if "L2Norm.weight" in shapes and "vgg.0.weight" in shapes:
        return _plain("ssd300", shapes, _rows(shapes, "conf.0.weight") // 4, "vgg.0.weight")
    if "conv1_1.weight" in shapes and "fc6.weight" in shapes:
        context = (int("ctx_final.weight" in shapes),)
        return _plain("dilated_vgg16", shapes, _rows(shapes, "final.weight"), "conv1_1.weight", context)
    for place in ("backbone.", "embedder."):
        if f"{place}{STEM}" in shapes:
            return _on_repvit(shapes, place)
    return None


def body(family: Family, config: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Depths and channels of a row of the model table, as `anatomy` reads them."""
    from repedge.models.heads.yolov5 import wide

    if family == "dilated_vgg16":
        return (), (int(config.get("context", False)),)
    extra = (wide(1024, config["width"]),) if family == "yolov5" else ()
    return tuple(config.get("depths", ())), (*config.get("widths", ()), *extra)


def _rows(shapes: Shapes, key: str) -> int:
    return shapes[key][0] if shapes.get(key) else 0


def _plain(
    family: Family, shapes: Shapes, classes: int, first: str, channels: tuple[int, ...] = ()
) -> Anatomy:
    image = shapes[first][1] if len(shapes[first]) > 1 else 0
    return Anatomy(family, "training", in_channels=image, num_classes=classes, channels=channels)


def _yolov5(shapes: Shapes) -> Anatomy:
    inner = repvit_body(
        {k.removeprefix("model.0."): v for k, v in shapes.items() if k.startswith("model.0.")}
    )
    last = max(int(m[1]) for k in shapes if (m := re.match(r"model\.(\d+)\.", k)))
    anchors = shapes.get(f"model.{last}.anchors", ())
    boxes = anchors[1] if len(anchors) == 3 and anchors[1] else 3
    return Anatomy(
        "yolov5",
        "training",
        in_channels=inner.in_channels,
        num_classes=max(0, _rows(shapes, f"model.{last}.m.0.weight") // boxes - 5),
        depths=inner.depths,
        channels=(*inner.channels, _rows(shapes, "model.1.cv2.conv.weight")),
    )


def _on_repvit(shapes: Shapes, place: str) -> Anatomy:
    inner = repvit_body({k.removeprefix(place): v for k, v in shapes.items() if k.startswith(place)})
    family: Family = "matching"
    classes = 0
    if "classifier.low_classifier.weight" in shapes:
        family, classes = "lraspp", _rows(shapes, "classifier.low_classifier.weight")
    elif "conf.0.1.weight" in shapes:
        family, classes = "ssdlite", _rows(shapes, "conf.0.1.weight") // 6
    return Anatomy(
        family,
        "training",
        in_channels=inner.in_channels,
        num_classes=classes,
        depths=inner.depths,
        channels=inner.channels,
    )
