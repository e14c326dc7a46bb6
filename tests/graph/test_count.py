"""Parameters and multiply-accumulates of a graph."""

from __future__ import annotations

import onnx.parser
import pytest
from torch import nn

from repedge.errors import UserError
from repedge.graph.count import count
from repedge.graph.export import export_module
from repedge.graph.serde import from_proto
from repedge.models.registry import create

SHAPE = (1, 4, 8, 10)


@pytest.mark.parametrize(
    ("module", "macs"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), 6 * 8 * 10 * 2 * 9),
        (nn.Conv2d(4, 6, (1, 3), stride=2), 6 * 4 * 4 * 4 * 3),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), 4 * 8 * 10 * 3 * 4),
        (nn.Sequential(nn.Flatten(), nn.Linear(320, 7)), 320 * 7),
        (nn.Linear(10, 3), 4 * 8 * 10 * 3),
        (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)), 0),
    ],
)
def test_macs_and_parameters(module, macs):
    counts = count(export_module(module, SHAPE))
    assert counts.macs == macs
    assert counts.params == sum(p.numel() for p in module.parameters())


def test_a_named_network_has_pytorchs_parameters():
    module = create("repvit_demo")
    counts = count(export_module(module, (1, 3, 32, 32)))
    assert counts.params == sum(p.numel() for p in module.parameters())
    assert counts.nodes == sum(counts.ops.values())
    assert list(counts.ops.values()) == sorted(counts.ops.values(), reverse=True)
    convs = sum(isinstance(m, nn.Conv2d) for m in module.modules())
    assert counts.ops["Conv"] == convs


def test_macs_are_per_image():
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (float[5,6] x, float[6,7] w) => (float[5,7] y) { y = MatMul(x, w) }"""
    assert count(from_proto(onnx.parser.parse_model(text))).macs == 6 * 7


def test_unknown_shapes_are_an_error():
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N,6] x, float[6,7] w) => (float[N,7] y) { y = MatMul(x, w) }"""
    with pytest.raises(UserError, match="not fixed"):
        count(from_proto(onnx.parser.parse_model(text)))
