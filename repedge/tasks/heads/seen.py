"""What a head shows of itself when its decoding is run on maps that are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from repedge.tasks.base import Network
from repedge.tasks.heads.head import Activation, Level
from repedge.tasks.heads.tail import Tail

FAR = 30.0
"""Maps of this and of its negative: a sigmoid of them is 1 and 0."""

TINY = 1e-4


class Unknown(Exception):
    """The head is none that is known here; the message is a sentence of what was seen."""


@dataclass(frozen=True)
class Seen:
    """A network's decoding and what came of running it.

    Attributes:
        network: Its outputs and labels.
        tail: The decoding.
        size: Height and width of the network's input.
        said: What the user says of the head, by the names of `repedge.tasks.heads.head.Head`'s attributes,
            and ``objectness`` (whether there is one).
    """

    network: Network
    tail: Tail
    size: tuple[int, int]
    said: Mapping[str, Any]

    @cached_property
    def rest(self) -> list[np.ndarray]:
        """Every output without its batch axis for maps of 0."""
        return self.tail.run(self.tail.flat(0))

    @cached_property
    def one(self) -> list[np.ndarray]:
        """The same for maps of 1."""
        return self.tail.run(self.tail.flat(1))

    @cached_property
    def far(self) -> list[list[np.ndarray]]:
        """The same for maps of -`FAR`, 0 and `FAR`."""
        return [self.tail.run(self.tail.flat(-FAR)), self.rest, self.tail.run(self.tail.flat(FAR))]

    @cached_property
    def influence(self) -> list[list[np.ndarray]]:
        """See `repedge.tasks.heads.tail.Tail.influence`."""
        return self.tail.influence()

    def touched(self, output: int, axis: int) -> list[np.ndarray]:
        """Indices along an axis of an output that each map changes."""
        return [np.flatnonzero(_over(masks[output], axis)) for masks in self.influence]

    def rows_axis(self, output: int) -> int:
        """Which axis of an output of rank 2 counts the candidates.

        A map of H x W cells changes a multiple of so many of them.
        """
        shape = self.network.outputs[output].shape
        for axis in sorted((0, 1), key=lambda a: -shape[a]):
            counts = [
                (len(indices), math.prod(map_shape[2:]))
                for indices, map_shape in zip(self.touched(output, axis), self.tail.shapes, strict=True)
                if len(map_shape) == 4 and len(indices)
            ]
            if counts and all(n % cells == 0 for n, cells in counts):
                return axis
        raise Unknown(f"the candidates of {self.named(output)} are no cells of its maps")

    def levels(self, output: int, axis: int) -> tuple[Level, ...]:
        """The maps that the candidates of an output stand for, in order.

        Columns are 0 where a cell has several candidates.
        """
        spans: dict[tuple[int, int], set[int]] = {}
        for indices, shape in zip(self.touched(output, axis), self.tail.shapes, strict=True):
            if len(shape) == 4 and len(indices):
                spans.setdefault(shape[2:], set()).update(indices.tolist())
        ordered = sorted((min(rows), max(rows) + 1, len(rows), cells) for cells, rows in spans.items())
        start, found = 0, []
        for first, stop, count, (height, width) in ordered:
            if first != start or stop - first != count or count % (height * width):
                raise Unknown(f"the candidates of {self.named(output)} are in no order of maps")
            found.append(Level(count, self.stride(width), width if count == height * width else 0))
            start = stop
        if start != self.network.outputs[output].shape[axis]:
            raise Unknown(f"some of the candidates of {self.named(output)} come from no map")
        return tuple(found)

    def in_order(self, output: int, axis: int, column: int, levels: Sequence[Level]) -> bool:
        """Whether the candidates of a raw output are the cells of its maps row by row.

        Args:
            output: Its index.
            axis: Which of its axes counts the candidates.
            column: A number of each candidate that is the map's, unchanged.
            levels: The maps.
        """
        maps = [
            np.broadcast_to(np.arange(math.prod(s[2:]), dtype=np.float32).reshape(s[2:]), s).copy()
            if len(s) == 4
            else np.zeros(s, np.float32)
            for s in self.tail.shapes
        ]
        found = np.moveaxis(self.tail.run(maps)[output], axis, 0)[:, column]
        return bool((found == np.concatenate([np.arange(level.rows) for level in levels])).all())

    def stride(self, columns: int) -> float:
        """Pixels from one cell to the next: a power of two where rounding up gives so many columns."""
        width = self.size[1]
        if width % columns == 0:
            return float(width // columns)
        power = 2.0 ** math.floor(math.log2(width / columns))
        fits = [s for s in (power, 2 * power) if math.ceil(width / s) == columns]
        return fits[0] if fits else width / columns

    def activation(self, columns: Sequence[tuple[int, Any]]) -> Activation:
        """What scores lack.

        Args:
            columns: (output, index that takes them out) of the scores.
        """
        if "activation" in self.said:
            return self.said["activation"]  # type: ignore[no-any-return]
        values = [[run[o][index] for o, index in columns] for run in self.far]
        if all(v.min() >= -TINY and v.max() <= 1 + TINY for run in values for v in run):
            return "none"
        if all(np.abs(v).max() < TINY for v in values[1]):
            return "sigmoid"
        raise Unknown("its scores are neither probabilities nor logits")

    def distributed(self, output: int, axis: int) -> bool:
        """Whether scores along an axis of an output are a softmax: equal maps give equal shares."""
        share = 1 / self.network.outputs[output].shape[axis]
        return all(np.abs(run[output] - share).max() < TINY for run in self.far)

    def named(self, output: int) -> str:
        """What sentences call an output."""
        o = self.network.outputs[output]
        return f"output {o.name!r} {list(o.shape)}"


def _over(mask: np.ndarray, axis: int) -> np.ndarray:
    """Where along one axis anything is true."""
    moved = np.moveaxis(mask, axis, 0)
    return np.array([bool(part.any()) for part in moved])
