"""The same files in tflite-runtime 2.14, the last of the old runtimes, in an environment of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from old_runtime import check, needed, nhwc
from op_table import CASES
from operators import reference, weights
from tflite_emitted import EMITTED
from tflite_helpers import TOLERANCE, build, clean, fused_network

from repedge.config import Preprocess

pytestmark = needed

LABELS = tuple(f"class {i}" for i in range(12))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", TOLERANCE), ("fp16", 5e-3)])
def test_every_lowering_agrees_in_the_old_runtime(precision, tolerance, tmp_path):
    for name in EMITTED:
        model = CASES[name].model()
        x = weights(*model.graph.inputs[0].shape.numpy(), seed=9)
        build(model, tmp_path, name=name, precision=precision)
        names = [value.name for value in model.graph.outputs]
        wanted: dict[str, Any] = {n: nhwc(y) for n, y in zip(names, reference(model, x), strict=True)}
        np.savez(tmp_path / f"{name}.npz", x=nhwc(x), **wanted)
    found = check(tmp_path)
    assert found.keys() == EMITTED.keys()
    worst = {name: max(case["errors"].values()) for name, case in found.items()}
    assert {name: error for name, error in worst.items() if not error < tolerance} == {}


@pytest.mark.slow
def test_official_reader_finds_preprocessing_and_labels(tmp_path):
    head = clean(
        "g (float[1,3,8,9] x) => (float[1,12] y)"
        "{ p = GlobalAveragePool (x) f = Flatten (p) y = Gemm<transB=1> (f, w) }",
        w=weights(12, 3),
    )
    x = weights(1, 3, 8, 9)
    build(head, tmp_path, name="head", labels=LABELS)
    np.savez(tmp_path / "head.npz", x=nhwc(x), y=reference(head, x)[0])
    (found,) = check(tmp_path).values()
    assert found["errors"]["y"] < TOLERANCE
    assert found["metadata"] == {
        "identifier": True,
        "name": "head",
        "min_parser_version": "1.0.0",
        "min_runtime_version": "1.6.0",
        "input": "x",
        "color_space": 1,
        "mean": pytest.approx([255 * 0.485, 255 * 0.456, 255 * 0.406]),
        "std": pytest.approx([255 * 0.229, 255 * 0.224, 255 * 0.225]),
        "output": "y",
        "label_type": 2,
        "labels": list(LABELS),
    }


@pytest.mark.slow
def test_pixels_go_in_as_uint8(tmp_path):
    text = "g (float[1,3,8,9] x) => (float[1,5,4,5] y) { y = Conv<pads=[1,1,1,1],strides=[2,2]> (x, w) }"
    model = clean(text, w=weights(5, 3, 3, 3))
    pre = Preprocess(size=(8, 9))
    build(model, tmp_path, name="net", input_kind="uint8", preprocess=pre)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 9, 3), np.uint8)
    x = ((pixels / 255 - pre.mean) / pre.std).astype(np.float32).transpose(0, 3, 1, 2)
    np.savez(tmp_path / "net.npz", x=pixels, y=nhwc(reference(model, x)[0]))
    (found,) = check(tmp_path).values()
    assert found["errors"]["y"] < TOLERANCE
    assert (found["metadata"]["mean"], found["metadata"]["std"]) == ([0.0], [1.0])


@pytest.mark.slow
def test_real_network_agrees(tmp_path):
    _, model = fused_network("repvit_m0_6", (32, 32))
    x = weights(1, 3, 32, 32)
    build(model, tmp_path)
    (name,) = (value.name for value in model.graph.outputs)
    arrays: dict[str, Any] = {"x": nhwc(x), str(name): reference(model, x)[0]}
    np.savez(tmp_path / "net.npz", **arrays)
    (found,) = check(tmp_path).values()
    assert found["errors"][name] < TOLERANCE
