"""Whether a graph that was made for one image may be run on several at once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from repedge.calib.simulation.simulator import Simulator, Tap
from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.operators import LAYERS, POOLS, UNARY
from repedge.photos.feed import BATCH

PLAIN = (LAYERS - {"MatMul"}) | UNARY | (POOLS - {"ReduceMean"}) | {"MaxPool", "GlobalMaxPool", "PRelu"}
"""Operators that keep images apart where each has the first axis for itself."""

TOLERANCE = 1e-3
"""Relative difference of sums that another order of additions may make."""


def images_at_once(model: ir.Model) -> int:
    """How many images the simulation may run side by side: several, or 1 where they would mix.

    A graph of batch 1 may fold that axis into others (attention by a Reshape to constant sizes), move it
    (a text recognizer's [T, N, C]), or reduce it away. Where that can't be ruled out at a glance, two
    images are run side by side and alone. Inputs beside the image need have no axis for images at all.

    Args:
        model: A clean graph.
    """
    if len(model.graph.inputs) > 1:
        return 1
    return BATCH if all(map(_plain, model.graph)) or _apart(model) else 1


def _plain(node: ir.Node) -> bool:
    """Whether the operator can't mix images."""
    values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name and const(v) is None]
    if any(shape_of(v)[:1] != (1,) for v in values):
        return False
    rank = len(shape_of(node.outputs[0]))
    if node.op_type in ("Add", "Sub", "Mul", "Div"):
        return all(len(shape_of(v)) == rank for v in values)
    if node.op_type in ("Concat", "Softmax"):
        return bool(attr(node, "axis", -1) % rank)
    if node.op_type == "Reshape":
        target = const(node.inputs[1])
        return target is not None and target.size > 0 and int(target.reshape(-1)[0]) == 0
    return node.op_type in PLAIN or (node.op_type == "Flatten" and attr(node, "axis", 1) == 1)


def _apart(model: ir.Model) -> bool:
    """Whether two images give side by side what they give alone, in every value of the network."""
    values = [v for node in model.graph for v in node.outputs if v.name and v.dtype == ir.DataType.FLOAT]
    if any(shape_of(v)[:1] != (1,) for v in values):
        return False
    simulator = Simulator(model)
    names = [str(v.name) for v in values]
    images = np.random.default_rng(0).normal(size=(2, *shape_of(model.graph.inputs[0])[1:]))
    images = images.astype(np.float32)
    try:
        together = _magnitudes(simulator, images, names)
    except (RuntimeError, ValueError, IndexError):  # what a shape that does not fit raises
        return False
    for i in range(2):
        alone = _magnitudes(simulator, images[i : i + 1], names)
        for name, found in together.items():
            if len(found) != 2 or abs(found[i] - alone[name][0]) > TOLERANCE * (1.0 + abs(found[i])):
                return False
    return True


def _magnitudes(simulator: Simulator, x: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Mean magnitude of every value for each image, as far as the first axis tells images apart."""
    found: dict[str, np.ndarray] = {}

    def tap(name: str) -> Tap:
        def see(y: torch.Tensor) -> None:
            found[name] = y.double().abs().reshape(len(y), -1).mean(1).numpy()

        return see

    simulator.run(x, {name: tap(name) for name in names})
    return found
