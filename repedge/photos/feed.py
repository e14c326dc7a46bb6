"""Calibration images that can be read again and again, in constant memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from repedge.errors import UserError
from repedge.photos.tensors import Tensors

BATCH = 4
"""Images at a time: more would only push activations out of the processor's cache."""


class Feed:
    """Float images [C, H, W], spooled to a temporary file as they first come.

    Of a network that takes more, a row of numbers is given out for each image: `Tensors.rows`.

    Args:
        batches: Arrays float32 [N, C, H, W] of any N; read once, to the end.
        shape: The network's image [C, H, W].
        tensors: What goes beside the images, in turn.

    Attributes:
        at_once: Images in a batch that is given out.

    Raises:
        UserError: A batch of another shape, values that are not finite, or no image at all.
    """

    def __init__(
        self, batches: Iterable[np.ndarray], shape: tuple[int, ...], tensors: Tensors | None = None
    ) -> None:
        self.shape = tuple(shape)
        self._tensors = tensors or Tensors()
        self.count = 0
        self.at_once = BATCH
        self._bytes = 4 * int(np.prod(self.shape))
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the feed
        constant = True
        for batch in [batches] if isinstance(batches, np.ndarray) else batches:
            array = np.ascontiguousarray(batch, dtype=np.float32)
            if array.shape[1:] != self.shape:
                takes = ", ".join(map(str, self.shape))
                raise UserError(
                    f"a calibration batch is {list(array.shape)}, and the network takes [N, {takes}]"
                )
            if not np.isfinite(array).all():
                raise UserError(f"calibration images {self.count} and on hold NaN or infinite values")
            for image in array:
                constant &= bool((image == image[:, :1, :1]).all())
                self._file.write(image.tobytes())
                self.count += 1
        self._file.flush()
        if self.count == 0:
            raise UserError("there are no calibration images; give a few dozen photos of the kind to expect")
        if constant:
            raise UserError("every calibration image is of one colour; give photos of the kind to expect")

    def __len__(self) -> int:
        return self.count

    def spread(self, count: int) -> list[int]:
        """Indices of ``count`` images spread evenly over all (all of them if there are fewer)."""
        count = min(count, self.count)
        return [i * self.count // count for i in range(count)]

    def batches(self, count: int | None = None) -> Iterator[np.ndarray]:
        """Batches of `at_once` images (the last may be smaller): of all, or of ``count`` spread evenly."""
        yield from self.chosen(self.spread(self.count if count is None else count))

    def chosen(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Batches of the images with these indices, in this order."""
        for i in range(0, len(indices), self.at_once):
            yield np.stack([self._image(k) for k in indices[i : i + self.at_once]])

    def _image(self, index: int) -> np.ndarray:
        self._file.seek(index * self._bytes)
        image = np.frombuffer(self._file.read(self._bytes), np.float32).reshape(self.shape)
        return self._tensors.rows(image[None], index)[0]
