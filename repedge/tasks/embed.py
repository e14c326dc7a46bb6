"""``embed``: the outputs are features, to be compared with those of other images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from repedge.tasks.base import Figure, Limit, Network, Task, Truths
from repedge.tasks.comparison import Comparison
from repedge.tasks.few_shot.episodes import Episodes, FewShot
from repedge.templates import Templates

SHIP = Path(__file__).parent / "ship" / "embed"

NORMS = frozenset({"LpNormalization", "ReduceL2"})
"""Operators that bring features to length 1."""

PASSING = frozenset({"Flatten", "Reshape", "Squeeze", "Identity", "Dropout", "Cast", "Clip"})
"""Operators that may stand between pooled or normalised features and the output."""

WORDS = ("embed", "feature", "descriptor")
"""An output with one of these in its name holds features."""

IMAGENET = frozenset({1000, 1001, 21841, 21843})
"""Numbers of classes that are no accident."""

POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "AveragePool"})


class Embed(Task):
    """Features of an image: an output [N, features], of which nothing but the direction may matter."""

    name: ClassVar[str] = "embed"
    title: ClassVar[str] = "features (an embedding)"
    figures: ClassVar[tuple[Figure, ...]] = (
        Figure("cosine", "cosine", "", phrase="cosine to float", absent="no reference"),
    )
    metrics: ClassVar[tuple[Figure, ...]] = (
        Figure("accuracy", "few-shot", phrase="few-shot accuracy", absent="no classes"),
    )
    drop: ClassVar[Limit | None] = Limit("accuracy_drop", "few-shot accuracy drop", "points", "accuracy")
    disagreement: ClassVar[Limit | None] = Limit(
        "cosine_distance", "cosine distance from float", "points", "cosine"
    )
    ship: ClassVar[Mapping[str, Templates]] = {
        "ios": Templates(SHIP / "ios", {"SupportSet.swift": "Sources/{name}/SupportSet.swift"}, SHIP),
        "android": Templates(
            SHIP / "android",
            {
                "Embedding.kt": "{lower}/src/main/kotlin/repedge/{lower}/Embedding.kt",
                "SupportSet.kt": "{lower}/src/main/kotlin/repedge/{lower}/SupportSet.kt",
            },
            SHIP,
        ),
        "cpp": Templates(
            SHIP / "cpp",
            {"support.hpp": "include/{name}_support.hpp", "support.cpp": "src/support.cpp"},
            SHIP,
        ),
        "python": Templates(SHIP / "python", {"support.py": "{name}/support.py"}, SHIP),
    }

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.episodes = Episodes()

    @classmethod
    def recognizes(cls, network: Network) -> bool:
        """Whether the outputs are called features, or are what pooling or normalising leaves.

        A network whose labels are known is none; and some classifiers end in a pooling layer, too, which
        the size of ImageNet gives away. Behind a dense layer only the name tells.
        """
        if network.labels or cls.refusal(network) is not None:
            return False
        if all(any(word in o.name.lower() for word in WORDS) for o in network.outputs):
            return True
        if network.graph is None or any(o.shape[0] in IMAGENET for o in network.outputs):
            return False
        return all(_features(value) for value in network.graph.graph.outputs)

    @classmethod
    def refusal(cls, network: Network) -> str | None:
        """Every output must be a row of features."""
        others = [o for o in network.outputs if len(o.shape) != 1 or o.shape[0] < 2]
        if not others:
            return None
        return f"output {others[0].name!r} {list(others[0].shape)} is no row of features"

    def describe(self) -> str:
        """How many features."""
        return " and ".join(f"{o.shape[0]} features" for o in self.outputs)

    @property
    def features(self) -> int:
        """See `Task.features`."""
        return self.outputs[0].shape[0]

    def meter(self, index: int) -> Comparison:
        """See `Task.meter`."""
        return Direction()

    def asked(self, **options: int | None) -> Embed:
        """See `Task.asked`: ``ways``, ``shots`` and ``episodes``."""
        found = copy(self)
        found.episodes = self.episodes.asked(**options)
        return found

    def truths(self, photos: Any) -> Truths | None:
        """The class of each photo: the folder that it is in, or else `repedge.tasks.labels.class_indices`."""
        from repedge.tasks.labels import class_indices

        names = photos.names or ()
        if photos.kind in ("demo", "random"):
            return None
        if len({name.rpartition("/")[0] for name in names}) > 1 and photos.beside("labels.json") is None:
            return lambda name, told: name.rpartition("/")[0]
        return class_indices(photos)

    def scorer(self) -> FewShot:
        """Few-shot accuracy over `Embed.episodes`."""
        return FewShot(0, self.episodes)

    def context(self, samples: Sequence[np.ndarray]) -> dict[str, Any]:
        """See `Task.context`.

        Keys:

        features: Length of the first embedding.
        unit: Whether it has length 1 already, so that the package need not scale it.
        """
        lengths = np.linalg.norm(samples[0].astype(np.float64), axis=1)
        return {
            "features": self.features,
            "unit": bool(np.allclose(lengths, 1, atol=1e-3)),
        }


def _features(value: Any) -> bool:
    """Whether a value of a graph is what pooling or normalising leaves, with no dense layer behind it.

    Pooled straight from a convolution, it is a map of scores for each class: fully convolutional classifiers
    end so.
    """
    for _ in range(12):
        node = value.producer()
        if node is None:
            return False
        if node.op_type in NORMS or (node.op_type == "Div" and any(_normed(v) for v in node.inputs[1:])):
            return True
        if node.op_type in POOLS:
            pooled = node.inputs[0].producer()
            return pooled is not None and pooled.op_type not in ("Conv", "ConvTranspose")
        if node.op_type not in PASSING:
            return False
        value = node.inputs[0]
    return False


def _normed(value: Any) -> bool:
    """Whether a divisor is a norm: ReduceL2, or a square root of a sum of squares, held above 0."""
    for _ in range(6):
        node = None if value is None else value.producer()
        if node is None:
            return False
        if node.op_type in NORMS or node.op_type == "Sqrt":
            return True
        if node.op_type not in ("Clip", "Max", "Expand", "Add", "Unsqueeze", "Reshape"):
            return False
        value = node.inputs[0]
    return False


@dataclass
class Direction(Comparison):
    """The comparison of two embeddings."""

    _sum: float = 0.0

    def judge(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """Add the cosines of a batch."""
        lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(actual, axis=1)
        cosine = (reference * actual).sum(1) / np.maximum(lengths, 1e-30)
        self._sum += float(cosine.sum())

    def figures(self) -> Mapping[str, float]:
        """``cosine``: the mean over the images."""
        return {"cosine": self._sum / self.n}
