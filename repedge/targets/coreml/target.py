"""Core ML: an ML Program in an ``.mlpackage``, for iOS 16 and macOS 13 or later."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

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
    Option,
    Runner,
    Target,
    TensorSpec,
    Unsupported,
    in_words,
    tensor_spec,
)
from repedge.targets.coreml.runner import EXECUTOR, CoreMLRunner, InterpreterRunner
from repedge.targets.coreml.scheme import COREML_W8A8
from repedge.targets.options import choice
from repedge.tasks.base import Task
from repedge.templates import Templates

REQUIRES: dict[str, dict[str, str]] = {  # deployment target -> oldest systems
    "iOS16": {"iOS": ">=16", "macOS": ">=13", "tvOS": ">=16", "watchOS": ">=9"},
    "iOS17": {"iOS": ">=17", "macOS": ">=14", "tvOS": ">=17", "watchOS": ">=10"},
    "iOS18": {"iOS": ">=18", "macOS": ">=15", "tvOS": ">=18", "watchOS": ">=11"},
}
"""Every precision but those of `NEEDS` runs from the first row on."""

NEEDS = {"w8a8": "iOS17"}
"""Precision -> oldest deployment target, for integers between layers came with iOS 17."""

DEFAULT_DEPLOYMENT_TARGET = "iOS16"


SHIP = Path(__file__).parent / "ship"
"""Templates of app packages."""


class CoreML(Target):
    """Apple's Neural Engine, GPU and CPU."""

    name: ClassVar[str] = "coreml"
    title: ClassVar[str] = "Core ML program for iPhone, iPad, Mac and Apple TV (.mlpackage)"
    aliases: ClassVar[tuple[str, ...]] = ("ios", "iphone", "ipados", "macos", "apple", "mlpackage", "mlmodel")
    suffix: ClassVar[str] = ".mlpackage"
    precisions: ClassVar[tuple[Precision, ...]] = (
        "fp16",
        "fp32",
        "w8a8",
        "w8a32",
        "palette8",
        "palette6",
        "palette4",
    )
    schemes: ClassVar[Mapping[Precision, QuantScheme]] = {"w8a8": COREML_W8A8, "w8a32": W8A32}
    options: ClassVar[Mapping[str, Option]] = {
        "deployment_target": Option(f"{', '.join(REQUIRES)}: the oldest system to run on", choice(*REQUIRES)),
    }
    tensors: ClassVar[frozenset[str]] = frozenset({"float32"})
    needs: ClassVar[tuple[str, ...]] = ("coremltools",)
    packages: ClassVar[tuple[str, ...]] = ("coremltools",)
    executor: ClassVar[str] = EXECUTOR
    engine: ClassVar[Engine | None] = Engine(
        runtime="coreml",
        agent="repedge.targets.coreml.agent:CoreML",
        needs=("coremltools",),
        package="coremltools",
        suffixes=(".mlmodelc",),
        everywhere=False,
        units=("ane", "gpu", "cpu"),
        outside=frozenset({"gpu", "cpu"}),
    )
    ship: ClassVar[Mapping[str, Templates]] = {
        "ios": Templates(
            SHIP / "ios",
            {
                "Model.swift": "Sources/{name}/{name}Model.swift",
                "CompiledModel.swift": "Sources/{name}/CompiledModel.swift",
                "ModelInput.swift": "Sources/{name}/ModelInput.swift",
                "Tensors.swift": "Sources/{name}/Tensors.swift",
            },
            SHIP,
        ),
    }

    def unsupported(self, model: ir.Model) -> Sequence[Unsupported]:
        """Every node of the clean graph that `compile` would refuse, with the reason."""
        from repedge.targets.coreml.ops import refusals

        return refusals(model)

    def check(self, job: Job) -> None:
        """See `Target.check`; also a deployment target that can't hold the precision."""
        super().check(job)
        deployment_target(job)

    def compile(self, model: ir.Model, job: Job, out: Path) -> Artifact:
        """Write ``NAME.mlpackage`` into ``out``.

        ``job.options["deployment_target"]`` is a key of `REQUIRES` (default iOS16, for ``w8a8`` iOS17).
        With labels and an output that scores them the package is a classifier (``classLabel``,
        ``classLabel_probs``) that keeps the raw scores as an output too. ``w8a8`` takes a QDQ graph; what
        has no QuantizeLinear around it computes in float16.

        Raises:
            UserError: An option is wrong, the labels don't fit, a weight does not fit into float16, or the
                graph is not quantized as the precision wants it.
            UnsupportedModel: Some nodes have no lowering; all of them are named.
        """
        from repedge.targets.coreml.ops import prepare
        from repedge.targets.coreml.package import import_coremltools, run_passes, save

        self.check(job)
        deployment = deployment_target(job)
        qdq.check_precision(model, job.precision)
        if job.input_kind == "uint8":
            from repedge.passes.preprocess import fold_preprocess

            model = fold_preprocess(model, job.preprocess)
        model = prepare(model)
        problems = self.unsupported(model)
        if problems:
            listed = in_words(problems)
            raise UnsupportedModel(f"Core ML can't take {len(problems)} of the graph's nodes: {listed}")
        task = job.meaning(model)
        task.check_labels()
        scores = task.scores if task.labels else None

        opset = getattr(import_coremltools().target, deployment)
        from repedge.targets.coreml.build import build
        from repedge.targets.coreml.compress import compress

        built = build(model, np.float32 if job.precision == "fp32" else np.float16, opset, scores)
        run_passes(built.program)
        if job.precision not in ("fp32", "fp16", "w8a8"):
            compress(built.program, job.precision)
        main = Path(f"{job.name}{self.suffix}")
        with tempfile.TemporaryDirectory(dir=out, prefix=".weights-") as scratch, foreign_writer(main):
            save(built, job, opset, out / main, Path(scratch))
        return Artifact(
            main=main,
            inputs=(
                _input_spec(built.input, shape_of(model.graph.inputs[0]), job),
                *map(tensor_spec, model.graph.inputs[1:], built.tensors),
            ),
            outputs=tuple(
                _output_spec(name, value)
                for name, value in zip(built.outputs, model.graph.outputs, strict=True)
            ),
            requires=REQUIRES[deployment],
            notes=_notes(task),
        )

    def open(self, path: Path, job: Job, outputs: Sequence[str], threads: int | None = None) -> Runner:
        """Open a package in Core ML on a Mac, elsewhere in the MIL interpreter; both are single-batch."""
        from repedge.targets.coreml.lowerer import identifier

        names = [identifier(name) for name in outputs]
        if sys.platform == "darwin":
            return CoreMLRunner(path, job, names)
        return InterpreterRunner(path, job, names)

    def note(self) -> str:
        """See `Target.note`."""
        return "" if sys.platform == "darwin" else "no Core ML on this host: verified by the MIL interpreter"


