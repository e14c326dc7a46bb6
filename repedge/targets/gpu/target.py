"""ONNX for GPU servers: dynamic batch, one float type throughout, inside a Triton model repository.

The file is strictly typed, as TensorRT 10 (``--stronglyTyped``) and 11 want it: in ``fp16`` every weight
and activation is float16, with a Cast after the input and one before each output, and outputs are
float32. ``w8a8`` is float32 around explicit QuantizeLinear and DequantizeLinear nodes: with float16 scales
ONNX Runtime would multiply those of input and weight in float16, in which most of the products are denormal
or 0. It has two forms (`repedge.targets.gpu.scheme`): ``tensorrt``, int8 around 0, which ONNX Runtime runs
as rightly but with layers in float where a Relu follows, and ``ort``, what ONNX Runtime on a CPU runs in
integers throughout. Operator limits: TensorRT's ONNX parser, ``docs/operators.md`` of onnx/onnx-tensorrt
(10.x); quantization: TensorRT's "Explicit Quantization".
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from repedge.errors import UnsupportedModel, UserError
from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.operators import ACTIVATIONS
from repedge.precision import Precision
from repedge.scheme import QuantScheme
from repedge.targets import qdq, resampling
from repedge.targets.base import (
    NONE,
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
from repedge.targets.gpu import pixels, triton
from repedge.targets.gpu.file import external_files, save
from repedge.targets.gpu.float_layers import keep_float
from repedge.targets.gpu.runner import ONNXRuntimeRunner
from repedge.targets.gpu.scheme import ONNXRUNTIME_W8A8, TENSORRT_W8A8
from repedge.targets.gpu.spelled import scale_resizes, spell_out
from repedge.targets.gpu.types import enter, to_float16
from repedge.targets.options import choice, whole
from repedge.templates import Templates
from repedge.version import __version__

Refusal = Callable[[ir.Node], str | None]


def anything(node: ir.Node) -> str | None:
    """Refuses nothing."""
    return None


def constant(*indices: int) -> Refusal:
    """Refuses a node unless these inputs, where given, are constants."""

    def refuse(node: ir.Node) -> str | None:
        for i in indices:
            value = node.inputs[i] if i < len(node.inputs) else None
            if value is not None and const(value) is None and qdq.weight(value) is None:
                return f"its input {i} ({value.name!r}) is not a constant"
        return None

    return refuse


def pooling(node: ir.Node) -> str | None:
    """Refuses a window with holes, and indices."""
    if any(d != 1 for d in attr(node, "dilations", ())):
        return "TensorRT has no dilated pooling"
    return "TensorRT has no pooling with indices" if len(node.outputs) > 1 else None


def symmetric(refuse: Refusal) -> Refusal:
    """Refuses, beside what ``refuse`` does, activations that are not int8 around 0."""

    def check(node: ir.Node) -> str | None:
        why = refuse(node)
        if why is not None or const(node.inputs[0]) is not None:
            return why
        p = qdq.params(node)
        if (p.dtype, p.zero_point) != ("int8", 0):
            return f"TensorRT has int8 with zero point 0 only, and this is {p.dtype} with {p.zero_point}"
        return None

    return check


def inference_only(node: ir.Node) -> str | None:
    """Refuses training mode."""
    return "it is in training mode" if attr(node, "training_mode", 0) else None


def normalization(node: ir.Node) -> str | None:
    """Refuses a mean or deviation that is read."""
    read = any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    return "TensorRT does not give its mean and deviation" if read else constant(1, 2)(node)


def first_of_equal(node: ir.Node) -> str | None:
    """Refuses the last place of equal numbers."""
    return "TensorRT gives the first of equal numbers' places" if attr(node, "select_last_index", 0) else None


MOST = 3840
"""Numbers that TensorRT's TopK gives at most."""


