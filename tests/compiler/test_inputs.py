"""Networks that take more than an image, from the module to the verified artifact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calib_nets import images
from torch import nn

import repedge
from repedge.bundle.folder import Bundle
from repedge.errors import UserError
from repedge.judge.verification import open_bundle
from repedge.models.source import resolve
from repedge.photos.images import normalise
from repedge.ship.package import ship

TARGETS = ("tflite", "coreml", "openvino", "gpu")
PHOTOS = [
    (np.clip(p[:, :24, :24] * 0.2 + 0.45, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    for p in images(40, 48)
]
RNG = np.random.default_rng(8)
SCALES = RNG.uniform(0.5, 2, (5, 8)).astype(np.float32)
CENTRES = RNG.uniform(-1, 1, (5, 3, 8)).astype(np.float32)


class Prompted(nn.Module):
    """A map of features, scaled by a vector, and its distance from three centres: order and names matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.out = nn.Linear(8, 8)

    def forward(self, photo: torch.Tensor, scale: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
        f = self.out(self.stem(photo).mean((2, 3)) * scale)
        return (f * centres).sum(1)[None]


def build(target: str, out: Path, precision: str, **more: Any) -> Bundle:
    options: dict[str, Any] = {"inputs": {"centres": CENTRES, "scale": SCALES}, **more}
    if precision == "w8a8":
        options |= {"calib": PHOTOS, "recipe": "fast"}
    report = repedge.compile(
        Prompted().eval(), input_size=24, resize="squash", targets=[target], precisions=[precision], out=out,
        images=PHOTOS[:8], **options,
    )  # fmt: skip
    assert report.passed, report.bundles[0].verify.failures
    return Bundle.open(report.bundles[0].path)


def expected(count: int, scales: np.ndarray = SCALES, centres: np.ndarray = CENTRES) -> np.ndarray:
    """By torch: photo k with sample k."""
    pre = resolve(
        Prompted(), input_size=24, resize="squash", inputs={"scale": SCALES, "centres": CENTRES}
    ).preprocess
    x = torch.from_numpy(normalise(np.stack(PHOTOS[:count]), pre))
    module = Prompted().eval()
    with torch.no_grad():
        rows = [
            module(x[i : i + 1], torch.from_numpy(scales[i % 5]), torch.from_numpy(centres[i % 5]))
            for i in range(count)
        ]
    return torch.cat(rows).numpy()


def sqnr(want: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_artifact_gives_what_the_module_gives(
    target: str, precision: str, kind: str, tmp_path: Path
) -> None:
    bundle = build(target, tmp_path, precision, input_kind=kind)
    assert [t.name for t in bundle.manifest.inputs[1:]] == ["scale", "centres"]
    assert [t.shape for t in bundle.manifest.inputs[1:]] == [(8,), (3, 8)]
    _, runner = open_bundle(bundle)
    pixels = np.stack(PHOTOS[:7])
    x = pixels if kind == "uint8" else normalise(pixels, bundle.manifest.preprocess)
    order = np.arange(7) % 5
    got = runner.run(x, {"scale": SCALES[order], "centres": CENTRES[order]})[0]
    assert sqnr(expected(7), got) > (100 if precision == "fp32" else 25)
    swapped = runner.run(x, {"scale": SCALES[order[::-1]], "centres": CENTRES[order]})[0]
    assert sqnr(expected(7), swapped) < 20  # samples that go with other photos are another answer


@pytest.mark.slow
def test_a_bundle_is_verified_evaluated_compared_and_profiled_with_its_samples(tmp_path: Path, cli) -> None:
    floats = build("tflite", tmp_path, "fp32")
    integers = build("tflite", tmp_path, "w8a8")
    with np.load(floats.path / "golden" / "golden.npz") as arrays:
        np.testing.assert_array_equal(arrays["input:scale"][:3], SCALES[:3])
        np.testing.assert_allclose(arrays["reference:logits"][:3], expected(3), rtol=1e-4, atol=1e-5)
    assert repedge.verify(floats.path, images=PHOTOS[:8]).sqnr_db > 100
    assert repedge.verify(integers.path, images=PHOTOS[:8]).passed
    other = {"scale": SCALES[::-1] * 2, "centres": CENTRES}
    assert repedge.verify(floats.path, images=PHOTOS[:8], inputs=other).sqnr_db > 100
    found = repedge.evaluate(integers.path, PHOTOS[:8], inputs={"scale": SCALES, "centres": CENTRES})
    assert found.sqnr_db > 25
    pair = repedge.compare_bundles([floats.path, integers.path], PHOTOS[:8]).pairs[-1]
    assert pair.sqnr_db > 25
    code, out, _ = cli("profile", floats.path, "--runs", 3, "--json")
    assert code == 0
    assert json.loads(out)["target"] == "tflite"
    for wrong, words in (
        ({"scale": SCALES}, "takes 'centres' beside the image"),
        ({**other, "gain": SCALES}, "no input 'gain'"),
        ({**other, "scale": np.ones((2, 7))}, "do not fit"),
    ):
        with pytest.raises(UserError, match=words):
            repedge.verify(floats.path, images=PHOTOS[:8], inputs=wrong)


@pytest.mark.slow
def test_a_planted_fault_in_the_samples_is_seen(tmp_path: Path, monkeypatch) -> None:
    """The artifact is given the samples in another order than the reference: verification refuses it."""
    from repedge.photos.tensors import Tensors

    monkeypatch.setattr(
        Tensors, "named", lambda self, names: Tensors({n: a[::-1] for n, a in self.arrays.items()})
    )
    report = repedge.compile(
        Prompted().eval(), input_size=24, targets=["tflite"], precisions=["fp32"], out=tmp_path,
        images=PHOTOS[:8], inputs={"scale": SCALES, "centres": CENTRES},
    )  # fmt: skip
    assert not report.passed


@pytest.mark.slow
def test_a_budget_is_judged_with_the_samples(tmp_path: Path) -> None:
    bundle = build("openvino", tmp_path, "w8a8", max_kl=0.5, eval_data=PHOTOS[:20], calib_count=20)
    assert bundle.manifest.quantization["budget"]["met"]
    assert bundle.manifest.quantization["budget"]["score"]["sqnr_db"] > 25


@pytest.mark.slow
def test_several_precisions_of_one_run_do_not_meet(tmp_path: Path) -> None:
    report = repedge.compile(
        Prompted().eval(), input_size=24, targets=["gpu", "tflite"], precisions=["fp32", "fp16"],
        out=tmp_path, images=PHOTOS[:8], inputs={"scale": SCALES, "centres": CENTRES}, input_kind="float32",
    )  # fmt: skip
    assert report.passed
    assert [b.precision for b in report.bundles] == ["fp32", "fp16"] * 2


@pytest.mark.slow
def test_what_it_always_holds_makes_a_network_of_one_image(tmp_path: Path) -> None:
    bundle = build(
        "tflite", tmp_path, "fp32", inputs=None, input_value={"scale": SCALES[0], "centres": CENTRES[0]}
    )
    assert len(bundle.manifest.inputs) == 1
    _, runner = open_bundle(bundle)
    want = expected(3, SCALES[:1].repeat(5, 0), CENTRES[:1].repeat(5, 0))
    assert sqnr(want, runner.run(np.stack(PHOTOS[:3]))[0]) > 100
    ship([bundle.path], "python", tmp_path / "package")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "openvino", "gpu"])
