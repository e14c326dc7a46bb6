"""Outputs whose first axis is not that of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from calib_nets import images
from torch import nn

import repedge
from repedge.bundle.folder import Bundle
from repedge.judge.verification import open_bundle
from repedge.photos.images import normalise

PHOTOS = [
    (np.clip(p[:, :24, :24] * 0.2 + 0.45, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    for p in images(24, 48)
]


class Recognizer(nn.Module):
    """Letters at each step, [T, N, C], and a squeezed vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 12))
        )
        self.a, self.b = nn.Linear(16, 24), nn.Linear(24, 7)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        f = self.stem(x)
        steps = self.b(torch.relu(self.a(f.squeeze(2).permute(2, 0, 1))))
        return {"letters": steps, "mean": f.mean((2, 3)).squeeze()}


def build(model, target: str, precision: str, out: Path) -> Bundle:
    more: dict[str, Any] = {"calib": PHOTOS, "recipe": "fast"} if precision == "w8a8" else {}
    with pytest.warns(UserWarning, match="'letters' is \\[1, 12, 7\\] instead of \\[12, 1, 7\\]"):
        report = repedge.compile(
            model, input_size=24, resize="squash", targets=[target], precisions=[precision], out=out,
            images=PHOTOS[:8], **more,
        )  # fmt: skip
    assert report.passed
    return Bundle.open(report.bundles[0].path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
@pytest.mark.parametrize("target", ["tflite", "openvino", "coreml", "gpu"])
def test_steps_first_become_images_first_with_every_number_in_place(
    target: str, precision: str, tmp_path: Path
) -> None:
    bundle = build(Recognizer().eval(), target, precision, tmp_path)
    assert [t.shape[1:] for t in bundle.manifest.outputs] == [(12, 7), (16,)]
    pixels = np.stack(PHOTOS[:5])
    x = torch.from_numpy(normalise(pixels, bundle.manifest.preprocess))
    module = Recognizer().eval()
    with torch.no_grad():
        want = [[y.numpy().reshape(-1) for y in module(x[i : i + 1]).values()] for i in range(5)]
    got = open_bundle(bundle)[1].run(pixels)
    for i, name in enumerate(("letters", "mean")):
        exact = np.stack([row[i] for row in want])
        noise = ((got[i].reshape(5, -1) - exact) ** 2).sum()
        assert 10 * np.log10((exact**2).sum() / noise) > (100 if precision == "fp32" else 22), name


@pytest.mark.slow
def test_a_file_of_steps_first_is_held_against_itself(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        Recognizer().eval(), (torch.zeros(1, 3, 24, 24),), path, dynamo=True, opset_version=18, verbose=False,
        output_names=["letters", "average"],
    )  # fmt: skip
    session = ort.InferenceSession(str(path))
    assert session.get_outputs()[0].shape == [12, 1, 7]
    bundle = build(str(path), "openvino", "fp32", tmp_path)
    x = normalise(np.stack(PHOTOS[:1]), bundle.manifest.preprocess)
    want = session.run(None, {session.get_inputs()[0].name: x})[0]
    np.testing.assert_allclose(open_bundle(bundle)[1].run(np.stack(PHOTOS[:1]))[0][0], want[:, 0], atol=1e-4)
