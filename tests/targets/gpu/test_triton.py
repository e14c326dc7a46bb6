"""The Triton model repository, read with Triton's own protobuf definition."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf import text_format as protobuf_text
from target_graphs import CLASSIFIER, IMAGE, clean, graph, pixels

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.targets.base import Job, TensorSpec
from repedge.targets.gpu.target import GPU
from repedge.targets.gpu.triton import Served, Word, model_name, text_format, write_repository

CONFIGS = ("config.pbtxt", "configs/ort-tensorrt.pbtxt", "configs/tensorrt.pbtxt")
LABELS = ("tench", "great\nwhite shark", 'a "quoted" \\one', "käse", "e")


@pytest.fixture(scope="module")
def definition():
    """Triton's ModelConfig as the tritonclient package ships it (without importing its gRPC client)."""
    spec = importlib.util.find_spec("tritonclient")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("tritonclient, which ships Triton's protobuf definition, is not installed")
    path = Path(spec.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    loader = importlib.util.spec_from_file_location("triton_model_config_pb2", path)
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


def served(name="net", labels=LABELS, **kwargs):
    values: dict[str, Any] = {"max_batch_size": 32, "precision": "fp16"} | kwargs
    inputs = [TensorSpec("image", "uint8", (-1, *IMAGE[2:], 3), "NHWC")]
    outputs = [
        TensorSpec("map", "float32", (-1, 6, 9, 11), "NCHW"),
        TensorSpec("logits", "float32", (-1, 5), "NC"),
    ]
    return Served(name, inputs, outputs, labels, **values)


def parse(definition, path):
    """Unknown fields, wrong types and bad syntax raise."""
    return protobuf_text.Parse(path.read_text(encoding="utf-8"), definition.ModelConfig())


@pytest.mark.parametrize("name", CONFIGS)
def test_each_configuration_is_a_model_config(definition, name, tmp_path):
    write_repository(tmp_path, served())
    folder = tmp_path / "model_repository" / "net"
    config = parse(definition, folder / name)
    assert config.name == folder.name
    assert config.max_batch_size == 32
    (image,) = config.input
    assert (image.name, image.data_type) == ("image", definition.TYPE_UINT8)
    assert (list(image.dims), image.format) == ([*IMAGE[2:], 3], definition.ModelInput.FORMAT_NHWC)
    assert [(o.name, o.data_type, list(o.dims), o.label_filename) for o in config.output] == [
        ("map", definition.TYPE_FP32, [6, 9, 11], ""),
        ("logits", definition.TYPE_FP32, [5], "labels.txt"),
    ]
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    assert [g.count for g in config.instance_group] == [1]
    (warmup,) = config.model_warmup
    assert list(warmup.inputs["image"].dims) == [*IMAGE[2:], 3]


def test_backends(definition, tmp_path):
    write_repository(tmp_path, served(precision="fp32"))
    configs = [parse(definition, tmp_path / "model_repository" / "net" / name) for name in CONFIGS]
    assert [(c.platform, c.backend, c.default_model_filename) for c in configs] == [
        ("onnxruntime_onnx", "onnxruntime", "model.onnx"),
        ("onnxruntime_onnx", "onnxruntime", "model.onnx"),
        ("tensorrt_plan", "tensorrt", "model.plan"),
    ]
    group = definition.ModelInstanceGroup
    assert [c.instance_group[0].kind for c in configs] == [group.KIND_AUTO, group.KIND_GPU, group.KIND_GPU]
    (accelerator,) = configs[1].optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP32"
    assert accelerator.parameters["trt_profile_max_shapes"] == f"image:32x{IMAGE[2]}x{IMAGE[3]}x3"
    assert configs[2].optimization.cuda.graphs


def test_the_repository_of_a_compiled_model(definition, tmp_path):
    """What the configuration says of the model is what ONNX Runtime finds in it."""
    job = Job(
        "my net/v1.0",
        "fp16",
        Preprocess(size=IMAGE[2:]),
        "uint8",
        labels=LABELS,
        options={"max_batch_size": 8},
    )
    artifact = GPU().compile(clean(graph(CLASSIFIER, IMAGE)), job, tmp_path)
    assert artifact.main == Path("model_repository/my_net_v1.0/1/model.onnx")
    folder = (tmp_path / artifact.main).parent.parent
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert files == {*CONFIGS, "labels.txt", "1/model.onnx"}
    config = parse(definition, folder / "config.pbtxt")
    session = ort.InferenceSession(folder / "1" / config.default_model_filename)
    (found,), (image,) = session.get_inputs(), config.input
    assert (found.name, found.type, found.shape) == (image.name, "tensor(uint8)", ["N", *image.dims])
    (found,), (logits,) = session.get_outputs(), config.output
    assert (found.name, found.type, found.shape) == (logits.name, "tensor(float)", ["N", *logits.dims])
    batch = pixels(config.max_batch_size)
    assert session.run(None, {image.name: batch})[0].shape == (8, *logits.dims)


def test_one_label_a_line(tmp_path):
    write_repository(tmp_path, served())
    text = (tmp_path / "model_repository" / "net" / "labels.txt").read_text(encoding="utf-8")
    assert text.splitlines() == ["tench", "great white shark", 'a "quoted" \\one', "käse", "e"]


def test_labels_that_fit_no_output_are_left_out(tmp_path):
    write_repository(tmp_path, served(labels=("a", "b")))
    folder = tmp_path / "model_repository" / "net"
    assert not (folder / "labels.txt").exists()
    assert all("label_filename" not in (folder / name).read_text() for name in CONFIGS)


def test_the_engine_command_names_every_batch_size(tmp_path):
    write_repository(tmp_path, served())
    text = (tmp_path / "model_repository" / "net" / "configs" / "tensorrt.pbtxt").read_text()
    (command,) = re.findall(r"trtexec .*", text)
    h, w = IMAGE[2:]
    for which, n in {"min": 1, "opt": 8, "max": 32}.items():
        assert f"--{which}Shapes=image:{n}x{h}x{w}x3" in command
    assert "--stronglyTyped" in command


def test_integers_are_allowed_where_they_are(definition, tmp_path):
    """A file with QuantizeLinear nodes is refused by an engine of float16 and float32 alone."""
    write_repository(tmp_path, served(precision="w8a8"))
    folder = tmp_path / "model_repository" / "net"
    (command,) = re.findall(r"trtexec .*", (folder / "configs" / "tensorrt.pbtxt").read_text())
    assert "--int8 --fp16" in command
    assert "--stronglyTyped" not in command
    config = parse(definition, folder / "configs" / "ort-tensorrt.pbtxt")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.parameters["precision_mode"] == "INT8"


def test_a_fixed_batch_is_an_axis_as_any_other(definition, tmp_path):
    """Triton refuses a batch that it may form where the file's first axis is not dynamic."""
    image = TensorSpec("image", "uint8", (2, *IMAGE[2:], 3), "NHWC")
    logits = TensorSpec("logits", "float32", (2, 5), "NC")
    write_repository(tmp_path, Served("net", [image], [logits], LABELS, 32, "fp16"))
    folder = tmp_path / "model_repository" / "net"
    for config in (parse(definition, folder / name) for name in CONFIGS):
        assert config.max_batch_size == 0
        assert config.WhichOneof("scheduling_choice") is None
        assert list(config.input[0].dims) == [2, *IMAGE[2:], 3]
        assert config.input[0].format == definition.ModelInput.FORMAT_NONE
        assert list(config.output[0].dims) == [2, 5]
        assert config.output[0].label_filename == "labels.txt"
    assert "Shapes=" not in (folder / "configs" / "tensorrt.pbtxt").read_text()


def test_a_file_that_tensorrt_does_not_read_has_no_configuration_for_it(definition, tmp_path):
    write_repository(tmp_path, served(precision="w8a8", tensorrt=False))
    folder = tmp_path / "model_repository" / "net"
    assert not (folder / "configs").exists()
    assert "configs/" not in (folder / "config.pbtxt").read_text()
    assert parse(definition, folder / "config.pbtxt").backend == "onnxruntime"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("repvit_m0.9", "repvit_m0.9"),
        ("../net", "_net"),
        ("a b/c:d", "a_b_c_d"),
        ("-x", "x"),
        ("..", "model"),
    ],
)
def test_names_are_safe_folder_names(name, expected):
    assert model_name(name) == expected


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "8"])
def test_a_bad_batch_size_is_refused(size):
    with pytest.raises(UserError, match="max_batch_size must be a whole number above 0, not "):
        served(max_batch_size=size)


def test_text_format_is_protobufs():
    """Against protobuf's own parser, on a message with every kind of field."""
    strings = ["", 'say "hi"', "back\\slash", "two\nlines\t\x01", "käse 漢", "0\x0012"]
    message = {
        "name": strings[1],
        "dependency": strings,
        "public_dependency": [1, -2],
        "enum_type": [{"name": s} for s in strings],
        "message_type": [
            {
                "name": "m",
                "field": [{"name": "f", "number": 3, "type": Word("TYPE_BOOL")}],
                "options": {"deprecated": True},
            }
        ],
        "options": {"cc_enable_arenas": False},
    }
    parsed = protobuf_text.Parse(text_format(message), descriptor_pb2.FileDescriptorProto())
    assert parsed.name == strings[1]
    assert list(parsed.dependency) == strings
    assert list(parsed.public_dependency) == [1, -2]
    assert [e.name for e in parsed.enum_type] == strings
    field = parsed.message_type[0].field[0]
    assert (field.number, field.type) == (3, descriptor_pb2.FieldDescriptorProto.TYPE_BOOL)
    assert parsed.message_type[0].options.deprecated
    assert not parsed.options.cc_enable_arenas