def topk(node: ir.Node) -> str | None:
    """Refuses a computed number of results, and more than TensorRT gives."""
    count = const(node.inputs[1])
    if count is not None and count.reshape(-1)[0] > MOST:
        return f"TensorRT's TopK gives {MOST} numbers at most"
    return constant(1)(node)


REDUCTIONS = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")

TABLE: dict[str, Refusal] = {
    # convolutions and products
    "Conv": constant(1, 2),
    "ConvTranspose": constant(1, 2),
    "Gemm": anything,
    "MatMul": anything,
    "BatchNormalization": inference_only,
    # activations
    **dict.fromkeys(ACTIVATIONS, anything),
    "Clip": constant(1, 2),
    "PRelu": anything,
    "HardSigmoid": anything,
    "Softplus": anything,
    "ThresholdedRelu": anything,
    "LogSoftmax": anything,
    "LRN": anything,
    "Softmax": anything,
    # arithmetic
    "Add": anything,
    "Sub": anything,
    "Mul": anything,
    "Div": anything,
    "Pow": anything,
    "Max": anything,
    "Min": anything,
    "Exp": anything,
    "Sqrt": anything,
    **dict.fromkeys(("Reciprocal", "Log", "Sin", "Cos", "Abs", "Neg", "Sign", "Erf"), anything),
    **dict.fromkeys(("Floor", "Ceil", "Round", "Mod"), anything),
    # comparisons, logic, types
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), anything),
    **dict.fromkeys(("And", "Or", "Xor", "Not", "Where", "Cast"), anything),
    # normalization
    "LayerNormalization": normalization,
    "InstanceNormalization": constant(1, 2),
    # pooling and reductions
    "MaxPool": pooling,
    "AveragePool": pooling,
    "GlobalAveragePool": anything,
    "GlobalMaxPool": anything,
    **dict.fromkeys((*(f"Reduce{kind}" for kind in REDUCTIONS),), constant(1)),
    "ArgMax": first_of_equal,
    "ArgMin": first_of_equal,
    "TopK": topk,
    "CumSum": constant(1),
    # layout and shape
    "Concat": anything,
    "Split": constant(1),
    "Slice": constant(1, 2, 3, 4),
    "Reshape": constant(1),
    "Flatten": anything,
    "Transpose": anything,
    "Identity": anything,
    "Pad": constant(1, 2, 3),
    "Resize": resampling.refuse,
    "DepthToSpace": anything,
    "SpaceToDepth": anything,
    **dict.fromkeys(("Gather", "GatherElements", "GatherND"), anything),
    "Expand": constant(1),
    "Tile": constant(1),
    # quantization
    "QuantizeLinear": symmetric(qdq.refuse_quantize),
    "DequantizeLinear": symmetric(qdq.refuse_dequantize),
}
"""ONNX operators that go through as they are, each with what TensorRT refuses of it."""


ORT_TABLE = TABLE | {"QuantizeLinear": qdq.refuse_quantize, "DequantizeLinear": qdq.refuse_dequantize}
"""The same for a file that TensorRT does not read: integers of any zero point."""

FORMS = ("tensorrt", "ort")

FOR_TENSORRT = (
    "quantized for TensorRT; ONNX Runtime on a CPU runs most of its layers in float: "
    "-O gpu.form=ort makes the file for that"
)
FOR_ORT = (
    "quantized for ONNX Runtime on a CPU; TensorRT reads no uint8: "
    "-O gpu.form=tensorrt makes the file for that"
)


SHIP = Path(__file__).parent / "ship"
"""Templates of app packages."""


