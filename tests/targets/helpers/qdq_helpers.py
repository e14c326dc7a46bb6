"""QDQ graphs made by a minimal min-max quantizer, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, numpy_helper
from target_graphs import batch, graph, sqnr_db

from repedge.config import Preprocess
from repedge.targets.base import Job, Target

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}

BODIES = {
    "conv": ("c = Conv<pads=[1,1,1,1]>(x, w6, b6)\ny = Relu(c)", {"c"}),
    "conv, signed result": ("y = Conv<strides=[2,2], pads=[0,1,2,0]>(x, w6)", set()),
    "depthwise": ("r = Relu(x)\ny = Conv<group=4, pads=[1,1,1,1]>(r, wdw, b4)", set()),
    "grouped": ("y = Conv<group=2, pads=[1,1,1,1]>(x, wg)", set()),
    "transposed": (
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, wt, b6)",
        set(),
    ),
    "transposed grouped": ("y = ConvTranspose<group=2, strides=[2,2]>(x, wtg)", set()),
    "dense": ("v = Flatten(x)\ny = Gemm<transB=1>(v, fw, fb)", set()),
    "matrix": ("y = MatMul(x, mm)", set()),
    "residual": ("d = Conv<group=4, pads=[1,1,1,1]>(x, wdw, b4)\na = Add(d, x)\ny = Relu(a)", {"a"}),
    "pools": (
        "m = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)\n"
        "c = Conv<pads=[1,1,1,1]>(m, w6, b6)\ng = GlobalAveragePool(c)\ny = Flatten(g)",
        set(),
    ),
    "concat": ("d = Conv<group=4, pads=[1,1,1,1]>(x, wdw, b4)\ny = Concat<axis=1>(d, x)", set()),
    "gelu": ("c = Conv<pads=[1,1,1,1]>(x, w6, b6)\ny = Gelu(c)", {"c"}),
    "float gate": (
        "g = GlobalAveragePool(x)\nh = Sigmoid(g)\nz = Mul(x, h)\ny = Conv<pads=[1,1,1,1]>(z, w6, b6)",
        {"g", "h"},
    ),
}
"""Name -> (statements, values that stay float32)."""


def quantized(
    body: str,
    floats: Collection[str] = (),
    dtype: str = "int8",
    symmetric: bool = False,
    integer_bias: bool = False,
) -> onnx.ModelProto:
    """The statements (see `target_graphs.graph`) as a QDQ graph with min-max ranges.

    Args:
        body: ONNX text from ``x`` to ``y``.
        floats: Values that stay float32.
        dtype: Of activations.
        symmetric: Zero points are 0.
        integer_bias: Biases are int32 behind a DequantizeLinear.
    """
    return quantized_proto(graph(body), batch(4), floats, dtype, symmetric, integer_bias)


def quantized_proto(
    float_proto: onnx.ModelProto,
    x: np.ndarray,
    floats: Collection[str] = (),
    dtype: str = "int8",
    symmetric: bool = False,
    integer_bias: bool = False,
) -> onnx.ModelProto:
    """The same for a graph at hand; ranges come from the batch ``x``."""
    proto = onnx.ModelProto()
    proto.CopyFrom(float_proto)
    source = proto.graph.input[0].name
    found = _values(proto, x)
    writer = _Writer(proto, found, dtype, symmetric)
    nodes = list(proto.graph.node)
    kept: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    if source not in floats:
        renamed[source] = writer.activation(source, kept)
    for node in nodes:
        if node.op_type in LAYERS:
            writer.layer(node, kept, renamed, integer_bias)
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        kept.append(node)
        for name in node.output:
            if name not in floats:
                renamed[name] = writer.activation(name, kept)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    for output in proto.graph.output:
        output.name = renamed.get(output.name, output.name)
    for tensor in list(proto.graph.initializer):
        if not any(tensor.name in n.input for n in kept):
            proto.graph.initializer.remove(tensor)
    del proto.graph.value_info[:]
    onnx.checker.check_model(proto, full_check=True)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)


class _Writer:
    def __init__(
        self, proto: onnx.ModelProto, found: Mapping[str, np.ndarray], dtype: str, symmetric: bool
    ) -> None:
        self.proto, self.found, self.dtype, self.symmetric = proto, found, dtype, symmetric
        self.scales: dict[str, float] = {}

    def add(self, name: str, array: np.ndarray) -> str:
        self.proto.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def activation(self, name: str, kept: list[onnx.NodeProto]) -> str:
        low, high = min(0.0, float(self.found[name].min())), max(0.0, float(self.found[name].max()))
        qmin, qmax = LIMITS[self.dtype]
        if self.symmetric:
            scale, zero = max(-low, high) / qmax, 0
        else:
            scale = (high - low) / (qmax - qmin)
            zero = round(qmin - low / scale)
        self.scales[f"{name}_dq"] = scale
        params = [
            self.add(f"{name}_scale", np.array(scale, np.float32)),
            self.add(f"{name}_zero", np.array(zero, self.dtype)),
        ]
        kept.append(helper.make_node("QuantizeLinear", [name, *params], [f"{name}_q"], name=f"{name}_Q"))
        kept.append(
            helper.make_node("DequantizeLinear", [f"{name}_q", *params], [f"{name}_dq"], name=f"{name}_DQ")
        )
        return f"{name}_dq"

    def layer(
        self, node: onnx.NodeProto, kept: list[onnx.NodeProto], renamed: Mapping[str, str], integer_bias: bool
    ) -> None:
        weights = {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}
        w = weights[node.input[1]]
        transposed = node.op_type == "ConvTranspose" and _attr(node, "group", 1) != 1
        axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if _attr(node, "transB", 0) else 1, "MatMul": 1}[
            node.op_type
        ]
        others = tuple(i for i in range(w.ndim) if i != axis)
        limit = np.abs(w).max() if transposed else np.abs(w).max(axis=others)
        scale = np.asarray(limit / 127, np.float32)
        along = scale if transposed else scale.reshape([-1 if i == axis else 1 for i in range(w.ndim)])
        values = np.clip(np.round(w / along), -127, 127).astype(np.int8)
        name = node.input[1]
        params = [self.add(f"{name}_q", values), self.add(f"{name}_scale", scale)]
        params.append(self.add(f"{name}_zero", np.zeros(scale.shape, np.int8)))
        attributes: dict[str, Any] = {} if transposed else {"axis": axis}
        kept.append(
            helper.make_node("DequantizeLinear", params, [f"{name}_dq"], name=f"{name}_DQ", **attributes)
        )
        node.input[1] = f"{name}_dq"
        source = renamed.get(node.input[0])
        if integer_bias and len(node.input) > 2 and source is not None and not transposed:
            name, bias_scale = node.input[2], (scale * np.float32(self.scales[source])).astype(np.float32)
            values = np.round(weights[name] / bias_scale).astype(np.int32)
            params = [self.add(f"{name}_q", values), self.add(f"{name}_scale", bias_scale)]
            kept.append(
                helper.make_node("DequantizeLinear", params, [f"{name}_dq"], name=f"{name}_DQ", axis=0)
            )
            node.input[2] = f"{name}_dq"


def _attr(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _values(proto: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every value of the float graph over the batch."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    names = [o for n in copy.graph.node for o in n.output if o not in {v.name for v in copy.graph.output}]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names)
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = [o.name for o in session.get_outputs()]
    source = session.get_inputs()[0].name
    runs = [session.run(wanted, {source: x[i : i + 1]}) for i in range(len(x))]
    return {source: x} | {n: np.stack([r[i] for r in runs]) for i, n in enumerate(wanted)}


def simulated(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """ONNX Runtime operator by operator, without its own integer kernels; image by image."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[i : i + 1]})[0] for i in range(len(x))])


