"""How far a network's answers are from the float one's: what every choice of calibration is made by.

Every output counts, by its relative mean square error; what the task makes of the outputs
(`repedge.tasks.base.Task.nearness`: for class scores their KL divergence) counts beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir
import torch

from repedge import tasks
from repedge.calib.simulation.simulator import Outputs
from repedge.tasks.base import Task

SQUARE = 0.25
"""Weight of the square beside the nearness: it still tells networks apart that are so sure of themselves
that their softmax is 0 and 1."""

TINY = 1e-30

Array = TypeVar("Array", np.ndarray, torch.Tensor)


class Distance:
    """From the answers of one network's float form.

    Args:
        task: What the outputs mean.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    @classmethod
    def of(cls, model: ir.Model) -> Distance:
        """By what the graph's own outputs say they are."""
        return cls(tasks.of_graph(model))

    def alone(self, outputs: Sequence[Array]) -> list[Array]:
        """The outputs, or the parts of those that hold numbers of different kinds: each counts alone."""
        found = []
        for output, y in zip(self.task.outputs, outputs, strict=True):
            found += [y[part.index] for part in output.parts] or [y]
        return found

    def cost(self, want: Outputs, got: Outputs) -> float:
        """The cost of many images as a whole.

        Args:
            want, got: Every output, float32 [N, ...], of the float network and of the one in question.
        """
        square = sum(
            _relative(w.astype(np.float64), g.astype(np.float64))
            for w, g in zip(self.alone(want), self.alone(got), strict=True)
        )
        wide = [[torch.from_numpy(y.astype(np.float64)) for y in side] for side in (got, want)]
        near = self.task.nearness(*wide)
        return square if near is None else float(near.mean()) + SQUARE * square

    def error(self, got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> torch.Tensor:
        """Sum over images, differentiable: `squares` plus the nearness.

        The square counts more than in `cost`: the nearness alone hangs on the few classes that an image may
        be of, and is soon fitted to the training images.
        """
        square = squares(self.alone(got), self.alone(want)).sum()
        near = self.task.nearness(got, want)
        return square if near is None else square + near.sum()

    def nearness(self, got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> torch.Tensor:
        """Sum over images, differentiable: the nearness; `squares` where the task has none.

        With several outputs the squares count beside it, as in `cost`: it may know only one of them.
        """
        near = self.task.nearness(got, want)
        square = squares(self.alone(got), self.alone(want)).sum()
        if near is None:
            return square
        return near.sum() if len(got) == 1 else near.sum() + SQUARE * square

    def projections(
        self, outputs: Sequence[torch.Tensor], signs: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[torch.Tensor]:
        """Random vectors v like the outputs, with ``E v v' = M``, half the second derivative of `error`.

        Args:
            outputs: Of the float network, [n, ...] each.
            signs: Gives random signs in the shape of a tensor.
        """
        found = []
        for output, y in zip(self.task.outputs, outputs, strict=True):
            y = y if y.is_floating_point() else y.float()  # classes of pixels are whole numbers
            v = signs(y)
            for index in [part.index for part in output.parts] or [(slice(None),)]:
                power = (y[index] ** 2).flatten(1).sum(1).clamp_min(TINY)
                v[index] /= power.sqrt().reshape(-1, *[1] * (y.ndim - 1))
            found.append(v)
        for v, more in zip(found, self.task.curvature(outputs, signs), strict=True):
            if more is not None:
                v += more
        return found

    def probe(self, outputs: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor | None:
        """``u' M^(1/2) outputs`` for random signs u; None where the outputs have no slope.

        The square of its slope in anything has the second derivative of `error` as its expectation
        (Hutchinson's estimate).

        Args:
            outputs: Of the float network, [n, ...] each.
            generator: Of the signs.
        """

        def signs(y: torch.Tensor) -> torch.Tensor:
            return torch.randint(0, 2, y.shape, generator=generator).to(y.dtype).mul_(2).sub_(1)

        if not any(y.requires_grad for y in outputs):
            return None
        vectors = self.projections([y.detach() for y in outputs], signs)
        terms = [(y * v).sum() for y, v in zip(outputs, vectors, strict=True) if y.requires_grad]
        return torch.stack(terms).sum()


def squares(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean square error of each image over the mean square of its own output, summed over outputs, [N].

    Over that of all images, those that the network is sure of would count most, which int8 does not harm.
    """
    parts = [
        ((g - w) ** 2).flatten(1).mean(1) / (w**2).flatten(1).mean(1).clamp_min(TINY)
        for g, w in zip(got, want, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def image_errors(got: Outputs, want: Outputs) -> np.ndarray:
    """Mean square error of each image over the mean square of all images', summed over outputs, [N]."""
    total = np.zeros(len(got[0]))
    for g, w in zip(got, want, strict=True):
        square = ((g - w) ** 2).reshape(len(g), -1).mean(1, dtype=np.float64)
        total += square / max(float((w**2).mean()), TINY)
    return total


def _relative(want: np.ndarray, got: np.ndarray) -> float:
    return float(((want - got) ** 2).mean() / max(float((want**2).mean()), TINY))
