"""What a network's outputs mean: one file for each kind of answer. A new one is its file and a line here."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from repedge.errors import UserError

if TYPE_CHECKING:
    import onnx_ir as ir

    from repedge.tasks.base import Figure, Network, Part, Task

TASKS = {
    "detect": "repedge.tasks.detect:Detect",
    "embed": "repedge.tasks.embed:Embed",
    "classify": "repedge.tasks.classify:Classify",
    "segment": "repedge.tasks.segment:Segment",
    "raw": "repedge.tasks.raw:Raw",
}
"""In the order in which they are asked whether a network is theirs."""

GROUP = "repedge.tasks"
"""Entry-point group of other packages' tasks, which are asked first: name = the word, object = the class."""

AGREE = "agree_"
"""Before a metric's key: the same metric with the float network's answers as the truth."""

EARLIER = {"figures": ("agree_top1", "kl"), "metrics": ("top1", "top5")}
"""Keys that JSON had before there were tasks: null where a task has no such figure, for programs that ask."""


def entry_points() -> Any:
    """What other packages registered."""
    from importlib import metadata  # not for `repedge --help`

    return metadata.entry_points(group=GROUP)


def names() -> list[str]:
    """Built-in tasks first, then those that other packages registered."""
    return [*TASKS, *sorted({e.name for e in entry_points()} - TASKS.keys())]


def kind(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        UserError: There is none, or another package's does not load.
    """
    if name in TASKS:
        module, _, cls = TASKS[name].partition(":")
        found: type[Task] = getattr(importlib.import_module(module), cls)
        return found
    for entry in entry_points():
        if entry.name == name:
            try:
                loaded: type[Task] = entry.load()
            except Exception as e:  # a plug-in may fail in any way
                raise UserError(f"the task plug-in {entry.value} does not load: {e}") from e
            return loaded
    close = difflib.get_close_matches(name.lower(), names(), n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(names())}"
    raise UserError(f"there is no task {name!r}; {hint}")


def meant(told: str) -> tuple[type[Task], dict[str, Any]]:
    """The class of ``NAME`` or ``NAME:FILE.json``, and what the file says of the network.

    Raises:
        UserError: There is no such task, or the file is no JSON object.
    """
    from repedge.disk import regular

    name, _, file = told.partition(":")
    chosen = kind(name)
    if not file:
        return chosen, {}
    try:
        said = json.loads(regular.read_text(Path(file)))
    except OSError as e:
        raise UserError(f"{file}, said with --task, can't be read: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file}, said with --task, is no JSON: {e}") from e
    if not isinstance(said, dict):
        raise UserError(f'{file}, said with --task, must be a JSON object like {{"classes": 80}}')
    return chosen, said


def recognize(network: Network, told: str | None = None) -> Task:
    """The task of a network: the one that the user named, else the first that knows the outputs.

    Args:
        network: Its outputs.
        told: The task's name, or, with what can't be seen of the network, ``NAME:FILE.json``.

    Raises:
        UserError: There is no such task, or the outputs can't be what the user says.
    """
    if told:
        chosen, said = meant(told)
        network = replace(network, settings=said) if said else network
        why = chosen.refusal(network)
        if why is not None:
            raise UserError(f"the task can't be {chosen.name}: {why}")
        return chosen(network)
    others = [name for name in names() if name not in TASKS]
    for name in (*others, *TASKS):
        if kind(name).recognizes(network):
            return kind(name)(network)
    raise AssertionError("raw takes every network")


class Signature(Protocol):
    """An output as an artifact has it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def shape(self) -> Sequence[int]:
        """Batch axis first."""

    @property
    def layout(self) -> str:
        """One letter for each axis, such as ``NHWC``; may be empty."""


def of_outputs(
    outputs: Iterable[Signature],
    labels: Sequence[str] = (),
    told: str | None = None,
    parts: Mapping[str, tuple[Part, ...]] = MappingProxyType({}),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Task:
    """The task by an artifact's signature; tasks know outputs as the graph has them, NCHW.

    Args:
        outputs: In the graph's order.
        labels: Class names.
        told: The task's name where the signature does not say it.
        parts: Of outputs that hold numbers of several kinds, by name.
        settings: What `Task.settings` gave of the graph; see `Network.settings`.
    """
    from repedge.tasks.base import Network, Output

    found = []
    for o in outputs:
        shape = tuple(o.shape)
        last = o.layout == "NHWC" and len(shape) == 4
        shape = (shape[3], *shape[1:3]) if last else shape[1:]
        found.append(Output(o.name, shape, parts.get(o.name, ())))
    return recognize(Network(tuple(found), tuple(labels), settings=settings), told)


def of_graph(
    graph: ir.Model,
    labels: Sequence[str] = (),
    told: str | None = None,
    parts: Sequence[tuple[Part, ...]] = (),
) -> Task:
    """The task of a float graph with a static batch; raises as `recognize`.

    Args:
        graph: The graph.
        labels: Class names.
        told: The task's name, if the user gave one.
        parts: Of each output; see `repedge.graph.analysis.parts.parts_of`.
    """
    from repedge.tasks.base import Network, Output

    outputs = []
    for i, value in enumerate(graph.graph.outputs):
        shape = () if value.shape is None else tuple(value.shape.numpy()) if value.shape.is_static() else ()
        outputs.append(Output(str(value.name), shape[1:], parts[i] if parts else ()))
    return recognize(Network(tuple(outputs), tuple(labels), graph), told)


def figure(key: str) -> Figure:
    """The figure or metric with this key, of whatever task has it."""
    from repedge.tasks.base import Figure

    for name in names():
        for found in (*kind(name).metrics, *kind(name).figures):
            if found.key == key:
                return found
    if key.startswith(AGREE):
        metric = figure(key.removeprefix(AGREE))
        return replace(metric, key=key, title=f"{metric.title} to float", phrase="", absent="no reference")
    return Figure(key, key, "")


def figures_json(figures: Mapping[str, float | None]) -> dict[str, Any]:
    """Figures against float as JSON has them, flat among an object's other keys.

    Those whose keys have a point stand together: ``matched.recall`` is ``recall`` in ``matched``.
    """
    return {**dict.fromkeys(EARLIER["figures"]), **nested(figures)}


def nested(figures: Mapping[str, float | None]) -> dict[str, Any]:
    """Keys with a point as objects."""
    found: dict[str, Any] = {}
    for key, value in figures.items():
        group, point, name = key.partition(".")
        if point:
            found.setdefault(group, {})[name] = value
        else:
            found[key] = value
    return found


def metrics_json(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Figures against the truth as JSON has them."""
    return {**dict.fromkeys(EARLIER["metrics"]), **metrics}


def intervals_json(figures: Mapping[str, float | None], n: int) -> dict[str, list[float]]:
    """Figure -> 95 % confidence interval, of those that are shares of ``n`` images."""
    found = {key: figure(key).interval(value, n) for key, value in figures.items()}
    return {key: list(interval) for key, interval in found.items() if interval is not None}
