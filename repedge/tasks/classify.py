"""``classify``: an output scores classes, and the best one is the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from repedge.errors import UserError
from repedge.tasks import drawing
from repedge.tasks.base import Figure, Limit, Network, Scorer, Task, Truths
from repedge.tasks.comparison import Comparison
from repedge.templates import Templates

if TYPE_CHECKING:
    import torch

SHOWN = 5
"""Classes that a picture names."""

SHIP = Path(__file__).parent / "ship" / "classify"


class Classify(Task):
    """One label for an image: an output [N, classes] of logits (or probabilities).

    Every output of rank 2 with more than one column ranks classes, as auxiliary heads do; the labels name
    those of the first.
    """

    name: ClassVar[str] = "classify"
    title: ClassVar[str] = "scores of classes"
    figures: ClassVar[tuple[Figure, ...]] = (
        Figure(
            "agree_top1", "top-1 kept", phrase="agreement with float", absent="no reference", counted=True
        ),
        Figure("kl", "KL nats", "nats", "less", phrase="KL divergence"),
    )
    metrics: ClassVar[tuple[Figure, ...]] = (
        Figure("top1", "top-1", absent="no labels", counted=True),
        Figure("top5", "top-5", absent="no labels", counted=True),
    )
    drop: ClassVar[Limit | None] = Limit("top1_drop", "top-1 drop", "points", "top1")
    disagreement: ClassVar[Limit | None] = Limit(
        "disagreement", "disagreement with float", "points", "agree_top1"
    )
    divergence: ClassVar[Limit | None] = Limit("kl", "KL divergence from float", "nats", "kl")
    ship: ClassVar[Mapping[str, Templates]] = {
        "ios": Templates(SHIP / "ios", shared=SHIP),
        "android": Templates(
            SHIP / "android", {"Scores.kt": "{lower}/src/main/kotlin/repedge/{lower}/Scores.kt"}, SHIP
        ),
        "cpp": Templates(SHIP / "cpp", shared=SHIP),
        "python": Templates(SHIP / "python", shared=SHIP),
    }

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._ranked = _ranked(network)

    @classmethod
    def recognizes(cls, network: Network) -> bool:
        """Whether an output is a row of several numbers: an embedding can't be told from class scores."""
        return bool(_ranked(network))

    @classmethod
    def refusal(cls, network: Network) -> str | None:
        """There must be an output that can rank classes."""
        if _ranked(network):
            return None
        shapes = ", ".join(f"{o.name!r} {list(o.shape)}" for o in network.outputs)
        return f"no output is a row of scores, one for each class; they are {shapes}"

    def describe(self) -> str:
        """The number of classes, and where their names are from."""
        count = self.outputs[self.scores].shape[0]
        return f"scores of {count} classes" + (", named" if self.labels else "")

    @property
    def scores(self) -> int:
        """Index of the output whose classes the labels name."""
        return self._ranked[0]

    def check_labels(self) -> None:
        """There must be a label for each class."""
        output = self.outputs[self.scores]
        if self.labels and output.shape[0] != len(self.labels):
            raise UserError(
                f"there are {len(self.labels)} labels, but output {output.name!r} has {output.shape[0]} "
                "classes"
            )

    def meter(self, index: int) -> Comparison:
        """See `Task.meter`."""
        return Ranking() if index in self._ranked else Comparison()

    def nearness(self, got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """KL divergence of the softmax of each image's logits from the float network's, nats."""
        first, *others = [_divergence(got[i], want[i]) for i in self._ranked]
        for other in others:
            first = first + other
        return first

    def curvature(
        self, outputs: Sequence[torch.Tensor], signs: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """See `Task.curvature`: the second derivative of a KL divergence is diag(p) - p p'."""
        found: list[torch.Tensor | None] = [None] * len(outputs)
        for i in self._ranked:
            p = outputs[i].softmax(1)
            u = p.sqrt() * signs(outputs[i])
            found[i] = math.sqrt(0.5) * (u - p * u.sum(1, keepdim=True))
        return found

    def truths(self, photos: Any) -> Truths | None:
        """The index of each photo's class; see `repedge.tasks.labels.class_indices`."""
        from repedge.tasks.labels import class_indices

        return class_indices(photos, self.labels)

    def scorer(self) -> Scorer:
        """Counts labels that are best, and among the five best."""
        return Hits(self.scores)

    apart_phrase: ClassVar[str] = "probabilities moved by {:.1%}"

    def apart(self, outputs: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> np.ndarray:
        """Half the sum of what the probabilities moved by."""
        got, want = (self._probabilities(side) for side in (outputs, exact))
        return 0.5 * np.abs(got - want).sum(1)

    def _probabilities(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        scores = outputs[self.scores].astype(np.float64)
        done = (scores >= 0).all() and np.allclose(scores.sum(1), 1, atol=1e-2)
        return scores if done else np.exp(log_softmax(scores))

    def results(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Task.results`: probabilities of the classes."""
        return list(self._probabilities(outputs))

    def draw(self, result: np.ndarray | int, size: tuple[int, int]) -> str:
        """See `Task.draw`: bars of the best classes; of a truth its class alone."""
        if not isinstance(result, np.ndarray):
            return drawing.bars([(self._name(result), 1.0, result)], size)
        best = np.argsort(-result, kind="stable")[:SHOWN]
        return drawing.bars(
            [(f"{self._name(c)} {result[c]:.1%}", float(result[c]), int(c)) for c in best], size
        )

    def _name(self, index: int) -> str:
        return self.labels[index] if index < len(self.labels) else f"class {index}"

    def metadata(self, consumer: str) -> dict[str, Any]:
        """See `Task.metadata`; MediaPipe needs no more than the labels."""
        alone = len(self.outputs) == 1
        return {"model_type": "Classification"} if alone and consumer == "model_api" else {}

    def context(self, samples: Sequence[np.ndarray]) -> dict[str, Any]:
        """See `Task.context`.

        Keys:

        scores: Index of the output that scores classes.
        classes: Number of classes.
        labels: Their names; empty if they have none.
        probabilities: Whether the scores are a softmax already.
        """
        scores = samples[self.scores]
        return {
            "scores": self.scores,
            "classes": self.outputs[self.scores].shape[0],
            "labels": list(self.labels),
            "probabilities": bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-2)),
        }


def _ranked(network: Network) -> tuple[int, ...]:
    """Indices of the outputs that can rank classes."""
    return tuple(i for i, o in enumerate(network.outputs) if len(o.shape) == 1 and o.shape[0] > 1)


def _divergence(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return functional.kl_div(got.log_softmax(1), want.log_softmax(1), reduction="none", log_target=True).sum(
        1
    )


@dataclass
class Ranking(Comparison):
    """The comparison of an output that ranks classes.

    Attributes:
        flips: For each image whose best class differs: the reference's margin between the two classes.
    """

    decision: ClassVar[str] = "top-1"

    flips: list[float] = field(default_factory=list)
    _agree: int = 0
    _kl: float = 0.0

    def judge(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """Count images with the reference's best class, and sum up KL divergences."""
        rows = np.arange(len(reference))
        best, chosen = reference.argmax(1), actual.argmax(1)
        self._agree += int((best == chosen).sum())
        margins = reference[rows, best] - reference[rows, chosen]
        self.flips += margins[best != chosen].tolist()
        log_p, log_q = log_softmax(reference), log_softmax(actual)
        self._kl += float((np.exp(log_p) * (log_p - log_q)).sum())

    def figures(self) -> Mapping[str, float]:
        """``agree_top1``, a share, and ``kl``: mean divergence softmax(reference) || softmax(actual)."""
        return {"agree_top1": self._agree / self.n, "kl": self._kl / self.n}

    def changed(self, tie: float) -> int:
        """Images with another best class, ties left out."""
        return sum(margin > tie * self.max_abs_ref for margin in self.flips)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Log-softmax over the last axis, in the input's precision."""
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class Hits:
    """A `Scorer` of labels.

    Args:
        index: Of the output with the scores.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._best: list[np.ndarray] = []
        self._five: list[np.ndarray] = []

    def update(self, outputs: Sequence[np.ndarray], truths: Sequence[int]) -> None:
        """See `Scorer.update`; truths are indices of classes."""
        if not len(truths):
            return
        scores, labels = outputs[self._index], np.asarray(truths, dtype=np.int64)
        worst = int(labels.min()) if labels.min() < 0 else int(labels.max())
        if not 0 <= worst < scores.shape[1]:
            raise UserError(
                f"a label is {worst}, but the model has {scores.shape[1]} classes; check labels.json or the "
                "class folders"
            )
        order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        self._best.append(order[:, 0] == labels)
        self._five.append((order == labels[:, None]).any(1))

    def score(self) -> dict[str, float]:
        """Shares of the photos, from 0 to 1; empty where there were none."""
        if not self._best:
            return {}
        return {
            "top1": float(np.concatenate(self._best).mean()),
            "top5": float(np.concatenate(self._five).mean()),
        }

    def hits(self) -> np.ndarray:
        """1 where a photo's label is best, else 0."""
        return np.concatenate(self._best).astype(np.float64) if self._best else np.empty(0)
