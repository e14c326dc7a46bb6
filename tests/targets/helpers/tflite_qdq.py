"""A min-max quantizer that writes QDQ graphs: what the integer lowerings of TensorFlow Lite are fed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from operators import weights
from tflite_helpers import W3, clean, run

from repedge.graph.values import const, shape_of

FIXED = {
    "int8": {"Sigmoid": (1 / 256, -128), "Tanh": (1 / 128, 0)},
    "int16": {"Sigmoid": (1 / 32768, 0), "Tanh": (1 / 32768, 0)},
    "uint8": {"Sigmoid": (1 / 256, 0)},
}
TIED = {"MaxPool", "GlobalMaxPool", "Concat", "Resize", "Pad", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
TIED |= {"Transpose", "Slice", "Split", "DepthToSpace", "SpaceToDepth"}
FUSING = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul"}
OPERANDS = {"Add": 2, "Sub": 2, "Mul": 2, "Concat": 99}
Params = tuple[float, int]


def params(array: np.ndarray, dtype: str) -> Params:
    """Scale (a float32 number) and zero point that hold all of an array and 0."""
    low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
    if dtype == "int16":
        return float(np.float32(max(-low, high) / 32767 or 1.0)), 0
    least = np.iinfo(dtype).min
    scale = float(np.float32((high - low) / 255 or 1.0))
    return scale, int(np.clip(round(least - low / scale), least, least + 255))


class Quantizer:
    """See `quantize`."""

    def __init__(self, model: ir.Model, dtype: str, given: Mapping[str, Params], types: Mapping[str, str]):
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(ir.to_proto(model))
        self.graph, self.dtype, self.given, self.types = self.proto.graph, dtype, given, types
        self.arrays = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self.new: list[onnx.NodeProto] = []
        self.scales: dict[str, Params] = {}

    def constant(self, name: str, array: np.ndarray) -> str:
        if name not in {t.name for t in self.graph.initializer}:
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def pair(self, value: str, out: str) -> None:
        """value -> QuantizeLinear -> DequantizeLinear -> out."""
        scale, zero = self.scales[value]
        ends = [
            self.constant(f"{value}_scale", np.array(scale, np.float32)),
            self.constant(f"{value}_zero", np.array(zero, self.types.get(value, self.dtype))),
        ]
        self.new.append(helper.make_node("QuantizeLinear", [value, *ends], [f"{value}_q"], f"{value}_q"))
        self.new.append(helper.make_node("DequantizeLinear", [f"{value}_q", *ends], [out], f"{value}_dq"))

    def integers(self, name: str, array: np.ndarray, scale: np.ndarray, dtype: str, axis: int) -> str:
        """A constant behind a DequantizeLinear."""
        shape = [1] * array.ndim
        if scale.size > 1:
            shape[axis] = -1
        limit = 127 if dtype == "int8" else 2**31 - 1
        q = np.clip(np.rint(array / scale.astype(np.float64).reshape(shape)), -limit, limit).astype(dtype)
        self.constant(f"{name}_q", q)
        flat = scale.astype(np.float32).reshape(-1)
        ends = [self.constant(f"{name}_s", flat if scale.size > 1 else flat[0])]
        zeros = np.zeros(flat.shape if scale.size > 1 else (), dtype)
        ends.append(self.constant(f"{name}_z", zeros))
        self.new.append(
            helper.make_node(
                "DequantizeLinear", [f"{name}_q", *ends], [f"{name}_dq"], f"{name}_dq", axis=axis
            )
        )
        return f"{name}_dq"

    def layer(self, node: onnx.NodeProto, per_channel: bool) -> None:
        weight = self.arrays[node.input[1]]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}.get(node.op_type)
        if axis is None:
            axis = 0 if attributes.get("transB", 0) else 1
        others = tuple(a for a in range(weight.ndim) if a != axis)
        scale = np.abs(weight).max(axis=others) / 127
        if not per_channel or (node.op_type == "ConvTranspose" and attributes.get("group", 1) > 1):
            scale = np.full(1, np.abs(weight).max() / 127)
        scale = scale.astype(np.float32)
        node.input[1] = self.integers(f"{node.name}/weight", weight, scale, "int8", axis)
        source = node.input[0].removesuffix("_dq")
        if len(node.input) > 2 and source in self.scales:
            step = np.float32(self.scales[source][0]) * scale
            bias = self.arrays[node.input[2]]
            node.input[2] = self.integers(f"{node.name}/bias", bias, step, "int32", bias.ndim - 1)


def observed(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every value of a float graph in onnxruntime."""
    import onnxruntime as ort

    proto = onnx.ModelProto()
    proto.CopyFrom(ir.to_proto(model))
    names = [o for n in proto.graph.node for o in n.output if o]
    known = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outs = [o.name for o in session.get_outputs()]
    found = [session.run(outs, {name: x[i : i + 1]}) for i in range(len(x))]
    return {name: x} | {n: np.concatenate([f[i] for f in found]) for i, n in enumerate(outs)}


