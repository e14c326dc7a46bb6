"""From a calibrated graph and its plan to QDQ ONNX: Quantize- and DequantizeLinear say where integers are.

Between a DequantizeLinear and the next QuantizeLinear every operator is still its float self, so that any
runtime can run the file, and one that knows integers (OpenVINO, TensorRT, ONNX Runtime, repedge's
own lowerings) puts its integer kernels there. Source: the ONNX specification of both operators.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.calib.plan import QuantPlan, TensorQuant
from repedge.calib.structure import Layer, layers
from repedge.errors import UserError
from repedge.graph.values import add_initializer, const

WIDE = 21
"""Version of the operator set from which 16-bit integers may be quantized to."""


def to_qdq(model: ir.Model, plan: QuantPlan, *, integer_bias: bool | None = None) -> ir.Model:
    """Write the plan into the graph.

    A value ``v`` keeps its name; ``v/q`` are its integers and ``v/dq`` what its readers get, and the two
    nodes are named alike. A graph output keeps its name, too (then ``v/float`` is what the operator gives).
    Weights become int8 initializers ``w/q``, biases int32 ones of scale ``s_x * s_w``, which layers read
    dequantized under their old names. Scales are numbered and zero points named by what they hold, and
    equal ones are one initializer: one each per tensor, named after it, would be 2 % of the file of a
    network of 2 million weights.

    Args:
        model: The calibrated graph (weights on their grids, biases corrected); not changed.
        plan: Its plan.
        integer_bias: Whether biases are int32; None: as the scheme has it (int64 ones stay float, for
            ONNX has no such DequantizeLinear).

    Returns:
        A new model of operator set 20, or 21 where there are 16-bit activations.

    Raises:
        UserError: The plan names tensors or weights that the graph does not have.
    """
    model = model.clone()
    _check(model, plan)
    if plan.scheme.activations in ("int16", "uint16"):
        model.graph.opset_imports[""] = WIDE
    writer = _Writer(model.graph, plan)
    integers = plan.scheme.bias == "int32" if integer_bias is None else integer_bias
    for layer in layers(model):
        writer.layer(layer, integers)
    values = {str(v.name): v for v in (*model.graph.inputs, *(v for n in model.graph for v in n.outputs))}
    for name, t in plan.tensors.items():
        if name in values:
            writer.activation(values[name], t)
        else:
            writer.operand(model.graph.initializers[name], t)
    for name in [n for n, v in model.graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del model.graph.initializers[name]
    return model


def _check(model: ir.Model, plan: QuantPlan) -> None:
    known = {str(v.name) for v in (*model.graph.inputs, *(v for n in model.graph for v in n.outputs))}
    known |= set(model.graph.initializers)
    for name in (*plan.tensors, *plan.weights):
        if name not in known:
            raise UserError(f"the quantization plan is of another graph: this one has no tensor {name!r}")


class _Writer:
    def __init__(self, graph: ir.Graph, plan: QuantPlan) -> None:
        self.graph = graph
        self.plan = plan
        self._params: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._taken = {v.name for n in graph for v in n.outputs} | {v.name for v in graph.inputs}

    def params(self, scale: np.ndarray, zero_point: int, dtype: str) -> tuple[ir.Value, ir.Value]:
        """The initializers of a scale, a scalar or a vector, and of zero points of its shape."""
        zeros = np.full(scale.shape, zero_point, dtype)
        shape = "".join(f"/{size}" for size in scale.shape)
        return (
            self._param(scale.astype(np.float32), f"s/{len(self._params)}"),
            self._param(zeros, f"{dtype}/{zero_point}{shape}"),
        )

    def _param(self, array: np.ndarray, name: str) -> ir.Value:
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._params:
            while name in self._taken:
                name += "_"
            self._params[key] = add_initializer(self.graph, name, array)
        return self._params[key]

    def of(self, t: TensorQuant) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of a tensor."""
        return self.params(np.array(t.scale), t.zero_point, t.dtype)

    def activation(self, value: ir.Value, t: TensorQuant) -> None:
        scale, zero = self.of(t)
        readers = list(value.uses())
        name = str(value.name)
        output = value.is_graph_output()
        q = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}/q")
        dq = ir.node("DequantizeLinear", [q.outputs[0], scale, zero], name=f"{name}/dq")
        _declare(q.outputs[0], f"{name}/q", value, zero.dtype)
        _declare(dq.outputs[0], f"{name}/dq", value, ir.DataType.FLOAT)
        for use in readers:
            use.node.replace_input_with(use.idx, dq.outputs[0])
        if output:
            place = list(self.graph.outputs).index(value)
            self.graph.outputs[place] = dq.outputs[0]
            value.name, dq.outputs[0].name = f"{name}/float", name
        self._insert([q, dq], value.producer())

    def operand(self, value: ir.Value, t: TensorQuant) -> None:
        """A constant operand of an elementwise operator."""
        array = const(value)
        assert array is not None
        qmin, qmax = self.plan.scheme.limits()
        integers = np.clip(np.round(array / np.float32(t.scale)) + t.zero_point, qmin, qmax).astype(t.dtype)
        q = add_initializer(self.graph, f"{value.name}/q", integers)
        self._replace(value, q, self.of(t), None)

    def layer(self, layer: Layer, integer_bias: bool) -> None:
        """The weight and the bias of a layer."""
        found = self.plan.weights.get(str(layer.weight.name))
        if found is None:
            return
        w, scale = layer.array, np.array(found.scale, np.float32)
        shape = [1] * w.ndim
        if found.axis is not None:
            shape[found.axis] = -1
        integers = np.clip(np.round(w / scale.reshape(shape)), -found.limit, found.limit).astype(np.int8)
        name = str(layer.weight.name)
        q = add_initializer(self.graph, f"{name}/q", integers)
        own = scale if found.axis is not None else scale.reshape(())
        self._replace(layer.weight, q, self.params(own, 0, "int8"), found.axis)
        x = self.plan.tensors.get(str(layer.x.name))
        if integer_bias and x is not None and layer.bias is not None:
            self._bias(layer.bias, scale.astype(np.float64) * x.scale)

    def _bias(self, bias: ir.Value, scale: np.ndarray) -> None:
        array = const(bias)
        assert array is not None
        scale = np.broadcast_to(scale, array.shape).astype(np.float32)
        exact = np.round(array.astype(np.float64) / scale.astype(np.float64))
        limits = np.iinfo(np.int32)
        integers = np.clip(exact, limits.min, limits.max).astype(np.int32)
        q = add_initializer(self.graph, f"{bias.name}/q", integers)
        self._replace(bias, q, self.params(scale, 0, "int32"), 0)

    def _replace(
        self, value: ir.Value, q: ir.Value, params: tuple[ir.Value, ir.Value], axis: int | None
    ) -> None:
        """Let the readers of an initializer read its integers through a DequantizeLinear of its name."""
        attributes = {} if axis is None else {"axis": axis}
        dq = ir.node("DequantizeLinear", [q, *params], attributes, name=f"{value.name}/dq")
        _declare(dq.outputs[0], str(value.name), value, ir.DataType.FLOAT)
        first = None
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, dq.outputs[0])
            first = first or use.node
        if first is None:
            raise UserError(f"nothing reads the weight {value.name!r}")
        order = {n: i for i, n in enumerate(self.graph)}
        earliest = min((u.node for u in dq.outputs[0].uses()), key=order.__getitem__)
        self.graph.insert_before(earliest, dq)

    def _insert(self, nodes: list[ir.Node], after: ir.Node | None) -> None:
        if after is not None:
            self.graph.insert_after(after, nodes)
        else:
            first = next(iter(self.graph))
            self.graph.insert_before(first, nodes)


def _declare(value: ir.Value, name: str, like: ir.Value, dtype: ir.DataType | None) -> None:
    value.name, value.shape = name, like.shape
    value.type = ir.TensorType(dtype or ir.DataType.FLOAT)
