"""Which class an embedding is of, by examples: the attention of Matching Networks.

Vinyals et al., NeurIPS 2016, arXiv:1606.04080, equation 1: a softmax over the cosines to all examples, summed
by class. With one example of each class that is the nearest one.
"""

from __future__ import annotations

import numpy as np


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Scaled to length 1 over the last axis, float64; what is 0 stays so."""
    wide = np.asarray(embeddings, np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)


def probabilities(queries: np.ndarray, examples: np.ndarray, shots: int) -> np.ndarray:
    """How sure it is of each class.

    Args:
        queries: Embeddings of length 1, [n, d].
        examples: Likewise, ``shots`` of the first class, then as many of the next, [ways * shots, d].
        shots: Examples of a class.

    Returns:
        float64 [n, ways], each row summing up to 1.
    """
    cosines = queries @ examples.T
    weights = np.exp(cosines - cosines.max(1, keepdims=True))
    by_class = weights.reshape(len(queries), -1, shots).sum(2)
    return by_class / by_class.sum(1, keepdims=True)
