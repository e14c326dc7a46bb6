"""A network's decoding, cut out and run alone: what stands behind the last layers with weights.

What a head does with the maps of its last layers says what its outputs mean, in whatever operators it is
written: with all maps 0 a sigmoid gives 0.5 and decoded boxes stand at their cells; a map that is changed
shows which numbers are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from repedge.operators import LAYERS

if TYPE_CHECKING:
    import onnx_ir as ir

MOST = 4000
"""Operators of a decoding, at most."""

MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Identity"})

CHOOSING = frozenset({"TopK", "NonMaxSuppression"})
"""Operators of decodings that choose among candidates."""


@dataclass(frozen=True)
class Tail:
    """A decoding that can be run.

    Attributes:
        shapes: Of the maps that it reads, batch axis included.
        operators: Names of its operators.
    """

    shapes: tuple[tuple[int, ...], ...]
    operators: frozenset[str]
    _names: tuple[str, ...]
    _session: Any

    def run(self, maps: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Every output of the network for maps of `shapes`; without the batch axis."""
        found = self._session.run(None, dict(zip(self._names, maps, strict=True)))
        return [y[0] for y in found]

    def flat(self, value: float) -> list[np.ndarray]:
        """Maps that are the same everywhere."""
        return [np.full(shape, value, np.float32) for shape in self.shapes]

    def random(self, seed: int = 0) -> list[np.ndarray]:
        """Maps of small random numbers."""
        rng = np.random.default_rng(seed)
        return [rng.normal(0, 0.5, shape).astype(np.float32) for shape in self.shapes]

    def influence(self) -> list[list[np.ndarray]]:
        """Which numbers of each output each map changes: [map][output], bool."""
        base, other = self.random(0), self.random(1)
        usual = self.run(base)
        found = []
        for i in range(len(base)):
            changed = self.run([*base[:i], other[i], *base[i + 1 :]])
            found.append([a != b for a, b in zip(usual, changed, strict=True)])
        return found


def tail_of(graph: ir.Model) -> Tail | None:
    """The decoding of a float graph with static shapes; None where it has none that runs alone."""
    nodes, sources = _cut(graph)
    if not sources or len(nodes) > MOST or any(v.shape is None or not v.shape.is_static() for v in sources):
        return None
    shapes = [tuple(_static(v)) for v in sources]
    if any(not s or s[0] != 1 for s in shapes):
        return None
    try:
        session = _session(graph, nodes, sources)
    except Exception:  # an operator that the runtime does not have, or a type that is no float
        return None
    operators = frozenset(n.op_type for n in nodes)
    return Tail(tuple(shapes), operators, tuple(str(v.name) for v in sources), session)


def _cut(graph: ir.Model) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes of the decoding in the graph's order, and the values that it reads."""
    found: set[ir.Node] = set()
    sources: dict[ir.Value, None] = {}
    pending = list(graph.graph.outputs)
    while pending:
        value = pending.pop()
        node = value.producer()
        if node in found:
            continue
        if node is None or _weighs(node):
            if not value.is_initializer():
                sources[value] = None
            continue
        found.add(node)
        pending += [v for v in node.inputs if v is not None]
    position = {node: i for i, node in enumerate(graph.graph)}

    def place(value: ir.Value) -> int:
        node = value.producer()
        return -1 if node is None else position[node]

    return [n for n in graph.graph if n in found], sorted(sources, key=place)


def _weighs(node: ir.Node) -> bool:
    """Whether a node is a layer of the network; the one that takes the mean of distance bins is none."""
    if node.op_type not in LAYERS:
        return False
    value = node.inputs[0]
    for _ in range(8):
        before = None if value is None else value.producer()
        if before is None:
            return True
        if before.op_type == "Softmax":
            return False
        if before.op_type not in MOVING:
            return True
        value = before.inputs[0]
    return True


def _static(value: ir.Value) -> list[int]:
    return [int(d) for d in value.shape or ()]  # type: ignore[arg-type]


def _session(graph: ir.Model, nodes: Sequence[ir.Node], sources: Sequence[ir.Value]) -> Any:
    import onnx
    import onnx_ir as ir
    import onnxruntime as ort
    from onnx import TensorProto, helper

    constants = {
        v: v.const_value
        for n in nodes
        for v in n.inputs
        if v is not None and v.is_initializer() and v.const_value is not None
    }
    made = helper.make_graph(
        [ir.serde.serialize_node(n) for n in nodes],
        "decoding",
        [helper.make_tensor_value_info(str(v.name), TensorProto.FLOAT, _static(v)) for v in sources],
        [onnx.ValueInfoProto(name=str(v.name)) for v in graph.graph.outputs],
    )
    for value, tensor in constants.items():
        kept = helper.make_tensor(
            str(value.name), int(tensor.dtype), _static(value), tensor.tobytes(), raw=True
        )
        made.initializer.append(kept)
    opsets = [helper.make_opsetid(domain, version) for domain, version in graph.opset_imports.items()]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
