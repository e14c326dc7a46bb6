"""How far outputs are from the float reference, without labels: one output, or all of a network's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from repedge.errors import CheckFailed

if TYPE_CHECKING:
    from repedge.tasks.base import Part, Task


@dataclass
class Comparison:
    """Streaming comparison of one output with its reference, over any number of batches.

    A task that makes something of the output extends it: `repedge.tasks.base.Task.meter`.

    Attributes:
        n: Images seen.
        max_abs_err: Largest absolute difference.
        max_abs_ref: Largest absolute reference value.
    """

    decision: ClassVar[str] = ""
    """What `changed` counts changes of, in words."""

    n: int = 0
    max_abs_err: float = 0.0
    max_abs_ref: float = 0.0
    _signal: float = 0.0
    _noise: float = 0.0
    _size: int = 0
    _finite: bool = True

    def update(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """Add a batch: arrays [N, ...] of the output."""
        ref, act = reference.astype(np.float64), actual.astype(np.float64)
        error = act - ref
        self.n += len(ref)
        self._finite &= bool(np.isfinite(act).all())
        self.max_abs_err = max(self.max_abs_err, float(np.abs(error).max(initial=0)))
        self.max_abs_ref = max(self.max_abs_ref, float(np.abs(ref).max(initial=0)))
        self._signal += float((ref**2).sum())
        self._noise += float((error**2).sum())
        self._size += error.size
        self.judge(ref, act)

    def judge(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """What a task makes of a batch, float64 [N, ...] each; nothing here."""

    def figures(self) -> Mapping[str, float]:
        """The task's figures of this output, by key."""
        return {}

    def changed(self, tie: float) -> int:
        """Images of which another decision is made than from the reference.

        Args:
            tie: Decisions count as the same where the reference's own values for the two are closer than
                this share of its largest value.
        """
        return 0

    def faults(self) -> Sequence[str]:
        """What is wrong with the output whatever the precision costs, a sentence for each.

        Such as classes that changed places: what hides in the noise of integers, but is none.
        """
        return ()

    @property
    def finite(self) -> bool:
        """Whether no NaN or infinity was seen in the outputs."""
        return self._finite

    @property
    def max_rel_err(self) -> float:
        """Largest absolute error over the largest absolute reference value."""
        return self.max_abs_err / self.max_abs_ref if self.max_abs_ref else self.max_abs_err

    @property
    def rms_err(self) -> float:
        """Root mean square error of an element."""
        return math.sqrt(self._noise / self._size) if self._size else 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio in dB, capped at 200 (no error at all)."""
        if not self._finite:
            return -math.inf
        if self._noise == 0:
            return 200.0
        if self._signal == 0:
            return -math.inf
        return min(200.0, 10 * math.log10(self._signal / self._noise))


@dataclass
class Unit:
    """What is judged alone: an output, or a part of one.

    Attributes:
        output: Index of the output.
        part: The part; None for the whole output.
        comparison: Its figures.
    """

    output: int
    part: Part | None
    comparison: Comparison

    def of(self, y: np.ndarray) -> np.ndarray:
        """Its numbers in an array [n, ...] of the output."""
        return y if self.part is None else y[self.part.index]


class Answers:
    """Streaming comparison of what a task makes of all outputs of a network together; nothing here.

    A task that makes something of them extends it: `repedge.tasks.base.Task.answers`.
    """

    def update(self, reference: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> None:
        """Add a batch: every output of both, [N, ...] each."""

    def figures(self) -> Mapping[str, float]:
        """The task's figures, by key."""
        return {}

    def faults(self, exact: bool) -> list[str]:
        """Sentences on what is wrong with the answers, whatever the distance of the numbers.

        Args:
            exact: Whether the precision promises the same decisions, as floats do.
        """
        return []

    def remarks(self) -> list[str]:
        """Sentences on what these images say nothing of."""
        return []


class Agreement:
    """Streaming comparison of all outputs of a network, each taken alone; the worst of them counts.

    An output whose parts hold numbers of different kinds counts by its parts: beside boxes of 640 pixels
    nothing could be seen of probabilities.

    Attributes:
        outputs: One for each output, in the graph's order: what the task makes of it.
        units: The outputs, or their parts where they have some.
        answers: What the task makes of all outputs together.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.answers = task.answers()
        self.outputs = [task.meter(i) for i in range(len(task.outputs))]
        self.units = [
            unit
            for i, (output, whole) in enumerate(zip(task.outputs, self.outputs, strict=True))
            for unit in ([Unit(i, p, Comparison()) for p in output.parts] or [Unit(i, None, whole)])
        ]

    def update(self, reference: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> None:
        """Add a batch: every output of both, [N, ...] each.

        Raises:
            CheckFailed: Other outputs than the reference's.
        """
        if [a.shape for a in actual] != [r.shape for r in reference]:
            shapes = [a.shape for a in actual], [r.shape for r in reference]
            raise CheckFailed(f"the artifact's outputs have shapes {shapes[0]}, the reference's {shapes[1]}")
        for comparison, ref, act in zip(self.outputs, reference, actual, strict=True):
            comparison.update(ref, act)
        for unit in self.units:
            if unit.part is not None:
                unit.comparison.update(unit.of(reference[unit.output]), unit.of(actual[unit.output]))
        self.answers.update(reference, actual)

    def name(self, unit: Unit) -> str:
        """What sentences call it."""
        output = f"output {self.task.outputs[unit.output].name!r}"
        if unit.part is None:
            return output
        return f"{output}{unit.part}" + (f" ({unit.part.name})" if unit.part.name else "")

    @property
    def n(self) -> int:
        """Images seen."""
        return self.outputs[0].n

    @property
    def finite(self) -> bool:
        """Whether no NaN or infinity was seen in any output."""
        return all(c.finite for c in self.outputs)

    @property
    def max_abs_err(self) -> float:
        """Largest absolute difference in any output."""
        return max(c.max_abs_err for c in self.outputs)

    @property
    def max_rel_err(self) -> float:
        """Largest error of an output, or a part of one, over its own largest reference value."""
        return max(u.comparison.max_rel_err for u in self.units)

    @property
    def sqnr_db(self) -> float:
        """Least signal-to-quantization-noise ratio of outputs and parts, from -999 to 200 dB."""
        return max(-999.0, min(u.comparison.sqnr_db for u in self.units))

    def figures(self) -> dict[str, float | None]:
        """The task's figures, by key: of each the worst over the outputs that have it, else None."""
        found = [*(c.figures() for c in self.outputs), self.answers.figures()] if self.n else []
        return {f.key: f.worst([one[f.key] for one in found if f.key in one]) for f in self.task.figures}
