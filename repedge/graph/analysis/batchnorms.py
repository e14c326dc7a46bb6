"""What a network's first BatchNorms remember of the images that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from repedge.graph.values import const
from repedge.operators import LAYERS, MOVES

LIVE = 1e-6
"""Channels of less than this share of the largest variance are dead."""

NOISE = 0.05
"""Deviations that a mean is off at the least, for what is said of uncertainty."""

LINEAR = (MOVES - {"MaxPool", "GlobalMaxPool", "ReduceMax"}) | {
    *("Add", "Sub", "Mul", "Div", "Identity", "Gather"),
}
"""What may stand between the image and the first layer."""


@dataclass(frozen=True)
class Remembered:
    """A BatchNorm that reads what one layer makes of the image.

    Attributes:
        reads: Name of the value that it normalises, [N, C, H, W].
        mean, variance: Its running statistics, float64 [C].
    """

    reads: str
    mean: np.ndarray
    variance: np.ndarray


def first_batchnorms(model: ir.Model) -> list[Remembered]:
    """The BatchNorms behind the first layer, or behind no layer; empty where all are fused, or made up.

    Statistics of 0 and 1 throughout were never learned.
    """
    found: list[Remembered] = []
    for node in model.graph:
        if node.op_type != "BatchNormalization" or len(node.inputs) < 5:
            continue
        mean, variance = (const(v) for v in node.inputs[3:5])
        if mean is None or variance is None or not _is_near(node.inputs[0]):
            continue
        if (mean != 0).any() or (variance != 1).any():
            name = str(node.inputs[0].name)  # type: ignore[union-attr]
            if any(name == b.reads for b in found):
                continue
            found.append(Remembered(name, mean.astype(np.float64), variance.astype(np.float64)))
    return found


def _is_near(value: ir.Value | None) -> bool:
    """Whether one layer at most, and nothing that is not linear, stands between the image and a value."""
    layers = 0
    for node in _ancestors(value):
        layers += node.op_type in LAYERS
        if layers > 1 or node.op_type not in LINEAR | LAYERS:
            return False
    return True


def _ancestors(value: ir.Value | None) -> Iterator[ir.Node]:
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        node = None if current is None else current.producer()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            pending += node.inputs


@dataclass(frozen=True)
class Impression:
    """What the network's statistics say of its training images, beside images that it is given.

    Attributes:
        mean: The average input that explains the means of the BatchNorms best, of each channel.
        uncertainty: Standard error of that.
        contrast: The given images' deviations over the remembered ones, in the median channel.
    """

    mean: np.ndarray
    uncertainty: np.ndarray
    contrast: float


def impression(model: ir.Model, x: np.ndarray) -> Impression | None:
    """Ask the first BatchNorms of a graph; None where it has none that could tell.

    A layer's mean is what it makes of the average image, which is linear in the image's channels and found
    with images of one colour. Edges have a mean of 0 whatever the image, and drop out.

    Args:
        model: An unfused float graph; not changed.
        x: The network's input, float32 [N, C, H, W].
    """
    from repedge.graph.run import Session

    remembered = first_batchnorms(model)
    if not remembered:
        return None
    session = Session(_up_to(model, [b.reads for b in remembered]))
    channels = x.shape[1]
    colours = np.zeros((channels + 1, *x.shape[1:]), np.float32)
    for k in range(channels):
        colours[k + 1, k] = 1
    rows, targets, ratios = [], [], []
    for b, flat, y in zip(remembered, session.run(colours), session.run(x), strict=True):
        live = b.variance > LIVE * b.variance.max(initial=0.0)
        deviation = np.sqrt(b.variance[live])
        middle = _middle(flat.astype(np.float64))[:, live] / deviation
        rows.append((middle[1:] - middle[0]).T)
        targets.append(b.mean[live] / deviation - middle[0])
        ratios.append(y.astype(np.float64).std((0, *range(2, y.ndim)))[live] / deviation)
    matrix, target = np.concatenate(rows), np.concatenate(targets)
    if np.linalg.matrix_rank(matrix) < channels:
        return None
    mean = np.linalg.lstsq(matrix, target, rcond=None)[0]
    left = target - matrix @ mean
    noise = max(float(left @ left) / max(len(target) - channels, 1), NOISE**2)
    uncertainty = np.sqrt(np.diag(np.linalg.inv(matrix.T @ matrix)) * noise)
    return Impression(mean, uncertainty, float(np.median(np.concatenate(ratios))))


def _middle(y: np.ndarray) -> np.ndarray:
    """Means over the middle half of a map, where no border is: [N, C]."""
    for axis in range(2, y.ndim):
        quarter = y.shape[axis] // 4
        y = y.take(range(quarter, y.shape[axis] - quarter), axis)
    return y.mean(tuple(range(2, y.ndim)))


def _up_to(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The graph that ends in the named values."""
    from onnx_ir.passes import common

    model = model.clone()
    values = {v.name: v for node in model.graph for v in node.outputs}
    values |= {v.name: v for v in model.graph.inputs}
    model.graph.outputs[:] = [values[name] for name in dict.fromkeys(names)]
    common.RemoveUnusedNodesPass()(model)
    return model