def test_a_python_package_takes_them_and_gives_what_was_verified(target: str, tmp_path: Path) -> None:
    bundle = build(target, tmp_path, "fp32")
    package = tmp_path / "package"
    ship([bundle.path], "python", package, name="prompted")
    for command in (["test_golden.py"], ["-m", "prompted", "golden/fp32/0.png", "--inputs", "given.npz"]):
        np.savez(package / "given.npz", scale=SCALES[0], centres=CENTRES[0])
        done = subprocess.run([sys.executable, *command], cwd=package, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    code = f"""if True:
        import json, numpy as np, prompted
        photo, given = np.load({str(tmp_path / "photo.npy")!r}), np.load("given.npz")
        model = prompted.Model()
        print(json.dumps(model.run(photo, **given)["logits"].tolist()))
        for wrong in ({{}}, {{"scale": given["scale"]}}, {{**given, "scale": np.ones(3)}}):
            try:
                model.run(photo, **wrong)
            except (TypeError, ValueError) as error:
                print(error)
    """
    np.save(tmp_path / "photo.npy", PHOTOS[0])
    done = subprocess.run([sys.executable, "-c", code], cwd=package, capture_output=True, text=True)
    answer, nothing, lacking, shape = done.stdout.splitlines()
    np.testing.assert_allclose(json.loads(answer), expected(1), rtol=1e-3, atol=1e-4)
    assert "takes scale, centres, but got nothing" in nothing
    assert "but got scale" in lacking
    assert shape == "scale is [8], but got [3]"


def test_targets_that_take_the_image_alone_say_so(monkeypatch) -> None:
    from repedge import passes
    from repedge.targets import get
    from repedge.targets.base import Target

    source = resolve(Prompted(), input_size=24, inputs={"scale": SCALES, "centres": CENTRES})
    graph = source.graph()
    passes.clean(graph)
    target = get("tflite")
    assert not target.refused(graph)

    monkeypatch.setattr(type(target), "tensors", Target.tensors)
    refused = target.refused(graph)
    assert [(u.node, u.op) for u in refused] == [("scale", "input"), ("centres", "input")]
    assert "--input-value scale=VALUE" in refused[0].why
