"""A Triton model repository around an ONNX file.

    model_repository/NAME/config.pbtxt               ONNX Runtime (the default)
    model_repository/NAME/configs/ort-tensorrt.pbtxt ONNX Runtime with TensorRT as its accelerator
    model_repository/NAME/configs/tensorrt.pbtxt     an engine that the user builds with trtexec
    model_repository/NAME/labels.txt                 class names, one a line
    model_repository/NAME/1/model.onnx               the model

``tritonserver --model-config-name=tensorrt`` picks ``configs/tensorrt.pbtxt``. Fields and their meaning:
``model_config.proto`` of triton-inference-server/common, message ``ModelConfig``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repedge.errors import UserError
from repedge.precision import Precision
from repedge.targets.base import TensorSpec

REPOSITORY = Path("model_repository")
LABELS_FILE = "labels.txt"

DATA_TYPES = {"uint8": "TYPE_UINT8", "float16": "TYPE_FP16", "float32": "TYPE_FP32"}
DATA_TYPES |= {"int32": "TYPE_INT32", "int64": "TYPE_INT64", "bool": "TYPE_BOOL"}
FORMATS = {"NHWC": "FORMAT_NHWC", "NCHW": "FORMAT_NCHW"}

MODES: Mapping[Precision, str] = {"fp32": "FP32", "fp16": "FP16", "w8a8": "INT8"}
"""The ``precision_mode`` of Triton's ONNX Runtime backend."""

_TYPED = (
    "--stronglyTyped",
    "from\n# TensorRT 11 on every network is strongly typed and the flag is not needed",
)
ENGINE_FLAGS: Mapping[Precision, tuple[str, str]] = {
    "fp32": _TYPED,
    "fp16": _TYPED,
    "w8a8": (
        "--int8 --fp16",
        "from\n# TensorRT 11 on leave out --int8 --fp16: what has no integers then runs in float32",
    ),
}
"""trtexec's flags, and what becomes of them. Integers are where the file's QuantizeLinear nodes are; of the
rest, which is float32 in the file, TensorRT 10 makes float16 where that is faster."""

QUEUE_DELAY = 100
"""Microseconds that a request may wait for others to share a batch with: below one model's run time."""


class Word(str):
    """An enumeration value: printed without quotes."""


