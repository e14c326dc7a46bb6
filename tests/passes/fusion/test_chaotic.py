"""Networks that are chaotic on noise: float32 itself is far from float64, and exact fusing is still told."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from repedge import passes
from repedge.compiler.reference import Outcome
from repedge.errors import CheckFailed
from repedge.graph.analysis.resolution import ROUNDINGS, SINGLE, resolution, roundings
from repedge.graph.export import export_module
from repedge.graph.load import save_onnx
from repedge.graph.run import Session
from repedge.graph.values import const


class Chaotic(nn.Module):
    """Each layer mixes the channels, and folds what is large: numbers of 2 a few times, of 0.5 not at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)) for _ in range(8)
        )
        for layer in self.layers:
            assert isinstance(layer, nn.Sequential)
            nn.init.orthogonal_(layer[0].weight)  # type: ignore[arg-type]
            layer[1].running_mean.normal_(std=0.02)  # type: ignore[operator, union-attr]
            layer[1].running_var.uniform_(0.9, 1.1)  # type: ignore[operator, union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            y = layer(x)
            x = 0.8 * y + torch.sin(0.5 * y * y * y)
        return x


@pytest.fixture(scope="module")
def chaotic(tmp_path_factory: pytest.TempPathFactory) -> tuple[ir.Model, Outcome, np.ndarray]:
    """The graph, what it makes of noise, and what the module makes of it in float64."""
    module = Chaotic().eval()
    graph = export_module(module, (1, 3, 24, 24))
    path = tmp_path_factory.mktemp("chaotic") / "graph.onnx"
    save_onnx(graph, path)
    x = np.random.default_rng(0).normal(size=(1, 3, 24, 24)).astype(np.float32)
    with torch.no_grad():
        exact = module.double()(torch.from_numpy(x).double()).numpy()
    return graph, Outcome(x, Session(path).run(x), path), exact


def test_what_rounding_does_is_foretold_where_larger_errors_saturate(
    chaotic: tuple[ir.Model, Outcome, np.ndarray],
) -> None:
    graph, noise, exact = chaotic
    wrong = np.abs(noise.outputs[0] - exact).max() / np.abs(exact).max()
    assert wrong > 1e-3  # else it is not what this test is about
    found = resolution(graph, noise.inputs)
    assert 0.05 < roundings(noise.outputs, [exact], found) < ROUNDINGS / 2
    by_large_errors = SINGLE * found[0].relative
    assert np.abs(noise.outputs[0] - exact).max() > ROUNDINGS * by_large_errors.max()


def test_exact_fusing_is_told_on_fainter_noise(chaotic: tuple[ir.Model, Outcome, np.ndarray]) -> None:
    graph, noise, _ = chaotic
    certificate = passes.clean(graph.clone(), random=noise)
    assert len(certificate.merges) == 8
    (found,) = certificate.end_to_end
    assert found.scale < 1
    assert found.max_rel_err < 1e-5
    assert found.roundings is None


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_wrong_fusing_is_still_seen(
    wrong: float, chaotic: tuple[ir.Model, Outcome, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bias of eight layers is off by a thousandth: less than what rounding does on the full noise."""
    from repedge.passes.fusion import fuse

    original = fuse.fuse

    def planted(model: ir.Model) -> Any:
        found = original(model)
        bias = next(v for v in model.graph.initializers.values() if v.shape == ir.Shape([3]))
        bias.const_value = ir.tensor(const(bias) + np.array([0, wrong, 0], np.float32), name=bias.name)
        return found

    monkeypatch.setattr("repedge.passes.fuse", planted)
    graph, noise, _ = chaotic
    with pytest.raises(CheckFailed, match="the fused graph differs from the unfused one by .* on random"):
        passes.clean(graph.clone(), random=noise)