def quantize(
    model: ir.Model,
    x: np.ndarray,
    dtype: str = "int8",
    *,
    float_nodes: Collection[str] = (),
    given: Mapping[str, Params] | None = None,
    types: Mapping[str, str] | None = None,
    tie: bool = True,
    per_channel: bool = True,
    weights_only: bool = False,
) -> ir.Model:
    """A QDQ graph from the ranges seen on ``x``.

    Args:
        model: A clean float graph.
        x: Calibration batch [N, ...].
        dtype: Integer type of activations.
        float_nodes: Nodes that stay float.
        given: Value -> scale and zero point that are not to be observed.
        types: Value -> another integer type.
        tie: Whether operators that only move numbers give their input's scale.
        per_channel: Whether weights have a scale for each output channel.
        weights_only: Whether only weights are quantized.
    """
    q = Quantizer(model, dtype, given or {}, types or {})
    values = observed(model, x)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in q.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    outputs = {o.name for o in q.graph.output}
    renamed: dict[str, str] = {}

    def scale_of(value: str, node: onnx.NodeProto | None) -> Params:
        kind = q.types.get(value, dtype)
        if value in q.given:
            return q.given[value]
        if node is not None and node.op_type in FIXED.get(kind, {}):
            return FIXED[kind][node.op_type]
        source = node.input[0].removesuffix("_dq") if node is not None and node.input else ""
        if node is not None and tie and node.op_type in TIED and source in q.scales:
            return q.scales[source]
        return params(values[value], kind)

    def finish(value: str, node: onnx.NodeProto | None) -> None:
        users = readers.get(value, [])
        inside = node is not None and node.op_type in FUSING and node.name not in float_nodes
        if inside and len(users) == 1 and users[0].op_type in ("Relu", "Clip") and value not in outputs:
            return
        wanted = node is not None and node.name not in float_nodes
        if weights_only or not (wanted or any(u.name not in float_nodes for u in users)):
            return
        q.scales[value] = scale_of(value, node)
        if value in outputs:
            raw = f"{value}_raw"
            assert node is not None
            node.output[list(node.output).index(value)] = raw
            q.scales[raw] = q.scales[value]
            q.types = {**q.types, raw: q.types.get(value, dtype)}
            q.pair(raw, value)
        else:
            q.pair(value, f"{value}_dq")
            renamed[value] = f"{value}_dq"

    nodes = list(q.graph.node)
    for value in q.graph.input:
        if value.name not in q.arrays:
            finish(value.name, None)
    for node in nodes:
        for i, value in enumerate(node.input):
            constant = value in q.arrays and i < OPERANDS.get(node.op_type, 0)
            if constant and node.name not in float_nodes and not weights_only:
                q.scales[value] = q.given.get(value) or params(q.arrays[value], dtype)
                q.pair(value, f"{value}_{node.name}_dq")
                node.input[i] = f"{value}_{node.name}_dq"
            node.input[i] = renamed.get(node.input[i], node.input[i])
        layer = node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.input[1] in q.arrays
        if layer and node.name not in float_nodes:
            q.layer(node, per_channel)
        q.new.append(node)
        for value in [v for v in node.output if v]:
            finish(value, node)
    del q.graph.node[:]
    q.graph.node.extend(q.new)
    del q.graph.value_info[:]
    q.proto.opset_import[0].version = 21  # the first with 16-bit QuantizeLinear
    used = {v for n in q.graph.node for v in n.input}
    for tensor in [t for t in q.graph.initializer if t.name not in used]:
        q.graph.initializer.remove(tensor)
    for value in [v for v in q.graph.input if v.name in {t.name for t in q.graph.initializer}]:
        q.graph.input.remove(value)
    onnx.checker.check_model(q.proto)
    return ir.from_proto(onnx.shape_inference.infer_shapes(q.proto, strict_mode=True, data_prop=True))


def reference(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    """The QDQ graph in onnxruntime as it stands: floats between the rounding, nothing fused."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: x[i : i + 1]}) for i in range(len(x))]
    return [np.concatenate(column) for column in zip(*found, strict=True)]


def output_scales(model: ir.Model) -> list[float]:
    """The scale of each output of a QDQ graph; its unit in the last place."""
    result = []
    for value in model.graph.outputs:
        node = value.producer()
        scale = const(node.inputs[1]) if node is not None and node.op_type == "DequantizeLinear" else None
        result.append(1.0 if scale is None else float(scale))
    return result


def batch(model: ir.Model, count: int = 3) -> np.ndarray:
    shape = shape_of(model.graph.inputs[0])
    return np.concatenate([weights(*shape, seed=9 + i) for i in range(count)])


def units(
    model: ir.Model, path: Path, x: np.ndarray, want: list[np.ndarray] | None = None, **changes: Any
) -> float:
    """Largest difference from the QDQ graph, in units of each output's scale."""
    want = reference(model, x) if want is None else want
    got = run(model, path, x, **changes)
    assert [g.shape for g in got] == [w.shape for w in want]
    errors = [np.abs(g - w).max() / s for g, w, s in zip(got, want, output_scales(model), strict=True)]
    return float(max(errors))


MIXED = """g (float[1,6,9,9] x) => (float[1,4] y) {
    [one] a = Conv<pads=[1,1,1,1]> (x, w, b)
    [two] r = Relu (a)
    [three] c = Conv<pads=[1,1,1,1]> (r, v, b)
    [four] s = Add (c, r)
    [five] p = GlobalAveragePool (s)
    [six] f = Flatten (p)
    [seven] y = Gemm<transB=1> (f, u)
}"""


def mixed() -> ir.Model:
    return clean(MIXED, w=W3, b=weights(12), v=weights(12, 12, 3, 3), u=weights(4, 12))
