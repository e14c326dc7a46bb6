"""Random windows against onnxruntime: whatever the pads, strides and groups, the sums are equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from operators import reference, relative_error, weights
from tflite_helpers import TOLERANCE, build, clean, run

from repedge.targets.tflite.target import TFLite

DRAWS = 30


def draw(seed: int, name: str) -> tuple[np.random.Generator, dict[str, Any], list[int]]:
    """A generator, window attributes and an input size that the window fits into."""
    rng = np.random.default_rng([seed, *name.encode()])
    kernel = rng.integers(1, 6, 2).tolist()
    strides = rng.integers(1, 4, 2).tolist()
    pads = [int(rng.integers(0, k // 2 + 1)) for k in kernel * 2]
    size = rng.integers(10, 16, 2).tolist()
    return rng, {"kernel_shape": kernel, "strides": strides, "pads": pads}, size


def attributes(values: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in values.items())


def check(body: str, size: list[int], tmp_path, **arrays: np.ndarray) -> None:
    model = clean(f"g (float[1,6,{size[0]},{size[1]}] x) => (float[n,c,h,w] y) {{ {body} }}", **arrays)
    x = weights(1, 6, *size, seed=5)
    if TFLite().unsupported(model):  # ceil_mode: a window without a cell, whose existence is disputed
        assert reference(model, x)[0].shape != model.graph.outputs[0].shape.numpy()
        return
    path, _ = build(model, tmp_path)
    assert relative_error(run(model, path, x), reference(model, x)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(DRAWS))
def test_conv(seed, tmp_path):
    rng, window, size = draw(seed, "conv")
    group = int(rng.choice([1, 1, 2, 3, 6]))
    window |= {"dilations": rng.integers(1, 3, 2).tolist(), "group": group}
    w = weights(6 * int(rng.integers(1, 3)), 6 // group, *window["kernel_shape"])
    check(f"c = Conv<{attributes(window)}> (x, w, b) y = Relu (c)", size, tmp_path, w=w, b=weights(len(w)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(DRAWS))
def test_conv_transpose(seed, tmp_path):
    rng, window, size = draw(seed, "deconv")
    group = int(rng.choice([1, 1, 2, 3]))
    dilations = rng.integers(1, 3, 2).tolist()
    padding = [int(rng.integers(0, s)) for s in window["strides"]]
    window |= {"dilations": dilations, "group": group, "output_padding": padding}
    w = weights(6, int(rng.integers(1, 4)), *window["kernel_shape"])
    bias = weights(w.shape[1] * group)
    check(f"y = ConvTranspose<{attributes(window)}> (x, w, b)", size, tmp_path, w=w, b=bias)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(DRAWS))
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pool(op, seed, tmp_path):
    rng, window, size = draw(seed, op)
    window["ceil_mode"] = int(rng.integers(0, 2))
    if op == "AveragePool":
        window["count_include_pad"] = int(rng.integers(0, 2))
    check(f"y = {op}<{attributes(window)}> (x)", size, tmp_path)
