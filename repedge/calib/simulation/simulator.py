"""The graph in torch: in float32, or with the rounding that a plan asks for.

Every quantized tensor is rounded where the integer artifact rounds it: ``q = round(x / scale)``, half to
even (as ONNX QuantizeLinear and XNNPACK do; TensorFlow Lite's reference kernels round half away from
zero), saturated, and widened again. Weights and biases are rounded once. Sums are float32 instead of
int32, so that a result may differ from the integers' by one unit where it falls on a rounding boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from repedge.calib.plan import QuantPlan, TensorQuant
from repedge.calib.simulation.heap import give_back, stacked
from repedge.calib.simulation.torch_ops import VIEWS, Function, function_of
from repedge.calib.structure import Layer, layers, place
from repedge.graph.values import const, shape_of
from repedge.scheme import LIMITS, QuantScheme

Tap = Callable[[torch.Tensor], None]
Values = dict[str, torch.Tensor]
Outputs = list[np.ndarray]
"""Every output of a network, in the graph's order, float32 [N, ...] each (see `Simulator.returned`)."""

HOLES = 32 * 2**20
"""Bytes that a walk keeps of a layer before it gives back the holes that computing them has left."""


@dataclass(frozen=True)
class Rounding:
    """``clamp(round(x / scale), low, high) * scale``; low and high are relative to the zero point."""

    scale: float
    low: float
    high: float

    @classmethod
    def of(cls, t: TensorQuant, scheme: QuantScheme) -> Rounding:
        """That of a quantized tensor."""
        qmin, qmax = scheme.limits() if t.dtype == scheme.activations else LIMITS[t.dtype]
        return cls(t.scale, qmin - t.zero_point, qmax - t.zero_point)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """A rounded copy of ``x``."""
        return torch.round(x * (1.0 / self.scale)).clamp_(self.low, self.high).mul_(self.scale)

    def in_place(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds ``x`` itself."""
        return x.mul_(1.0 / self.scale).round_().clamp_(self.low, self.high).mul_(self.scale)


@dataclass
class Step:
    """One node, ready to run.

    Attributes:
        node: The node.
        reads: Names of its inputs ("" where one is left out).
        writes: Names of its outputs.
        run: Its function.
        rounding: Of each output; None where it is not rounded here.
        dead: Names that no later step reads.
    """

    node: ir.Node
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    run: Function
    rounding: tuple[Rounding | None, ...]
    dead: tuple[str, ...] = ()

    def __call__(self, values: Values, constants: Values) -> None:
        """Put the node's outputs, rounded where it rounds, into ``values``."""
        found = [(values[n] if n in values else constants[n]) if n else None for n in self.reads]
        results = self.run(*found)
        if isinstance(results, torch.Tensor):
            results = (results,)
        fresh = self.node.op_type not in VIEWS
        for name, y, rounding in zip(self.writes, results, self.rounding, strict=False):
            if rounding is not None:
                y = rounding.in_place(y) if fresh and not y.requires_grad else rounding(y)
            values[name] = y


class Simulator:
    """A clean graph that runs in torch.

    Args:
        model: The graph; its weights are read once, later changes are not seen.
        plan: What to round; None for float32 throughout.
        weights: Whether weights and biases are rounded.
        activations: Whether activations are rounded.
        keep: Names of values that are not dropped after their last reader.

    Attributes:
        inputs: Names of the graph's inputs, the image first.
        steps: The nodes in order.
        constants: Initializers by name, weights already rounded.
        outputs: Names of the graph's outputs.
    """

    def __init__(
        self,
        model: ir.Model,
        plan: QuantPlan | None = None,
        *,
        weights: bool = True,
        activations: bool = True,
        keep: Iterable[str] = (),
    ) -> None:
        self._takes = {str(v.name): (shape_of(v), v.dtype) for v in model.graph.inputs}
        self.inputs = tuple(self._takes)
        self.outputs = tuple(str(v.name) for v in model.graph.outputs)
        self._own_axis = {str(v.name) for v in model.graph.outputs if shape_of(v)[:1] == (1,)}
        self.constants = _constants(model)
        self.steps: list[Step] = []
        self._input_rounding: dict[str, Rounding] = {}
        rounding: dict[str, Rounding] = {}
        if plan is not None and activations:
            rounding = {n: Rounding.of(t, plan.scheme) for n, t in plan.tensors.items()}
            self._input_rounding = {n: rounding[n] for n in self.inputs if n in rounding}
            for name in rounding.keys() & self.constants.keys():
                self.constants[name] = rounding[name](self.constants[name])
        if plan is not None and weights:
            for layer in layers(model):
                self._round_weights(layer, plan, activations)
        exact = _exact(model, plan) if rounding else set()
        for node in model.graph:
            self._add(node, rounding, exact)
        self._free({*self.outputs, *keep})

    def _round_weights(self, layer: Layer, plan: QuantPlan, activations: bool) -> None:
        found = plan.weights.get(str(layer.weight.name))
        if found is None:
            return
        name = str(layer.weight.name)
        w = self.constants[name]
        shape = [1] * w.ndim
        if found.axis is not None:
            shape[found.axis] = -1
        scale = torch.tensor(found.scale).reshape(shape)
        self.constants[name] = torch.round(w / scale).clamp_(-found.limit, found.limit).mul_(scale)
        x = plan.tensors.get(str(layer.x.name))
        if layer.bias is not None and activations and x is not None and plan.scheme.bias != "float32":
            step = torch.tensor(found.scale, dtype=torch.float64) * x.scale
            bias = self.constants[str(layer.bias.name)].double()
            self.constants[str(layer.bias.name)] = (torch.round(bias / step) * step).float()

    def _add(self, node: ir.Node, rounding: Mapping[str, Rounding], exact: set[str]) -> None:
        writes = tuple(str(v.name) for v in node.outputs)
        own = tuple(None if name in exact else rounding.get(name) for name in writes)
        reads = tuple("" if v is None else str(v.name) for v in node.inputs)
        self.steps.append(Step(node, reads, writes, function_of(node), own))

    def _free(self, kept: set[str]) -> None:
        seen = set(kept)
        for step in reversed(self.steps):
            names = {n for n in (*step.reads, *step.writes) if n and n not in self.constants}
            step.dead = tuple(sorted(names - seen))
            seen |= names

    def set_rounding(self, rounding: Mapping[str, Rounding]) -> None:
        """Replace the rounding of tensors that are rounded where they are computed."""
        for step in self.steps:
            if any(name in rounding for name in step.writes):
                own = zip(step.writes, step.rounding, strict=True)
                step.rounding = tuple(r if r is None else rounding.get(n, r) for n, r in own)

    def round(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """``x`` rounded as the value ``name`` is."""
        for step in self.steps:
            if name in step.writes:
                rounding = step.rounding[step.writes.index(name)]
                return x if rounding is None else rounding(x)
        return x

    def start(self, x: np.ndarray | torch.Tensor, rounded: Collection[str] | None = None) -> Values:
        """The values that are there before the first step.

        Args:
            x: Images float32 [N, C, H, W]; for a graph of several inputs, one row of all their numbers (see
                `repedge.photos.tensors.Tensors.rows`).
            rounded: Names of inputs that are rounded, of those that the plan rounds; None for all of these.
        """
        tensor = torch.as_tensor(x)
        values = {self.inputs[0]: tensor} if len(self.inputs) == 1 else self._taken_apart(tensor)
        for name, rounding in self._input_rounding.items():
            if rounded is None or name in rounded:
                values[name] = rounding(values[name])
        return values

    def _taken_apart(self, row: torch.Tensor) -> Values:
        """The inputs [their own shape] from one row [1, numbers]."""
        sizes = [int(np.prod(shape)) for shape, _ in self._takes.values()]
        if tuple(row.shape) != (1, sum(sizes)):
            raise ValueError(f"a row of {sum(sizes)} numbers is needed, not {list(row.shape)}")
        parts = row.reshape(-1).split(sizes)
        return {
            name: part.reshape(shape).to(torch.from_numpy(np.empty(0, dtype.numpy())).dtype)
            for part, (name, (shape, dtype)) in zip(parts, self._takes.items(), strict=True)
            if dtype is not None
        }

    def run(self, x: np.ndarray | torch.Tensor, taps: Mapping[str, Tap] | None = None) -> list[torch.Tensor]:
        """Run a batch of any size that the graph keeps apart (`repedge.calib.simulation.batching`).

        Args:
            x: float32 [N, C, H, W].
            taps: Value name -> a function that is shown the value (as its readers see it).

        Returns:
            The graph's outputs.
        """
        taps = taps or {}
        with torch.no_grad():
            values = self.start(x)
            for name in self.inputs:
                if name in taps:
                    taps[name](values[name])
            for step in self.steps:
                self.advance(step, values, taps)
        return self.returned(values)

    def returned(self, values: Values) -> list[torch.Tensor]:
        """The graph's outputs, [N, ...] each; one that has no axis for images first gets it in front."""
        return [values[n] if n in self._own_axis else values[n][None] for n in self.outputs]

    def advance(
        self,
        step: Step,
        values: Values,
        taps: Mapping[str, Tap] | None = None,
        constants: Values | None = None,
    ) -> None:
        """Run one step, with other constants if they are given, and drop what no later step reads."""
        step(values, self.constants if constants is None else constants)
        for name in step.writes if taps else ():
            if taps is not None and name in taps:
                taps[name](values[name])
        for name in step.dead:
            values.pop(name, None)

    def walk(
        self, batches: Iterable[np.ndarray], names: Collection[str] | None = None
    ) -> Iterator[tuple[Step, list[Values]]]:
        """Run all batches side by side; yields after nodes, with what they wrote for every batch.

        What the caller changes in the yielded values or in `constants` is seen by later nodes. From one
        yield to the next it goes batch by batch, and drops what no later node reads, so that nothing but
        what is yielded and what skips over it is ever there for all batches at once.

        Args:
            batches: float32 [N, C, H, W] each.
            names: Yield only after nodes that write one of these; None for every node.
        """
        with torch.no_grad():
            states: Iterable[Values] = (self.start(x) for x in batches)
            stretch: list[Step] = []
            for step in self.steps:
                stretch.append(step)
                if names is not None and not any(n in names for n in step.writes):
                    continue
                reached = states = list(self._through(stretch, states))
                yield step, reached
                for values in reached:
                    for name in step.dead:
                        values.pop(name, None)
                stretch = []

    def _through(self, stretch: list[Step], states: Iterable[Values]) -> Iterator[Values]:
        """Run steps on batch after batch; what the last one wrote stays."""
        held = 0
        for values in states:
            for step in stretch:
                step(values, self.constants)
                for name in step.dead:
                    if step is not stretch[-1] or name not in step.writes:
                        values.pop(name, None)
            yield values
            held += sum(values[n].nbytes for n in stretch[-1].writes)
            if held > HOLES:
                give_back()
                held = 0

    def answers(self, batches: Iterable[np.ndarray]) -> Outputs:
        """Every output of all batches, float32 [N, ...] each.

        Raises:
            ValueError: There is no batch.
        """
        return stacked([y.numpy() for y in self.run(x)] for x in batches)

    def results(self, states: Sequence[Values]) -> Outputs:
        """Every output of all batches, whose states have been run to the end."""
        columns = zip(*(self.returned(values) for values in states), strict=True)
        return [np.concatenate([y.numpy() for y in column]) for column in columns]


def _constants(model: ir.Model) -> Values:
    result = {}
    for name, value in model.graph.initializers.items():
        array: Any = const(value)
        if array is not None:
            result[name] = torch.from_numpy(np.array(array))
    return result


def _exact(model: ir.Model, plan: QuantPlan | None) -> set[str]:
    """Outputs of operators that only move numbers from tensors of the same parameters: already rounded."""
    from repedge.calib.structure import data_inputs
    from repedge.operators import MOVES

    assert plan is not None
    placement = place(model, plan.scheme, plan.float_nodes)
    result: set[str] = set()
    for node in model.graph:
        if node.op_type in MOVES and str(node.name) in placement.nodes:
            roots = {placement.root.get(str(v.name)) for v in (*data_inputs(node), *node.outputs)}
            if len(roots) == 1 and None not in roots:
                result.update(str(v.name) for v in node.outputs)
    return result