def deployment_target(job: Job) -> str:
    """The job's deployment target, checked."""
    needed = NEEDS.get(job.precision, DEFAULT_DEPLOYMENT_TARGET)
    wanted = str(job.options.get("deployment_target", needed))
    if wanted not in REQUIRES:
        raise UserError(f"deployment_target {wanted!r} is not one of {', '.join(REQUIRES)}")
    if list(REQUIRES).index(wanted) < list(REQUIRES).index(needed):
        raise UserError(
            f"precision {job.precision} needs deployment_target {needed} or later, not {wanted}; "
            "for older systems choose w8a32 or fp16"
        )
    return wanted


def _notes(task: Task) -> tuple[str, ...]:
    from repedge.targets.coreml.package import distinct

    if task.labels and task.scores is None:
        first = task.outputs[0]
        return (
            f"The labels are in the metadata only: output {first.name!r} of shape {(1, *first.shape)} is no "
            "list of class scores.",
        )
    renamed = [new for old, new in zip(task.labels, distinct(task.labels), strict=True) if old != new]
    if renamed:
        return (f"Core ML needs distinct class labels; repeated ones got their index: {', '.join(renamed)}.",)
    return ()


def _input_spec(name: str, shape: tuple[int, ...], job: Job) -> TensorSpec:
    if job.input_kind == "uint8":
        _, channels, height, width = shape
        return TensorSpec(name, "uint8", (1, height, width, channels), "NHWC", kind="image")
    return TensorSpec(name, "float32", shape, "NCHW")


def _output_spec(name: str, value: ir.Value) -> TensorSpec:
    shape = shape_of(value)
    dtype = "float32" if value.dtype in (None, ir.DataType.FLOAT) else "int32"
    return TensorSpec(name, dtype, shape, {2: "NC", 4: "NCHW"}.get(len(shape), ""))
