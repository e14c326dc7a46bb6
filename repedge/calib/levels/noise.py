"""What rounding each tensor costs at the outputs, before anything is rounded: from slopes, all at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir
import torch

from repedge.calib.distance import Distance
from repedge.calib.simulation.simulator import Simulator


def tensor_influence(
    model: ir.Model,
    names: Collection[str],
    batches: Iterable[np.ndarray],
    distance: Distance,
    *,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Cost at the output, to second order, of independent errors of unit variance in each channel of tensors.

    The cost is `Distance.error`, and the estimate is Hutchinson's, as in
    `repedge.calib.weights.influence.weight_influence`: one backward pass for each batch, whatever the number
    of tensors.

    Args:
        model: The float graph.
        names: Of values that its nodes write, float.
        batches: Images float32 [N, C, H, W].
        distance: Of the network's answers.
        seed: Of the random signs.

    Returns:
        Name -> float64 [C] (axis 1; one number for tensors without), the mean over images. Tensors that no
        gradient reaches are left out.
    """
    simulator = Simulator(model)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, np.ndarray] = {}
    images = 0
    for x in batches:
        images += len(x)
        found, outputs = _run(simulator, x, names)
        probe = distance.probe(outputs, generator)
        if probe is None:
            return {}
        probe.backward()
        for name, value in found.items():
            if value.grad is not None:
                square = _by_channel(value.grad.double() ** 2)
                sums[name] = sums[name] + square if name in sums else square
    return {name: square / images for name, square in sums.items()}


def _run(
    simulator: Simulator, x: np.ndarray, names: Collection[str]
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    values = simulator.start(x)
    found: dict[str, torch.Tensor] = {}
    for step in simulator.steps:
        step(values, simulator.constants)
        for name in step.writes:
            if name not in names or not values[name].is_floating_point():
                continue
            if not values[name].requires_grad:
                values[name] = values[name].detach().requires_grad_(True)
            values[name].retain_grad()
            found[name] = values[name]
        for name in step.dead:
            values.pop(name, None)
    return found, simulator.returned(values)


def _by_channel(square: torch.Tensor) -> np.ndarray:
    if square.ndim < 2:
        return np.asarray([float(square.sum())])
    return square.transpose(0, 1).flatten(1).sum(1).numpy()
