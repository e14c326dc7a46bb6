"""Boxes in the network's input, told in pixels of the photo."""

from __future__ import annotations

import numpy as np

from repedge.tasks.boxes import Detections, to_photo
from repedge.tasks.view import View


def test_boxes_are_told_in_pixels_of_the_photo() -> None:
    """A photo of 200 x 100 in the middle of 100 x 100: half its size, 25 rows of bars above and below."""
    view = View((200, 100), (100, 50), left=0, top=25, size=(100, 100))
    boxes = np.array([[10, 30, 20, 40], [-5, 0, 50, 60], [0, 80, 9, 90]], np.float32)
    found = to_photo(Detections(boxes, np.ones(3, np.float32), np.arange(3, dtype=np.int32)), view)
    assert found.boxes.tolist() == [[20, 10, 40, 30], [0, 0, 100, 70]]
    assert found.classes.tolist() == [0, 1]  # the third is all in the bar


def test_a_crop_that_begins_inside_the_photo() -> None:
    """A photo of 400 x 300, resized to 40 x 30, of which the middle 20 x 20 is seen."""
    view = View((400, 300), (40, 30), left=-10, top=-5, size=(20, 20))
    boxes = np.array([[0, 0, 20, 20], [-50, 5, 5, 10]], np.float32)
    found = to_photo(Detections(boxes, np.ones(2, np.float32), np.zeros(2, np.int32)), view)
    assert found.boxes.tolist() == [[100, 50, 300, 250], [0, 100, 150, 150]]
