"""What a .tflite file is made of: tensors, their quantization, operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

Load = Callable[[], np.ndarray]
"""Returns a constant's array when it is written, so that it need not be held until then."""


@dataclass(frozen=True)
class Quant:
    """What the integers of a tensor stand for: ``real = scale * (q - zero_point)``.

    Attributes:
        dtype: ``int8``, ``uint8``, ``int16``, ``int32`` or ``int64``.
        scale: One number, or one for each entry of an axis.
        zero_point: 0 where there are several scales.
        axis: The stored axis that the scales belong to, if there are several.
    """

    dtype: str
    scale: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0

    @property
    def limits(self) -> tuple[int, int]:
        """Least and greatest integer."""
        info = np.iinfo(self.dtype)
        return int(info.min), int(info.max)

    @property
    def reals(self) -> tuple[float, float]:
        """The real values of the least and the greatest integer (of a tensor with one scale)."""
        low, high = self.limits
        return (low - self.zero_point) * self.scale[0], (high - self.zero_point) * self.scale[0]

    def along(self, axis: int) -> Quant:
        """The same scales, belonging to another axis."""
        return replace(self, axis=axis if len(self.scale) > 1 else 0)

    def integers(self, real: np.ndarray) -> np.ndarray:
        """Real values as integers: rounded half to even, saturated (one scale)."""
        q = np.rint(np.asarray(real, np.float64) / self.scale[0]) + self.zero_point
        return np.clip(q, *self.limits).astype(self.dtype)


PIXELS = Quant("uint8", (1.0,))
"""8-bit pixels are integers that stand for themselves."""


@dataclass
class Tensor:
    """A tensor of the graph: `load` gives the values of a constant, `quant` the meaning of integers."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Load | None = None
    quant: Quant | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass
class Operator:
    """One operator of the file: its tensors by index, its options by name."""

    name: str
    version: int
    inputs: Sequence[int]
    outputs: Sequence[int]
    options: Mapping[str, Any]
