"""The ``tflite`` target: a .tflite file for LiteRT and TensorFlow Lite, emitted directly.

The file is NHWC, has the signature ``serving_default`` with the ONNX graph's names, and carries
labels and preprocessing as TensorFlow Lite Metadata. Modules: tflite_ops (the table), tflite_emit
(what lowerings work with), tflite_layout (NCHW to NHWC), tflite_writer (the file), tflite_metadata,
tflite_runner.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from repedge.errors import UnsupportedModel, UserError
from repedge.graph.values import shape_of
from repedge.targets.base import Artifact, Job, Runner, Target, TensorSpec, Unsupported
from repedge.targets.tflite_layout import natural, stored

if TYPE_CHECKING:
    from repedge.targets.tflite_emit import Emitter


class TFLite(Target):
    """TensorFlow Lite flatbuffers; float32 arithmetic, weights float32 or float16."""

    name = "tflite"
    title = "TensorFlow Lite / LiteRT (.tflite): Android, Linux, iOS"
    suffix = ".tflite"
    precisions = ("fp32", "fp16")
    needs = ("ai_edge_litert", "flatbuffers")
    executor = "LiteRT with XNNPACK"

    def unsupported(self, model: ir.Model) -> Sequence[Unsupported]:
        """See `Target.unsupported`."""
        from repedge.targets.tflite_ops import unsupported

        return unsupported(model)

    def compile(self, model: ir.Model, job: Job, out: Path) -> Artifact:
        """See `Target.compile`.

        Raises:
            UnsupportedModel: Some nodes have no lowering; all are named.
            UserError: The precision is none of `precisions`, or the labels fit no output.
        """
        from repedge.targets import tflite_metadata
        from repedge.targets.tflite_emit import Emitter
        from repedge.targets.tflite_ops import OUTSIDE
        from repedge.targets.tflite_writer import Writer

        if job.precision not in self.precisions:
            raise UserError(
                f"tflite has no precision {job.precision}; choose from {', '.join(self.precisions)}"
            )
        if job.options:
            raise UserError(f"tflite has no option {', '.join(sorted(job.options))}")
        if job.input_kind == "uint8":
            from repedge.passes.preprocess import fold_preprocess

            model = fold_preprocess(model, job.preprocess)
        self._check(model)
        c = Emitter(Writer(), half=job.precision == "fp16")
        inputs = {v.name or "": _input(c, v, job) for v in model.graph.inputs}
        _lower(c, model.graph)
        outputs = _outputs(c, model.graph, set(inputs.values()))
        takes, gives = _specs(c, inputs), _specs(c, outputs)
        runtime = c.writer.min_runtime()
        metadata = {
            "min_runtime_version": runtime.encode().ljust(16, b"\0"),
            tflite_metadata.ENTRY: tflite_metadata.metadata(job, takes, gives),
        }
        path = out / f"{job.name}{self.suffix}"
        c.writer.write(path, inputs, outputs, metadata, job.description or job.name)
        if job.labels:
            tflite_metadata.append_labels(path, job.labels)
        outside = sorted({o.name for o in c.writer.operators} & set(OUTSIDE))
        if outside:
            c.notes.append(f"{', '.join(outside)} runs outside the XNNPACK delegate, which splits the graph")
        requires = {"TensorFlow Lite": f">={runtime}"}
        return Artifact(Path(path.name), takes, gives, requires, tuple(c.notes))

    def open(self, path: Path, job: Job, outputs: Sequence[str], threads: int | None = None) -> Runner:
        """See `Target.open`."""
        from repedge.targets.tflite_runner import TFLiteRunner

        return TFLiteRunner(path, outputs, job.input_kind == "float32", threads)

    def _check(self, model: ir.Model) -> None:
        missing = self.unsupported(model)
        if missing:
            lines = "; ".join(
                f"{u.op} node {u.node!r}{f' (from {u.source})' if u.source else ''}: {u.why}" for u in missing
            )
            raise UnsupportedModel(f"tflite can't take {len(missing)} of the model's operators: {lines}")


def _input(c: Emitter, value: ir.Value, job: Job) -> int:
    """The tensor that the app writes; 8-bit pixels are quantized numbers of scale 1 to the runtime."""
    from repedge.targets.tflite_writer import Tensor

    if job.input_kind == "float32":
        return c.write(value)
    shape = shape_of(value)
    pixels = Tensor(value.name or "", stored(shape, natural(len(shape))), "uint8", scale=1.0)
    tensor = c.writer.tensor(pixels)
    widened = c.scratch(f"{value.name}/float", pixels.shape)
    c.op("DEQUANTIZE", [tensor], [widened])
    c.store(value, natural(len(shape)), widened)
    return tensor


def _lower(c: Emitter, graph: ir.Graph) -> None:
    from repedge.targets.tflite_ops import LOWERINGS

    for node in graph:
        if node not in c.done:
            LOWERINGS[node.op_type].lower(c, node)


def _outputs(c: Emitter, graph: ir.Graph, taken: set[int]) -> dict[str, int]:
    """The graph's outputs in their natural layout, each a tensor of its own under its own name."""
    result: dict[str, int] = {}
    for value in graph.outputs:
        shape = shape_of(value)
        tensor = c.read(value, natural(len(shape)))
        if tensor in taken or c.writer.tensors[tensor].load is not None:
            copy = c.scratch(value.name or "", stored(shape, natural(len(shape))))
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
