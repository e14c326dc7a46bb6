"""Small clean graphs in ONNX text, and what TensorFlow Lite makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from operators import weights

from repedge.config import Preprocess
from repedge.targets.base import Artifact, Job
from repedge.targets.tflite.target import TFLite

if TYPE_CHECKING:
    import torch

TOLERANCE = 5e-6
"""Relative to the largest output: float32 sums of up to a thousand terms in another order."""

W3 = weights(12, 6, 3, 3)
"""Of a 3x3 convolution from 6 planes to 12."""

HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'


def clean(text: str, **arrays: npt.ArrayLike) -> ir.Model:
    """A graph ``x, ... => y, ...`` with ``arrays`` as initializers and all shapes inferred."""
    proto = onnx.parser.parse_model(HEADER + text)
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for i, node in enumerate(proto.graph.node):
        node.name = node.name or f"n{i}"
    onnx.checker.check_model(proto)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def window(op: str, size: str, out: str, operands: str = "x") -> str:
    """ONNX text of one operator from ``x`` to ``y``."""
    return f"g (float[{size}] x) => (float[{out}] y) {{ y = {op} ({operands}) }}"


def fused_network(name: str, size: tuple[int, int]) -> tuple[torch.nn.Module, ir.Model]:
    """A named network with fresh weights as a torch module, and its fused clean graph."""
    import torch

    from repedge.graph.export import export_module
    from repedge.models.registry import create
    from repedge.passes import canonicalize, simplify
    from repedge.passes.fusion.fuse import fuse

    torch.manual_seed(0)
    net = create(name).eval()
    model = export_module(net, (1, 3, *size))
    canonicalize(model)
    fuse(model)
    simplify(model)
    return net, model


def job(**changes: Any) -> Job:
    """A float32 job unless told otherwise."""
    settings: dict[str, Any] = {
        "name": "net",
        "precision": "fp32",
        "input_kind": "float32",
        "preprocess": Preprocess(),
    }
    return Job(**(settings | changes))


def build(model: ir.Model, out: Path, **changes: Any) -> tuple[Path, Artifact]:
    """Compile into an empty folder; the path of the file and what was said about it."""
    out.mkdir(exist_ok=True)
    artifact = TFLite().compile(model, job(**changes), out)
    return out / artifact.main, artifact


def run(model: ir.Model, path: Path, x: np.ndarray, **changes: Any) -> list[np.ndarray]:
    """The outputs of a written file."""
    names = [str(value.name) for value in model.graph.outputs]
    return TFLite().open(path, job(**changes), names, threads=1).run(x)


def op_names(path: Path) -> list[str]:
    """The operators of a file in order, read by the official schema."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    graph = model.Subgraphs(0)
    operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    return [names[model.OperatorCodes(op.OpcodeIndex()).BuiltinCode()] for op in operators]
