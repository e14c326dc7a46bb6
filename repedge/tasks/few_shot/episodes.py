"""Few-shot accuracy: over many small problems, each of a few classes that are known by a few examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repedge.errors import UserError
from repedge.tasks.few_shot.matching import probabilities, unit

SEED = 0
"""Of the episodes, so that every network gets the same."""


@dataclass(frozen=True)
class Episodes:
    """What is asked: of ``ways`` classes by ``shots`` examples each, ``count`` times.

    Attributes:
        ways: Classes; None takes 5, or as many as there are.
        shots: Examples of each.
        count: How often.
    """

    ways: int | None = None
    shots: int = 1
    count: int = 1000

    def asked(self, **options: int | None) -> Episodes:
        """With other numbers; None leaves one as it is.

        Raises:
            UserError: One that asks nothing.
        """
        names = {"episodes": "count"}
        found = replace(self, **{names.get(k, k): v for k, v in options.items() if v is not None})
        if found.ways is not None and found.ways < 2:
            raise UserError(f"--ways {found.ways}: one class is always right; ask for 2 or more")
        for name, value in (("--shots", found.shots), ("--episodes", found.count)):
            if value < 1:
                raise UserError(f"{name} must be 1 or more, not {value}")
        return found

    def ways_of(self, classes: int) -> int:
        """How many classes an episode has, of so many that can be asked for.

        Raises:
            UserError: There are not as many as were asked for.
        """
        if self.ways is None:
            return min(5, classes)
        if classes < self.ways:
            raise UserError(
                f"--ways {self.ways} needs as many classes with {self.shots + 1} photos or more "
                f"({self.shots} to know it by, 1 to ask for), and there are {classes}; give class sub-folders"
            )
        return self.ways


class FewShot:
    """A `Scorer` of embeddings, whose truths are classes.

    In each episode, of each class one photo is asked for and others are its examples.

    Args:
        index: Of the output with the embedding.
        episodes: What is asked.
    """

    def __init__(self, index: int, episodes: Episodes) -> None:
        self._index, self._episodes = index, episodes
        self._embeddings: list[np.ndarray] = []
        self._classes: list[Any] = []
        self._found: tuple[int, np.ndarray] | None = None

    def update(self, outputs: Sequence[np.ndarray], truths: Sequence[Any]) -> None:
        """See `Scorer.update`; truths are names or numbers of classes."""
        self._embeddings.append(unit(outputs[self._index]))
        self._classes += truths
        self._found = None

    def score(self) -> dict[str, float]:
        """``accuracy``, a share; empty where nothing can be asked."""
        _, right = self._run()
        return {"accuracy": float(right.mean())} if len(right) else {}

    def asked(self) -> dict[str, Any]:
        """What was asked, and ``ci95``, the interval of the accuracy by its spread over episodes."""
        ways, right = self._run()
        if not len(right):
            return {}
        spread = 1.96 * float(right.std(ddof=1 if len(right) > 1 else 0)) / math.sqrt(len(right))
        middle = float(right.mean())
        interval = [max(0.0, middle - spread), min(1.0, middle + spread)]
        return {"ways": ways, "shots": self._episodes.shots, "episodes": len(right), "ci95": interval}

    def hits(self) -> np.ndarray:
        """Of each episode the share of right answers."""
        return self._run()[1]

    def _run(self) -> tuple[int, np.ndarray]:
        """Classes of an episode, and the share of right answers of each."""
        if self._found is None:
            self._found = self._answered()
        return self._found

    def _answered(self) -> tuple[int, np.ndarray]:
        shots, photos = self._episodes.shots, _by_class(self._classes)
        able = [of for of in photos if len(of) > shots]
        ways = self._episodes.ways_of(len(able))
        if ways < 2:
            return ways, np.empty(0)
        rng, embeddings = np.random.default_rng(SEED), np.concatenate(self._embeddings)
        right = np.empty(self._episodes.count)
        for i in range(len(right)):
            chosen = [rng.permutation(able[c])[: shots + 1] for c in rng.permutation(len(able))[:ways]]
            examples = embeddings[np.concatenate([of[1:] for of in chosen])]
            found = probabilities(embeddings[[of[0] for of in chosen]], examples, shots).argmax(1)
            right[i] = (found == np.arange(ways)).mean()
        return ways, right


def _by_class(classes: Sequence[Any]) -> list[np.ndarray]:
    """Indices of the photos of each class, in the order of the classes."""
    found: dict[Any, list[int]] = {}
    for i, c in enumerate(classes):
        found.setdefault(c, []).append(i)
    return [np.array(found[c]) for c in sorted(found, key=str)]