class GPU(Target):
    """Strictly typed ONNX with dynamic batch, in a Triton model repository."""

    name: ClassVar[str] = "gpu"
    title: ClassVar[str] = "ONNX for TensorRT, ONNX Runtime and Triton on GPU servers"
    aliases: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "ort", "tensorrt", "trt", "triton", "nvidia")
    suffix: ClassVar[str] = ".onnx"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp16", "fp32", "w8a8")
    schemes: ClassVar[Mapping[Precision, QuantScheme]] = {"w8a8": TENSORRT_W8A8}
    options: ClassVar[Mapping[str, Option]] = {
        "max_batch_size": Option("the largest batch that Triton forms (default 32)", whole(1)),
        "batch": Option(
            "images at once, fixed in the file (default: any number, or 1 where that can't be)", whole(1)
        ),
        "form": Option(
            "tensorrt (default), or ort: integers as ONNX Runtime runs them on a CPU",
            choice(*FORMS),
            ("w8a8",),
        ),
    }
    tensors: ClassVar[frozenset[str]] = frozenset({"float32", "int32", "int64"})
    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    executor: ClassVar[str] = "ONNX Runtime"
    engine: ClassVar[Engine | None] = Engine(
        runtime="onnxruntime",
        agent="repedge.targets.gpu.agent:ONNXRuntime",
        needs=("onnxruntime",),
        package="onnxruntime",
    )
    ship: ClassVar[Mapping[str, Templates]] = {
        "python": Templates(SHIP / "python", {"runtime.py": "{name}/runtime.py"}, SHIP),
    }

    def scheme(self, precision: Precision, options: Mapping[str, Any] = NONE) -> QuantScheme | None:
        """See `Target.scheme`; the option ``form`` chooses."""
        if precision == "w8a8" and options.get("form") == "ort":
            return ONNXRUNTIME_W8A8
        return super().scheme(precision, options)

    def unsupported(self, model: ir.Model) -> Sequence[Unsupported]:
        """Every node that isn't in ``TABLE``, or that its entry refuses."""
        return _unsupported(qdq.prepare(model), TABLE)

    def compile(self, model: ir.Model, job: Job, out: Path) -> Artifact:
        """Write ``model_repository/NAME/`` with ``1/model.onnx`` as the artifact's main file.

        For ``w8a8`` the graph is a QDQ graph; what has no QuantizeLinear around it runs in float32.

        ``job.options``: ``max_batch_size``, the largest batch that Triton forms (default 32); ``batch``, a
        fixed one in its place, which is 1 where the network can't be made for any; ``form``.

        Raises:
            UnsupportedModel: The graph has nodes that can't go through; all are named.
            UserError: A weight doesn't fit into float16, or all of them into one file; ``w8a8`` of a
                graph that nobody quantized.
            CheckFailed: onnx.checker refuses the file.
        """
        self.check(job)
        qdq.check_precision(model, job.precision)
        if job.input_kind == "uint8":
            from repedge.passes.preprocess import fold_preprocess

            model = fold_preprocess(model, job.preprocess)
        ort = job.options.get("form") == "ort"
        self._refuse(qdq.prepare(model), ORT_TABLE if ort else TABLE)
        model = qdq.prepare(model, integer_constants=ort)
        taken = pixels.take(model) if ort and job.input_kind == "uint8" else None
        clean = model if taken is None else taken[0]
        batched, count, why = _batched(spell_out(clean), job.options.get("batch"))
        inputs = (_input_spec(model, job, count), *map(tensor_spec, model.graph.inputs[1:]))
        outputs = tuple(_output_spec(value, count) for value in model.graph.outputs)
        served = triton.Served(
            triton.model_name(job.name),
            inputs,
            outputs,
            job.labels,
            job.options.get("max_batch_size", 32),
            job.precision,
            tensorrt=not ort,
        )
        model = batched
        scale_resizes(model.graph)
        keep_float(model.graph)
        half = job.precision == "fp16"
        notes = why + (to_float16(model.graph) if half else ())
        if job.precision == "w8a8":
            notes += (FOR_ORT if ort else FOR_TENSORRT,)
        if taken is not None:
            pixels.enter(model.graph, taken[1])
        else:
            enter(model.graph, pixels=job.input_kind == "uint8", half=half)
        _describe(model, job, served.name)
        main = triton.write_repository(out, served)
        save(model, out / main)
        requires = {"ONNX Runtime": ">=1.18", "Triton": ">=24.01"}
        if not ort:
            requires = {"TensorRT": ">=10.0", **requires}
        return Artifact(main, inputs, outputs, requires, notes)

    def _refuse(self, model: ir.Model, table: Mapping[str, Refusal]) -> None:
        refused = _unsupported(model, table)
        if refused:
            raise UnsupportedModel(f"{self.name} can't take this model: {in_words(refused)}")

    def open(self, path: Path, job: Job, outputs: Sequence[str], threads: int | None = None) -> Runner:
        """Open the file in ONNX Runtime, on a GPU where there is one; see `ONNXRuntimeRunner`."""
        return ONNXRuntimeRunner(path, outputs, threads)

    def companions(self, main: Path) -> Sequence[str]:
        """The files with weights that did not fit into the .onnx."""
        return external_files(main)

    def note(self) -> str:
        """See `Target.note`."""
        if importlib.util.find_spec("tensorrt") is not None:
            return ""
        return "run in ONNX Runtime here; TensorRT engines are built on the GPU machine"


