"""What the fuzz begins with: small files of every kind that repedge takes, all of them good."""

from __future__ import annotations

import contextlib
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FORMATS = ("png", "jpg", "bmp", "webp", "tiff", "ppm", "gif")
TARGETS = ("tflite", "openvino", "gpu", "coreml")


def build(folder: Path) -> None:
    """Write the corpus: onnx/, weights/, bundles/, images/, archives/, datasets/."""
    for name in ("onnx", "weights", "bundles", "images", "archives", "datasets"):
        (folder / name).mkdir(parents=True)
    _onnx(folder / "onnx")
    _weights(folder / "weights")
    _images(folder / "images")
    _archives(folder / "archives", folder / "images")
    _datasets(folder / "datasets")
    _bundles(folder / "bundles", folder / "onnx" / "plain.onnx")


def model(
    nodes: list[Any], weights: dict[str, np.ndarray], rank: int = 2, opset: int = 17
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, list("nchw")[:rank])
    tensors = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _onnx(folder: Path) -> None:
    rng = np.random.default_rng(0)
    node = helper.make_node
    w = {
        "w": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "b": rng.normal(size=8).astype(np.float32),
        "f": rng.normal(size=(8, 5)).astype(np.float32),
        "v": np.abs(rng.normal(size=8)).astype(np.float32) + 0.5,
    }
    conv = node("Conv", ["x", "w", "b"], ["c"], name="conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    tail = [
        node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        node("Flatten", ["p"], ["q"], name="flat"),
        node("Gemm", ["q", "f"], ["y"], name="head"),
    ]
    bn = node("BatchNormalization", ["c", "b", "b", "b", "v"], ["n"], name="bn")
    files = {
        "plain": model([conv, node("Relu", ["c"], ["r"], name="relu"), *tail], w),
        "norm": model([conv, bn, node("Add", ["n", "c"], ["r"], name="add"), *tail], w),
        "shapes": model(
            [
                conv,
                node("Shape", ["c"], ["s"], name="shape"),
                node("Gather", ["s", "i"], ["g"], name="gather"),
                node("Unsqueeze", ["g", "i0"], ["u"], name="unsqueeze"),
                node("Concat", ["u", "m"], ["t"], name="concat", axis=0),
                node("Reshape", ["c", "t"], ["y"], name="reshape"),
            ],
            {**w, "i": np.array(0), "i0": np.array([0]), "m": np.array([-1])},
        ),
        "resize": model(
            [
                conv,
                node("Resize", ["c", "", "sc"], ["z"], name="resize", mode="nearest"),
                node("Pad", ["z", "pd"], ["pp"], name="pad"),
                node("Slice", ["pp", "s0", "s1", "ax"], ["sl"], name="slice"),
                node("Softmax", ["sl"], ["y"], name="softmax", axis=1),
            ],
            {
                **w,
                "sc": np.array([1, 1, 2, 2], np.float32),
                "pd": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
                "s0": np.array([1, 1]),
                "s1": np.array([9, 9]),
                "ax": np.array([2, 3]),
            },
            4,
        ),
        "constants": model(
            [
                node("ConstantOfShape", ["cs"], ["o"], name="ones"),
                node("Expand", ["o", "es"], ["e"], name="expand"),
                node("Tile", ["e", "ts"], ["tt"], name="tile"),
                node("Range", ["r0", "r1", "r2"], ["rr"], name="range"),
                node("Cast", ["rr"], ["rf"], name="cast", to=TensorProto.FLOAT),
                node("Add", ["tt", "rf"], ["k"], name="sum"),
                conv,
                node("Mul", ["c", "k"], ["y"], name="mul"),
            ],
            {
                **w,
                "cs": np.array([1, 1]),
                "es": np.array([8, 1]),
                "ts": np.array([2, 16]),
                "r0": np.array(0),
                "r1": np.array(16),
                "r2": np.array(1),
            },
            4,
        ),
    }
    for name, proto in files.items():
        onnx.save(proto, folder / f"{name}.onnx")
    old = model(
        [node("Upsample", ["x", "sc"], ["y"], name="up")], {"sc": np.array([1, 1, 2, 2], np.float32)}, 4, 9
    )
    onnx.save(old, folder / "old.onnx")


def _weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from repedge.models.registry import create

    state = create("repvgg_demo").state_dict()
    small = dict(list(state.items())[:40])
    torch.save(small, folder / "zip.pth")
    torch.save({"model": small, "epoch": 3}, folder / "nested.pth")
    torch.save(small, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(small, folder / "safe.safetensors")


def _images(folder: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(1)
    for i, suffix in enumerate(FORMATS):
        array = rng.integers(0, 256, (17 + i, 23, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{i}.{suffix}")
    Image.fromarray(rng.integers(0, 65536, (9, 9)).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(array).save(folder / "progressive.jpg", progressive=True)
    Image.fromarray(array).convert("P").save(folder / "palette.png")


def _archives(folder: Path, images: Path) -> None:
    rng = np.random.default_rng(2)
    with zipfile.ZipFile(folder / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(9):
            archive.write(images / "0.png", f"{i % 2}/{i}.png")
        archive.writestr("labels.json", '{"0/0.png": 1}')
    np.savez(folder / "pixels.npz", x=rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8), y=np.arange(9))
    np.savez_compressed(folder / "inputs.npz", x=rng.normal(size=(9, 3, 8, 8)).astype(np.float32))


def _datasets(folder: Path) -> None:
    sys.path.append(str(Path(__file__).parents[1] / "tasks" / "helpers"))
    import data_sets

    for layout in (data_sets.yolo, data_sets.coco, data_sets.voc, data_sets.masks):
        layout(folder / layout.__name__)


def _bundles(folder: Path, file: Path) -> None:
    import repedge

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        made = repedge.compile(file, targets=list(TARGETS), out=folder, precisions=["fp32"], count=2)
    for built in made.bundles:
        built.path.rename(folder / built.target)
