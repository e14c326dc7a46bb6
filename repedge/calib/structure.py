"""Which tensors of a graph are integers under a scheme, and which of them share parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr, conv_attrs
from repedge.graph.values import add_initializer, const, only_reader, shape_of
from repedge.operators import LAYERS
from repedge.scheme import QuantScheme

OPERANDS: dict[str, int | None] = {"Concat": None, "Add": 2, "Sub": 2, "Mul": 2, "Max": None, "Min": None}
"""Operator -> how many of its inputs are data (None: all); 1 where it is not listed."""

TAKING = LAYERS | {"Add", "Sub", "Mul"}
"""Operators that may take an activation along."""


@dataclass(frozen=True)
class Layer:
    """A node with weights.

    Attributes:
        node: The Conv, ConvTranspose, Gemm or MatMul.
        weight: Its weight, an initializer.
        bias: Its bias, an initializer, or None.
        axis: The weight's axis of output channels; None where they lie on several (grouped ConvTranspose).
        groups: Groups of a convolution, else 1.
    """

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    axis: int | None
    groups: int = 1

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def x(self) -> ir.Value:
        """The activation it reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def out(self) -> ir.Value:
        """What it computes, ahead of any activation."""
        return self.node.outputs[0]

    @property
    def depthwise(self) -> bool:
        """Whether each filter reads one channel."""
        return self.node.op_type == "Conv" and self.groups > 1 and shape_of(self.weight)[1] == 1

    @property
    def array(self) -> np.ndarray:
        """The weight's values, float32."""
        array = const(self.weight)
        assert array is not None
        return array


def layers(model: ir.Model) -> list[Layer]:
    """All nodes with constant weights, in the graph's order."""
    found = []
    for node in model.graph:
        if node.op_type not in LAYERS or const(node.inputs[1]) is None:
            continue
        weight = node.inputs[1]
        assert weight is not None
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and const(bias) is None:
            continue
        axis, groups = _axis(node, weight)
        found.append(Layer(node, weight, bias, axis, groups))
    return found


def _axis(node: ir.Node, weight: ir.Value) -> tuple[int | None, int]:
    if node.op_type == "Conv":
        return 0, conv_attrs(node).group
    if node.op_type == "ConvTranspose":
        groups = conv_attrs(node).group
        return (1 if groups == 1 else None), groups
    if node.op_type == "Gemm":
        return (0 if attr(node, "transB", 0) else 1), 1
    rank = len(shape_of(weight))
    return (rank - 1 if rank == 2 else None), 1


def set_array(value: ir.Value, array: np.ndarray) -> None:
    """Replace the data of an initializer."""
    value.const_value = ir.tensor(np.ascontiguousarray(array, dtype=np.float32), name=value.name)


