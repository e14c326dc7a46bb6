"""Bias correction: the mean error per channel that rounding leaves is a constant, so it can be taken out.

Nagel et al., arXiv:1906.04721, section 4.2, with real images, layer after layer on the network that is
already corrected up to there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from repedge.calib.plan import BiasChange, QuantPlan
from repedge.calib.simulation.heap import give_back, stacked
from repedge.calib.simulation.observe import Statistics
from repedge.calib.structure import Layer, channels, layers, set_array
from repedge.graph.values import const, shape_of

if TYPE_CHECKING:
    import torch

Batches = Callable[[], Iterable[np.ndarray]]


def correct_bias(
    model: ir.Model,
    reference: ir.Model,
    plan: QuantPlan,
    batches: Batches,
    *,
    activations: bool = False,
    statistic: Literal["mean", "median"] = "mean",
) -> ir.Model:
    """Sequential correction: ``b += E[y] - E[y']`` per channel, in the graph's order.

    Args:
        model: The graph with rounded weights; not changed.
        reference: The same graph before rounding.
        plan: Receives ``biases``.
        batches: Gives the images anew at each call; one layer's activations of all of them are in
            memory at a time.
        activations: Whether activations are rounded meanwhile, by ``plan``. With clipped ranges the
            mean is then dragged by a few images, so take the median.
        statistic: Over images, of the per-image mean.

    Returns:
        A new model with other biases.
    """
    from repedge.calib.simulation.simulator import Simulator

    model = model.clone()
    done = {str(la.out.name): la for la in layers(model) if str(la.weight.name) in plan.weights and la.bias}
    give_back(collect=True)  # what earlier steps left
    wanted = _means(reference, done, batches, _told_apart(model, plan) if activations else {})
    give_back()
    simulator = Simulator(model, plan if activations else None, weights=False, activations=activations)
    for step, states in simulator.walk(batches(), done):
        name = step.writes[0]
        layer = done[name]
        error = wanted.pop(name) - stacked([_per_image(v[name], layer)] for v in states)[0]
        change = error.mean(0) if statistic == "mean" else np.median(error, 0)
        _change(layer, change, plan, f"sequential, {statistic}" + (", activations on" if activations else ""))
        shift = _along(layer, change)
        for values in states:
            values[name] += shift
    give_back()
    return model


def correct_bias_at_once(
    model: ir.Model, reference: ir.Model, plan: QuantPlan, stats: Statistics
) -> ir.Model:
    """Correction by the mean input of each float layer: ``b -= (W' - W) E[x]``; needs no image.

    Args:
        model, reference, plan: As for `correct_bias`.
        stats: Of ``reference``, with moments.
    """
    model = model.clone()
    before = {la.name: la for la in layers(reference)}
    for layer in layers(model):
        moments = stats.moments.get(layer.name)
        if moments is None or layer.bias is None or str(layer.weight.name) not in plan.weights:
            continue
        d = layer.array.astype(np.float64) - before[layer.name].array
        rows = (d if layer.axis == 0 else d.T).reshape(len(moments.mean), -1, moments.mean.shape[1])
        _change(layer, -np.einsum("gok,gk->go", rows, moments.mean).reshape(-1), plan, "at once")
    return model


def _told_apart(model: ir.Model, plan: QuantPlan) -> dict[str, tuple[float, float]]:
    """Ranges of tensors whose readers are flat outside: what is clipped there is no error to be taken out."""
    from repedge.calib.levels.plateaus import curve

    values = {str(v.name): v for n in model.graph for v in n.outputs}
    return {n: (t.low, t.high) for n, t in plan.tensors.items() if n in values and curve(values[n])}


def _means(
    model: ir.Model, wanted: Mapping[str, Layer], batches: Batches, clipped: Mapping[str, tuple[float, float]]
) -> dict[str, np.ndarray]:
    """Name of a layer's output -> [N, C], as `_per_image`, of the float network, some of them clipped."""
    from repedge.calib.simulation.simulator import Simulator

    count = sum(len(x) for x in batches())
    found = {n: np.empty((count, channels(la))) for n, la in wanted.items()}
    simulator, start = Simulator(model), 0

    def tap(name: str) -> Callable[[torch.Tensor], None]:
        def see(y: torch.Tensor) -> None:
            rows = _per_image(y.clamp(*clipped[name]) if name in clipped else y, wanted[name])
            found[name][start : start + len(rows)] = rows

        return see

    taps = {n: tap(n) for n in wanted}
    for x in batches():
        simulator.run(x, taps)
        start += len(x)
    return found


def _per_image(y: torch.Tensor, layer: Layer) -> np.ndarray:
    """[N, C]: mean of each channel of each image, float64."""
    conv = layer.node.op_type in ("Conv", "ConvTranspose")
    rows = []
    for one in y:  # a whole batch in float64 would be the largest tensor of all
        t = one.double()
        rows.append((t.mean((1, 2)) if conv else t.reshape(-1, t.shape[-1]).mean(0)).numpy())
    of_one = shape_of(layer.out)[0]  # an image may be several rows, where other axes are folded there
    return np.stack(rows).reshape(len(rows) // of_one, of_one, -1).mean(1)


def _along(layer: Layer, change: np.ndarray) -> torch.Tensor:
    import torch

    shape = (1, -1, 1, 1) if layer.node.op_type in ("Conv", "ConvTranspose") else (-1,)
    return torch.from_numpy(change.astype(np.float32)).reshape(shape)


def _change(layer: Layer, change: np.ndarray, plan: QuantPlan, method: str) -> None:
    assert layer.bias is not None
    bias = const(layer.bias)
    assert bias is not None
    set_array(layer.bias, bias.astype(np.float64) + change)
    rms = float(np.sqrt((change**2).mean()))
    plan.biases[layer.name] = BiasChange(rms=rms, max_abs=float(np.abs(change).max()), method=method)
