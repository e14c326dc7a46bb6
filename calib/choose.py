"""Mixed plans: which layers to raise to float32, by name or the fewest that meet an accuracy budget."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir
import torch

from repedge.calib.plan import QuantPlan
from repedge.calib.ranges import output_distance
from repedge.calib.scheme import QuantScheme
from repedge.calib.simulate import Rounding, Simulator
from repedge.calib.structure import TAKING, data_inputs, layers, place, set_array
from repedge.errors import CheckFailed, UserError
from repedge.graph.count import MACS
from repedge.graph.values import const, only_reader

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
    """One attempt of the search.

    Attributes:
        raised: How many layers got float32 weights and inputs.
        nodes: How many nodes are float32 for that.
        cost: As measured.
        layers: The raised layers.
        macs: Share of the network's multiply-accumulates that is float32, 0 to 1.
    """

    raised: int
    nodes: int
    cost: float
    layers: tuple[str, ...] = ()
    macs: float = 0.0


class BudgetNotMet(CheckFailed):
    """No allowed set of raised layers meets the budget.

    Attributes:
        trials: Every attempt, in order.
    """

    def __init__(self, budget: float, most: int, trials: Sequence[Trial]) -> None:
        table = "; ".join(f"{t.raised} raised: {t.cost:.4g}" for t in trials)
        super().__init__(f"the budget of {budget:g} is not met with up to {most} layers in float32 ({table})")
        self.trials = tuple(trials)


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


def nodes_to_raise(model: ir.Model, plan: QuantPlan, layer: str) -> list[str]:
    """The nodes that must be float32 for a layer to read float32 numbers, the layer among them.

    Where integer operators can only give integers, these are all operators that read or write the
    layer's input or a tensor tied to it; elsewhere only the readers.
    """
    placement = place(model, plan.scheme, plan.float_nodes)
    x = next(str(la.x.name) for la in layers(model) if la.name == layer)
    if x not in placement.root:
        return [layer]
    group = {n for n, root in placement.root.items() if root == placement.root[x]}
    found = []
    for node in model.graph:
        reads = {str(v.name) for v in data_inputs(node)} & group
        writes = {str(v.name) for v in node.outputs} & group
        if str(node.name) in placement.nodes and (reads or (writes and plan.scheme.integer_outputs)):
            found += [n for n in (_taker(node, plan), str(node.name)) if n is not None]
    return list(dict.fromkeys(found))


def _taker(node: ir.Node, plan: QuantPlan) -> str | None:
    """The operator that takes ``node``, an activation, along."""
    before = (
        node.inputs[0].producer()
        if node.op_type in plan.scheme.fused and node.inputs[0] is not None
        else None
    )
    if before is None or before.op_type not in TAKING or only_reader(before.outputs[0]) is not node:
        return None
    return str(before.name)


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


def named(model: ir.Model, patterns: Sequence[str]) -> list[str]:
    """The nodes whose names match.

    Args:
        model: A graph.
        patterns: Names or glob patterns (``*``, ``?``, ``[..]``), with or without the operator that a
            node's name ends in: ``features.0.c/Conv`` and ``features.0.c`` are the same.

    Raises:
        UserError: A pattern matches no node.
    """
    nodes = [str(node.name) for node in model.graph]
    stems = {name: name.rpartition("/")[0] or name for name in nodes}
    found: dict[str, None] = {}
    for pattern in patterns:
        hits = [n for n in nodes if fnmatchcase(n, pattern) or fnmatchcase(stems[n], pattern)]
        if not hits:
            known = [la.name for la in layers(model)]
            close = difflib.get_close_matches(pattern, [*known, *(stems[n] for n in known)], n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}?" if close else f"its layers are {', '.join(known[:8])}, ..."
            raise UserError(f"no layer is called {pattern!r}; {hint}")
        found.update(dict.fromkeys(hits))
    return list(found)


def chosen_float(model: ir.Model, scheme: QuantScheme, patterns: Sequence[str]) -> dict[str, str]:
    """What must stay float32 for the named layers to do so: node -> why, as `calibrate` takes it.

    Raises:
        UserError: A pattern matches no node.
    """
    plan, weighted = QuantPlan(scheme=scheme), {la.name for la in layers(model)}
    names = named(model, patterns)
    found = dict.fromkeys(names, "kept in float by name")
    for name in names:
        for other in nodes_to_raise(model, plan, name) if name in weighted else ():
            found.setdefault(other, f"beside {name}, which is kept in float by name")
    return found


def choose(
    model: ir.Model,
    reference: ir.Model,
    plan: QuantPlan,
    batches: Batches,
    budget: float,
    *,
    measure: Measure | None = None,
    most: int | None = None,
    costs: Callable[[], Sequence[LayerCost]] | None = None,
    lowered: int = 0,
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
        costs: Gives the layers' costs, where integers alone don't meet the budget; None: `layer_costs`.
        lowered: Once the budget is met, up to this many raised layers are tried in integers again, those
            with most multiply-accumulates first; they stay so where the budget is still met.

    Returns:
        Graph and plan within the budget, and every trial in order. A raised layer reads float32, so that
        what writes its input is float32, too, where the target's integer operators give only integers.

    Raises:
        BudgetNotMet: Not even ``most`` raised layers are enough; the trials are in the message.
    """
    reference_logits = None if measure else Simulator(reference).logits(batches())

    def simulated(m: ir.Model, p: QuantPlan) -> float:
        assert reference_logits is not None
        return output_distance(reference_logits, Simulator(m, p).logits(batches()))

    judge = measure or simulated
    macs = {str(n.name): MACS[n.op_type](n) for n in model.graph if n.op_type in MACS}
    trials: list[Trial] = []

    def attempt(names: Sequence[str]) -> tuple[ir.Model, QuantPlan]:
        """One trial: these layers and what must be raised with them."""
        nodes = list(dict.fromkeys(n for name in names for n in nodes_to_raise(model, plan, name)))
        why = f"one of {len(names)} layers that cost most at the output, or beside one"
        made = keep_float(model, reference, plan, nodes, why) if names else (model, plan)
        share = sum(macs.get(n, 0) for n in nodes) / max(1, sum(macs.values()))
        trials.append(Trial(len(names), len(nodes), judge(*made), tuple(names), share))
        return made

    best = attempt(())
    if trials[0].cost <= budget:
        return *best, trials
    found = layer_costs(model, reference, plan, batches) if costs is None else costs()
    order = [f.node for f in found if f.node not in plan.float_nodes]
    most = max(1, len(order) // 4) if most is None else min(most, len(order))
    low, high, best = 0, 1, attempt(order[:1])
    while trials[-1].cost > budget and high < most:
        low, high = high, min(2 * high, most)
        best = attempt(order[:high])
    if trials[-1].cost > budget:
        raise BudgetNotMet(budget, most, trials)
    while high - low > 1:
        middle = (low + high) // 2
        made = attempt(order[:middle])
        if trials[-1].cost <= budget:
            high, best = middle, made
        else:
            low = middle
    kept = order[:high]
    # The last one raised was needed: the search found that the set without it is too costly.
    for name in sorted(kept[:-1], key=lambda n: -macs.get(n, 0))[:lowered]:
        fewer = [n for n in kept if n != name]
        made = attempt(fewer)
        if trials[-1].cost <= budget:
            kept, best = fewer, made
    return *best, trials
