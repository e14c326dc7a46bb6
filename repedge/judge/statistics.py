"""Do photos, as they are preprocessed, look to the network like what it was trained on?

Nothing that is compared with the float network can tell: with the wrong mean, or pixels of another scale, the
artifact equals a reference that is fed the same nonsense. The network's own BatchNorms can tell, in training
form. The order of colours they can't: the means and deviations of red and blue are nearly the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from repedge.config import Preprocess

if TYPE_CHECKING:
    import onnx_ir as ir

    from repedge.graph.analysis.batchnorms import Impression

BRIGHTNESS = (0.08, 0.92)
"""Between black (0) and white (1), where the average pixel of any set of photos lies."""

CONTRAST = 3.3
"""Times that deviations may differ: photos of blood cells, streets and things, judged by networks that were
trained on the others, differ up to 2.7 times (240 pairs, none above). Unscaled pixels differ 40 times or
more, and mean 0, std 1 in place of ImageNet's 4 times, or by a brightness of 0."""


def oddities(graph: ir.Model, pre: Preprocess, x: np.ndarray) -> list[str]:
    """Sentences on what is far off; empty where nothing is, or the network can't tell.

    Args:
        graph: The unfused float graph.
        pre: What the images went through.
        x: The network's input, float32 [n, C, H, W].
    """
    from repedge.graph.analysis.batchnorms import impression

    found = impression(graph, x)
    return [] if found is None else _sentences(found, pre)


def _sentences(found: Impression, pre: Preprocess) -> list[str]:
    mean, std = np.array(pre.mean), np.array(pre.std)
    brightness, unsure = found.mean * std + mean, found.uncertainty * std
    low, high = BRIGHTNESS
    outside = np.maximum(low - brightness, brightness - high) > 2 * unsure
    said = []
    if outside.any():
        shown = ", ".join(f"{v:.2f}" for v in brightness)
        said.append(
            f"images whose average pixel, on the scale of 0 to 1, would be {shown} before mean and std"
        )
    if not 1 / CONTRAST < found.contrast < CONTRAST:
        times = found.contrast if found.contrast > 1 else 1 / found.contrast
        said.append(f"images of {times:.3g} times {'less' if found.contrast > 1 else 'more'} contrast")
    if not said:
        return []
    numbers = [",".join(f"{v:g}" for v in values) for values in (pre.mean, pre.std)]
    return [
        "the preprocessing looks wrong: the network's first BatchNorm was trained on "
        f"{' and on '.join(said)}; compare mean {numbers[0]} and std {numbers[1]} with the training code's, "
        "and say --mean and --std"
    ]
