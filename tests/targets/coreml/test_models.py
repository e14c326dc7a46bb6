"""Whole networks, from the torch module to the saved Core ML package and back through the interpreter.

One is compiled unfused as well, which puts BatchNormalization and parallel branches through the lowerings.
"""

from __future__ import annotations

import numpy as np
import pytest
from coreml_helpers import job

from repedge.targets.coreml.target import CoreML


def trained(name: str):
    """A network in training form whose BatchNorms are far from the identity, as after training."""
    import torch

    from repedge.models.registry import create

    module = create(name, num_classes=10).eval()
    g = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            layer.running_mean.normal_(0, 0.1, generator=g)
            layer.running_var.uniform_(0.5, 1.5, generator=g)
            with torch.no_grad():
                layer.weight.uniform_(0.5, 1.5, generator=g)
                layer.bias.normal_(0, 0.1, generator=g)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fused"), [("repvit_m0_6", True), ("repvgg_a0", True), ("repvgg_a0", False)]
)
def test_network(name, fused, tmp_path):
    from repedge import passes
    from repedge.graph.export import export
    from repedge.passes.fusion.fuse import fuse

    exported = export(trained(name), (1, 3, 64, 64))
    graph = exported.model
    passes.canonicalize(graph)
    if fused:
        fuse(graph)
    passes.simplify(graph)
    assert CoreML().unsupported(graph) == []
    (expected,) = exported.outputs
    names = [str(v.name) for v in graph.graph.outputs]
    for precision, least in (("fp32", 90), ("fp16", 40), ("palette8", 20)):
        folder = tmp_path / precision
        folder.mkdir()
        the_job = job(precision, labels=tuple("abcdefghij"))
        artifact = CoreML().compile(graph, the_job, folder)
        (actual,) = CoreML().open(folder / artifact.main, the_job, names).run(exported.input)
        noise = np.sum((actual - expected) ** 2)
        assert 10 * np.log10(np.sum(expected**2) / noise) > least
