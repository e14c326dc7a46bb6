"""What a row of the table of operators is, and the graph that it stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

Constant = tuple[int, ...] | Sequence[int] | Sequence[float] | float | np.ndarray
"""A shape, for random float32 numbers of unit scale; a list of whole numbers, for int64; else float32."""


TOLERANCE = 2e-6
"""Relative to the largest output: float32 in another order."""

NO_ROW = {
    "coreml": "no lowering for it yet",
    "tflite": "no lowering for this operator",
    "openvino": "no lowering for this operator",
    "gpu": "not among the supported operators",
}
"""What each target says of an operator that its table lacks."""


def lacking(*targets: str) -> dict[str, str]:
    """Refusals of targets whose tables lack the operator."""
    return {name: NO_ROW[name] for name in targets}


@dataclass(frozen=True)
class Case:
    """One use of an operator.

    Attributes:
        body: Statements in ONNX text from ``x`` to ``outputs``.
        x: Shape of the input.
        outputs: Their names, as ONNX text has them.
        refused: Target -> words of the sentence with which it refuses this.
        loose: Target -> (tolerance, why it has another than the rest).
        jumps: Whether the outputs jump where the input hardly changes, as those of a comparison do.
        constants: Name -> what `model` makes an initializer of.
    """

    body: str
    x: tuple[int, ...] = (1, 6, 5, 7)
    outputs: str = "y"
    refused: Mapping[str, str] = field(default_factory=dict)
    loose: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    jumps: bool = False
    constants: Mapping[str, Constant] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """The constants; two of one shape differ."""
        seen: Counter[tuple[int, ...]] = Counter()
        made = {}
        for name, value in self.constants.items():
            if isinstance(value, tuple):
                made[name] = weights(*value, seed=seen[value])
                seen[value] += 1
            elif isinstance(value, list) and all(isinstance(v, int) for v in value):
                made[name] = np.array(value, np.int64)
            elif isinstance(value, np.ndarray) and value.dtype.kind in "bi":
                made[name] = value
            else:
                made[name] = np.asarray(value, np.float32)
        return made

    def model(self) -> ir.Model:
        """The clean graph, all shapes inferred."""
        shape = ",".join(map(str, self.x))
        text = f"(float[{shape}] x) => ({self.outputs}) {{ {self.body} }}"
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text}')
        for name, array in self.arrays().items():
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
        for i, node in enumerate(proto.graph.node):
            node.name = f"n{i}"
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        onnx.checker.check_model(proto)
        return ir.from_proto(proto)

    def input(self, count: int = 3) -> np.ndarray:
        """A random batch, far enough from 0 to reach the limits of activations."""
        return 2 * weights(count, *self.x[1:], seed=9)


def case(
    body: str,
    x: tuple[int, ...] = Case.x,
    *,
    outputs: str = "y",
    refused: Mapping[str, str] | None = None,
    loose: Mapping[str, tuple[float, str]] | None = None,
    jumps: bool = False,
    **constants: Constant,
) -> Case:
    """A row; what is given by name beside the rest are its constants."""
    return Case(body, x, outputs, refused or {}, loose or {}, jumps, constants)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    """Random float32 numbers of unit scale."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def reference(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    """The outputs in ONNX Runtime in float32, image by image."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    runs = [session.run(None, {name: x[i : i + 1]}) for i in range(len(x))]
    return [np.concatenate([np.atleast_1d(run[k]) for run in runs]) for k in range(len(runs[0]))]


def relative_error(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Largest difference over the largest magnitude, the worst of all outputs; shapes must agree."""
    assert [f.shape for f in found] == [w.shape for w in wanted]
    pairs = [(f.astype(np.float64), w.astype(np.float64)) for f, w in zip(found, wanted, strict=True)]
    return max(float(np.abs(f - w).max() / np.abs(w).max()) for f, w in pairs)


def in_half(row: Case, found: Sequence[np.ndarray], wanted: Sequence[np.ndarray], tolerance: float) -> bool:
    """Whether float16 gives the outputs of float32 nearly: all, or where they jump, nearly all of them."""
    if not row.jumps:
        return relative_error(found, wanted) < tolerance
    off = [
        np.abs(f.astype(np.float64) - w) > tolerance * np.abs(w).max()
        for f, w in zip(found, wanted, strict=True)
    ]
    return max(float(o.mean()) for o in off) < 0.02


def same_kinds(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> bool:
    """Whether floats are float32, and whole numbers and truths are whole numbers of any width."""
    pairs = zip(found, wanted, strict=True)
    return all(f.dtype == w.dtype if w.dtype == np.float32 else f.dtype.kind in "biu" for f, w in pairs)


def operators_of(cases: Mapping[str, Case], target: str) -> set[str]:
    """ONNX names of all operators in the rows that a target runs."""
    models = (case.model() for case in cases.values() if target not in case.refused)
    return {node.op_type for model in models for node in model.graph}
