"""What a task is: what a network's outputs mean, and everything that follows from that.

A task is a value: it is made for one network's outputs, and whoever must know what they mean asks it and
nothing else. One file for each kind, listed in ``TASKS`` of ``repedge.tasks`` or in the entry-point group
``repedge.tasks`` of another package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from repedge.errors import UserError
from repedge.tasks.comparison import Answers, Comparison
from repedge.tasks.figures import FEW, Figure, wilson

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from repedge.tasks.view import View
    from repedge.templates import Templates

__all__ = ["FEW", "Figure", "Limit", "Network", "Output", "Part", "Scorer", "Task", "Truths", "wilson"]

Truths = Callable[[str, Any], Any | None]
"""(name of a photo, what its source says of it) -> what is to be found in it; None where nobody knows."""


@dataclass(frozen=True)
class Part:
    """A stretch of an output that holds numbers of one kind, such as a detector's scores beside its boxes.

    Attributes:
        axis: Of the output as the graph has it, the batch being axis 0.
        start, stop: Where the stretch begins and ends.
        name: What its numbers are, such as ``box`` or ``objectness``; empty where nobody knows.
        unit: What they are counted in, such as ``pixels`` or ``probability``; empty likewise.
    """

    axis: int
    start: int
    stop: int
    name: str = ""
    unit: str = ""

    @property
    def index(self) -> tuple[slice, ...]:
        """What takes it out of an array [n, ...]."""
        return (*[slice(None)] * self.axis, slice(self.start, self.stop))

    def __str__(self) -> str:
        return f"[{':, ' * self.axis}{self.start}:{self.stop}]"


@dataclass(frozen=True)
class Output:
    """An output of a network, batch axis first.

    Attributes:
        name: Its name in the graph.
        shape: Without the batch axis.
        parts: Of numbers of different kinds, each judged alone; empty where it is of one kind.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Network:
    """What is known of a network when somebody asks what its outputs mean.

    Attributes:
        outputs: In the graph's order.
        labels: Class names, if the model brought any.
        graph: The float graph; None where only the signature is known, as of a bundle.
        settings: What `Task.settings` gave when the graph was known, from a bundle's manifest; what it holds
            is untrusted. With a graph, what the user says of it (``--task NAME:FILE.json``).
        memory: What tasks worked out, so that it is done once.
    """

    outputs: tuple[Output, ...]
    labels: tuple[str, ...] = ()
    graph: ir.Model | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Limit:
    """Something that an accuracy budget can bound.

    Attributes:
        measure: Its name in JSON, such as ``top1_drop``.
        phrase: In words.
        unit: ``points`` (hundredths) or ``nats``.
        figure: Key of the metric or figure that it is made from.
    """

    measure: str
    phrase: str
    unit: Literal["points", "nats", ""]
    figure: str


class Scorer(Protocol):
    """Holds answers against the truth, photo by photo."""

    def update(self, outputs: Sequence[np.ndarray], truths: Sequence[Any]) -> None:
        """Add a batch: the network's outputs [n, ...] and what is to be found in each photo.

        Raises:
            UserError: A truth that the network can't give, such as a label beyond its classes.
        """

    def score(self) -> dict[str, float]:
        """The task's `Task.metrics` over all photos so far, by key."""

    def hits(self) -> np.ndarray:
        """What each photo, or each episode of them, adds to the first metric, 0 to 1: for paired errors. [n].

        Where that metric is no mean over photos, a scorer has a method ``lost_from(exact)`` that gives the
        `repedge.tasks.resampling.Change` from another one that saw the same photos; see `resampling.change`.
        """


