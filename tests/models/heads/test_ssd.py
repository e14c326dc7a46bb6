"""SSD: priors, decoding and sizes of the paper and its PyTorch ports."""

import numpy as np
import pytest
import torch

from repedge.models.heads.ssd import SSD300, L2Norm, SSDLite
from repedge.models.registry import spec

REPVIT = spec("repvit_m0_9").config


@pytest.fixture(scope="module")
def ssd():
    torch.manual_seed(0)
    with torch.device("meta"):
        return SSD300()


def test_ssd300_has_the_ports_size_and_keys(ssd):
    assert sum(p.numel() for p in ssd.parameters()) == 26_285_486  # ssd.pytorch, VOC
    keys = {k: tuple(v.shape) for k, v in ssd.state_dict().items()}
    assert keys["vgg.31.weight"] == (1024, 512, 3, 3)
    assert keys["vgg.33.weight"] == (1024, 1024, 1, 1)
    assert keys["L2Norm.weight"] == (512,)
    assert keys["extras.7.weight"] == (256, 128, 3, 3)
    assert keys["loc.1.weight"] == (24, 1024, 3, 3)
    assert keys["conf.5.bias"] == (84,)
    assert not any("prior" in k for k in keys)


def test_priors_are_the_papers():
    cells = [(c, c) for c in (38, 19, 10, 5, 3, 1)]
    found = SSD300.boxes(None, cells)
    assert found.shape == (8732, 4)
    # conv4_3's first cell: 30 pixels, sqrt(30 * 60), and 2:1 both ways, around (4, 4)
    side, long, short = 1800**0.5, 30 * 2**0.5, 30 / 2**0.5
    want = [[4, 4, 30, 30], [4, 4, side, side], [4, 4, long, short], [4, 4, short, long]]
    np.testing.assert_allclose(found[:4].numpy() * 300, want, rtol=1e-5)
    # the last map's one cell: the middle of the image
    np.testing.assert_allclose(found[-4].numpy(), [0.5, 0.5, 264 / 300, 264 / 300], rtol=1e-6)


def test_l2norm_is_a_length():
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    y = L2Norm(8).double()(x)
    np.testing.assert_allclose(y.square().sum(1).sqrt().detach().numpy(), 20, rtol=1e-6)


@pytest.mark.slow
def test_ssdlite_answers_with_boxes_and_probabilities():
    torch.manual_seed(0)
    network = SSDLite(**REPVIT, num_classes=4).eval()
    image = torch.randn(2, 3, 128, 160)
    with torch.inference_mode():
        found = network(image)
        network.training = True
        offsets, logits = network(image)
    count = 6 * (8 * 10 + 4 * 5 + 2 * 3 + 1 * 2 + 1 + 1)
    assert found["boxes"].shape == (2, count, 4)
    assert len(network.priors) == 6 * (20**2 + 10**2 + 5**2 + 3**2 + 2**2 + 1)  # of 320 pixels
    np.testing.assert_allclose(found["scores"].sum(-1).numpy(), 1, rtol=1e-5)
    np.testing.assert_allclose(found["scores"].numpy(), logits.softmax(-1).numpy())
    cells = [(8, 10), (4, 5), (2, 3), (1, 2), (1, 1), (1, 1)]
    prior, t = network.boxes(cells).double().numpy(), offsets.double().numpy()
    x, y = (prior[:, i] + 0.1 * t[..., i] * prior[:, i + 2] for i in (0, 1))
    w, h = (prior[:, i] * np.exp(0.2 * t[..., i]) for i in (2, 3))
    want = np.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), -1)
    np.testing.assert_allclose(found["boxes"].numpy(), want, rtol=1e-4, atol=1e-5)
