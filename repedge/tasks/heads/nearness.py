"""How far apart two detectors' answers are, differentiable: what calibration minds beyond the numbers.

A candidate counts by what it is to be found for: its scores by their Kullback-Leibler divergence, class by
class, which is large where an object comes or goes and next to nothing among thousands of background; its
box by the score that the float network gives it, in strides or in its own size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from repedge.tasks.heads.head import Head, Place

if TYPE_CHECKING:
    import torch

LEAST = 1e-6
"""Probabilities are held so far from 0 and 1."""

BOX = 1.0
"""Nats that a box counts which is off by its own size, or by a stride."""


def nearness(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor], head: Head) -> torch.Tensor:
    """Nats an object that the float network finds, one more counted in each image: [n].

    Args:
        got, want: Every output, [n, ...] each, of the network in question and of the float one.
        head: What they hold.
    """
    mine, theirs = _probabilities(got, head), _probabilities(want, head)
    nats = theirs * (theirs / mine).log() + (1 - theirs) * ((1 - theirs) / (1 - mine)).log()
    sure = theirs.amax(-1)
    off = (_boxes(got, head) - _boxes(want, head)).abs() / _measure(_boxes(want, head), head)
    total = nats.sum((1, 2)) + BOX * (sure * off.mean(-1)).sum(1)
    return total / (1 + sure.sum(1))


def curvature(
    outputs: Sequence[torch.Tensor], signs: Callable[[torch.Tensor], torch.Tensor], head: Head
) -> list[torch.Tensor | None]:
    """Random vectors v with ``E v v'`` half the second derivative of the scores' share of `nearness`.

    That of a divergence of p is 1 / (p (1 - p)); from the probabilities it is brought to the outputs by
    their slopes. What boxes add is no square, and is left out.

    Args:
        outputs: Of the float network, [n, ...] each.
        signs: Gives random signs in the shape of a tensor.
        head: What they hold.
    """
    import torch

    with torch.enable_grad():
        given = [y.detach().requires_grad_(True) for y in outputs]
        p = _probabilities(given, head)
        fixed = p.detach()
        weight = 1 / (2 * fixed * (1 - fixed) * (1 + fixed.amax(-1).sum(1))[:, None, None])
        found = torch.autograd.grad((signs(fixed) * weight.sqrt() * p).sum(), given, allow_unused=True)
    return list(found)


def _probabilities(outputs: Sequence[torch.Tensor], head: Head) -> torch.Tensor:
    """Of each class, background left out, [n, candidates, classes]."""
    import torch

    scores = _column(outputs, head, "class")
    if head.activation != "none":
        scores = scores.softmax(-1) if head.activation == "softmax" else scores.sigmoid()
    if head.background is not None:
        kept = [i for i in range(scores.shape[-1]) if i != head.background]
        scores = scores[..., kept]
    if head.sources[0].objectness is not None:
        objectness = _column(outputs, head, "objectness")
        scores = scores * (objectness.sigmoid() if head.activation == "sigmoid" else objectness)
    return torch.clamp(scores, LEAST, 1 - LEAST)


def _boxes(outputs: Sequence[torch.Tensor], head: Head) -> torch.Tensor:
    """Four numbers of each candidate, [n, candidates, 4]."""
    import torch

    box = _column(outputs, head, "box")
    if head.coding == "anchors":
        return 2 * box.sigmoid()
    if head.bins == 1:
        return box
    n, candidates, _ = box.shape
    bins = torch.arange(head.bins, dtype=box.dtype, device=box.device)
    return (box.reshape(n, candidates, 4, head.bins).softmax(-1) * bins).sum(-1)


def _measure(box: torch.Tensor, head: Head) -> torch.Tensor | float:
    """What a box's errors are measured by, [n, candidates, 4] or a number: 1 where it is in strides."""
    import torch

    if head.coding in ("corners", "center"):
        sides = box[..., 2:] - box[..., :2] if head.coding == "corners" else box[..., 2:]
        least = 1.0 if head.unit == "pixels" else 1.0 / max(head.size)
        return torch.cat([sides, sides], -1).abs().clamp_min(least)
    if head.coding != "distances" or head.unit == "cells":
        return 1.0
    strides = [level.stride for level in head.levels for _ in range(level.rows)]
    return torch.tensor(strides, dtype=box.dtype, device=box.device)[:, None]


def _column(outputs: Sequence[torch.Tensor], head: Head, kind: str) -> torch.Tensor:
    import torch

    return torch.cat([_rows(outputs, source.places[kind]) for source in head.sources], 1)


def _rows(outputs: Sequence[torch.Tensor], place: Place) -> torch.Tensor:
    """As `repedge.tasks.heads.decode.rows`."""
    y = outputs[place.output].movedim(place.axis, -1)
    n = y.shape[0]
    y = y.reshape(n, -1, place.repeats, y.shape[-1] // place.repeats)[..., place.start : place.stop]
    return y.transpose(1, 2).reshape(n, -1, place.stop - place.start)
