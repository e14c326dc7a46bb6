"""Networks that fold, move or drop the batch axis of one image: calibration looks at each image alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from calib_nets import clean, he, images, mixed, mobile, schemes
from graph_helpers import parse, run
from torch import nn

import repedge
from repedge import passes
from repedge.calib.qdq import to_qdq
from repedge.calib.recipe import calibrate
from repedge.calib.simulation.batching import images_at_once
from repedge.calib.simulation.observe import observe
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.structure import layers, place, set_array
from repedge.calib.weights.bias import correct_bias
from repedge.graph.export import export_module
from repedge.graph.run import Session
from repedge.graph.values import const
from repedge.photos.feed import BATCH


class Attention(nn.Module):
    """Self-attention whose heads are split by constant sizes, the batch axis gone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU())
        self.qkv, self.out = nn.Conv2d(16, 48, 1), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.stem(x)).reshape(3, 4, 4, -1).unbind(0)
        a = torch.softmax(q.transpose(1, 2) @ k * 0.5, -1)
        return self.out((v @ a.transpose(1, 2)).reshape(1, 16, -1).mean(2))


class Recognizer(nn.Module):
    """A line of text: convolutions, the height squeezed, and dense layers at each step, [T, N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 6))
        )
        self.a, self.b = nn.Linear(16, 24), nn.Linear(24, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(self.stem(x).squeeze(2).permute(2, 0, 1))))


def windows() -> ir.Model:
    """Windows of a map side by side on the first axis, each through a convolution of its own rows."""
    rng = np.random.default_rng(4)
    weights = {
        "w": he(rng, 8, 3, 1, 1),
        "v": he(rng, 6, 8, 3, 3),
        "b": (0.1 * rng.standard_normal(6)).astype(np.float32),
        "six": np.array([1, 8, 2, 6, 2, 6]),
        "parts": np.array([4, 8, 6, 6]),
        "back": np.array([1, 24, 6, 6]),
    }
    text = """net (float[1,3,12,12] x) => (float[1,24,6,6] y) {
        c = Conv(x, w)
        s = Reshape(c, six)
        t = Transpose <perm=[0,2,4,1,3,5]> (s)
        p = Reshape(t, parts)
        d = Conv <pads=[1,1,1,1]> (p, v, b)
        r = Relu(d)
        y = Reshape(r, back)
    }"""
    return clean(text, weights)


def exported(module: nn.Module) -> ir.Model:
    torch.manual_seed(0)
    model = export_module(module.eval(), (1, 3, 12, 12))
    passes.clean(model)
    return model


FOLDING = {"attention": lambda: exported(Attention()), "steps": lambda: exported(Recognizer())}
FOLDING["windows"] = windows


def alone(model: ir.Model, x: np.ndarray) -> list[list[np.ndarray]]:
    """Every output for every image, by ONNX Runtime."""
    return [run(model, {str(model.graph.inputs[0].name): x[i : i + 1]}) for i in range(len(x))]


def sqnr(want: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()))


@pytest.mark.parametrize("net", FOLDING)
def test_images_that_would_mix_are_run_one_by_one(net: str) -> None:
    assert images_at_once(FOLDING[net]()) == 1


@pytest.mark.parametrize("net", [mobile, mixed])
def test_images_that_keep_apart_are_run_side_by_side(net) -> None:
    assert images_at_once(net()) == BATCH


@pytest.mark.parametrize(
    "body",
    [
        "m = ReduceMean <keepdims=1> (x, zero)  y = Sub(x, m)",
        "s = Softmax <axis=0> (x)  y = Mul(x, s)",
        "t = Transpose <perm=[1,0,2,3]> (x)  u = Softmax <axis=1> (t)  y = Transpose <perm=[1,0,2,3]> (u)",
    ],
)
def test_operators_that_look_along_the_first_axis_mix_images(body: str) -> None:
    weights = {"zero": np.array([0])} if "zero" in body else {}
    text = f"net (float[1,3,12,12] x) => (float[1,3,12,12] y) {{ {body.replace('  ', chr(10))} }}"
    model = parse(text, weights)
    passes.prepare(model)
    assert images_at_once(model) == 1


@pytest.mark.parametrize("net", FOLDING)
def test_every_tensors_extremes_are_those_of_each_image(net: str) -> None:
    model, x = FOLDING[net](), images(5)
    found = observe(model, (x[i : i + 1] for i in range(5)), histograms=True, moments=5)
    names = [str(v.name) for n in model.graph for v in n.outputs if v.dtype == ir.DataType.FLOAT]
    session = Session(model, 1, optimize=False, outputs=names)
    rows = [session.run(x[i : i + 1]) for i in range(5)]
    for i, name in enumerate(names):
        t = found.tensors[name]
        np.testing.assert_allclose(t.image_lows, [r[i].min() for r in rows], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(t.image_highs, [r[i].max() for r in rows], rtol=1e-4, atol=1e-5)
        assert t.histogram is not None
        assert t.histogram.sum() > 0


def test_moments_of_a_layer_behind_folded_windows_are_over_all_windows() -> None:
    model, x = windows(), images(3)
    layer = next(n for n in model.graph if n.op_type == "Conv" and n.inputs[0] is not model.graph.inputs[0])
    found = observe(model, (x[i : i + 1] for i in range(3)), moments=3).moments[str(layer.name)]
    reads = str(layer.inputs[0].name)
    session = Session(model, 1, optimize=False, outputs=[reads])
    parts = np.concatenate([session.run(x[i : i + 1])[0] for i in range(3)])
    padded = np.pad(parts, ((0, 0), (0, 0), (1, 1), (1, 1)))
    columns = np.stack([padded[:, :, i : i + 6, j : j + 6] for i in range(3) for j in range(3)], 2)
    np.testing.assert_allclose(found.mean[0], columns.mean((0, 3, 4)).reshape(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", ["steps", "windows"])
def test_bias_correction_takes_out_the_mean_error_per_channel(net: str) -> None:
    model, x = FOLDING[net](), images(8)
    shifted, plan = calibrate(model, [x], schemes()["w8a32"], "minmax")
    last = [la for la in layers(shifted) if la.bias is not None][-1]
    shift = np.linspace(-1, 1, len(const(last.bias))).astype(np.float32)
    set_array(last.bias, const(last.bias) + shift)
    fixed = correct_bias(shifted, model, plan, lambda: (x[i : i + 1] for i in range(8)))
    left = np.stack([g[0] - w[0] for w, g in zip(alone(model, x), alone(fixed, x), strict=True)])
    assert abs(left.mean()) < 0.02  # the shift alone had left 0.3 to 0.6 on single channels
    again = next(la for la in layers(fixed) if la.name == last.name)
    np.testing.assert_allclose(const(again.bias) - const(last.bias), -shift, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", schemes())
@pytest.mark.parametrize("net", FOLDING)
def test_calibrated_integers_stay_near_the_float_network(net: str, scheme: str) -> None:
    model, x = FOLDING[net](), images(48)
    rounded, plan = calibrate(model, [x[:40]], schemes()[scheme], "default")
    qdq = to_qdq(rounded, plan)
    want = np.stack([y[0] for y in alone(model, x[40:])])
    assert sqnr(want, np.stack([y[0] for y in alone(qdq, x[40:])])) > 24
    simulated = [Simulator(rounded, plan).run(x[i : i + 1])[0].numpy() for i in range(40, 48)]
    assert simulated[0].shape[0] == 1
    assert sqnr(want.reshape(8, -1), np.concatenate(simulated).reshape(8, -1)) > 24


@pytest.mark.parametrize("scheme", schemes())
def test_a_product_of_two_activations_is_float(scheme: str) -> None:
    model = exported(Attention())
    products = {str(n.name) for n in model.graph if n.op_type == "MatMul" and const(n.inputs[1]) is None}
    assert len(products) == 2
    assert not products & place(model, schemes()[scheme]).nodes


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "openvino", "coreml"])
def test_attention_ships_in_integers(target: str, tmp_path) -> None:
    photos = (np.clip(images(32, 48) * 0.2 + 0.45, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    torch.manual_seed(0)
    report = repedge.compile(
        Attention(), input_size=12, targets=[target], precisions=["w8a8"], out=tmp_path, calib=list(photos),
        images=list(photos[:8]), recipe="fast",
    )  # fmt: skip
    assert report.passed
    assert report.bundles[0].verify.sqnr_db > 20
