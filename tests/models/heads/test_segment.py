"""Dilated VGG16, its context module, and LR-ASPP."""

import numpy as np
import pytest
import torch

from repedge.models.heads.segment import LRASPP, DilatedVGG16, LRASPPHead
from repedge.models.registry import spec

VGG16 = 14_714_688  # parameters of VGG16's convolutions


def test_sizes_follow_from_the_paper():
    with torch.device("meta"):
        plain, full = DilatedVGG16(), DilatedVGG16(context=True)
    fc6, fc7, final = 512 * 4096 * 49 + 4096, 4096 * 4096 + 4096, 4096 * 21 + 21
    assert sum(p.numel() for p in plain.parameters()) == VGG16 + fc6 + fc7 + final
    context = 7 * (21 * 21 * 9 + 21) + 21 * 21 + 21
    assert sum(p.numel() for p in full.parameters()) == VGG16 + fc6 + fc7 + final + context
    assert {"conv5_3.weight", "fc6.weight", "ctx_conv5_1.bias", "ctx_final.weight"} <= set(full.state_dict())


@pytest.mark.slow
def test_a_fresh_context_module_changes_nothing():
    """Identity initialization: positive scores pass as they are."""
    torch.manual_seed(0)
    network = DilatedVGG16(num_classes=3, context=True).eval()
    with torch.inference_mode():
        network.final.weight.abs_()
        network.final.bias.abs_()
        image = torch.randn(1, 3, 40, 56)
        full = network(image)
        network.context = False
        np.testing.assert_allclose(full.numpy(), network(image).numpy(), rtol=1e-5)
    assert full.shape == (1, 3, 40, 56)


def test_dilation_sees_nearly_as_much_as_the_poolings_did():
    """fc6 sees 380 pixels a side: VGG16's 404 less 8 and 16 of the two poolings themselves."""
    with torch.device("meta"):
        network = DilatedVGG16(num_classes=1)
    image = torch.ones(1, 1, 480, 480, requires_grad=True)
    x = image
    for name, pooled in network.plan:  # one channel of positive weights: what is seen has a gradient
        layer = network.get_submodule(name)
        assert isinstance(layer, torch.nn.Conv2d)
        padding, dilation = int(layer.padding[0]), layer.dilation[0]
        weight = torch.full((1, 1, *layer.kernel_size), 0.1)
        x = torch.nn.functional.avg_pool2d(x, 2) if pooled else x
        x = torch.nn.functional.conv2d(x, weight, None, 1, padding, dilation)
    x[0, 0, 30, 30].backward()
    columns = image.grad[0, 0].abs().sum(0).nonzero()
    assert int(columns.max() - columns.min()) + 1 == 380


def test_lraspp_is_the_heads_formula():
    """Once more with matrices: two 1x1 convolutions, a gate, a sum."""
    torch.manual_seed(0)
    head = LRASPPHead(5, 7, 3, inner=4).double().eval()
    low, high = torch.randn(1, 5, 4, 4).double(), torch.randn(1, 7, 4, 4).double()
    w = {k: v.squeeze().numpy() for k, v in head.state_dict().items()}
    l, h = low[0].flatten(1).numpy(), high[0].flatten(1).numpy()
    cbr = w["cbr.0.weight"] @ h / np.sqrt(1 + 1e-5)
    gate = 1 / (1 + np.exp(-(w["scale.1.weight"] @ h.mean(1))))
    inner = np.maximum(cbr, 0) * gate[:, None]
    want = (
        w["low_classifier.weight"] @ l + w["low_classifier.bias"][:, None]
        + w["high_classifier.weight"] @ inner + w["high_classifier.bias"][:, None]
    )  # fmt: skip
    with torch.inference_mode():
        np.testing.assert_allclose(head(low, high)[0].flatten(1).numpy(), want, rtol=1e-9)


@pytest.mark.slow
def test_lraspp_on_repvit_gives_a_map_of_the_photos_size():
    network = LRASPP(**spec("repvit_m0_9").config, num_classes=11).eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 3, 96, 128)).shape == (1, 11, 96, 128)
