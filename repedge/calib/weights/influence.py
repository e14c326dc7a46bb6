"""What an error of a weight costs at the network's output, by projections of the float network's slopes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
import torch

from repedge.calib.distance import Distance
from repedge.calib.simulation.observe import Moments
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.structure import Layer


def weight_influence(
    model: ir.Model,
    wanted: Mapping[str, Layer],
    moments: Mapping[str, Moments],
    batches: Iterable[np.ndarray],
    distance: Distance,
    *,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Cost at the output, to second order, of independent errors of unit variance of a layer's weights.

    The cost is `Distance.error`. Its second derivative is the mean over images of ``J' M J``, J the slope of
    the outputs in a weight: the square of the slope of ``u' M^(1/2) output`` has that expectation for a
    random vector u of signs (Hutchinson's estimate; one backward pass per batch, for the images' vectors are
    independent). Errors that only shift an output channel's mean are left out, for bias correction takes them
    out.

    Args:
        model: The float graph.
        wanted: Key -> layer, with a weight and a bias of its own.
        moments: Of these layers, by layer name.
        batches: Images float32 [N, C, H, W].
        distance: Of the network's answers.
        seed: Of the random signs.

    Returns:
        Key -> float32 [G, O, K] as a layer's `Moments` has its inputs, of rank one per group (a single
        weight's estimate is a noisy one). Layers that no gradient reaches are left out.
    """
    simulator = Simulator(model)
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for key, layer in wanted.items():
        if layer.bias is not None and layer.axis is not None:
            names = (str(layer.weight.name), str(layer.bias.name))
            parameters[key] = tuple(simulator.constants[n].requires_grad_(True) for n in names)
    sums: dict[str, torch.Tensor] = {}
    images = 0
    for x in batches:
        probe = distance.probe(_outputs(simulator, x), generator)
        if probe is None:
            return {}
        images += len(x)
        probe.backward()
        for key, (w, b) in parameters.items():
            if w.grad is None or b.grad is None:
                continue
            slope = _centred(w.grad, b.grad, wanted[key], moments[wanted[key].name])
            sums[key] = sums.get(key, torch.zeros(())) + slope**2
            w.grad = b.grad = None
    return {key: _rank_one(s / images) for key, s in sums.items()}


def _outputs(simulator: Simulator, x: np.ndarray) -> list[torch.Tensor]:
    values = simulator.start(x)
    for step in simulator.steps:
        simulator.advance(step, values)
    return simulator.returned(values)


def _centred(w: torch.Tensor, b: torch.Tensor, layer: Layer, moments: Moments) -> torch.Tensor:
    """Slope in the weights for inputs less their means, [G, O, K]."""
    groups, k = moments.mean.shape
    rows = (w if layer.axis == 0 else w.T).reshape(groups, -1, k)
    mean = torch.from_numpy(moments.mean).to(w.dtype)
    return rows - mean[:, None] * b.reshape(groups, -1, 1)


def _rank_one(square: torch.Tensor) -> torch.Tensor:
    whole = square.sum((1, 2), keepdim=True).clamp_min(1e-38)
    return square.sum(2, keepdim=True) * (square.sum(1, keepdim=True) / whole)
