"""Affine maps through Concat, Split, Slice, Reshape and Transpose: into the layers, each with its share."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from exported import Fn
from fuse_blocks import randomized
from torch import nn

from repedge import passes
from repedge.compiler.reference import Outcome
from repedge.errors import CheckFailed
from repedge.graph.export import export
from repedge.graph.run import Session
from repedge.graph.serde import save_onnx
from repedge.passes.fusion import carry
from repedge.passes.fusion.certificate import Certificate


class Mixed(nn.Module):
    """Kernels of three sizes on parts of the map, one BatchNorm over all; one over a part, too."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.part = nn.Conv2d(4, 12, 1), nn.BatchNorm2d(4)
        kernels = (3, 5, 7)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, k, 1, k // 2, groups=4, bias=False) for k in kernels)
        self.norm, self.after = nn.BatchNorm2d(12), nn.Conv2d(12, 3, 1)

    def forward(self, x):
        a, b, c = self.before(x).chunk(3, 1)
        parts = [conv(y) for conv, y in zip(self.convs, (a, self.part(b), c), strict=True)]
        return self.after(self.norm(torch.cat(parts, 1)).relu())


class Tokens(nn.Module):
    """A linear layer over tokens, BatchNorm over the flattened ones, a scale per channel."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6, bias=bias), nn.BatchNorm1d(6)
        self.gamma = nn.Parameter(torch.linspace(-1, 2, 6))

    def forward(self, x):
        y = self.linear(x.flatten(2).transpose(1, 2))
        return self.norm(y.flatten(0, 1)).reshape_as(y) * self.gamma


class Cut(nn.Module):
    """Two parts of a map, some channels of it unused, a BatchNorm each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.conv(x)
        return self.a(y[:, :3]), self.b(y[:, 6:]).relu()


class Turned(nn.Module):
    """Channels last, and a map as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 2, 2), nn.BatchNorm1d(8)
        self.up, self.flat, self.both = nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        small = x[:, :, :4, :5]
        turned = self.conv(x).permute(0, 2, 3, 1).permute(0, 3, 1, 2)
        return self.norm(turned.flatten(2)).mT, self.both(torch.cat([self.up(small), self.flat(x)], 1))


def cleaned(module: nn.Module) -> tuple[Counter, Certificate, float]:
    """Operators of the clean graph, the certificate, and the outputs' difference from torch's."""
    exported = export(randomized(module).eval(), (1, 4, 8, 10))
    certificate = passes.clean(exported.model)
    got = Session(exported.model, 1, optimize=False).run(exported.input)
    worst = max(
        float(np.abs(g - want).max() / np.abs(want).max())
        for g, want in zip(got, exported.outputs, strict=True)
    )
    return Counter(n.op_type for n in exported.model.graph), certificate, worst


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (Mixed(), {"norm/BatchNormalization", "part/BatchNormalization"}),
        (Tokens(bias=True), {"norm/BatchNormalization", "Mul"}),
        (Tokens(bias=False), {"norm/BatchNormalization", "Mul"}),
        (Cut(), {"a/BatchNormalization", "b/BatchNormalization"}),
        (Turned(), {"norm/BatchNormalization", "both/BatchNormalization"}),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_every_layer_takes_its_share(module, names):
    ops, certificate, worst = cleaned(module)
    assert not ops.keys() & {"BatchNormalization", "Mul"}
    assert not any("BatchNormalization" in n for left in certificate.unfused for n in left.nodes)
    assert names <= {n for merge in certificate.merges for n in merge.nodes}
    assert all(m.error < 1e-12 and m.cast_error < 1e-6 for m in certificate.merges)
    assert worst < 2e-6


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda conv, x: torch.cat([conv(x), x.relu()], 1), "it reaches Relu"),
        (lambda conv, x: torch.cat([conv(x)] * 2, 1), "read elsewhere"),
        (lambda conv, x: torch.cat([c := conv(x).split([1, 7], 2)[1], c.relu()], 1), "read elsewhere"),
        (lambda conv, x: torch.cat([*conv(x).split([4, 4], 2)], 1), "cuts another axis"),
        (lambda conv, x: conv(x).reshape(1, 8, 4, 10), "takes the channels apart"),
    ],
)
def test_what_cannot_be_shared_out_stays(function, reason):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.norm(function(self.conv, x))

    ops, certificate, worst = cleaned(Net())
    assert ops["BatchNormalization"] == 1
    assert any(reason in left.reason for left in certificate.unfused)
    assert worst < 2e-6


def test_parts_that_change_places_are_shares_of_one_layer():
    conv, norm = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)
    module = Fn(lambda x: norm(torch.cat(conv(x).chunk(2, 1)[::-1], 1)))
    module.conv, module.norm = conv, norm
    ops, _, worst = cleaned(module)
    assert ops == {"Conv": 1, "Split": 1, "Concat": 1}
    assert worst < 2e-6


def test_a_part_that_something_else_reads_keeps_its_values():
    conv, norm = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(4)
    module = Fn(lambda x: (norm(conv(x).chunk(2, 1)[0]), conv(x).sum(1)))
    module.conv, module.norm = conv, norm
    _, _, worst = cleaned(module)
    assert worst < 2e-6


def test_a_share_in_the_wrong_place_is_caught(monkeypatch, tmp_path):
    """Each merge is exact by itself; only the whole shows that the channels were mixed up."""
    right = carry._through_concat

    def swapped(share, node):
        first, *others = right(share, node)
        yield carry.Share(first.value, first.axis, first.scale[::-1], first.shift[::-1])
        yield from others

    monkeypatch.setitem(carry.MOVES, "Concat", swapped)
    exported = export(randomized(Mixed()).eval(), (1, 4, 8, 10))

    save_onnx(exported.model, tmp_path / "unfused.onnx")
    known = Outcome(exported.input, list(exported.outputs), tmp_path / "unfused.onnx")
    with pytest.raises(CheckFailed, match="the fused graph differs"):
        passes.clean(exported.model, random=known)
