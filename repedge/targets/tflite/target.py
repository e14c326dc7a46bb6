"""The ``tflite`` target: a .tflite file for LiteRT and TensorFlow Lite, emitted directly.

The file is NHWC, has the signature ``serving_default`` with the ONNX graph's names, and carries
labels and preprocessing as TensorFlow Lite Metadata. ``ops`` is the table, ``emit`` what lowerings work
with, ``layout`` turns NCHW to NHWC, ``integers`` makes a QDQ graph into integer operators (``rules``: what
has integer kernels, ``limits``: what XNNPACK leaves), ``writer`` writes the file.

The integer precisions take a QDQ graph (``repedge.calib``). For uint8 input the preprocessing must have
been folded into it before it was calibrated, which its input name ``image`` says: then the pixels are
its first integers, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from repedge.errors import UnsupportedModel
from repedge.graph.values import shape_of
from repedge.precision import Precision
from repedge.scheme import W8A32, QuantScheme
from repedge.targets.base import (
    Artifact,
    Engine,
    Job,
    Option,
    Runner,
    Target,
    TensorSpec,
    Unsupported,
    in_words,
    tensor_spec,
)
from repedge.targets.options import boolean
from repedge.targets.tflite.layout import natural, stored
from repedge.targets.tflite.scheme import TFLITE_W8A8, TFLITE_W8A16
from repedge.templates import Templates

if TYPE_CHECKING:
    from repedge.targets.tflite.emit import Emitter
    from repedge.targets.tflite.integers.graph import IntegerGraph

_LAYERS = ("Conv", "Gemm", "MatMul")


SHIP = Path(__file__).parent / "ship"
"""Templates of app packages."""


class TFLite(Target):
    """TensorFlow Lite flatbuffers: float32, float16 weights, or 8-bit weights and 8- or 16-bit integers.

    Options (of precision w8a32): ``dynamic`` true lets XNNPACK round the input of each dense layer to
    8 bits at run time, image by image: faster, but activations are then not float32 any more.
    """

    name = "tflite"
    title = "TensorFlow Lite / LiteRT (.tflite): Android, Linux, iOS"
    aliases: ClassVar[tuple[str, ...]] = ("android", "litert", "tensorflowlite", "lite")
    suffix = ".tflite"
    precisions = ("fp32", "fp16", "w8a32", "w8a16", "w8a8")
    schemes: ClassVar[Mapping[Precision, QuantScheme]] = {
        "w8a8": TFLITE_W8A8,
        "w8a16": TFLITE_W8A16,
        "w8a32": W8A32,
    }
    tensors = frozenset({"float32"})
    options: ClassVar[Mapping[str, Option]] = {
        "dynamic": Option(
            "true: round the input of dense layers to 8 bits at run time", boolean, precisions=("w8a32",)
        ),
    }
    needs = ("ai_edge_litert", "flatbuffers")
    packages = ("ai-edge-litert",)
    executor = "LiteRT with XNNPACK"
    engine: ClassVar[Engine | None] = Engine(
        runtime="tflite",
        agent="repedge.targets.tflite.agent:TFLite",
        needs=("ai_edge_litert", "tflite_runtime"),
        package="ai-edge-litert",
        modules=("repedge.targets.tflite.agent_ops",),
        units=("xnnpack",),
        outside=frozenset({"CPU"}),
    )
    ship: ClassVar[Mapping[str, Templates]] = {
        "android": Templates(
            SHIP / "android", {"Model.kt": "{lower}/src/main/kotlin/repedge/{lower}/{name}.kt"}, SHIP
        ),
        "cpp": Templates(
            SHIP / "cpp", {"runtime.cpp": "src/runtime.cpp", "litert_c.h": "src/litert_c.h"}, SHIP
        ),
        "python": Templates(SHIP / "python", {"runtime.py": "{name}/runtime.py"}, SHIP),
    }

    def unsupported(self, model: ir.Model) -> Sequence[Unsupported]:
        """See `Target.unsupported`."""
        from repedge.targets.tflite.ops import unsupported

        return unsupported(model)

    def compile(self, model: ir.Model, job: Job, out: Path) -> Artifact:
        """See `Target.compile`.

        Raises:
            UnsupportedModel: Some nodes have no lowering; all are named.
            UserError: The precision is none of `precisions`, an integer precision is asked of a graph
                that is not quantized (or for other integers), or the labels fit no output.
        """
        from repedge.targets.tflite import metadata as about
        from repedge.targets.tflite.emit import Emitter
        from repedge.targets.tflite.integers.limits import outside_notes
        from repedge.targets.tflite.writer import Writer

        self.check(job)
        graph = _prepared(model, job)
        self._check(graph)
        # At w8a8, a classifier that reads floats but has 8-bit weights was meant to round them itself.
        dynamic = (
            _LAYERS if job.options.get("dynamic", False) else ("Gemm",) if job.precision == "w8a8" else ()
        )
        c = Emitter(Writer(), job.precision == "fp16", graph.quants, dynamic=dynamic)
        image, *tensors = graph.model.graph.inputs
        inputs = {image.name or "": _input(c, image, job)}
        inputs |= {v.name or "": c.write(v, tuple(range(len(shape_of(v))))) for v in tensors}
        _lower(c, graph.model.graph)
        outputs = _outputs(c, graph.model.graph, set(inputs.values()))
        takes, gives = _specs(c, inputs), _specs(c, outputs)
        takes = (takes[0], *map(tensor_spec, tensors))
        runtime = c.writer.min_runtime()
        metadata = {
            "min_runtime_version": runtime.encode().ljust(16, b"\0"),
            about.ENTRY: about.metadata(job, takes, gives),
        }
        path = out / f"{job.name}{self.suffix}"
        c.writer.write(path, inputs, outputs, metadata, job.description or job.name)
        if job.labels:
            about.append_labels(path, job.labels)
        c.notes += outside_notes(c.writer)
        requires = {"TensorFlow Lite": f">={runtime}"}
        return Artifact(Path(path.name), takes, gives, requires, tuple(c.notes))

    def open(self, path: Path, job: Job, outputs: Sequence[str], threads: int | None = None) -> Runner:
        """See `Target.open`."""
        from repedge.targets.tflite.runner import TFLiteRunner

        return TFLiteRunner(path, outputs, job.input_kind == "float32", threads)

    def _check(self, graph: IntegerGraph) -> None:
        from repedge.targets.tflite.ops import unsupported_nodes

        missing = unsupported_nodes(graph)
        if missing:
            lines = in_words(missing)
            raise UnsupportedModel(f"tflite can't take {len(missing)} of the model's operators: {lines}")


def _prepared(model: ir.Model, job: Job) -> IntegerGraph:
    """The graph that is lowered: normalisation folded in, integers found."""
    from repedge.passes.preprocess import IMAGE, fold_preprocess
    from repedge.passes.rank import fit_rank
    from repedge.targets.tflite.integers.graph import IntegerGraph, integer_graph, is_quantized
    from repedge.targets.tflite.integers.weights import check_integers, round_weights
    from repedge.targets.tflite.ops import MAX_RANK

    quantized = is_quantized(model)
    folded = quantized and model.graph.inputs[0].name == IMAGE
    if job.input_kind == "uint8" and not folded:
        model = fold_preprocess(model, job.preprocess)
    model = fit_rank(model, MAX_RANK)
    if quantized:
        graph = integer_graph(model)
    else:
        graph = round_weights(model) if job.precision == "w8a32" else IntegerGraph(model)
    check_integers(graph, job.precision, pixels=job.input_kind == "uint8" and folded)
    return graph


def _input(c: Emitter, value: ir.Value, job: Job) -> int:
    """The tensor that the app writes; 8-bit pixels are quantized numbers of scale 1 to the runtime.

    They are widened even where the next operator is QUANTIZE: XNNPACK takes both of these but not a
    QUANTIZE from uint8 to int8, and is faster (0.54 to 0.65 ms with a stem behind it, 224 x 224).
    """
    from repedge.targets.tflite.model import PIXELS

    if job.input_kind == "float32":
        return c.write(value)
    shape = shape_of(value)
    layout = natural(len(shape))
    tensor = c.scratch(value.name or "", stored(shape, layout), PIXELS)
    widened = c.scratch(f"{value.name}/float", stored(shape, layout))
    c.op("DEQUANTIZE", [tensor], [widened])
    c.store(value, layout, widened)
    return tensor


def _lower(c: Emitter, graph: ir.Graph) -> None:
    from repedge.targets.tflite.ops import LOWERINGS

    for node in graph:
        if node not in c.done:
            LOWERINGS[node.op_type].emit(c, node)


def _outputs(c: Emitter, graph: ir.Graph, taken: set[int]) -> dict[str, int]:
    """The graph's outputs in their natural layout, each a tensor of its own under its own name."""
    result: dict[str, int] = {}
    for value in graph.outputs:
        shape = shape_of(value)
        tensor = c.read(value, natural(len(shape)))
        if c.writer.tensors[tensor].dtype == "bool":  # an app reads numbers
            tensor = c.step("CAST", [tensor], value.name or "", dtype="int32")
        if tensor in taken or c.writer.tensors[tensor].load is not None:
            copy = c.like(value.name or "", stored(shape, natural(len(shape))), tensor)
            c.reshape(tensor, copy)
            tensor = copy
        c.writer.tensors[tensor].name = value.name or ""
        taken.add(tensor)
        result[value.name or ""] = tensor
    return result


def _specs(c: Emitter, tensors: dict[str, int]) -> tuple[TensorSpec, ...]:
    layouts = {2: "NC", 4: "NHWC"}
    found = [(name, c.writer.tensors[index]) for name, index in tensors.items()]
    return tuple(TensorSpec(n, t.dtype, t.shape, layouts.get(len(t.shape), "")) for n, t in found)
