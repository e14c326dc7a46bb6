"""How far outputs are from the float reference, without labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Comparison:
    """Streaming comparison of outputs with their reference, over any number of batches.

    Attributes:
        n: Images seen.
        max_abs_err: Largest absolute difference.
        max_abs_ref: Largest absolute reference value.
    """

    n: int = 0
    max_abs_err: float = 0.0
    max_abs_ref: float = 0.0
    _signal: float = 0.0
    _noise: float = 0.0
    _finite: bool = True
    _agree: int = 0
    _ranked: int = 0
    _kl: float = 0.0
    flips: list[float] = field(default_factory=list)
    """For each image whose top-1 differs: the reference's margin between the two classes."""

    def update(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """Add a batch: arrays [N, ...] of one output; rank 2 is taken as logits [N, classes]."""
        ref, act = reference.astype(np.float64), actual.astype(np.float64)
        error = act - ref
        self.n += len(ref)
        self._finite &= bool(np.isfinite(act).all())
        self.max_abs_err = max(self.max_abs_err, float(np.abs(error).max(initial=0)))
        self.max_abs_ref = max(self.max_abs_ref, float(np.abs(ref).max(initial=0)))
        self._signal += float((ref**2).sum())
        self._noise += float((error**2).sum())
        if ref.ndim == 2 and ref.shape[1] > 1:
            self._rank(ref, act)

    def _rank(self, ref: np.ndarray, act: np.ndarray) -> None:
        rows = np.arange(len(ref))
        best, chosen = ref.argmax(1), act.argmax(1)
        self._ranked += len(ref)
        self._agree += int((best == chosen).sum())
        margins = ref[rows, best] - ref[rows, chosen]
        self.flips += margins[best != chosen].tolist()
        log_p, log_q = log_softmax(ref), log_softmax(act)
        self._kl += float((np.exp(log_p) * (log_p - log_q)).sum())

    @property
    def finite(self) -> bool:
        """Whether no NaN or infinity was seen in the outputs."""
        return self._finite

    @property
    def max_rel_err(self) -> float:
        """Largest absolute error over the largest absolute reference value."""
        return self.max_abs_err / self.max_abs_ref if self.max_abs_ref else self.max_abs_err

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio in dB, capped at 200 (no error at all)."""
        if not self._finite:
            return -math.inf
        if self._noise == 0:
            return 200.0
        if self._signal == 0:
            return -math.inf
        return min(200.0, 10 * math.log10(self._signal / self._noise))

    @property
    def agree_top1(self) -> float | None:
        """Share of images with the reference's top-1 class; None where the output is no logits."""
        return self._agree / self._ranked if self._ranked else None

    @property
    def kl(self) -> float | None:
        """Mean KL divergence softmax(reference) || softmax(actual) in nats; None as above."""
        return self._kl / self._ranked if self._ranked else None


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Log-softmax over the last axis, in the input's precision."""
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
