"""Detectors that standard consumers decode by themselves, in their own words."""

from __future__ import annotations

from typing import Any

from repedge.tasks.boxes import OVERLAP, SCORE
from repedge.tasks.heads.head import Head, Place


def model_api(head: Head, outputs: int) -> dict[str, Any]:
    """``model_type`` and thresholds for OpenVINO's Model API; empty where it has no such detector.

    It decodes one output of centers and sizes in pixels above the scores of the classes, as YOLOv8 and 11
    have it. Where nothing else is said, it feeds that kind BGR and numbers from 0 to 1.
    """
    source = head.sources[0]
    plain = head.activation == "none" and head.background is None and not (head.transposed or head.suppressed)
    boxes = head.coding == "center" and head.unit == "pixels" and source.box == Place(0, 1, 0, 4)
    scores = source.scores == Place(0, 1, 4, 4 + head.classes) and not (source.objectness or source.label)
    if outputs > 1 or len(head.sources) > 1 or not (plain and boxes and scores):
        return {}
    return {
        "model_type": "YOLOv8",
        "confidence_threshold": f"{SCORE:g}",
        "iou_threshold": f"{OVERLAP:g}",
        "reverse_input_channels": "False",
        "scale_values": "1",
    }
