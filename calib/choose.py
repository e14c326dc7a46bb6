"""The accuracy budget: which layers to raise to float32, the fewest that meet it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from repedge.calib.plan import QuantPlan
from repedge.calib.ranges import output_distance
from repedge.calib.simulate import Rounding, Simulator
from repedge.calib.structure import layers, place, set_array
from repedge.errors import CheckFailed
from repedge.graph.values import const

Batches = Callable[[], Iterable[np.ndarray]]
Measure = Callable[[ir.Model, QuantPlan], float]


@dataclass(frozen=True)
class LayerCost:
    """What one layer's integers (its weights and its input) cost at the output.

    Attributes:
        node: The layer.
        cost: `repedge.calib.ranges.output_distance` when this layer alone is in integers.
    """

    node: str
    cost: float


@dataclass(frozen=True)
class Trial:
    """One attempt of the search: how many of the costliest layers were float32, and the measured cost."""

    raised: int
    cost: float


def layer_costs(model: ir.Model, reference: ir.Model, plan: QuantPlan, batches: Batches) -> list[LayerCost]:
    """Put one layer at a time into integers; greatest cost first.

    Args:
        model: The calibrated graph.
        reference: The float graph (equalized as ``model`` is, for single layers to be comparable).
        plan: The plan of ``model``.
        batches: Gives the images, float32 [N, C, H, W], anew at each call.
    """
    simulator = Simulator(reference)
    integers = Simulator(model, plan)
    wanted = simulator.logits(batches())
    weighted = {la.name: la for la in layers(model) if str(la.weight.name) in plan.weights}
    states = [simulator.start(x) for x in batches()]
    found = []
    with torch.no_grad():
        for i, step in enumerate(simulator.steps):
            layer = weighted.get(str(step.node.name))
            if layer is not None:
                x = str(layer.x.name)
                rounding = Rounding.of(plan.tensors[x], plan.scheme) if x in plan.tensors else None
                trial = [dict(s) for s in states]
                for s in trial:
                    local = {**s, x: rounding(s[x])} if rounding is not None else dict(s)
                    step(local, integers.constants)
                    s[step.writes[0]] = local[step.writes[0]]
                found.append(LayerCost(layer.name, output_distance(wanted, _rest(simulator, i + 1, trial))))
            for s in states:
                simulator.advance(step, s)
    return sorted(found, key=lambda f: -f.cost)


def _rest(simulator: Simulator, index: int, states: list) -> np.ndarray:
    for step in simulator.steps[index:]:
        for s in states:
            simulator.advance(step, s)
    return np.concatenate([s[simulator.outputs[0]].numpy() for s in states])


def keep_float(
    model: ir.Model, reference: ir.Model, plan: QuantPlan, nodes: Sequence[str], why: str
) -> tuple[ir.Model, QuantPlan]:
    """Raise layers of a calibrated graph to float32 without calibrating again.

    Args:
        model: The calibrated graph; not changed.
        reference: The float graph with the same equalization, whose weights and biases they get back.
        plan: Its plan; not changed.
        nodes: Names of nodes.
        why: Recorded in the plan.
    """
    model, plan = model.clone(), plan.model_copy(deep=True)
    plan.float_nodes.update(dict.fromkeys(nodes, why))
    before = {la.name: la for la in layers(reference)}
    for layer in layers(model):
        if layer.name in plan.float_nodes and layer.name in before:
            source = before[layer.name]
            plan.weights.pop(str(layer.weight.name), None)
            plan.biases.pop(layer.name, None)
            set_array(layer.weight, source.array)
            bias = const(source.bias)
            if layer.bias is not None and bias is not None:
                set_array(layer.bias, bias)
    kept = place(model, plan.scheme, plan.float_nodes).values
    plan.tensors = {n: t for n, t in plan.tensors.items() if n in kept}
    for t in plan.tensors.values():
        if t.tied_to is not None and t.tied_to not in plan.tensors:
            t.tied_to = None
    return model, plan


def choose(
    model: ir.Model,
    reference: ir.Model,
    plan: QuantPlan,
    batches: Batches,
    budget: float,
    *,
    measure: Measure | None = None,
    most: int | None = None,
) -> tuple[ir.Model, QuantPlan, list[Trial]]:
    """The fewest costliest layers in float32 that bring the output within the budget.

    Args:
        model: The calibrated graph.
        reference: The float graph with the same equalization.
        plan: Its plan.
        batches: Images for the layers' costs (and for the default measure).
        budget: Greatest cost that is accepted, in the unit of ``measure``.
        measure: (graph, plan) -> cost, for instance of the real artifact; by default
            `repedge.calib.ranges.output_distance` of the simulation on ``batches``.
        most: Greatest number of layers to raise; None: a quarter of them, at least 1.

    Returns:
        Graph and plan within the budget, and every trial in order.

    Raises:
        CheckFailed: Not even ``most`` raised layers are enough; the trials are in the message.
    """
    reference_logits = None if measure else Simulator(reference).logits(batches())

    def simulated(m: ir.Model, p: QuantPlan) -> float:
        assert reference_logits is not None
        return output_distance(reference_logits, Simulator(m, p).logits(batches()))

    judge = measure or simulated
    trials = [Trial(0, judge(model, plan))]
    if trials[0].cost <= budget:
        return model, plan, trials
    order = layer_costs(model, reference, plan, batches)
    most = max(1, len(order) // 4) if most is None else min(most, len(order))

    def attempt(k: int) -> tuple[ir.Model, QuantPlan]:
        names = [f.node for f in order[:k]]
        made = keep_float(model, reference, plan, names, f"among the {k} costliest layers at the output")
        trials.append(Trial(k, judge(*made)))
        return made

    low, high, best = 0, 1, attempt(1)
    while trials[-1].cost > budget and high < most:
        low, high = high, min(2 * high, most)
        best = attempt(high)
    if trials[-1].cost > budget:
        table = "; ".join(f"{t.raised} raised: {t.cost:.4g}" for t in trials)
        raise CheckFailed(
            f"the budget of {budget:g} is not met with up to {most} layers in float32 ({table})"
        )
    while high - low > 1:
        middle = (low + high) // 2
        made = attempt(middle)
        if trials[-1].cost <= budget:
            high, best = middle, made
        else:
            low = middle
    return *best, trials
