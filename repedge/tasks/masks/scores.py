"""Whether outputs are maps of class scores, and which: by the graph, or by what a bundle says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repedge.tasks.base import Network, Output

RATIOS = (1, 2, 4, 8)
"""How many times smaller than the input a map may be, to be taken for one of scores unasked."""

AMBIGUOUS = frozenset({1, 3})
"""So many channels may be a depth or a picture, too."""

FEATURES = 64
"""So many channels or more, in multiples of 32, are features; no data set has so many classes."""

OTHERS = ("heat", "keypoint", "depth", "disparity", "flow", "feature", "embed", "normal")
"""An output with one of these in its name is another kind of map."""

ACTIVATIONS = {
    "Softmax": "softmax", "LogSoftmax": "none", "Sigmoid": "sigmoid", "HardSigmoid": "sigmoid",
    "ArgMax": "argmax",
}  # fmt: skip
"""What may come after the scores -> what they are then."""

UNITS = {"none": "logit", "softmax": "probability", "sigmoid": "probability", "argmax": "class"}

PASSING = frozenset({"Resize", "Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Slice", "Dropout"})
"""What may stand between them and the output."""

MOST = 1 << 16
"""No map has as many classes, rows or columns."""


@dataclass(frozen=True)
class Meaning:
    """What the maps of a network hold; what no signature says.

    Attributes:
        activation: A key of `UNITS`.
        classes: Number of classes; 2 of a mask, which has one channel.
        size: Height and width of the network's input.
    """

    activation: str
    classes: int
    size: tuple[int, int]


def has_classes(output: Output, meaning: Meaning) -> bool:
    """Whether an output is a map of the classes."""
    if meaning.activation == "argmax":
        return len(output.shape) == 2 or (len(output.shape) == 3 and output.shape[0] == 1)
    return len(output.shape) == 3 and max(output.shape[0], 2) == meaning.classes


def fits(output: Output, meaning: Meaning) -> bool:
    """Whether a map's size is the input's, or a half to an eighth of it."""
    (h, w), (height, width) = output.shape[-2:], meaning.size
    return any(abs(height - r * h) < r and abs(width - r * w) < r for r in RATIOS)


@dataclass(frozen=True)
class End:
    """How a value of a graph came to be.

    Attributes:
        activation: As of `Meaning`; None if nothing says it.
        resized: Whether it was enlarged.
        classes: Of an ArgMax.
        operator: The first that is none of these.
    """

    activation: str | None
    resized: bool
    classes: int
    operator: str


def end_of(value: Any) -> End:
    """How an output of a graph came to be, followed back to the first operator that made its numbers."""
    activation, resized, classes = None, False, 0
    node = value.producer()
    while node is not None:
        found = ACTIVATIONS.get(node.op_type)
        if found is not None and activation is None and _over_classes(node):
            activation = found
            if found == "argmax":
                classes = int(node.inputs[0].shape[1])
        elif node.op_type not in PASSING or (node.op_type == "Reshape" and not _same_map(node)):
            break
        resized |= node.op_type == "Resize"
        node = node.inputs[0].producer()
    return End(activation, resized, classes, "" if node is None else node.op_type)


def _over_classes(node: Any) -> bool:
    """Whether an activation is one of maps [N, C, H, W], over C."""
    shape = node.inputs[0].shape
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int):
        return False
    if node.op_type not in ("Softmax", "LogSoftmax", "ArgMax"):
        return True
    axis = node.attributes.get("axis")
    default = 0 if node.op_type == "ArgMax" else -1
    return (default if axis is None else int(axis.value)) in (1, -3)


def _same_map(node: Any) -> bool:
    """Whether a Reshape leaves height and width as they are."""
    shapes = [v.shape for v in (node.inputs[0], node.outputs[0])]
    return all(s is not None and len(s) >= 3 for s in shapes) and shapes[0][-2:] == shapes[1][-2:]


def scores_classes(output: Output, end: End, labels: Sequence[str]) -> bool:
    """Whether a map is one of scores, unasked."""
    if end.activation == "argmax":
        return True
    channels = output.shape[0]
    if channels == 1:
        return end.activation == "sigmoid"
    if end.activation == "softmax" or (labels and len(labels) == channels):
        return True
    features = channels >= 256 or (channels >= FEATURES and channels % 32 == 0)
    last = ("Conv", "ConvTranspose", "Add") if end.resized else ("Conv", "ConvTranspose")
    return channels not in AMBIGUOUS and not features and end.operator in last


def meaning_of(network: Network) -> Meaning | None:
    """What a network's maps hold, by its graph or by what its bundle says; None if that makes no sense."""
    if network.graph is None:
        return _told(network.settings)
    size = network.graph.graph.inputs[0].shape
    if size is None or len(size) != 4 or not all(isinstance(d, int) for d in size[2:]):
        return None
    for output, value in zip(network.outputs, network.graph.graph.outputs, strict=True):
        if len(output.shape) not in (2, 3):
            continue
        end = end_of(value)
        activation = end.activation or "none"
        if activation == "argmax" or len(output.shape) == 3:
            classes = end.classes if activation == "argmax" else max(output.shape[0], 2)
            return Meaning(activation, classes, (int(size[2]), int(size[3])))  # type: ignore[arg-type]
    return None


def _told(settings: Mapping[str, Any]) -> Meaning | None:
    activation, classes, size = (settings.get(key) for key in ("activation", "classes", "size"))
    numbers = [classes, *size] if isinstance(size, list) and len(size) == 2 else [0]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < MOST for n in numbers)
    if activation not in UNITS or not whole or numbers[0] < 2:
        return None
    return Meaning(activation, numbers[0], (numbers[1], numbers[2]))
