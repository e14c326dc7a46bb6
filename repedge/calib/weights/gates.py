"""Channels of a SiLU brought to one range, exactly, though ``x * Sigmoid(x)`` is not homogeneous.

    y = x Sigmoid(x)    =    r (x / r) Sigmoid(r (x / r))

The convolution ahead takes in 1 / r and the ones behind take in r, as in `repedge.calib.weights.equalize`;
only the gate has to see the old numbers, by one more Mul. It may be clipped where a Sigmoid is flat, so its
own rounding costs little. Where channels of 80 lie beside channels of 0.3, as behind the first layer of
YOLOX, that is worth 40 dB in integers of 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from repedge.calib.simulation.observe import Statistics
from repedge.calib.structure import Layer, layers, own_parameters, set_array
from repedge.graph.values import add_initializer, const


@dataclass(frozen=True)
class Gate:
    """A convolution, the SiLU behind it, and the convolutions that read it.

    Attributes:
        producer: The convolution.
        sigmoid, product: The SiLU's nodes.
        consumers: All that read it.
    """

    producer: Layer
    sigmoid: ir.Node
    product: ir.Node
    consumers: tuple[Layer, ...]

    @property
    def x(self) -> ir.Value:
        """What the SiLU reads."""
        return self.producer.out

    @property
    def y(self) -> ir.Value:
        """What it gives."""
        return self.product.outputs[0]


def gates(model: ir.Model) -> list[Gate]:
    """All SiLUs between convolutions, in the graph's order."""
    by_node = {la.node: la for la in layers(model)}
    found = (_gate(layer, by_node) for layer in by_node.values() if layer.node.op_type == "Conv")
    return [g for g in found if g is not None]


def _gate(layer: Layer, by_node: Mapping[ir.Node, Layer]) -> Gate | None:
    x = layer.out
    uses = {use.node.op_type: use.node for use in x.uses()}
    if len(list(x.uses())) != 2 or set(uses) != {"Sigmoid", "Mul"} or x.is_graph_output():
        return None
    sigmoid, product = uses["Sigmoid"], uses["Mul"]
    gate, y = sigmoid.outputs[0], product.outputs[0]
    if set(product.inputs) != {x, gate} or len(list(gate.uses())) != 1 or gate.is_graph_output():
        return None
    readers = [use.node for use in y.uses()]
    consumers = [by_node[n] for n in readers if n in by_node and n.op_type == "Conv" and n.inputs[0] is y]
    if y.is_graph_output() or not readers or len(consumers) != len(readers) or layer.bias is None:
        return None
    return Gate(layer, sigmoid, product, tuple(consumers))


def open_gates(model: ir.Model, by: Mapping[str, Sequence[float] | np.ndarray]) -> ir.Model:
    """The same function with the channels of some SiLUs divided by factors.

    Args:
        model: A clean graph; not changed.
        by: Name of a convolution's output -> factors > 0 [C]; what no SiLU follows is left out.
    """
    model = model.clone()
    own_parameters(model)
    for gate in gates(model):
        factors = by.get(str(gate.x.name))
        if factors is not None:
            _open(model, gate, np.asarray(factors, np.float64))
    return model


def _open(model: ir.Model, gate: Gate, r: np.ndarray) -> None:
    first, x = gate.producer, gate.x
    bias = const(first.bias)
    assert first.bias is not None
    assert bias is not None
    set_array(first.weight, first.array.astype(np.float64) / r.reshape(-1, 1, 1, 1))
    set_array(first.bias, bias.astype(np.float64) / r)
    constant = add_initializer(model.graph, f"{x.name}/factors", r.reshape(1, -1, 1, 1).astype(np.float32))
    wide = ir.node("Mul", [x, constant], name=f"{x.name}/gate")
    out = wide.outputs[0]
    out.name, out.shape, out.type = gate_of(str(x.name)), x.shape, ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(gate.sigmoid, wide)
    gate.sigmoid.replace_input_with(0, out)
    for layer in gate.consumers:
        w = layer.array.astype(np.float64)
        grouped = w.reshape(layer.groups, w.shape[0] // layer.groups, *w.shape[1:])
        set_array(layer.weight, (grouped * r.reshape(layer.groups, 1, -1, 1, 1)).reshape(w.shape))


def gate_of(x: str) -> str:
    """Name of what the Sigmoid of an opened SiLU of ``x`` reads."""
    return f"{x}/gate"


NEGATIVE = 3.0
"""How much more of the range the positive side gets: all but every channel needs it, few the negative one."""


def factors_of(gate: Gate, stats: Statistics, low: float) -> np.ndarray:
    """Each channel's greatest magnitude over that of all channels, float64 [C].

    They are multiples of 1 / 255, so that 8-bit integers hold them exactly.

    Args:
        gate: The SiLU.
        stats: Of what it reads and gives.
        low: Where it is flat below, so that nothing there needs to be told apart.
    """
    x, y = (stats.tensors[str(v.name)] for v in (gate.x, gate.y))
    negative = -np.maximum(x.lows.min(0), low).astype(np.float64)
    largest = np.maximum(np.maximum(y.highs.max(0), NEGATIVE * negative), 0).astype(np.float64)
    share = largest / max(float(largest.max()), 1e-30)
    return np.clip(np.ceil(share * 255), 1, 255) / 255
