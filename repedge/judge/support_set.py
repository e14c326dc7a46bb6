"""A bundle of an embedding, and examples of classes that it is to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import task_of
from repedge.errors import UserError
from repedge.judge import verification
from repedge.judge.beside import artifact_run, tensors_of
from repedge.photos import images
from repedge.tasks.few_shot.examples import Examples


class SupportSet:
    """Tells classes by examples: embeddings of the bundle's artifact, matched by their cosines.

        known = repedge.SupportSet("build/net-tflite-w8a8")
        known.add("cat", ["cat1.jpg", "cat2.jpg"])
        known.add("dog", ["dog1.jpg", "dog2.jpg"])
        label, probability = known.classify("photo.jpg")[0]
        known.save("pets.json")  # app packages load it, too

    Args:
        bundle: Its folder.
        file: A file that `save` wrote, to begin with.
        threads: CPU threads of the artifact's runtime.
        allow_unverified: Take a bundle that failed its verification, too.

    Raises:
        UserError: The bundle is damaged or embeds nothing, or the file is of another model.
    """

    def __init__(
        self,
        bundle: Path | str,
        file: Path | str | None = None,
        *,
        threads: int | None = None,
        allow_unverified: bool = False,
    ) -> None:
        opened = Bundle.open(bundle, allow_unverified)
        m = opened.manifest
        task = task_of(m)
        if task.features is None:
            raise UserError(f"a support set is of features (--task embed); {bundle} gives {task.describe()}")
        _, runner = verification.open_bundle(opened, threads)
        self._run = artifact_run(opened, tensors_of(opened), runner.run)
        self._pre, self._kind = m.preprocess, m.input_kind
        self._examples = Examples(m.name, task.features)
        if file is not None:
            self.load(file)

    @property
    def counts(self) -> Mapping[str, int]:
        """Label -> number of its examples."""
        return self._examples.counts

    def embed(self, image: Any) -> np.ndarray:
        """The embedding of an image file, a Pillow image, or pixels uint8 [H, W, 3] or [H, W]: float32 [d].

        Raises:
            UserError: It is none of them, or can't be read.
        """
        return self._embedding(image)

    def _embedding(self, image: Any) -> np.ndarray:
        pixels = images.pixels(_decoded(image), self._pre)[None]
        (first, *_) = self._run(pixels if self._kind == "uint8" else images.normalise(pixels, self._pre))
        found: np.ndarray = first[0]
        return found

    def add(self, label: str, images: Sequence[Any]) -> None:
        """More examples of a class; `embed` says what an image is.

        Raises:
            UserError: An image can't be read, or there is none. Nothing is added then.
        """
        if isinstance(images, (str, Path)) or not len(images):
            raise UserError(f"examples of {label!r} are a list of images, not {images!r:.60}")
        self._examples.add(label, [self._embedding(image) for image in images])

    def remove(self, label: str) -> None:
        """Forget a class."""
        self._examples.remove(label)

    def classify(self, image: Any) -> list[tuple[str, float]]:
        """Labels with their probabilities, the best first.

        Raises:
            UserError: Fewer than two classes are known, or not as many examples of each.
        """
        return self._examples.ranked(self._embedding(image))

    def save(self, file: Path | str) -> None:
        """Write the examples' embeddings as one JSON file."""
        self._examples.save(file)

    def load(self, file: Path | str) -> None:
        """Take the examples of a file instead of what is there; raises as the constructor."""
        self._examples.load(file)


def _decoded(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return images.eight_bits(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise UserError(f"pixels are uint8 [H, W, 3] or [H, W], not {image.dtype} {list(image.shape)}")
        return Image.fromarray(image)
    return images.decode(Path(image))
