"""What each layer's integers cost at the network's output, and ranges tuned by what they cost there.

The network is walked once; where a tensor appears, only what comes after it is run again for each
trial, so that a whole search costs about half as many runs as there are trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from repedge.calib.distance import Distance
from repedge.calib.plan import QuantPlan
from repedge.calib.simulation.simulator import Outputs, Rounding, Simulator, Step, Values
from repedge.calib.structure import layers, place

Batches = Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class LayerCost:
    """What one layer's integers (its weights and its input) cost at the output.

    Attributes:
        node: The layer.
        cost: `repedge.calib.distance.Distance.cost` when this layer alone is in integers.
    """

    node: str
    cost: float


def layer_costs(
    model: ir.Model, reference: ir.Model, plan: QuantPlan, batches: Batches, distance: Distance | None = None
) -> list[LayerCost]:
    """Put one layer at a time into integers; greatest cost first.

    Args:
        model: The calibrated graph.
        reference: The float graph (equalized as ``model`` is, for single layers to be comparable).
        plan: The plan of ``model``.
        batches: Gives the images, float32 [N, C, H, W], anew at each call.
        distance: Of the network's answers; None: by what its outputs say they are.
    """
    distance = distance or Distance.of(model)
    simulator = Simulator(reference)
    integers = Simulator(model, plan)
    wanted = simulator.answers(batches())
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
                found.append(LayerCost(layer.name, distance.cost(wanted, _rest(simulator, i + 1, trial))))
            for s in states:
                simulator.advance(step, s)
    return sorted(found, key=lambda f: -f.cost)


def tune_ranges(
    model: ir.Model,
    reference: ir.Model,
    plan: QuantPlan,
    batches: Batches,
    *,
    distance: Distance | None = None,
    factors: Sequence[float] = (0.75, 1.4),
    margin: float = 0.01,
) -> dict[str, float]:
    """Widen or narrow tensor after tensor, in the graph's order, where that brings the output closer.

    Tensors with parameters laid down, constants and the graph's outputs are left alone.

    Args:
        model: The graph with rounded weights.
        reference: The graph whose output is aimed at.
        plan: Changed in place.
        batches: Gives the images anew at each call.
        distance: Of the network's answers; None: by what its outputs say they are.
        factors: To try on each range.
        margin: Share by which the cost must fall for a change to be taken.

    Returns:
        Tensor -> the factor taken, of those that changed.
    """
    wanted = Simulator(reference).answers(batches())
    simulator = Simulator(model, plan, weights=False)
    free = free_groups(model, plan)
    states = [simulator.start(x) for x in batches()]
    taken: dict[str, float] = {}
    trials = _Trials(simulator, wanted, distance or Distance.of(model))
    for i, step in enumerate(simulator.steps):
        names = [n for n in step.writes if n in free]
        if not names or len(step.writes) > 1:
            for s in states:
                simulator.advance(step, s)
            continue
        name, group = names[0], free[names[0]]
        raw = [_unrounded(simulator, step, s) for s in states]
        if not trials.started:
            trials.better(i + 1, states, name, raw)
        old = plan.tensors[name].model_copy()
        for factor in factors:
            trial = QuantPlan(scheme=plan.scheme)
            trial.set_range(
                _ties(plan, group), old.low * factor, old.high * factor, f"{old.why} x {factor:g}"
            )
            simulator.set_rounding({n: Rounding.of(trial.tensors[n], plan.scheme) for n in group})
            if trials.better(i + 1, states, name, raw, margin):
                taken[name] = factor
                for n in group:
                    plan.tensors[n] = trial.tensors[n]
        simulator.set_rounding({n: Rounding.of(plan.tensors[n], plan.scheme) for n in group})
        for s, y in zip(states, raw, strict=True):
            s[name] = simulator.round(name, y)
            for dead in step.dead:
                s.pop(dead, None)
    return taken


def free_groups(model: ir.Model, plan: QuantPlan) -> dict[str, list[str]]:
    """First member that a node writes -> all members, of the groups whose range may be chosen."""
    placement = place(model, plan.scheme, plan.float_nodes)
    outputs = {str(v.name) for v in model.graph.outputs}
    result = {}
    for root, names in placement.groups().items():
        if root in placement.fixed or outputs & set(names):
            continue
        value = placement.values[root]
        if value.producer() is not None and root in plan.tensors:
            result[root] = names
    return result


def _ties(plan: QuantPlan, group: Sequence[str]) -> dict[str, str | None]:
    return {n: plan.tensors[n].tied_to for n in group}


def _unrounded(simulator: Simulator, step: Step, values: Values) -> Any:
    found = [(values[n] if n in values else simulator.constants[n]) if n else None for n in step.reads]
    return step.run(*found)


class _Trials:
    """The least cost so far, on all images and on the first third of them.

    A trial that is no better on the third is given up there: most trials are, and the search takes half
    the time.
    """

    def __init__(self, simulator: Simulator, wanted: Outputs, distance: Distance) -> None:
        self._simulator = simulator
        self._distance = distance
        self._wanted = wanted
        self._best = (np.inf, np.inf)

    @property
    def started(self) -> bool:
        return bool(np.isfinite(self._best[1]))

    def better(
        self, index: int, states: list[Values], name: str, raw: list[Any], margin: float = 0.0
    ) -> bool:
        """Run the steps from ``index`` on with the value ``name`` rounded anew; keep the cost if it is less.

        Args:
            raw: The value in every state, before rounding.
            margin: Share by which the cost on all images must fall.
        """
        changed = [{**s, name: self._simulator.round(name, y)} for s, y in zip(states, raw, strict=True)]
        few = max(1, len(changed) // 3)
        first = _rest(self._simulator, index, changed[:few])
        part = self._distance.cost([w[: len(first[0])] for w in self._wanted], first)
        if not part < self._best[0]:
            return False
        if changed[few:]:
            rest = _rest(self._simulator, index, changed[few:])
            first = [np.concatenate(column) for column in zip(first, rest, strict=True)]
        cost = self._distance.cost(self._wanted, first)
        if not cost < self._best[1] * (1 - margin):
            return False
        self._best = (part, cost)
        return True


def _rest(simulator: Simulator, index: int, states: list[Values]) -> Outputs:
    """Every output after running the steps from ``index`` on; the states are used up."""
    for step in simulator.steps[index:]:
        for s in states:
            simulator.advance(step, s)
    return simulator.results(states)
