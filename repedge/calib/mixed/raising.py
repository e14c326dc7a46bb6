"""Layers in float32 in an integer network: how one is raised, and which give most for their price."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch

from repedge.calib.distance import Distance, image_errors
from repedge.calib.plan import QuantPlan
from repedge.calib.simulation.simulator import Outputs, Simulator, Step, Values
from repedge.calib.structure import TAKING, Layer, data_inputs, layers, place, set_array
from repedge.graph.count import macs_of
from repedge.graph.values import const, only_reader

Batches = Callable[[], Iterable[np.ndarray]]

EFFORT = 0.002
"""Price of raising anything at all: what converts integers to floats and back runs, too."""


@dataclass(frozen=True)
class Raise:
    """One way to come nearer to the float network.

    Attributes:
        node: The layer that reads float32 then.
        weights: Whether its weights are float32, too. Otherwise they keep their 8 bits, and the artifact
            its size.
        gain: By how much the relative mean square error of the integer network's output falls (see
            `raises`); with ``weights``, on top of what reading float32 does. (On a few dozen images the
            KL divergence says nothing of single layers: it hangs on a few images. Measured on MobileOne-S0.)
        price: Share of the network's multiply-accumulates that are float32 for it, plus the share by
            which its weights grow.
    """

    node: str
    weights: bool
    gain: float
    price: float


def nodes_to_raise(model: ir.Model, plan: QuantPlan, layer: str) -> list[str]:
    """The nodes that must be float32 for a layer to read float32 numbers, the layer among them.

    Where integer operators can only give integers, these are all operators that read or write the
    layer's input or a tensor tied to it; elsewhere only the readers.
    """
    placement = place(model, plan.scheme, plan.float_nodes)
    x = next(str(la.x.name) for la in layers(model) if la.name == layer)
    if x not in placement.root:
        return [layer]
    return nodes_around(model, plan, {n for n, root in placement.root.items() if root == placement.root[x]})


def nodes_around(model: ir.Model, plan: QuantPlan, group: Collection[str]) -> list[str]:
    """The nodes that must be float32 for tensors of one scale not to be rounded.

    Args:
        model: The graph.
        plan: What is float already, and the scheme.
        group: Names of all tensors that share the scale.
    """
    placement = place(model, plan.scheme, plan.float_nodes)
    found = []
    for node in model.graph:
        reads = any(v.name in group for v in data_inputs(node))
        writes = any(v.name in group for v in node.outputs)
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
    model: ir.Model,
    reference: ir.Model,
    plan: QuantPlan,
    nodes: Sequence[str],
    why: str,
    *,
    weights: Collection[str] | None = None,
) -> tuple[ir.Model, QuantPlan]:
    """Raise layers of a calibrated graph to float32 without calibrating again.

    Args:
        model: The calibrated graph; not changed.
        reference: The float graph with the same equalization, whose weights and biases they get back.
        plan: Its plan; not changed.
        nodes: Names of nodes.
        why: Recorded in the plan.
        weights: Those of the layers whose weights are float32, too; None: all of them. The others keep
            their 8-bit weights, and the biases that were corrected for these.
    """
    model, plan = model.clone(), plan.model_copy(deep=True)
    plan.float_nodes.update(dict.fromkeys(nodes, why))
    wide = set(nodes if weights is None else weights) & set(nodes)
    before = {la.name: la for la in layers(reference)}
    for layer in layers(model):
        if layer.name in wide and layer.name in before:
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


def raises(
    model: ir.Model, reference: ir.Model, plan: QuantPlan, batches: Batches, distance: Distance | None = None
) -> list[Raise]:
    """Raise one layer at a time; what gives most for its price comes first.

    What raising a layer in the integer network saves is what counts, but on a few dozen images it is known
    no better than the errors of all other layers let it. What the layer's integers cost alone, in the float
    network, is known well, but not what of it other layers' clipping takes away anyway. So the second is
    taken, held within two standard errors of the first.

    A layer's weights come after its activations, for they can't be float32 without them.

    Args:
        model: The calibrated graph.
        reference: The float graph with the same equalization.
        plan: The plan of ``model``.
        batches: Gives the images, float32 [N, C, H, W], anew at each call.
        distance: Knows the parts of the outputs; None: the outputs as they are.
    """
    return _Raising(model, reference, plan, batches, distance or Distance.of(model)).run()


class _Walk:
    """A network that is walked once; each trial runs only what comes after the first change."""

    def __init__(self, simulator: Simulator, batches: Batches, rounds: bool) -> None:
        self.simulator, self._batches, self._rounds = simulator, batches, rounds
        self._steps = _rounding(simulator.steps, set(), rounds)
        self._states = self._start(set())
        self._index = 0

    def _start(self, flipped: set[str]) -> list[Values]:
        rounded = {name for name in self.simulator.inputs if (name in flipped) != self._rounds}
        return [self.simulator.start(x, rounded) for x in self._batches()]

    def advance(self) -> None:
        """Run the next step."""
        for values in self._states:
            self.simulator.advance(self._steps[self._index], values)
        self._index += 1

    def trial(self, flipped: set[str], constants: Values) -> Outputs:
        """The outputs where ``flipped`` tensors are not rounded (or alone are), with other constants."""
        steps = _rounding(self.simulator.steps[self._index :], flipped, self._rounds)
        constants = {**self.simulator.constants, **constants}
        reached = []
        for start in self._states if self._index else self._start(flipped):
            values = dict(start)
            for step in steps:
                self.simulator.advance(step, values, constants=constants)
            reached.append(values)
        return self.simulator.results(reached)


def _rounding(steps: Sequence[Step], flipped: set[str], rounds: bool) -> list[Step]:
    """The steps with what is rounded, but for ``flipped``; or with nothing rounded but those."""
    return [
        replace(
            s,
            rounding=tuple(
                r if (n in flipped) != rounds else None for n, r in zip(s.writes, s.rounding, strict=True)
            ),
        )
        for s in steps
    ]


class _Raising:
    """The integer and the float network side by side."""

    def __init__(
        self, model: ir.Model, reference: ir.Model, plan: QuantPlan, batches: Batches, distance: Distance
    ) -> None:
        self._alone = distance.alone
        self.model, self.plan = model, plan
        self.integers = _Walk(Simulator(model, plan), batches, rounds=True)
        self.floats = _Walk(Simulator(reference, plan, weights=False), batches, rounds=False)
        self.weighted = {
            la.name: la
            for la in layers(model)
            if str(la.weight.name) in plan.weights and str(la.x.name) in plan.tensors
        }
        self.macs = macs_of(model)

    def run(self) -> list[Raise]:
        due: dict[int, list[tuple[Layer, list[str], set[str]]]] = {}
        for layer in self.weighted.values():
            nodes = nodes_to_raise(self.model, self.plan, layer.name)
            free = self._freed(nodes)
            due.setdefault(self._first(layer, free), []).append((layer, nodes, free))
        found: list[Raise] = []
        with torch.no_grad():
            self.wanted = self.floats.trial(set(), {})
            self.start = self._errors(self.integers.trial(set(), {}))
            for i in range(len(self.integers.simulator.steps)):
                for layer, nodes, free in due.get(i, ()):
                    found += self._options(layer, nodes, free)
                self.integers.advance()
                self.floats.advance()
        return _in_order(found)

    def _freed(self, nodes: Sequence[str]) -> set[str]:
        """The tensors that are no longer rounded when these nodes are float32."""
        floats = {**self.plan.float_nodes, **dict.fromkeys(nodes, "")}
        return set(self.plan.tensors) - set(place(self.model, self.plan.scheme, floats).values)

    def _first(self, layer: Layer, free: set[str]) -> int:
        """Index of the first step that a trial changes."""
        if free & set(self.integers.simulator.inputs):
            return 0
        changed = (
            i
            for i, s in enumerate(self.integers.simulator.steps)
            if free & set(s.writes) or str(s.node.name) == layer.name
        )
        return next(changed)

    def _errors(self, got: Outputs) -> np.ndarray:
        """Of each image, over the mean square of the outputs."""
        return image_errors(self._alone(got), self._alone(self.wanted))

    def _options(self, layer: Layer, nodes: Sequence[str], free: set[str]) -> list[Raise]:
        work = EFFORT + sum(self.macs.get(n, 0) for n in nodes) / max(1, sum(self.macs.values()))
        wide = [n for n in nodes if n in self.weighted]
        biases = self._biases(free)
        if not self.plan.scheme.weights_alone:
            raised = self._errors(
                self.integers.trial(free, {**biases, **self._parameters(wide, self.floats)})
            )
            alone = self._errors(self.floats.trial(free, self._parameters(wide, self.integers)))
            return [Raise(layer.name, True, _gain(self.start - raised, alone), work + self._growth(wide))]
        own = [layer.name]
        narrow = self._errors(self.integers.trial(free, biases))
        first = _gain(self.start - narrow, self._errors(self.floats.trial(free, {})))
        raised = self._errors(self.integers.trial(free, {**biases, **self._parameters(own, self.floats)}))
        alone = self._errors(self.floats.trial(set(), self._parameters(own, self.integers)))
        return [
            Raise(layer.name, False, first, work),
            Raise(layer.name, True, _gain(narrow - raised, alone), EFFORT + self._growth(own)),
        ]

    def _biases(self, free: set[str]) -> Values:
        """The biases that are not rounded to integers where these tensors are floats."""
        found = {}
        for layer in self.weighted.values():
            bias = const(layer.bias)
            if str(layer.x.name) in free and layer.bias is not None and bias is not None:
                found[str(layer.bias.name)] = torch.from_numpy(np.array(bias))
        return found

    def _parameters(self, names: Sequence[str], source: _Walk) -> Values:
        """Weights and biases of layers as another network has them."""
        found = [v for n in names for v in (self.weighted[n].weight, self.weighted[n].bias) if v is not None]
        return {str(v.name): source.simulator.constants[str(v.name)] for v in found}

    def _growth(self, wide: Collection[str]) -> float:
        """By what share 8-bit weights grow when these layers' have 32 bits."""
        total = sum(la.array.size for la in self.weighted.values())
        return 3 * sum(self.weighted[n].array.size for n in wide) / max(1, total)


def _gain(saved: np.ndarray, alone: np.ndarray) -> float:
    """From what each image saves in the integer network, and what the integers cost in the float one."""
    doubt = 2 * float(saved.std(ddof=1)) / len(saved) ** 0.5 if len(saved) > 1 else 0.0
    return float(np.clip(alone.mean(), saved.mean() - doubt, saved.mean() + doubt))


def _in_order(found: Sequence[Raise]) -> list[Raise]:
    rate = {(r.node, r.weights): r.gain / r.price for r in found}

    def key(r: Raise) -> tuple[float, bool]:
        return -min(rate[r.node, r.weights], rate.get((r.node, False), np.inf)), r.weights

    return sorted(found, key=key)