def quantum(proto: onnx.ModelProto, value: str = "y") -> float:
    """The scale of a quantized value."""
    return float(
        next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == f"{value}_scale")
    )


def snapped(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """``x`` on the grid of its own integers: no float16 rounding moves it to another one."""
    scale = quantum(proto, "x")
    return (np.rint(x / scale) * scale).astype(np.float32)


def units_apart(found: np.ndarray, expected: np.ndarray, scale: float) -> np.ndarray:
    """How many integers apart two dequantized tensors are, element by element."""
    assert found.shape == expected.shape
    return np.abs(np.rint(found / scale) - np.rint(expected / scale))


@lru_cache(maxsize=2)
def demo(border: bool = False) -> tuple[ir.Model, Preprocess, np.ndarray]:
    """The bundled RepViT with its preprocessing folded in, and 16 photos, uint8 [16, H, W, 3].

    With ``border`` as schemes of exact pixels want it.
    """
    from repedge import passes
    from repedge.models.source import resolve
    from repedge.passes.preprocess import fold_preprocess
    from repedge.photos.photos import demo_photos, stacked

    source = resolve(None)
    graph = source.graph()
    passes.clean(graph)
    pixels = stacked(demo_photos(), source.preprocess, 16)
    return fold_preprocess(graph, source.preprocess, border=border), source.preprocess, pixels


def calibrated(scheme: str, float_nodes: Mapping[str, str] | None = None) -> ir.Model:
    """The QDQ graph of `demo` for a scheme, as the pipeline makes it."""
    from calib_nets import schemes

    from repedge.calib.qdq import to_qdq
    from repedge.calib.recipe import calibrate

    model, _, photos = demo(schemes()[scheme].exact_pixels)
    rounded, plan = calibrate(model, [planes(photos)], schemes()[scheme], "fast", float_nodes=float_nodes)
    return to_qdq(rounded, plan)


def planes(photos: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W]."""
    return np.ascontiguousarray(photos.transpose(0, 3, 1, 2)).astype(np.float32)


def end_to_end(target: Target, quantized: ir.Model, out: Path, count: int) -> tuple[Path, float, float]:
    """Compile and run the calibrated demo.

    Returns:
        The main file, and SQNR in dB against the float network: of the artifact, and of the QDQ graph.
    """
    model, pre, photos = demo()
    photos = photos[:count]
    job = Job("demo", "w8a8", pre)
    artifact = target.compile(quantized, job, out)
    names = [o.name for o in artifact.outputs]
    found = target.open(out / artifact.main, job, names, threads=1).run(photos)[0]
    expected, simulation = (simulated(ir.to_proto(m), planes(photos)) for m in (model, quantized))
    return out / artifact.main, sqnr_db(found, expected), sqnr_db(simulation, expected)
