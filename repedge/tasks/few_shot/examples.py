"""Examples of classes that grow one by one, and are kept in a file that every app package reads, too.

A file is one JSON object::

    {"support_set": 1, "model": "net", "features": 2,
     "classes": [{"label": "cat", "embeddings": [[0.6, 0.8]]}, ...]}

Embeddings have length 1 and are float32, each number written so that it is read as the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repedge.disk import regular
from repedge.errors import UserError
from repedge.html import write_whole
from repedge.tasks.few_shot.matching import probabilities, unit

VERSION = 1
MOST = 1 << 20
"""Examples in a file."""


class Examples:
    """Embeddings of examples, by label.

    Args:
        model: Name of the model that embeds.
        features: Numbers in an embedding.
    """

    def __init__(self, model: str, features: int) -> None:
        self.model, self.features = model, features
        self._classes: dict[str, list[np.ndarray]] = {}

    @property
    def counts(self) -> Mapping[str, int]:
        """Label -> number of its examples, in the order in which they came."""
        return {label: len(of) for label, of in self._classes.items()}

    def add(self, label: str, embeddings: Sequence[np.ndarray] | np.ndarray) -> None:
        """More examples of a class.

        Raises:
            UserError: An empty label, no embedding, or one that is of another length or not finite.
        """
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"a label is a text, not {label!r}")
        wide = np.asarray(embeddings, np.float64)
        if wide.ndim != 2 or not len(wide) or wide.shape[1] != self.features:
            raise UserError(
                f"examples of {label!r} are rows of {self.features} numbers, not {list(wide.shape)}"
            )
        if not np.isfinite(wide).all() or (np.abs(wide).max(1) == 0).any():
            raise UserError(f"an example of {label!r} has an embedding without a direction")
        self._classes.setdefault(label, []).extend(unit(wide).astype(np.float32))

    def remove(self, label: str) -> None:
        """Forget a class.

        Raises:
            UserError: It is not known.
        """
        if label not in self._classes:
            raise UserError(f"there is no class {label!r}; there are {', '.join(self._classes) or 'none'}")
        del self._classes[label]

    def ranked(self, embedding: np.ndarray) -> list[tuple[str, float]]:
        """Labels with their probabilities, the best first; of equal ones the earlier label.

        Raises:
            UserError: Fewer than two classes, or not as many examples of each: the softmax is over examples,
                and a class with more would win by their number.
        """
        counts = self.counts
        if len(counts) < 2:
            raise UserError(
                f"a support set tells classes apart and has {len(counts)}; add examples of another label"
            )
        fewest, most = min(counts, key=lambda k: counts[k]), max(counts, key=lambda k: counts[k])
        if counts[fewest] != counts[most]:
            raise UserError(
                f"{fewest!r} has {_examples(counts[fewest])} and {most!r} {_examples(counts[most])}: a class "
                "with more would win by their number; give each as many"
            )
        rows = np.concatenate([np.stack(of) for of in self._classes.values()]).astype(np.float64)
        found = probabilities(unit(embedding)[None], rows, counts[most])[0]
        order = np.argsort(-found, kind="stable")
        labels = list(counts)
        return [(labels[i], float(found[i])) for i in order]

    def save(self, file: Path | str) -> None:
        """Write the file, whole or not at all."""
        classes = [
            {"label": label, "embeddings": [[float(v) for v in e] for e in of]}
            for label, of in self._classes.items()
        ]
        content = {
            "support_set": VERSION,
            "model": self.model,
            "features": self.features,
            "classes": classes,
        }
        write_whole(Path(file), json.dumps(content, ensure_ascii=False) + "\n", force=True, ours=True)

    def load(self, file: Path | str) -> None:
        """Take the classes of a file instead of what is there.

        Raises:
            UserError: It can't be read, is no support set, or one of another model.
        """
        try:
            content = json.loads(regular.read_bytes(Path(file)))
            if content["support_set"] != VERSION:
                raise ValueError(f"its version is {content['support_set']!r}, not {VERSION}")
            model, features = content["model"], content["features"]
            rows = [(c["label"], c["embeddings"]) for c in content["classes"]]
        except OSError as e:
            raise UserError(f"{file} can't be read: {e.strerror or e}") from e
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise UserError(f"{file} is no support set ({_reason(e)})") from e
        if (model, features) != (self.model, self.features):
            raise UserError(
                f"{file} has examples of {model!r:.80} with {features!r:.20} features; this is "
                f"{self.model!r} with {self.features}"
            )
        fresh = Examples(self.model, self.features)
        for label, embeddings in rows:
            if isinstance(label, str) and label in fresh._classes:
                raise UserError(f"{file} is no support set (it has the class {label!r} twice)")
            fresh.add(label, _rows(embeddings, file))
        self._classes = fresh._classes


def _rows(given: Any, file: Path | str) -> np.ndarray:
    try:
        if len(given) > MOST:
            raise ValueError("too many examples")
        return np.asarray(given, np.float64)
    except (ValueError, TypeError, OverflowError) as e:
        raise UserError(f"{file} is no support set (its embeddings are no rows of numbers)") from e


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def _examples(count: int) -> str:
    return "1 example" if count == 1 else f"{count} examples"