def own_parameters(model: ir.Model) -> None:
    """Give every layer weights and a bias of its own, in place (a missing bias becomes zeros).

    Calibration changes them layer by layer; those of MatMul and of computed biases stay as they are.
    """
    taken: set[ir.Value] = set()
    for layer in layers(model):
        for i, value in ((1, layer.weight), (2, layer.bias)):
            if value is None:
                continue
            if value in taken or len(value.uses()) > 1:
                array = const(value)
                assert array is not None
                copy = add_initializer(model.graph, f"{layer.name}/{value.name}", array.copy())
                layer.node.replace_input_with(i, copy)
                taken.add(copy)
            taken.add(value)
        if layer.bias is None and layer.node.op_type != "MatMul":
            zeros = np.zeros(channels(layer), np.float32)
            value = add_initializer(model.graph, f"{layer.name}/bias", zeros)
            if len(layer.node.inputs) > 2:
                layer.node.replace_input_with(2, value)
            else:
                layer.node.resize_inputs(3)
                layer.node.replace_input_with(2, value)
    for name in [n for n, v in model.graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del model.graph.initializers[name]


def channels(layer: Layer) -> int:
    """Output channels of a layer."""
    shape = shape_of(layer.out)
    return shape[1] if layer.node.op_type in ("Conv", "ConvTranspose") else shape[-1]


def data_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs of a node that are activations or constant operands (not weights, shapes, bounds)."""
    for value in node.inputs[: OPERANDS.get(node.op_type, 1)]:
        if value is not None:
            yield value


@dataclass
class Placement:
    """Where integers are.

    Attributes:
        values: Quantized values by name, in the graph's order (constant operands included).
        root: Quantized value -> the value whose parameters it has (itself, if not tied).
        fixed: Root -> operator type whose laid-down parameters it has.
        layers: The layers whose weights are integers.
        nodes: Names of the nodes that run in integers.
    """

    values: dict[str, ir.Value] = field(default_factory=dict)
    root: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)

    def groups(self) -> dict[str, list[str]]:
        """Root -> the values that have its parameters, root first."""
        result: dict[str, list[str]] = {}
        for name in self.values:
            result.setdefault(self.root[name], []).append(name)
        return {r: [r, *(n for n in names if n != r)] for r, names in result.items()}


def place(model: ir.Model, scheme: QuantScheme, float_nodes: Collection[str] = ()) -> Placement:
    """Decide which tensors are integers.

    Args:
        model: A clean graph.
        scheme: The target's rules.
        float_nodes: Names of nodes that stay in float32.

    Raises:
        UserError: ``float_nodes`` names a node that the graph does not have.
    """
    nodes = list(model.graph)
    names = {str(n.name) for n in nodes}
    for name in float_nodes:
        if name not in names:
            raise UserError(f"the graph has no node {name!r} to keep in float")
    able = [n for n in nodes if n.op_type in scheme.integer_ops and not _stays_float(n, scheme, float_nodes)]
    weighted = {la.name: la for la in layers(model)}
    result = Placement()
    if scheme.weights_only:
        result.layers = [weighted[str(n.name)] for n in able if str(n.name) in weighted]
        return result
    between = set(_fused(able, scheme, float_nodes))
    quantized, integer = _spread(model, able, between, scheme)
    result.nodes = {str(n.name) for n in integer}
    result.layers = [weighted[str(n.name)] for n in integer if str(n.name) in weighted]
    order = [*model.graph.inputs, *(v for n in nodes for v in (*data_inputs(n), *n.outputs))]
    for value in order:
        if value in quantized and value.name not in result.values:
            result.values[str(value.name)] = value
    _tie(result, integer, scheme)
    return result


def _stays_float(node: ir.Node, scheme: QuantScheme, float_nodes: Collection[str]) -> bool:
    """Whether a node is float by choice, or is the activation that such a node would have taken along.

    A product of two activations is: TensorFlow Lite's kernel reads floats, OpenVINO's attention of 196
    cells takes 1.6 times as long in integers (2.0 and 3.2 ms, Xeon with AMX) and loses 5 dB.
    """
    if node.name in float_nodes or (node.op_type == "MatMul" and const(node.inputs[1]) is None):
        return True
    if node.op_type == "ConvTranspose" and not scheme.gaps and _has_gaps(node):
        return True
    before = (
        node.inputs[0].producer() if node.op_type in scheme.fused and node.inputs[0] is not None else None
    )
    if before is None or before.name not in float_nodes:
        return False
    return before.op_type in TAKING and only_reader(before.outputs[0]) is node


def _has_gaps(node: ir.Node) -> bool:
    """Whether the windows of a transposed convolution leave cells between them out."""
    a = conv_attrs(node)
    reach = [(k - 1) * d + 1 for k, d in zip(a.kernel, a.dilations, strict=True)]
    return any(stride > cells for stride, cells in zip(a.strides, reach, strict=True))


def _fused(able: list[ir.Node], scheme: QuantScheme, float_nodes: Collection[str]) -> Iterator[ir.Value]:
    """Values between an operator and the activation that it takes along."""
    for node in able:
        if node.op_type not in TAKING:
            continue
        reader = only_reader(node.outputs[0])
        if reader is not None and reader.op_type in scheme.fused and reader.name not in float_nodes:
            yield node.outputs[0]


def _spread(
    model: ir.Model, able: list[ir.Node], between: set[ir.Value], scheme: QuantScheme
) -> tuple[set[ir.Value], list[ir.Node]]:
    """The quantized values and the nodes that run in integers, grown until nothing changes."""
    tail = {v: next(iter(v.uses())).node for v in between}
    movers = [n for n in able if n.op_type in scheme.tied]
    workers = [n for n in able if n.op_type not in scheme.tied and not _takes_along(n, between)]
    quantized: set[ir.Value] = set()
    moving: set[ir.Node] = set()
    for node in workers:
        quantized.update(v for v in data_inputs(node) if v.dtype == ir.DataType.FLOAT)
        if scheme.integer_outputs or node.op_type in scheme.fixed:
            last = tail.get(node.outputs[0], node)
            quantized.update(last.outputs)
    while True:
        before = len(quantized)
        for node in movers:
            wanted = any(v in quantized for v in node.outputs)
            given = scheme.integer_outputs and any(v in quantized for v in data_inputs(node))
            if wanted or given:
                moving.add(node)
                quantized.update(data_inputs(node))
                quantized.update(node.outputs)
        if len(quantized) == before:
            break
    if not scheme.quantize_outputs:
        quantized -= {v for v in model.graph.outputs if not v.uses()}
    quantized -= between
    taken = [n for n in able if _takes_along(n, between)]
    integer = {*workers, *moving, *taken}
    return quantized, [n for n in model.graph if n in integer]


def _takes_along(node: ir.Node, between: set[ir.Value]) -> bool:
    return bool(node.inputs) and node.inputs[0] in between


def _tie(result: Placement, integer: list[ir.Node], scheme: QuantScheme) -> None:
    parent = {name: name for name in result.values}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    position = {name: i for i, name in enumerate(result.values)}
    for node in integer:
        if node.op_type not in scheme.tied:
            continue
        group = [str(v.name) for v in (*data_inputs(node), *node.outputs) if v.name in parent]
        roots = sorted({find(n) for n in group}, key=position.__getitem__)
        for other in roots[1:]:
            parent[other] = roots[0]
    result.root = {name: find(name) for name in result.values}
    for node in integer:
        if node.op_type in scheme.fixed and node.outputs[0].name in result.root:
            result.fixed[result.root[str(node.outputs[0].name)]] = node.op_type
