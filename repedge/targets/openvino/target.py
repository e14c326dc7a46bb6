"""OpenVINO IR: NAME.xml and NAME.bin, with preprocessing, layouts and labels inside.

The batch size is written as 1, the fastest form; ``model.reshape({"image": [8, 224, 224, 3]})`` gives
another one. ``fp16`` stores float16 weights (half the size); the device decides in which precision it
computes: f32 or bf16 on CPUs, f16 on GPUs and NPUs. ``w8a8`` is a QDQ graph as FakeQuantize nodes with
int8 weights, which the low-precision passes of every device turn into u8 x i8 kernels; what has no
FakeQuantize around it stays float. ``w8a32`` stores int8 weights, which are widened when the IR is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from repedge.disk.atomic import foreign_writer
from repedge.errors import UnsupportedModel, UserError
from repedge.graph.values import shape_of
from repedge.precision import Precision
from repedge.scheme import W8A32, QuantScheme
from repedge.targets import qdq
from repedge.targets.base import (
    Artifact,
    Engine,
    Job,
    Runner,
    Target,
    TensorSpec,
    Unsupported,
    in_words,
    tensor_spec,
)
from repedge.targets.openvino import ops
from repedge.targets.openvino.build import Builder
from repedge.targets.openvino.importing import import_openvino
from repedge.targets.openvino.input import lower_input
from repedge.targets.openvino.runner import OpenVINORunner
from repedge.targets.openvino.scheme import OPENVINO_W8A8
from repedge.targets.openvino.slim import _compress, _slim
from repedge.templates import Templates

LAYOUTS = {2: "NC", 4: "NCHW"}
"""Layout of an output by its rank."""


FLOAT16_MAX = float(np.finfo(np.float16).max)


SHIP = Path(__file__).parent / "ship"
"""Templates of app packages."""


class OpenVINO(Target):
    """Intermediate Representation for OpenVINO on Intel and Arm CPUs, Intel GPUs and NPUs."""

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO IR for Intel and Arm CPUs, Intel GPUs and NPUs"
    aliases: ClassVar[tuple[str, ...]] = ("intel", "ov", "ir")
    suffix: ClassVar[str] = ".xml"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp16", "fp32", "w8a8", "w8a32")
    schemes: ClassVar[Mapping[Precision, QuantScheme]] = {"w8a8": OPENVINO_W8A8, "w8a32": W8A32}
    tensors: ClassVar[frozenset[str]] = frozenset({"float32", "int32", "int64"})
    needs: ClassVar[tuple[str, ...]] = ("openvino",)
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    executor: ClassVar[str] = "OpenVINO on the CPU, computing in f32"
    engine: ClassVar[Engine | None] = Engine(
        runtime="openvino",
        agent="repedge.targets.openvino.agent:OpenVINO",
        needs=("openvino",),
        package="openvino",
        units=("cpu", "gpu", "npu"),
        throughput=True,
    )
    ship: ClassVar[Mapping[str, Templates]] = {
        "cpp": Templates(SHIP / "cpp", {"runtime.cpp": "src/runtime.cpp"}, SHIP),
        "python": Templates(SHIP / "python", {"runtime.py": "{name}/runtime.py"}, SHIP),
    }

    def unsupported(self, model: ir.Model) -> Sequence[Unsupported]:
        """Every node that ``ops.TABLE`` has no row for, or whose row refuses it."""
        return [
            Unsupported(node.op_type, node.name or "", why, node.metadata_props.get("source", ""))
            for node in qdq.prepare(model).graph
            if (why := _refusal(node))
        ]

    def compile(self, model: ir.Model, job: Job, out: Path) -> Artifact:
        """Write ``NAME.xml`` and ``NAME.bin``.

        Raises:
            UnsupportedModel: The graph has nodes without a lowering; all are named.
            UserError: A weight doesn't fit into float16; ``w8a8`` of a graph that nobody quantized.
        """
        openvino = import_openvino()

        self.check(job)
        qdq.check_precision(model, job.precision)
        if job.input_kind == "uint8":
            from repedge.passes.preprocess import fold_preprocess

            model = fold_preprocess(model, job.preprocess)
        model = qdq.prepare(qdq.quantize_weights(model) if job.precision == "w8a32" else model)
        refused = self.unsupported(model)
        if refused:
            raise UnsupportedModel(f"{self.name} can't take this model: {in_words(refused)}")
        lowered = _lower(model, job)
        if job.precision == "fp16":
            _check_float16(model)
            _compress(lowered)
        _write_info(lowered, model, job)
        path = out / f"{job.name}{self.suffix}"
        with foreign_writer(path.name):
            openvino.save_model(lowered, path, compress_to_fp16=False)
        _slim(path)
        inputs = (_input_spec(model, job), *map(tensor_spec, model.graph.inputs[1:]))
        outputs = tuple(_output_spec(v) for v in model.graph.outputs)
        return Artifact(Path(path.name), inputs, outputs, requires={"OpenVINO": ">=2023.3"})

    def open(self, path: Path, job: Job, outputs: Sequence[str], threads: int | None = None) -> Runner:
        """Compile the IR for the CPU, with low latency as the aim.

        Inference precision is set to f32: left alone, OpenVINO computes in bf16 or f16 wherever the CPU
        has it, and the comparison with the reference would measure that choice, not the artifact.
        """
        return OpenVINORunner(path, outputs, threads)

    def companions(self, main: Path) -> Sequence[str]:
        """The weights."""
        return [main.with_suffix(".bin").name] if main.suffix == self.suffix else []


def _lower(model: ir.Model, job: Job) -> Any:
    """The graph as an ``openvino.Model``."""
    openvino = import_openvino()

    b = Builder()
    image, *tensors = model.graph.inputs
    parameter, done = lower_input(b, image, job.input_kind)
    parameters = [parameter, *(_parameter(b, value) for value in tensors)]
    for node in model.graph:
        if node in done or qdq.weight(node.outputs[0]) is not None:
            continue  # a weight is made where it is read
        lowered = ops.TABLE[node.op_type].lower(b, node)
        if node.op_type != "DequantizeLinear" and node.name not in b.named:  # the former is its FakeQuantize
            lowered.set_friendly_name(node.name)
        for value, port in zip(node.outputs, lowered.outputs(), strict=False):
            b.values[str(value.name)] = port
    results = []
    for value in model.graph.outputs:
        port = b.values[str(value.name)]
        if value.dtype not in (None, ir.DataType.FLOAT):  # apps read one type of whole numbers
            port = b.ops.convert(port, np.int32).output(0)
        port.get_tensor().set_names({str(value.name)})
        result = b.ops.result(port, name=f"{value.name}/result")
        if layout := LAYOUTS.get(len(shape_of(value))):
            result.set_layout(openvino.Layout(layout))
        results.append(result)
    lowered_model = openvino.Model(results, parameters, job.name)
    _name_the_rest(lowered_model)
    return lowered_model


def _parameter(b: Builder, value: ir.Value) -> Any:
    """An input beside the image, as the graph has it."""
    spec = tensor_spec(value)
    parameter = b.ops.parameter(list(spec.shape), np.dtype(spec.dtype), name=spec.name)
    b.values[spec.name] = parameter.output(0)
    parameter.output(0).get_tensor().set_names({spec.name})
    return parameter


NUMBERED = ("Constant", "Convert", "Multiply", "Add")
"""Parts of weights and layers, whose names are numbers only, which keeps the .xml small."""


def _name_the_rest(model: Any) -> None:
    """Name the nodes that OpenVINO numbered from a counter of the process, so that bytes repeat."""
    for i, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():
            kind = node.get_type_name()
            node.set_friendly_name(str(i) if kind in NUMBERED else f"{kind}/{i}")


def _write_info(lowered: Any, model: ir.Model, job: Job) -> None:
    """Metadata: ``model_info`` as OpenVINO's Model API reads it, ``repedge`` with everything exact."""
    own = {
        "preprocess": job.preprocess.model_dump_json(),
        "input_kind": job.input_kind,
        "precision": job.precision,
        "labels": json.dumps(job.labels, ensure_ascii=False) if job.labels else "",
        "description": job.description,
        "author": job.author,
        "license": job.license,
        "version": job.version,
    }
    for section, entries in (("model_info", _model_info(model, job)), ("repedge", own)):
        for key, value in entries.items():
            if value:
                lowered.set_rt_info(value, [section, key])


