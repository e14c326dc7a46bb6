"""What an arithmetic can tell apart at a network's outputs, measured by noise.

Every operator rounds: relative to the numbers it gives, and functions with a bounded range (a sigmoid, a
softmax) are approximated to an error that is relative to that range, so that a probability of 1e-7 is told
to no digit. What such errors become at an output hangs on the numbers inside: a difference of two large
numbers, or a sigmoid far out, keeps little of them. So the graph is run with random errors of a known size
behind every operator, and the outputs' spread over that size is what a rounding of 1 would become there.
(Monte Carlo arithmetic: D. S. Parker, 1997.)

That holds to first order only. Where a network is chaotic (a deep one with random weights, given noise),
large errors saturate: the outputs can't become more wrong than wrong, and seen through them a rounding seems
to do a hundred times less than it does. So the errors' size is near that of the rounding asked about.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from repedge.operators import MOVES
from repedge.photos.tensors import Tensors
from repedge.tasks.base import Part

SIZE = 2.0**-12
"""Standard deviation of the errors, for roundings to float16 and the like."""

FINE = 2.0**-20
"""The same for roundings to float32; the float32 runs that it is measured by are 16 times as exact."""

DRAWS = 2
"""Runs of each kind and size."""

SINGLE = 2.0**-24
"""Greatest relative error of rounding to float32."""

BOUNDED = frozenset(
    {"Sigmoid", "Softmax", "LogSoftmax", "Tanh", "Erf", "HardSigmoid", "Softsign", "Sin", "Cos"}
)
"""Functions that are approximated to an error relative to their range, not to their result."""

EXACT = MOVES | {
    *("Identity", "Relu", "Clip", "Max", "Min", "Squeeze", "Unsqueeze", "Gather", "GatherElements", "Expand"),
    *("Tile", "Where", "Neg", "Abs", "Constant", "ConstantOfShape", "Cast", "Dropout", "TopK", "Sign"),
    *("Floor", "Ceil", "Round", "Shape", "ScatterND", "NonZero", "ArgMax", "ArgMin"),
}
"""Operators that give numbers they were given, or whole ones."""


ROUNDINGS = 16.0
"""Differences of so many times what is expected are still rounding: in 14 networks in float32, optimized or
not, fused or not, and against torch, up to 5 times were met."""

COARSE_ROUNDINGS = 3.0
"""The same of coarser arithmetic, whose sums are in float32: in 7 networks in float16, ill-conditioned too,
on each target, up to 1.2 times were met. Were it as much as of float32, a network whose float16 is 20 dB from
it would pass with any outputs."""

TIES = 2 / ROUNDINGS
"""Of an output of whole numbers twice as much may change as the noise has changed."""

FEW = 4
"""Images that the noise is tried on."""

Parts = Sequence[tuple[Part, ...]]
"""Of each output; see `repedge.graph.analysis.parts.parts_of`."""


def most_roundings(epsilon: float) -> float:
    """How many times as large as expected differences may be, of an arithmetic with this rounding error."""
    return ROUNDINGS if epsilon < FINE else COARSE_ROUNDINGS


@dataclass(frozen=True)
class Resolution:
    """What errors become at one output of a network.

    Attributes:
        relative: Errors of 1 relative to every number inside, root mean square of each element over the runs,
            float64 [n, ...]; measured by errors of `SIZE`.
        bounded: Errors of 1 of every function with a bounded range, likewise; measured by errors of `FINE`,
            or, of whole numbers, `SIZE`.
        whole: Whether the output holds whole numbers, such as indices of classes.
        fine: As ``relative``, measured by errors of `FINE`; None where it is the same.
    """

    relative: np.ndarray
    bounded: np.ndarray
    whole: bool = False
    fine: np.ndarray | None = None

    def errors(self, epsilon: float = SINGLE) -> np.ndarray:
        """Expected errors of an arithmetic, of each element.

        Args:
            epsilon: Its greatest relative error of rounding; bounded functions are taken to be computed in
                float32, as is the reference.
        """
        if self.whole:  # a near tie between two indices does not come nearer
            return TIES * SIZE * np.hypot(self.relative, self.bounded)
        relative = self.fine if self.fine is not None and epsilon < FINE else self.relative
        return np.hypot(epsilon * relative, SINGLE * self.bounded)

    def roundings(
        self, rms: float, largest: float, part: Part | None = None, epsilon: float = SINGLE
    ) -> float:
        """How many times as large as to be expected differences are; up to `most_roundings` they say nothing.

        Args:
            rms, largest: Root mean square and largest difference of an output, or of a part of it.
            part: Which part.
            epsilon: As of `errors`.
        """
        expected = self.errors(epsilon)
        expected = expected if part is None else expected[part.index]
        usual, most = float(np.sqrt((expected**2).mean())), float(expected.max(initial=0.0))
        if not (np.isfinite(rms) and np.isfinite(largest)) or most == 0:
            return 0.0 if largest == 0 else float("inf")
        return max(rms / usual, largest / most)


@dataclass(frozen=True)
class Gap:
    """How far the outputs of two evaluations of one network are apart.

    Attributes:
        absolute: Largest difference; infinite where shapes differ or something is no number.
        relative: Largest difference over the largest value of the same output, or of the same part of it.
    """

    absolute: float
    relative: float


def gap(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], parts: Parts = ()) -> Gap:
    """Of outputs [n, ...] from those that they are held against."""
    absolute = relative = 0.0
    for mine, other, _ in _pieces(ours, theirs, parts):
        if mine.shape != other.shape:
            return Gap(float("inf"), float("inf"))
        apart, largest = (float(np.abs(y).max(initial=0.0)) for y in (mine - other, other))
        if not np.isfinite(apart):
            return Gap(float("inf"), float("inf"))
        absolute = max(absolute, apart)
        relative = max(relative, apart / max(largest, float(np.finfo(np.float32).tiny)))
    return Gap(absolute, relative)


def roundings(
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    resolved: Sequence[Resolution],
    parts: Parts = (),
    epsilon: float = SINGLE,
) -> float:
    """How many times as large as rounding makes them differences are, of the worst part of an output."""
    worst = 0.0
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for a, b, part in _pieces([mine], [other], parts[i : i + 1]):
            if a.shape != b.shape:
                return float("inf")
            apart = np.abs(a - b)
            rms, largest = float(np.sqrt((apart**2).mean())), float(apart.max(initial=0.0))
            worst = max(worst, resolved[i].roundings(rms, largest, part, epsilon))
    return worst


def foreseen(theirs: Sequence[np.ndarray], resolved: Sequence[Resolution], parts: Parts = ()) -> float:
    """What float32 alone makes of outputs [n, ...], relative to the largest value of the same part.

    Outputs of whole numbers are left out: they have no small differences.
    """
    worst = 0.0
    for i, (other, r) in enumerate(zip(theirs, resolved, strict=True)):
        if r.whole:
            continue
        errors = np.broadcast_to(r.errors().max(axis=0), other.shape)  # of all of the images it was tried on
        for e, y, _ in _pieces([errors], [other], parts[i : i + 1]):
            largest = max(float(np.abs(y).max(initial=0.0)), float(np.finfo(np.float32).tiny))
            worst = max(worst, float(e.max(initial=0.0)) / largest)
    return worst


def _pieces(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], parts: Parts
) -> Iterator[tuple[np.ndarray, np.ndarray, Part | None]]:
    """Outputs, or their parts, in float64."""
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        a, b = mine.astype(np.float64), other.astype(np.float64)
        for part in (parts[i] if parts else ()) or (None,):
            yield (a, b, None) if part is None else (a[part.index], b[part.index], part)


def resolution(model: ir.Model, x: np.ndarray, tensors: Tensors | None = None) -> list[Resolution]:
    """That of each output of a graph, on `FEW` of the images that are given.

    Args:
        model: A float graph whose values have types; not changed.
        x: float32 [n, C, H, W].
        tensors: What the graph takes beside these images, from the first sample on.
    """
    from repedge.graph.run import Session

    few = slice(None, None, max(1, len(x) // FEW))
    beside = {name: a[few][:FEW] for name, a in (tensors or Tensors()).at(0, len(x)).items()}
    x = x[few][:FEW]

    def run(graph: ir.Model) -> list[np.ndarray]:
        """In the same kernels each time, for what an optimizer changes is no effect of the noise."""
        return Session(graph, optimize=False).run(x, beside)

    exact = run(model)

    def measured(bounded: bool, size: float) -> list[np.ndarray]:
        squares = [np.zeros(y.shape) for y in exact]
        for draw in range(DRAWS):
            for total, y, want in zip(squares, run(_noisy(model, bounded, draw, size)), exact, strict=True):
                total += ((y.astype(np.float64) - want) / size) ** 2
        return [np.sqrt(total / DRAWS) for total in squares]

    whole = [not np.issubdtype(y.dtype, np.floating) for y in exact]
    relative, fine, bounded = measured(False, SIZE), measured(False, FINE), measured(True, FINE)
    coarse = measured(True, SIZE) if any(whole) else bounded
    return [
        Resolution(r, c if w else b, w, f)
        for r, f, b, c, w in zip(relative, fine, bounded, coarse, whole, strict=True)
    ]


def _noisy(model: ir.Model, bounded: bool, seed: int, size: float) -> ir.Model:
    """The graph with an error behind every operator (of those with a bounded range, or of the others)."""
    model = model.clone()
    graph = model.graph
    values = [v for n in graph if _rounds(n, bounded) for v in n.outputs if v.dtype == ir.DataType.FLOAT]
    if not bounded:
        values += [v for v in graph.inputs if v.dtype == ir.DataType.FLOAT]
    for i, value in enumerate(values):
        if value.uses() or value.is_graph_output():
            _disturb(graph, value, bounded, size, float(len(values) * seed + i + 1))
    return model


def _rounds(node: ir.Node, bounded: bool) -> bool:
    return node.op_type in BOUNDED if bounded else node.op_type not in EXACT


def _disturb(graph: ir.Graph, value: ir.Value, bounded: bool, size: float, seed: float) -> None:
    """``v (1 + e)``, or ``v + e``, in place of ``v``."""
    middle, width = 0.0 if bounded else 1.0, math.sqrt(3) * size
    attributes = {"low": middle - width, "high": middle + width, "seed": seed}
    noise = ir.node("RandomUniformLike", [value], attributes, name=f"{value.name}/noise")
    join = ir.node("Add" if bounded else "Mul", [value, noise.outputs[0]], name=f"{value.name}/noisy")
    result = join.outputs[0]
    for made, name in ((noise.outputs[0], "noise"), (result, "noisy")):
        made.name, made.shape, made.type = f"{value.name}/{name}", value.shape, value.type
    for use in list(value.uses()):
        if use.node not in (noise, join):
            use.node.replace_input_with(use.idx, result)
    if value.is_graph_output():
        graph.outputs[list(graph.outputs).index(value)] = result
        name = str(value.name)
        value.name, result.name = f"{name}/exact", name
    producer = value.producer()
    if producer is None:
        graph.insert_before(next(iter(graph)), [noise, join])
    else:
        graph.insert_after(producer, [noise, join])
