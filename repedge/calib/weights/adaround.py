"""AdaRound: whether each weight goes up or down, learned by gradient through a rectified sigmoid.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv:2004.10568, section 3.3.
The paper draws a layer's inputs anew in every step. What it then minimizes, the mean square of the change
that rounding makes at the layer's output, is the quadratic form ``d H d'`` of the weights' changes d and
the inputs' second moments H, so that here H stands for all inputs at once: a step is one product of
matrices, exact instead of sampled, and needs no image. H is centred, for bias correction follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Schedule:
    """How long and how hard weights are pulled to their integers.

    Attributes:
        steps: Of Adam.
        rate: Adam's learning rate, of V.
        weight: Of the regularizer ``sum 1 - |2 h(V) - 1|^beta``, relative to the mean error that
            rounding one weight leaves.
        warm_up: Share of the steps without the regularizer.
        beta: Its exponent after the warm-up and at the end; falls along a cosine.
    """

    steps: int = 500
    rate: float = 0.05
    weight: float = 3.0
    warm_up: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)

    def beta_at(self, step: int) -> float | None:
        """The exponent in this step, or None while warming up."""
        begin = self.warm_up * self.steps
        if step < begin:
            return None
        along = (step - begin) / max(self.steps - begin, 1)
        return self.beta[1] + (self.beta[0] - self.beta[1]) * 0.5 * (1 + float(np.cos(np.pi * along)))


ZETA, GAMMA = 1.1, -0.1
"""The sigmoid is stretched to (GAMMA, ZETA) and clipped to [0, 1], so that it gets to the ends."""


def learn(exact: np.ndarray, h: np.ndarray, start: np.ndarray, limit: int, schedule: Schedule) -> np.ndarray:
    """Integers that ``d H d'`` of each row is small for, from a rounding that is good already.

    Each weight has two integers to choose from: the start's, and its neighbour on the exact weight's
    side (the start may lie further off than the nearest two, where it makes up for other weights).
    Nothing is random: the same input gives the same integers.

    Args:
        exact: Weights over scale, float64 [G, O, K].
        h: What the filters of each group read, centred second moments, float64 [G, K, K].
        start: Integers [G, O, K].
        limit: Greatest magnitude.
        schedule: Steps and weights.

    Returns:
        Integers as float64 [G, O, K], which may be worse than the start's.
    """
    low = np.where(start > exact, start - 1, start).clip(-limit, limit - 1)
    unit = np.einsum("gkk->g", h) / h.shape[1]
    # In units of what a weight that is off by one leaves: one rate then fits all layers.
    moments = torch.from_numpy((h / np.maximum(unit, 1e-30)[:, None, None]).astype(np.float32))
    offset = torch.from_numpy((low - exact).astype(np.float32))
    middle = np.clip((exact - low + start - low) / 2, 0.05, 0.95)
    v = torch.from_numpy(np.log((middle - GAMMA) / (ZETA - middle)).astype(np.float32))
    optimizer = torch.optim.Adam([v], lr=schedule.rate)
    for step in range(schedule.steps):
        sigmoid = torch.sigmoid(v)
        soft = (sigmoid * (ZETA - GAMMA) + GAMMA).clamp_(0, 1)
        gradient = torch.matmul(soft + offset, moments).mul_(2)
        beta = schedule.beta_at(step)
        if beta is not None:
            away = 2 * soft - 1
            gradient -= schedule.weight / 12 * 2 * beta * away.sign() * away.abs().pow_(beta - 1)
        inside = (soft > 0) & (soft < 1)
        v.grad = gradient * inside * sigmoid * (1 - sigmoid) * (ZETA - GAMMA)
        optimizer.step()
    up = (torch.sigmoid(v) >= 0.5).numpy()
    return low + up
