"""The simulation with layers in integers, for holding an integer artifact against the plan unit by unit.

A layer's sum of products is taken over the integers themselves. As long as it stays below 2^24 float32
holds it exactly in any order of summation, and one multiplication by ``s_x * s_w / s_y`` (in float32, as
XNNPACK's "fp32" requantization does) and one rounding, half to even, give the output's integer.
`Simulator` alone sums rounded reals instead: now and then a result that lies on a rounding boundary
falls to the other side, and a deep network makes such a unit grow.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch

from repedge.calib.plan import QuantPlan
from repedge.calib.simulation.simulator import Rounding, Simulator, Step
from repedge.calib.structure import Layer, layers
from repedge.graph.values import only_reader


@dataclass(frozen=True)
class UnitRounding(Rounding):
    """As `Rounding`, of values that are already in units of the scale."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x).clamp_(self.low, self.high).mul_(self.scale)

    def in_place(self, x: torch.Tensor) -> torch.Tensor:
        return x.round_().clamp_(self.low, self.high).mul_(self.scale)


def integer_simulator(model: ir.Model, plan: QuantPlan) -> Simulator:
    """A simulator whose layers sum integers.

    Layers whose biases are float32 under the scheme, and all other operators, stay as in `Simulator`.

    Args:
        model: The calibrated graph.
        plan: Its plan.
    """
    simulator = Simulator(model, plan)
    steps = {str(s.node.name): s for s in simulator.steps}
    if plan.scheme.bias == "float32":
        return simulator
    for layer in layers(model):
        if str(layer.weight.name) in plan.weights and str(layer.x.name) in plan.tensors:
            _to_integers(simulator, steps, layer, plan)
    return simulator


def _to_integers(simulator: Simulator, steps: dict[str, Step], layer: Layer, plan: QuantPlan) -> None:
    found = plan.weights[str(layer.weight.name)]
    w = simulator.constants[str(layer.weight.name)]
    shape = [1] * w.ndim
    if found.axis is not None:
        shape[found.axis] = -1
    s_w = torch.tensor(found.scale)
    s_x = torch.tensor(plan.tensors[str(layer.x.name)].scale)
    simulator.constants[str(layer.weight.name)] = torch.round(w / s_w.reshape(shape))
    if layer.bias is not None:
        unit = s_w.double() * s_x.double()
        bias = simulator.constants[str(layer.bias.name)]
        simulator.constants[str(layer.bias.name)] = torch.round(bias.double() / unit).float()
    multiplier = s_x * s_w
    rounded = _rounded_by(steps, layer)
    if rounded is not None:
        rounding = rounded.rounding[0]
        assert rounding is not None
        multiplier = multiplier / torch.tensor(rounding.scale)
        rounded.rounding = (UnitRounding(rounding.scale, rounding.low, rounding.high),)
    spatial = layer.node.op_type in ("Conv", "ConvTranspose")
    multiplier = multiplier.reshape((1, -1, 1, 1) if spatial else (-1,))
    step, inverse = steps[layer.name], 1.0 / float(s_x)
    product = step.run

    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        return product(torch.round(x * inverse), w, b) * multiplier

    step.run = run


def _rounded_by(steps: dict[str, Step], layer: Layer) -> Step | None:
    """The step that rounds a layer's output: its own, or that of the Relu it takes along."""
    own = steps[layer.name]
    if own.rounding[0] is not None:
        return own
    reader = only_reader(layer.out)
    if reader is not None and reader.op_type == "Relu" and steps[str(reader.name)].rounding[0] is not None:
        return steps[str(reader.name)]
    return None
