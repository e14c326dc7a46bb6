"""Small graphs in ONNX text, and what Core ML makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from repedge.config import Preprocess
from repedge.targets.base import Job

X = "float[1,4,6,8] x"


def graph(
    body: str, given: str = X, constants: str = "", weights: Mapping[str, Any] | None = None
) -> onnx.ModelProto:
    """An ONNX model with output y; ``weights`` maps initializer names to shapes or arrays."""
    text = f'<ir_version: 9, opset_import: ["": 20]> g ({given}) => (y) <{constants}> {{ {body} }}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, value in (weights or {}).items():
        array = value if isinstance(value, np.ndarray) else rng.normal(0, 0.5, value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"node{i}"
    return onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True)


def job(precision: str = "fp32", **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "name": "net",
        "precision": precision,
        "preprocess": Preprocess(),
        "input_kind": "float32",
    }
    return Job(**{**fields, **changes})


def reference(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {session.get_inputs()[0].name: x})


def sample(model: onnx.ModelProto) -> np.ndarray:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(1).normal(0, 2, shape).astype(np.float32)


def mil_ops(package: Path) -> list[str]:
    """Types of a saved program's ops without constants, casts and identities."""
    from coremltools.models.utils import load_spec

    main = load_spec(str(package)).mlProgram.functions["main"]
    (block,) = main.block_specializations.values()
    return [op.type for op in block.operations if op.type not in ("const", "cast", "identity")]
