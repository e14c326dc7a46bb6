"""Which head a network has: seen on its decoding, never by names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from repedge.tasks.base import Network
from repedge.tasks.heads.head import Activation, Coding, Count, Head, Length, Unit, mismatch, of_settings
from repedge.tasks.heads.maps import maps
from repedge.tasks.heads.rows import one_output, two_outputs
from repedge.tasks.heads.seen import Seen, Unknown
from repedge.tasks.heads.tail import tail_of

if TYPE_CHECKING:
    import onnx_ir as ir


@with_config(ConfigDict(extra="forbid", strict=False))
class Said(TypedDict, total=False):
    """What a user may say of a head whose graph does not say it: attributes of `Head`."""

    classes: Count
    objectness: bool
    coding: Coding
    unit: Unit
    transposed: bool
    anchors: list[list[tuple[Length, Length]]]
    offset: float
    bins: int
    activation: Activation
    background: Count | None


SAYABLE = ", ".join(Said.__annotations__)
"""What a user may say, for messages."""


def recognize(network: Network) -> Head | str:
    """The head of a network, or a sentence that says what was seen instead.

    Without the graph it is what the network's settings say it was; with it, settings are what the user says
    (`Said`).
    """
    if "head" not in network.memory:
        network.memory["head"] = _recognized(network)
    found: Head | str = network.memory["head"]
    return found


def _recognized(network: Network) -> Head | str:
    if network.graph is None:
        return of_settings(network.settings, network.outputs) if network.settings else NO_GRAPH
    kind = _kind(network)
    if kind not in KINDS:
        return kind
    try:
        said = TypeAdapter(Said).validate_python(dict(network.settings))
    except ValidationError as error:
        first = error.errors()[0]
        return f"what is said of its head is wrong: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    size, tail = _size(network.graph), tail_of(network.graph)
    if size is None or tail is None:
        return "what its outputs are made of can't be run apart from its layers"
    seen = Seen(network, tail, size, dict(said))
    try:
        head = _looked_at(seen, kind)
    except Unknown as why:
        return str(why)
    return mismatch(head, network.outputs) or head


NO_GRAPH = "only its graph could say what its boxes are; compile it again"

KINDS = ("rows", "apart", "maps")


def _kind(network: Network) -> str:
    """What the outputs can be by their shapes alone, or a sentence on what they are."""
    shapes = [o.shape for o in network.outputs]
    ranks = {len(s) for s in shapes}
    if len(shapes) == 1 and ranks == {2} and min(shapes[0]) >= 1:
        return "rows"
    if len(shapes) == 2 and ranks == {2} and _pair(network) is not None:
        return "apart"
    if len(shapes) > 1 and ranks <= {3, 4}:
        return "maps"
    seen = ", ".join(f"{o.name!r} {list(o.shape)}" for o in network.outputs)
    return (
        "no boxes and scores are found in its outputs, which are neither rows of candidates, nor boxes "
        f"beside scores, nor maps of several strides: {seen}"
    )


def _pair(network: Network) -> tuple[int, int] | None:
    """Index of the output with boxes and of the one with as many rows (or columns) of scores."""
    for box in (0, 1):
        boxes, scores = network.outputs[box].shape, network.outputs[1 - box].shape
        if boxes[1] == 4 and boxes[0] in scores:
            return box, 1 - box
    return None


def _looked_at(seen: Seen, kind: str) -> Head:
    if kind == "rows":
        return one_output(seen)
    if kind == "maps":
        return maps(seen)
    pair = _pair(seen.network)
    assert pair is not None, "it is of this kind"
    return two_outputs(seen, *pair)


def _size(graph: ir.Model) -> tuple[int, int] | None:
    """Height and width of the image that the graph takes."""
    shape = graph.graph.inputs[0].shape if graph.graph.inputs else None
    if shape is None or not shape.is_static() or len(shape) != 4:
        return None
    return int(shape[2]), int(shape[3])  # type: ignore[arg-type]
