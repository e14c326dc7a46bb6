"""``carray``: a network as one C99 file, built, verified and measured by the machine's compiler."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from repedge.devices.agent.engine import AgentError
from repedge.errors import DeviceError, UnsupportedModel
from repedge.graph.values import shape_of
from repedge.passes.preprocess import fold_preprocess
from repedge.scheme import QuantScheme
from repedge.targets import qdq
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
)  # fmt: skip
from repedge.templates import Templates
from repedge_carray.agent import Loop
from repedge_carray.lower import LOWERINGS, Program, refusal, size

HERE = Path(__file__).parent


def identifier(given: Any) -> str:
    """Reads a name that C accepts."""
    if not re.fullmatch(r"[A-Za-z_]\w*", str(given), re.ASCII):
        raise ValueError("no name of a C function")
    return str(given)


class CArray(Target):
    """Plain C for anything that has a C compiler."""

    name: ClassVar[str] = "carray"
    title: ClassVar[str] = "one C99 file, for anything that has a compiler"
    suffix: ClassVar[str] = ".c"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "w8a8")
    schemes: ClassVar[Mapping[str, QuantScheme]] = {
        "w8a8": QuantScheme(
            name="carray-w8a8", symmetric=True, integer_ops=frozenset({"Conv", "Gemm"}), bias="float32",
            tied=frozenset(),
        )
    }  # fmt: skip
    options: ClassVar[Mapping[str, Option]] = {
        "function": Option("name of the C function (default: network)", identifier),
    }
    executor: ClassVar[str] = "the machine's C compiler"
    engine: ClassVar[Engine | None] = Engine(
        runtime="carray", agent="repedge_carray.agent:Loop", needs=("numpy",), package="numpy"
    )
    ship: ClassVar[Mapping[str, Templates]] = {
        "python": Templates(HERE / "ship" / "python", {"runtime.py": "{name}/runtime.py"})
    }

    def unsupported(self, model: ir.Model) -> Sequence[Unsupported]:
        """See `Target.unsupported`."""
        return [
            Unsupported(n.op_type, str(n.name), why, n.metadata_props.get("source", ""))
            for n in qdq.prepare(model).graph
            if (why := refusal(n))
        ]

    def compile(self, model: ir.Model, job: Job, out: Path) -> Artifact:
        """Write ``NAME.c``: the signature in a comment, the kernels, the weights, one function."""
        self.check(job)
        qdq.check_precision(model, job.precision)
        if job.input_kind == "uint8":
            model = fold_preprocess(model, job.preprocess)
        model = qdq.prepare(model)
        refused = self.unsupported(model)
        if refused:
            raise UnsupportedModel("; ".join(f"{u.op} {u.node!r}: {u.why}" for u in refused))
        function = job.options.get("function", "network")
        given, outputs = _given(model, job), [_spec(v) for v in model.graph.outputs]
        head = {"function": function, "in": [vars(given)], "out": [vars(o) for o in outputs]}
        path = out / f"{job.name}{self.suffix}"
        path.write_text(f"/* {json.dumps(head)} */\n{_source(model, job, function)}", encoding="utf-8")
        return Artifact(Path(path.name), (given,), tuple(outputs), requires={"C": ">=99"})

    def open(self, path: Path, job: Job, outputs: Sequence[str], threads: int | None = None) -> Runner:
        """See `Target.open`; there is one thread."""
        return LoopRunner(path)


def _given(model: ir.Model, job: Job) -> TensorSpec:
    value = model.graph.inputs[0]
    n, c, h, w = shape_of(value)
    if job.input_kind == "uint8":
        return TensorSpec(str(value.name), "uint8", (n, h, w, c), "NHWC")
    return TensorSpec(str(value.name), "float32", (n, c, h, w), "NCHW")


def _spec(value: ir.Value) -> TensorSpec:
    shape = shape_of(value)
    return TensorSpec(str(value.name), "float32", shape, {2: "NC", 4: "NCHW"}.get(len(shape), ""))


def _source(model: ir.Model, job: Job, function: str) -> str:
    """Everything behind the first line."""
    p, source = Program(), model.graph.inputs[0]
    x = p.write(source)
    kind = "uint8_t" if job.input_kind == "uint8" else "float"
    _, channels, height, width = shape_of(source)
    enter = f"pixels(in, {x}, {channels}, {height * width});"
    p.lines.append(enter if kind == "uint8_t" else f"copy(in, {x}, {size(source)});")
    p.lines += [line for node in model.graph if (line := LOWERINGS[node.op_type](p, node))]
    outputs = list(model.graph.outputs)
    p.lines += [f"copy({p.read(v)}, out{i}, {size(v)});" for i, v in enumerate(outputs)]
    arguments = ", ".join([f"const {kind} *in", *(f"float *out{i}" for i in range(len(outputs)))])
    body = "\n    ".join(p.lines)
    parts = [(HERE / "kernels.c").read_text(), *p.constants, *p.buffers]
    return "\n".join(parts) + f"\n\nvoid {function}({arguments}) {{\n    {body}\n}}\n"


class LoopRunner(Runner):
    """The compiled file, image by image."""

    def __init__(self, path: Path) -> None:
        try:
            self._loop = Loop(str(path), {})
        except AgentError as e:
            raise DeviceError(str(e)) from e

    def run(self, batch: np.ndarray, tensors: Mapping[str, np.ndarray] = NONE) -> list[np.ndarray]:
        """See `Runner.run`."""
        rows = []
        for image in batch:
            self._loop.feed([image[None]])
            self._loop.invoke()
            rows.append([y.copy() for _, y in self._loop.outputs()])
        return [np.concatenate(column) for column in zip(*rows, strict=True)]
