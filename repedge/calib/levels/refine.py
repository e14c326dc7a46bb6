"""A short distillation: biases, gains per output channel and activation scales, by gradient at the output.

The weights' integers stay. A gain per channel folds into the weight's scale, so nothing is added to the
artifact. Rounding passes gradients straight through; scales learn as in Esser et al., "Learned Step
Size Quantization", arXiv:1902.08153, section 2.1 (in the logarithm, without their extra factor).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from repedge.calib.distance import Distance
from repedge.calib.plan import BiasChange, QuantPlan
from repedge.calib.simulation.simulator import Rounding, Simulator, Step
from repedge.calib.structure import Layer, layers, place, set_array
from repedge.graph.values import const

Batches = Callable[[], Iterable[np.ndarray]]


def refine(
    model: ir.Model,
    reference: ir.Model,
    plan: QuantPlan,
    batches: Batches,
    held_out: Batches,
    *,
    distance: Distance | None = None,
    steps: int = 30,
    images_per_step: int = 24,
    rate: float = 3e-5,
    scales: bool = True,
) -> tuple[ir.Model, QuantPlan, dict[str, float]]:
    """Train what costs nothing at run time until the output is nearer to the float network's.

    Args:
        model: The graph with rounded weights and corrected biases; not changed.
        reference: The float graph.
        plan: Its plan; not changed.
        batches: Training images in small batches, anew at each call.
        held_out: Other images, on which the result must be nearer than before, or it is given up.
        distance: Of the network's answers; None: by what its outputs say they are.
        steps: Optimizer steps (Adam, cosine schedule).
        images_per_step: Gradients are summed over as many images before a step.
        rate: Learning rate of relative changes (biases: relative to their layer's mean magnitude). On
            MobileOne-S0 1e-4 and more already fits the calibration images at the cost of others.
        scales: Whether activation scales are trained, too.

    Returns:
        The new model and plan (or the old ones), and the cost on the held-out images, ``before`` and
        ``after``.
    """
    distance = distance or Distance.of(model)
    floats = Simulator(reference)
    exact = floats.answers(held_out())
    before = distance.cost(exact, Simulator(model, plan).answers(held_out()))
    student = _Student(model, plan, scales)
    wanted = [floats.run(x) for x in batches()]
    optimizer = torch.optim.Adam(student.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done = images = 0
    while done < steps:
        for x, target in zip(batches(), wanted, strict=True):
            distance.nearness(student(torch.from_numpy(x)), target).backward()
            images += len(x)
            if images >= images_per_step:
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                images, done = 0, done + 1
                if done == steps:
                    break
    refined, new_plan = student.result(model, plan)
    after = distance.cost(exact, Simulator(refined, new_plan).answers(held_out()))
    costs = {"before": before, "after": after}
    return (refined, new_plan, costs) if after < before else (model, plan, costs)


class _Student:
    """The simulated network with what is trained as torch parameters."""

    def __init__(self, model: ir.Model, plan: QuantPlan, scales: bool) -> None:
        self.simulator = Simulator(model, plan, weights=False)
        self.layers = {la.name: la for la in layers(model) if str(la.weight.name) in plan.weights}
        self.gains: dict[str, torch.Tensor] = {}
        self.biases: dict[str, torch.Tensor] = {}
        self.units: dict[str, float] = {}
        for name, layer in self.layers.items():
            found = plan.weights[str(layer.weight.name)]
            if found.axis is not None:
                self.gains[name] = torch.zeros(len(found.scale), requires_grad=True)
            bias = const(layer.bias)
            if bias is not None:
                self.biases[name] = torch.zeros(len(bias), requires_grad=True)
                self.units[name] = float(np.abs(bias).mean()) or 1.0
        placement = place(model, plan.scheme, plan.float_nodes)
        ends = {str(v.name) for v in (*model.graph.inputs, *model.graph.outputs)}
        self.root = {}
        self.scales: dict[str, torch.Tensor] = {}
        for root, names in placement.groups().items():
            if scales and root not in placement.fixed and not ends & set(names):
                self.scales[root] = torch.zeros((), requires_grad=True)
                self.root.update(dict.fromkeys(names, root))

    def parameters(self) -> list[torch.Tensor]:
        return [*self.gains.values(), *self.biases.values(), *self.scales.values()]

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        values = self.simulator.start(x)
        for step in self.simulator.steps:
            found = [self._read(step, i, n, values) for i, n in enumerate(step.reads)]
            results = step.run(*found)
            results = (results,) if isinstance(results, torch.Tensor) else results
            for name, y, rounding in zip(step.writes, results, step.rounding, strict=False):
                values[name] = y if rounding is None else self._round(name, y, rounding)
            for name in step.dead:
                values.pop(name, None)
        return self.simulator.returned(values)

    def _read(self, step: Step, i: int, name: str, values: dict[str, torch.Tensor]) -> torch.Tensor | None:
        if not name or name in values:
            return values.get(name)
        constant, layer = self.simulator.constants[name], str(step.node.name)
        if i == 1 and layer in self.gains:
            return constant * torch.exp(self.gains[layer]).reshape(_shape(self.layers[layer]))
        if i == 2 and layer in self.biases:
            return constant + self.units[layer] * self.biases[layer]
        return constant

    def _round(self, name: str, x: torch.Tensor, r: Rounding) -> torch.Tensor:
        scale = (
            r.scale * torch.exp(self.scales[self.root[name]]) if name in self.root else torch.tensor(r.scale)
        )
        v = x / scale
        n = torch.clamp(v + (torch.round(v) - v).detach(), r.low, r.high)
        return n * scale

    def result(self, model: ir.Model, plan: QuantPlan) -> tuple[ir.Model, QuantPlan]:
        """The graph and plan with what was learned."""
        model, plan = model.clone(), plan.model_copy(deep=True)
        for layer in layers(model):
            self._fold(layer, plan)
        for root, log_scale in self.scales.items():
            factor = math.exp(float(log_scale.detach()))
            for name in (n for n, r in self.root.items() if r == root):
                t = plan.tensors[name]
                t.scale = float(np.float32(t.scale * factor))
                t.low, t.high = plan.scheme.range_of(t.scale, t.zero_point)
                t.why = f"{t.why}, refined x {factor:.3f}"
        return model, plan

    def _fold(self, layer: Layer, plan: QuantPlan) -> None:
        if layer.name in self.gains:
            found = plan.weights[str(layer.weight.name)]
            old = np.array(found.scale, np.float32).reshape(_shape(layer))
            q = np.clip(np.round(layer.array / old), -found.limit, found.limit)
            gain = torch.exp(self.gains[layer.name].detach()).numpy()
            scale = (np.array(found.scale, np.float32) * gain).astype(np.float32)
            found.scale = scale.tolist()
            set_array(layer.weight, q * scale.reshape(_shape(layer)))
        if layer.name in self.biases:
            assert layer.bias is not None
            change = self.units[layer.name] * self.biases[layer.name].detach().numpy().astype(np.float64)
            bias: Any = const(layer.bias)
            set_array(layer.bias, bias + change)
            old_change = plan.biases.get(layer.name)
            method = f"{old_change.method}, refined" if old_change else "refined"
            plan.biases[layer.name] = BiasChange(
                rms=float(np.sqrt((change**2).mean())), max_abs=float(np.abs(change).max()), method=method
            )


def _shape(layer: Layer) -> list[int]:
    shape = [1] * layer.array.ndim
    if layer.axis is not None:
        shape[layer.axis] = -1
    return shape