def _model_info(model: ir.Model, job: Job) -> dict[str, str]:
    """Keys and forms of https://openvinotoolkit.github.io/model_api: lists are separated by spaces.

    The app feeds RGB. Model API's ``crop`` fills the input and cuts the middle out, the nearest it has to
    a resize of the short side and a centre crop.
    """
    pre = job.preprocess
    info = {"resize_type": "standard" if pre.resize is None else "crop"}
    if pre.letterbox is not None:
        info["resize_type"] = "fit_to_window" if pre.letterbox.corner else "fit_to_window_letterbox"
        info["pad_value"] = str(pre.letterbox.value)
    task = job.meaning(model)
    about = task.metadata("model_api")
    if about:
        fits = task.named is not None and task.outputs[task.named].shape[0] == len(job.labels)
        labels = about.pop("labels", job.labels if fits else ())
        info |= about
        info["labels"] = " ".join("_".join(label.split()) or "_" for label in labels)
    if job.input_kind == "float32":
        info["mean_values"] = " ".join(f"{255 * m:.6g}" for m in pre.mean)
        info["scale_values"] = " ".join(f"{255 * s:.6g}" for s in pre.std)
        info["reverse_input_channels"] = "True" if pre.color == "BGR" else "False"
    return info


def _check_float16(model: ir.Model) -> None:
    for value in model.graph.initializers.values():
        array = value.const_value.numpy() if value.const_value is not None else None
        if array is None or array.dtype != np.float32 or array.size == 0:
            continue
        largest = max(float(array.max()), -float(array.min()))
        if largest > FLOAT16_MAX and any(use.node.op_type != "Clip" for use in value.uses()):
            raise UserError(
                f"the weight {value.name!r} holds {largest:.6g}, beyond float16's largest number 65504; "
                "compile with --precision fp32"
            )


def _input_spec(model: ir.Model, job: Job) -> TensorSpec:
    value = model.graph.inputs[0]
    n, c, h, w = shape_of(value)
    if job.input_kind == "uint8":
        return TensorSpec(str(value.name), "uint8", (n, h, w, c), "NHWC")
    return TensorSpec(str(value.name), "float32", (n, c, h, w), "NCHW")


def _output_spec(value: ir.Value) -> TensorSpec:
    shape = shape_of(value)
    dtype = "float32" if value.dtype in (None, ir.DataType.FLOAT) else "int32"
    return TensorSpec(str(value.name), dtype, shape, LAYOUTS.get(len(shape), ""))


def _refusal(node: ir.Node) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return f"the operator domain {node.domain!r} is not supported"
    row = ops.TABLE.get(node.op_type)
    return "no lowering for this operator" if row is None else row.refuse(node)
