"""Graphs from ONNX text, run before and after the passes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from repedge import passes
from repedge.graph.values import shape_of

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'


def parse(text: str, weights: dict[str, np.ndarray] | None = None, opset: int = 20) -> ir.Model:
    """A model from ONNX text; ``weights`` become initializers (they need no declaration in the text)."""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(HEAD.replace("20", str(opset)) + text))
    graph = model.graph
    for name, array in (weights or {}).items():
        value = next((v for node in graph for v in node.inputs if v is not None and v.name == name), None)
        declared = next((v for v in graph.inputs if v.name == name), None)
        if declared is not None:
            graph.inputs.remove(declared)
            value = declared
        assert value is not None, f"nothing reads {name}"
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)
        graph.register_initializer(value)
    return model


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of ONNX Runtime without its own optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = ir.serde.serialize_model(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def feeds_of(model: ir.Model, seed: int = 0, scale: float = 3.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        str(v.name): (scale * rng.standard_normal(shape_of(v))).astype(np.float32) for v in model.graph.inputs
    }


def simplified(text: str, weights: dict[str, np.ndarray] | None = None, atol: float = 2e-6) -> ir.Model:
    """The clean graph of the text, after holding its outputs against the original's."""
    model = parse(text, weights)
    feeds = feeds_of(parse(text, weights))
    before = run(model, feeds)
    passes.simplify(model)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    for a, b in zip(before, run(model, feeds), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-6, atol=atol)
    return model


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


IO = "g (float[1,3,4,6] x) => (float[1,3,4,6] y)"


def floats(**constants: float) -> str:
    return "<" + ", ".join(f"float {k} = {{{v!r}}}" for k, v in constants.items()) + ">"


def conv_weight(k: int = 3) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((3, 3, k, k)).astype(np.float32)
