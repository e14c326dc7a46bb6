"""Published blocks and nets become their plain form, from the graph alone."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import fuse_blocks as blocks
import numpy as np
import pytest
import torch
from torch import nn

from repedge import passes
from repedge.errors import CheckFailed
from repedge.graph.analysis.resolution import Resolution
from repedge.graph.count import count
from repedge.graph.export import export_module
from repedge.graph.run import Session
from repedge.models import registry
from repedge.passes.fusion.certificate import Certificate, certify
from repedge.passes.fusion.fuse import fuse


def fused(module: nn.Module, size: tuple[int, int], channels: int = 8, tolerance: float = 2e-5):
    """Export, canonicalize and fuse; (graph, merges), outputs equal to the module's within ``tolerance``."""
    module = blocks.randomized(module)
    x = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = module.double()(x.double())
    model = export_module(module.float(), (1, channels, *size))
    passes.canonicalize(model)
    result = fuse(model)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for ours, theirs in zip(Session(model, 1).run(x.numpy()), expected, strict=True):
        assert np.abs(ours - theirs.numpy()).max() <= tolerance * theirs.abs().max()
    assert all(m.error < 1e-9 and m.cast_error < 1e-5 for m in result)
    return model, result


def ops(model) -> Counter:
    return Counter(node.op_type for node in model.graph)


PLAIN = {
    "MobileOne": lambda: blocks.MobileOne(8, 8),
    "MobileOne, stride 2": lambda: blocks.MobileOne(8, 12, stride=2),
    "MobileOne, depthwise": lambda: blocks.MobileOne(8, 8, groups=8, k=4),
    "ACNet": lambda: blocks.ACNet(8, 6),
    "ACNet, grouped, stride 2": lambda: blocks.ACNet(8, 4, stride=2, groups=2),
    "ACNet, dilated": lambda: blocks.ACNet(8, 8, dilation=2),
    "DBB": lambda: blocks.DBB(8, 8),
    "DBB 5x5, grouped, stride 2": lambda: blocks.DBB(8, 12, k=5, stride=2, groups=2),
    "DBB 1x1": lambda: blocks.Parallel(blocks.conv_bn(8, 8, 1), blocks.conv_bn(8, 8, 1)),
    "QARepVGG": lambda: blocks.QARepVGG(8),
    "QARepVGG, grouped": lambda: blocks.QARepVGG(8, groups=4),
    "RepOpt's CSLA": lambda: blocks.CSLA(8),
    "FastViT's RepMixer": lambda: blocks.RepMixer(8),
    "FastViT's RepMixer, 7x7": lambda: blocks.RepMixer(8, 7),
    "RepGhost": lambda: blocks.RepGhost(8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_block_becomes_one_convolution(name):
    model, result = fused(PLAIN[name](), (10, 7) if "stride" in name else (9, 11))
    assert ops(model) == {"Conv": 1}
    assert [m.kind for m in result] == ["branches"]
    assert result.left == []


def test_depthwise_stays_depthwise():
    for block in (blocks.RepMixer(8), blocks.RepGhost(8), blocks.MobileOne(8, 8, groups=8)):
        model, _ = fused(block, (9, 9))
        conv = next(iter(model.graph))
        assert conv.attributes["group"].value == 8
        assert tuple(conv.inputs[1].shape) == (8, 1, 3, 3)


class PlainPadded(nn.Module):
    """DBB's 1x1-3x3 with zeros for a border: its BN must not go through the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(blocks.conv_bn(8, 8, 1), blocks.conv_bn(8, 8, 3))
        self.dense = blocks.conv_bn(8, 8, 3)

    def forward(self, x):
        return self.chain(x) + self.dense(x)


def test_zero_padded_1x1_kxk_with_bn_stays():
    model, result = fused(PlainPadded(), (9, 9))
    assert ops(model) == {"Conv": 3, "Add": 1}
    assert any("would make folding the shift before it inexact" in left.reason for left in result.left)


def test_blocks_inside_a_larger_net():
    model, result = fused(blocks.Detector(), (37, 41), channels=3)
    found = ops(model)
    assert (found["Conv"], found["BatchNormalization"], found["Add"]) == (8, 0, 1)
    assert {m.source for m in result} == {"stem", "deep", "lateral", "neck", "boxes.0", "scores.0"}


class WrongBorder(nn.Module):
    """A border that is not what the BN before it makes of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.kernel = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 3)
        self.pad = blocks.BNAndPad(8, 1)
        self.dense = blocks.conv_bn(8, 8, 3)
        self.other = nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x):
        y = self.pad(self.point(x))
        y[:, :, :1, :] = self.other
        return self.kernel(y) + self.dense(x)


