"""Matching Networks: an embedding, and a classifier once a support set is baked in."""

import numpy as np
import pytest
import torch

from repedge.models.heads.matching import Matching
from repedge.models.registry import spec


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Matching(**spec("repvit_m0_6").config).eval()


@pytest.mark.slow
def test_probabilities_are_softmax_over_cosines_summed_by_label(network):
    images, support = torch.randn(2, 3, 32, 32), torch.randn(5, 3, 32, 32)
    labels = [0, 1, 2, 1, 0]
    with torch.inference_mode():
        queries = network(images).double().numpy()
        known = network(support).double().numpy()
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, rtol=1e-5)
    weights = np.exp(queries @ known.T)
    weights /= weights.sum(1, keepdims=True)
    want = np.stack([weights[:, np.array(labels) == way].sum(1) for way in range(3)], 1)
    baked = Matching(**spec("repvit_m0_6").config).eval()
    baked.load_state_dict(network.state_dict())
    with torch.inference_mode():
        got = baked.bake(support, labels)(images)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4)
    assert network.support is None


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1], [0, 2, 2]])
def test_a_support_set_that_is_none(network, labels):
    with pytest.raises(ValueError, match="two or more"):
        network.bake(torch.randn(3, 3, 32, 32), labels)