def _unsupported(model: ir.Model, table: Mapping[str, Refusal]) -> list[Unsupported]:
    return [
        Unsupported(node.op_type, node.name or "", why, node.metadata_props.get("source", ""))
        for node in model.graph
        if (why := _refusal(node, table))
    ]


def _refusal(node: ir.Node, table: Mapping[str, Refusal]) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return f"the operator domain {node.domain!r} is not supported"
    refuse = table.get(node.op_type)
    return "not among the supported operators" if refuse is None else refuse(node)


def _batched(model: ir.Model, wanted: int | None) -> tuple[ir.Model, int, tuple[str, ...]]:
    """The graph for ``wanted`` images or any number, how many (-1: any), and a note where it had to be 1."""
    from repedge.passes.batch import dynamic_batch, fixed_batch

    beside = [str(value.name) for value in model.graph.inputs[1:]]
    if beside and (wanted or 1) > 1:
        raise UserError(
            f"a file that takes {', '.join(beside)} beside the image takes one image; leave batch out"
        )
    if beside:
        return model.clone(), 1, (f"the file takes one image at a time, with {', '.join(beside)} beside it",)
    try:
        if wanted is not None:
            return fixed_batch(model, wanted), wanted, ()
        return dynamic_batch(model), -1, ()
    except UserError as error:
        if wanted is not None:
            raise UserError(f"{error}; without --batch the file takes one image at a time") from error
        return fixed_batch(model, 1), 1, (f"the file takes one image at a time: {error}",)


def _describe(model: ir.Model, job: Job, name: str) -> None:
    """Names, versions and metadata of the file."""
    model.ir_version = 10
    model.producer_name, model.producer_version = "repedge", __version__
    model.doc_string = job.description or None
    model.graph.name = name
    entries = {
        "labels": json.dumps(job.labels, ensure_ascii=False) if job.labels else "",
        "preprocess": job.preprocess.model_dump_json(),
        "input_kind": job.input_kind,
        "precision": job.precision,
        "author": job.author,
        "license": job.license,
        "version": job.version,
    }
    model.metadata_props.clear()
    model.metadata_props.update({key: value for key, value in entries.items() if value})


def _input_spec(model: ir.Model, job: Job, count: int) -> TensorSpec:
    value = model.graph.inputs[0]
    _, c, h, w = shape_of(value)
    if job.input_kind == "uint8":
        return TensorSpec(str(value.name), "uint8", (count, h, w, c), "NHWC")
    return TensorSpec(str(value.name), "float32", (count, c, h, w), "NCHW")


def _output_spec(value: ir.Value, count: int) -> TensorSpec:
    shape = shape_of(value)
    dtype = (value.dtype or ir.DataType.FLOAT).numpy().name
    return TensorSpec(str(value.name), dtype, (count, *shape[1:]), {2: "NC", 4: "NCHW"}.get(len(shape), ""))
