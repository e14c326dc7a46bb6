"""Matching Networks (Vinyals et al., NeurIPS 2016, arXiv:1606.04080) with RepViT as the embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import normalize, one_hot

from repedge.models.repvit import RepViTFeatures


def attention(query: torch.Tensor, support: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Probabilities of labels: softmax over cosines to a support set, summed by label (equation 1).

    Args:
        query: Embeddings of length 1, [n, d].
        support: Likewise, [k, d].
        labels: Of each support, one-hot, [k, ways].

    Returns:
        [n, ways].
    """
    return (query @ support.T).softmax(-1) @ labels


class Matching(nn.Module):
    """An embedding, or with a support set baked in a classifier.

    Args:
        widths, depths: Of the RepViT.
        in_channels: Channels of the input image.

    Returns:
        Without a support set embeddings of length 1, [n, ``widths[3]``]; else probabilities, [n, ways].
    """

    support: torch.Tensor | None
    labels: torch.Tensor | None

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        *,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.embedder = RepViTFeatures(widths, depths, in_channels=in_channels)
        self.register_buffer("support", None)
        self.register_buffer("labels", None)

    def embedding(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings of images [n, C, H, W]."""
        return normalize(self.embedder(x)[-1].mean((2, 3)), dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.embedding(x)
        if self.support is None or self.labels is None:
            return query
        return attention(query, self.support, self.labels)

    @torch.no_grad()
    def bake(self, images: torch.Tensor, labels: Sequence[int]) -> Matching:
        """Make the network a classifier of a support set's labels.

        Args:
            images: [k, C, H, W], as the network takes them.
            labels: Of each, from 0 up without gaps.

        Raises:
            ValueError: The labels don't fit the images, or are of fewer than two classes.
        """
        numbers = torch.as_tensor(labels)
        ways = set(numbers.tolist())
        if len(numbers) != len(images) or ways != set(range(len(ways))) or len(ways) < 2:
            raise ValueError(
                f"{len(images)} images have the labels {sorted(ways)}; two or more, from 0 up, are needed"
            )
        self.support = self.embedding(images)
        self.labels = one_hot(numbers).to(self.support.dtype)
        return self