@pytest.mark.slow
def test_a_border_of_something_else_stays():
    model, _ = fused(WrongBorder(), (9, 9))
    assert ops(model)["Conv"] == 3


# --- whole nets ------------------------------------------------------------------------------------


def compiled(name: str, size: int, **options) -> tuple[Counter, Certificate]:
    """Op counts of the clean graph and the certificate with its end-to-end comparison."""
    torch.manual_seed(0)
    model = export_module(blocks.randomized(registry.create(name, **options)), (1, 3, size, size))
    before = count(model)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((1, 3, size, size)).astype(np.float32)
    outcome = SimpleNamespace(inputs=inputs, outputs=Session(model, 1).run(inputs))
    passes.canonicalize(model)
    result = fuse(model)
    passes.simplify(model)
    certificate = certify(result, before, count(model), Session(model, 1).run, outcome, outcome)
    return ops(model), certificate


@pytest.mark.slow
def test_repvgg_a0():
    found, certificate = compiled("repvgg_a0", 64)
    assert found == {"Conv": 22, "Relu": 22, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    # The deploy form's parameters as published (8.31 M); 1x1 branches cost 10 % in the training form.
    assert (certificate.params_before, certificate.params_after) == (9108968, 8309384)
    assert certificate.macs_after < certificate.macs_before
    assert [m.source for m in certificate.merges][:2] == ["stage0", "stage1.0"]
    assert certificate.unfused == ()


@pytest.mark.slow
def test_grouped_repvgg():
    plain = registry.create("repvgg_b1g2", deploy=True)
    model = registry.create("repvgg_b1g2").get_submodule("stage1").children()
    found, _ = fused(nn.Sequential(*model), (7, 7), channels=64)
    convs = [n for n in found.graph if n.op_type == "Conv"]
    wanted = [m.groups for m in plain.get_submodule("stage1").modules() if isinstance(m, nn.Conv2d)]
    assert [c.attributes["group"].value for c in convs] == wanted


@pytest.mark.slow
def test_repvit_with_two_heads():
    found, certificate = compiled("repvit_m0_6", 64, distillation=True)
    deploy = registry.create("repvit_m0_6", distillation=False)
    depthwise_branches = sum(type(m).__name__ == "RepVGGDW" for m in deploy.modules())
    convolutions = sum(isinstance(m, nn.Conv2d) for m in deploy.modules())
    assert found["BatchNormalization"] == 0
    assert found["Gemm"] == 1
    assert found["Conv"] == convolutions - depthwise_branches
    # What stays: residual sums around a GELU, and neighbours that would become dense.
    for left in certificate.unfused:
        assert "is not linear" in left.reason or "MACs" in left.reason or "inexact" in left.reason


@pytest.mark.slow
def test_certificate_is_json_and_reports_both_comparisons():
    _, certificate = compiled("repvgg_demo", 32)
    again = Certificate.model_validate_json(certificate.model_dump_json())
    assert again == certificate
    assert [c.inputs for c in again.end_to_end] == ["random", "real"]
    assert all(c.n == 1 and 0 < c.max_rel_err < 1e-5 for c in again.end_to_end)
    assert again.passed


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_a_fused_graph_that_differs_fails(wrong):
    size = SimpleNamespace(params=1, macs=1)
    x = np.ones((2, 3, 4, 4), np.float32)
    resolved = [Resolution(np.ones_like(x[:, 0]), np.ones_like(x[:, 0]))]
    outcome = SimpleNamespace(inputs=x, outputs=[x[:, 0]], resolution=lambda: resolved)
    with pytest.raises(CheckFailed, match="differs from the unfused one by .* on real inputs"):
        certify(fuse_nothing(), size, size, lambda inputs: [inputs[:, 0] * np.float32(wrong)], outcome)


def fuse_nothing():
    from repedge.passes.fusion.certificate import Fused

    return Fused()