def model_name(name: str) -> str:
    """``name`` as a folder and URL part: letters, digits, ``_``, ``-`` and inner dots.

    >>> model_name("my net/v1.0")
    'my_net_v1.0'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".-") or "model"


@dataclass(frozen=True)
class Served:
    """What Triton must know about the model.

    Attributes:
        name: The model's name, already a valid one.
        inputs, outputs: The ONNX file's signature, batch axis first, -1 where it is dynamic.
        labels: Class names of the output with as many columns; empty if there are none.
        max_batch_size: Largest batch that Triton forms, where the batch axis is dynamic.
        precision: fp16, fp32 or w8a8.
        tensorrt: Whether TensorRT reads the file.
    """

    name: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    labels: Sequence[str]
    max_batch_size: int
    precision: Precision
    tensorrt: bool = True

    def __post_init__(self) -> None:
        if type(self.max_batch_size) is not int or self.max_batch_size < 1:  # a bool is an int too
            raise UserError(f"max_batch_size must be a whole number above 0, not {self.max_batch_size!r}")

    @property
    def fixed(self) -> bool:
        """Whether the batch size is: Triton then forms no batches, and knows the first axis as any other."""
        return self.inputs[0].shape[0] != -1

    def dims(self, spec: TensorSpec) -> list[int]:
        """A shape as Triton wants it, which leaves a dynamic batch axis out."""
        return list(spec.shape if self.fixed else spec.shape[1:])

    @property
    def labelled(self) -> TensorSpec | None:
        """The output that the labels belong to."""
        return next((o for o in self.outputs if self.labels and o.shape[1:] == (len(self.labels),)), None)


def write_repository(out: Path, served: Served) -> Path:
    """Write everything but the model.

    Args:
        out: An existing folder, which receives ``model_repository``.
        served: The model's description.

    Returns:
        Where the ONNX file belongs, relative to ``out``; its folder exists.
    """
    folder = REPOSITORY / served.name
    (out / folder / "1").mkdir(parents=True)
    (out / folder / "config.pbtxt").write_text(onnxruntime_config(served), encoding="utf-8")
    if served.tensorrt:
        (out / folder / "configs").mkdir()
        for name, text in (("ort-tensorrt", accelerated_config(served)), ("tensorrt", engine_config(served))):
            (out / folder / "configs" / f"{name}.pbtxt").write_text(text, encoding="utf-8")
    if served.labelled:
        lines = "".join(f"{' '.join(label.split())}\n" for label in served.labels)
        (out / folder / LABELS_FILE).write_text(lines, encoding="utf-8")
    return folder / "1" / "model.onnx"


def onnxruntime_config(served: Served) -> str:
    """The default configuration: ONNX Runtime on the GPU where there is one, else on the CPU."""
    others = "# Other ways to serve the same model: see configs/.\n" if served.tensorrt else ""
    head = f"# Served by ONNX Runtime:\n#   tritonserver --model-repository=model_repository\n{others}"
    return head + text_format(_onnx_fields(served))


def accelerated_config(served: Served) -> str:
    """ONNX Runtime that hands the whole network to TensorRT, which builds its engines at load time."""
    head = (
        "# Served by ONNX Runtime through TensorRT; engines are built on first use and cached:\n"
        "#   tritonserver --model-repository=model_repository --model-config-name=ort-tensorrt\n"
    )
    parameters = {
        "precision_mode": MODES[served.precision],
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_prefix": served.name,
    }
    # Without a profile for all batch sizes at once, the engine is built anew for each larger batch.
    parameters |= {f"trt_profile_{which}_shapes": shapes for which, shapes in _profile(served).items()}
    fields = _onnx_fields(served)
    accelerator = {"name": "tensorrt", "parameters": _map(parameters)}
    fields["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}
    fields["instance_group"] = [{"kind": Word("KIND_GPU"), "count": 1}]
    return head + text_format(fields)


def engine_config(served: Served) -> str:
    """A TensorRT engine, ``1/model.plan``, that the user builds on the GPU it will run on."""
    fields: dict[str, Any] = {"name": served.name, "platform": "tensorrt_plan", "backend": "tensorrt"}
    fields |= {"default_model_filename": "model.plan"} | _common_fields(served)
    fields["instance_group"] = [{"kind": Word("KIND_GPU"), "count": 1}]
    fields["optimization"] = {"cuda": {"graphs": True}}
    flags = "".join(f" --{which}Shapes={shapes}" for which, shapes in _profile(served).items())
    typed, until = ENGINE_FLAGS[served.precision]
    head = (
        f"# Served by TensorRT. Build the engine once, on the GPU it will run on (TensorRT 10; {until}):\n"
        f"#   cd model_repository/{served.name}/1\n"
        f"#   trtexec --onnx=model.onnx {typed}{flags} --saveEngine=model.plan\n"
        "#   tritonserver --model-repository=model_repository --model-config-name=tensorrt\n"
    )
    return head + text_format(fields)


def _onnx_fields(served: Served) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": served.name, "platform": "onnxruntime_onnx", "backend": "onnxruntime"}
    fields |= {"default_model_filename": "model.onnx"} | _common_fields(served)
    fields["instance_group"] = [{"kind": Word("KIND_AUTO"), "count": 1}]
    return fields


def _common_fields(served: Served) -> dict[str, Any]:
    warmup = {
        i.name: {"data_type": Word(DATA_TYPES[i.dtype]), "dims": served.dims(i), "zero_data": True}
        for i in served.inputs
    }
    batching = {} if served.fixed else {"dynamic_batching": {"max_queue_delay_microseconds": QUEUE_DELAY}}
    return {
        "max_batch_size": 0 if served.fixed else served.max_batch_size,
        "input": [_tensor(i, served) | _format(i, served) for i in served.inputs],
        "output": [_tensor(o, served) | _label_file(o, served) for o in served.outputs],
        **batching,
        "model_warmup": [{"name": "first request", "batch_size": 1, "inputs": _map(warmup)}],
    }


def _tensor(spec: TensorSpec, served: Served) -> dict[str, Any]:
    return {"name": spec.name, "data_type": Word(DATA_TYPES[spec.dtype]), "dims": served.dims(spec)}


def _format(spec: TensorSpec, served: Served) -> dict[str, Any]:
    """Triton's formats are of three axes."""
    known = spec.layout in FORMATS and not served.fixed
    return {"format": Word(FORMATS[spec.layout])} if known else {}


def _label_file(spec: TensorSpec, served: Served) -> dict[str, Any]:
    return {"label_filename": LABELS_FILE} if spec == served.labelled else {}


def _profile(served: Served) -> dict[str, str]:
    """The smallest, most usual and largest shapes of dynamic inputs, as TensorRT's tools write them."""
    if served.fixed:
        return {}
    batches = {"min": 1, "opt": max(1, served.max_batch_size // 4), "max": served.max_batch_size}
    return {
        which: ",".join(f"{i.name}:{'x'.join(map(str, (n, *i.shape[1:])))}" for i in served.inputs)
        for which, n in batches.items()
    }


def _map(entries: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in entries.items()]


def text_format(message: Mapping[str, Any]) -> str:
    """A protobuf message in text format.

    Values are str, Word (an enumeration), bool, int, a mapping (a message) or a list (a repeated field).
    Source: the Protocol Buffers text format language specification.
    """
    return "".join(f"{line}\n" for line in _lines(message))


def _lines(message: Mapping[str, Any]) -> Iterator[str]:
    for key, value in message.items():
        if isinstance(value, list) and value and not isinstance(value[0], Mapping):
            yield f"{key}: [{', '.join(map(_scalar, value))}]"
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield f"{key} {{"
                yield from (f"  {line}" for line in _lines(item))
                yield "}"
            else:
                yield f"{key}: {_scalar(item)}"


def _scalar(value: str | int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Word):
        return str(value)
    return '"' + "".join(map(_escaped, value.encode())) + '"'


def _escaped(byte: int) -> str:
    if byte in b'"\\':
        return "\\" + chr(byte)
    return chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