class Task(ABC):
    """What the outputs of one network mean. Subclasses are immutable."""

    name: ClassVar[str]
    """The word after ``--task``; named in manifests."""
    title: ClassVar[str]
    """What the network does, in words."""
    figures: ClassVar[tuple[Figure, ...]] = ()
    """How near an answer is to the float model's, without labels."""
    metrics: ClassVar[tuple[Figure, ...]] = ()
    """How near it is to the truth; the first is the one that budgets bound."""
    drop: ClassVar[Limit | None] = None
    """What ``--max-drop`` bounds where the truth is known: how much of the first metric is lost."""
    disagreement: ClassVar[Limit | None] = None
    """What it bounds elsewhere: how much of a figure of agreement with float is lacking."""
    annotated: ClassVar[str | None] = None
    """What data sets tell of its photos, ``boxes`` or ``masks``; None where it is something else."""
    divergence: ClassVar[Limit | None] = None
    """What ``--max-kl`` bounds, a figure that grows with the distance from float: one of `meter`, or else the
    mean of `nearness`."""
    aligned: bool = True
    """Whether each number of an output answers the same question on every photo, so that its distance from
    the float network's means something: not where a network sorts what it found."""
    ship: ClassVar[Mapping[str, Templates]] = MappingProxyType({})
    """Platform -> the files with which an app there reads the answer."""

    def __init__(self, network: Network) -> None:
        self.outputs = network.outputs
        self.labels = network.labels

    @classmethod
    @abstractmethod
    def recognizes(cls, network: Network) -> bool:
        """Whether the outputs are of this kind, as far as they can tell."""

    @classmethod
    def refusal(cls, network: Network) -> str | None:
        """Why the outputs can't be of this kind, even if the user says so; None if they can."""
        return None

    def describe(self) -> str:
        """What the outputs are, in a line for people."""
        return self.title

    def settings(self) -> dict[str, Any]:
        """What the outputs' shapes don't say and was read from the graph, as JSON has it.

        It goes to the manifest's key ``answer``, and comes back as `Network.settings`, to be checked by
        `refusal`.
        """
        return {}

    @property
    def scores(self) -> int | None:
        """Index of the output with a score for each label; None where nothing is scored."""
        return None

    @property
    def features(self) -> int | None:
        """Numbers of the first output that are a direction to compare; None where they are something else."""
        return None

    def meter(self, index: int) -> Comparison:
        """Compares one output with the float model's; its figures are among `figures`."""
        return Comparison()

    def answers(self) -> Answers:
        """Compares what is made of all outputs together; its figures are among `figures`, too."""
        return Answers()

    def nearness(self, got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """By how much answers differ beyond the distance of the numbers, which is counted anyway.

        Args:
            got, want: Every output of the network in question and of the float one, [n, ...] each.

        Returns:
            Of each image, [n], differentiable; None if nothing is to be added.
        """
        return None

    def curvature(
        self, outputs: Sequence[torch.Tensor], signs: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """Random vectors v for each output with ``E v v'`` half the second derivative of `nearness` at 0.

        Args:
            outputs: Of the float network, [n, ...] each.
            signs: Gives random signs in the shape of a tensor.
        """
        return [None] * len(outputs)

    def truths(self, photos: Any) -> Truths | None:
        """What is to be found in the photos of a set, as far as the set says; None if it says nothing.

        Args:
            photos: A `repedge.photos.photos.Photos`.

        Raises:
            UserError: What the set says can't be read, or does not fit the network.
        """
        return None

    def placed(self, truth: Any, view: View) -> Any:
        """A truth of a photo as that of the network's input, which the scorer takes.

        Raises:
            UserError: It can't be of a photo of this size.
        """
        return truth

    def as_truths(self, outputs: Sequence[np.ndarray]) -> list[Any] | None:
        """What a network sees in each image, as truths that `scorer` takes: to hold others against it.

        Args:
            outputs: [n, ...] each, as the graph has them.

        Returns:
            None where the figures of `meter` say it already, or there is no metric.
        """
        return None

    def asked(self, **options: int | None) -> Task:
        """The task, judged as the user asks; raises UserError where it has nothing of the kind to ask."""
        for name in (name for name, value in options.items() if value is not None):
            raise UserError(f"--{name} is of few-shot episodes (--task embed); this has {self.describe()}")
        return self

    def scorer(self) -> Scorer | None:
        """Holds answers against the truth; None where the task has no metric."""
        return None

    apart_phrase: ClassVar[str] = "relative error {:.3f}"
    """What `apart` gives, in words."""

    def apart(self, outputs: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> np.ndarray:
        """How far answers are from the float network's, photo by photo: those most apart are shown. [n].

        Args:
            outputs, exact: Of the network in question and of the float one, [n, ...] each.
        """
        from repedge.tasks.drawing import relative_errors

        return relative_errors(outputs, exact)

    def results(self, outputs: Sequence[np.ndarray]) -> list[Any]:
        """The answer for each image, as `draw` takes it."""
        raise NotImplementedError

    def draw(self, result: Any, size: tuple[int, int]) -> str:
        """An answer or a truth as SVG elements over the photo; see `repedge.tasks.drawing`.

        Args:
            result: One of `results`, or what `scorer` takes as a truth.
            size: Height and width of the network's input, which are those of the picture.
        """
        raise NotImplementedError

    def legend(self) -> list[tuple[str, str]]:
        """(colour, name) of what `draw` gives no name."""
        return []

    def check_labels(self) -> None:  # noqa: B027 - most tasks have none
        """Refuse labels that don't fit the outputs.

        Raises:
            UserError: There are labels, and no output has an entry for each.
        """

    @property
    def named(self) -> int | None:
        """Index of the output with a channel for each label; None where there is none."""
        return self.scores

    def metadata(self, consumer: str) -> dict[str, Any]:
        """What a standard consumer of artifacts reads of the answer, in its own words.

        Args:
            consumer: ``mediapipe`` (Google's Tasks) or ``model_api`` (OpenVINO's).

        Returns:
            Empty where it takes no such network. ``labels`` where they are not `named`.
        """
        return {}

    def context(self, samples: Sequence[np.ndarray]) -> dict[str, Any]:
        """What templates of app packages are told of the answer.

        Args:
            samples: Golden outputs, [n, ...] each, in the artifact's own layout.
        """
        return {}

    def golden(self, outputs: Sequence[np.ndarray], views: Sequence[View]) -> Mapping[str, bytes]:
        """Files for the golden tests of app packages, from the golden outputs and where the photos lie."""
        return {}

    @classmethod
    def limit(cls, measure: str) -> Limit:
        """The limit with this name."""
        limits = (cls.drop, cls.disagreement, cls.divergence)
        return next(x for x in limits if x is not None and x.measure == measure)

    @classmethod
    def bounded(cls, what: str, limit: Limit | None) -> Limit:
        """A limit, if the task has it.

        Raises:
            UserError: It has none.
        """
        if limit is None:
            raise UserError(
                f"{what} bounds nothing for the task {cls.name!r} ({cls.title}); name layers with "
                "--keep-float for this model"
            )
        return limit
