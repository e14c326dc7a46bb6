"""What a target is: data about a format, a table of lowerings, `compile` and `open`.

A target is one class in a folder of its own, listed in ``TARGETS`` of ``repedge.targets`` or in the
entry-point group ``repedge.targets`` of another package. The class says all that the rest of repedge asks:
its integers, its options, its files, what measures it, where it ships to. Nothing else compares targets'
names, and no target imports another.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from repedge import tasks
from repedge.config import InputKind, Preprocess
from repedge.disk.litter import is_litter
from repedge.errors import UserError
from repedge.graph.values import shape_of
from repedge.precision import THRESHOLDS, Precision, Threshold
from repedge.scheme import QuantScheme
from repedge.tasks.base import Task
from repedge.templates import Templates

NONE: Mapping[str, Any] = MappingProxyType({})
"""What a target has none of."""


@dataclass(frozen=True)
class Job:
    """Everything a target needs to know beside the graph.

    Attributes:
        name: Stem of the artifact's file names.
        precision: One of the target's ``precisions``.
        input_kind: ``uint8`` folds the preprocessing into the artifact, ``float32`` leaves it out.
        preprocess: How an image becomes the network's input; recorded in the artifact's metadata.
        labels: Class names in output order; empty if there are none.
        task: What the outputs mean; None: what they say themselves (`Job.meaning`).
        description, author, license, version: Free text for the artifact's metadata.
        options: Options that only this target knows, such as coreml's ``deployment_target``.
    """

    name: str
    precision: Precision
    preprocess: Preprocess
    input_kind: InputKind = "uint8"
    labels: tuple[str, ...] = ()
    task: Task | None = None
    description: str = ""
    author: str = ""
    license: str = ""
    version: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def meaning(self, model: ir.Model) -> Task:
        """What the outputs of the job's graph mean."""
        return self.task or tasks.of_graph(model, self.labels)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an artifact as the app sees it.

    Attributes:
        name: Name in the artifact's own signature.
        dtype: numpy's name, such as ``uint8`` or ``float32``.
        shape: As the artifact has it; -1 for a dynamic axis.
        layout: One letter per axis: ``NHWC``, ``NCHW``, ``NC``; empty if it has no meaning.
        kind: ``image`` for Core ML's image inputs, else ``tensor``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str = ""
    kind: str = "tensor"


@dataclass(frozen=True)
class Artifact:
    """What `Target.compile` wrote.

    Attributes:
        main: Path of the file or package that a runtime loads, relative to the bundle folder.
        inputs, outputs: The artifact's signature, outputs in the order of the graph's outputs.
        requires: Minimal runtimes, such as ``{"LiteRT": ">=1.13"}`` or ``{"iOS": ">=16"}``.
        notes: Sentences worth telling the user (an op that runs outside the delegate, ...).
    """

    main: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    requires: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Runner(ABC):
    """An artifact opened in a real executor."""

    @abstractmethod
    def run(self, batch: np.ndarray, tensors: Mapping[str, np.ndarray] = NONE) -> list[np.ndarray]:
        """Run the artifact on a batch (looping over it where the batch size is fixed).

        Args:
            batch: For input kind ``uint8``, pixels uint8 [N, H, W, 3] in RGB order ([N, H, W, 1] for
                GRAY); for ``float32``, the network's own input float32 [N, C, H, W].
            tensors: What the artifact takes beside the image: name in the artifact's signature -> [N, ...],
                the shape and type of the graph's input behind N. A target that takes the image alone (see
                `Target.tensors`) is never given any, and may leave the parameter out.

        Returns:
            float32 outputs in the order and layout of the graph's outputs (NCHW where 4-D), each
            with leading axis N.

        Raises:
            DeviceError: The runtime failed.
        """

    def others(
        self, batch: np.ndarray, tensors: Mapping[str, np.ndarray] = NONE
    ) -> Mapping[str, list[np.ndarray]]:
        """What comes of further ways in which the artifact may run elsewhere, held against the same limits.

        Args:
            batch, tensors: As for `run`.

        Returns:
            A phrase for each way, such as ``with float16 rounding after every operator`` -> as `run`.
        """
        return {}

    def close(self) -> None:  # noqa: B027 - most runtimes free themselves
        """Free the runtime's memory."""


@dataclass(frozen=True)
class Unsupported:
    """One node that a target can't take."""

    op: str
    node: str
    why: str
    source: str = ""


def in_words(refused: Sequence[Unsupported]) -> str:
    """Each operator once, with how many nodes of it there are, the first of them, and why."""
    by_op: dict[str, list[Unsupported]] = {}
    for u in refused:
        by_op.setdefault(u.op, []).append(u)
    lines = []
    for op, (first, *others) in by_op.items():
        where = f"{first.node!r}{f' (from {first.source})' if first.source else ''}"
        what = f"{len(others) + 1} {op} nodes, the first {where}" if others else f"{op} node {where}"
        lines.append(f"{what}: {first.why}")
    return "; ".join(lines)


@dataclass(frozen=True)
class Option:
    """Something that only one target knows, such as coreml's ``deployment_target``.

    Attributes:
        help: One line for people.
        read: The value that is meant, from a word of the command line or a Python value; raises
            ValueError with what is wanted, such as ``not one of iOS16, iOS17``.
        precisions: Where it means something; None: at every precision of the target.
    """

    help: str
    read: Callable[[Any], Any]
    precisions: tuple[Precision, ...] | None = None


@dataclass(frozen=True)
class Engine:
    """What measures a target's artifacts, here or on a device: see `repedge.devices.agent.engine.Engine`.

    Attributes:
        runtime: The runtime's word in profiles.
        agent: ``module:class`` of its engine. The module's file runs on machines that have no repedge: it
            imports the runtime, numpy, and of repedge nothing but ``repedge.devices.agent`` and ``modules``.
        needs: Modules that hold the runtime, the first found is used.
        package: What pip installs to have it.
        modules: Further modules that ``agent`` imports and that travel with it.
        suffixes: Endings of files that it loads, beside the target's own.
        everywhere: Whether it runs on any machine that compiles, so that artifacts can be timed there.
        units: Words of the places where operators run, for ``--require 'ane>=0.95'``.
        outside: Words among an operator's ``where`` that mean: not on the accelerator.
        throughput: Whether it has the hint ``throughput``, and so says the hint in reports.
    """

    runtime: str
    agent: str
    needs: tuple[str, ...]
    package: str
    modules: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    everywhere: bool = True
    units: tuple[str, ...] = ()
    outside: frozenset[str] = frozenset()
    throughput: bool = False


class Target(ABC):
    """A format to compile to. Subclasses are stateless; class attributes are the description."""

    name: ClassVar[str]
    title: ClassVar[str]
    """One line for `repedge targets`."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """What others call it, in lower-case letters and digits: also understood after ``--target``."""
    suffix: ClassVar[str]
    """Ending of the main file, with the dot."""
    precisions: ClassVar[tuple[Precision, ...]]
    """In order of preference; the first is the default."""
    schemes: ClassVar[Mapping[Precision, QuantScheme]] = NONE
    """Precisions with integers -> what these demand; see `repedge.scheme`."""
    thresholds: ClassVar[Mapping[Precision, Threshold]] = NONE
    """What words of the target's own promise, beside `repedge.precision.THRESHOLDS`."""
    tensors: ClassVar[frozenset[str]] = frozenset()
    """numpy's names of the types that inputs beside the image may have; empty: it takes the image alone."""
    options: ClassVar[Mapping[str, Option]] = NONE
    """By name: ``-O target.name=value``."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules that `compile` and `open` import."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions that have a hand in the artifact, whose versions are recorded."""
    executor: ClassVar[str]
    """Name of what `open` runs the artifact in."""
    engine: ClassVar[Engine | None] = None
    """What measures its latency; None: nothing does."""
    ship: ClassVar[Mapping[str, Templates]] = NONE
    """Platform -> the files that make an app there run the artifact; what is not listed can't."""

    @abstractmethod
    def unsupported(self, model: ir.Model) -> Sequence[Unsupported]:
        """Every node of the clean graph without a lowering; reads the same table that `compile` uses."""

    def refused(self, model: ir.Model) -> list[Unsupported]:
        """Inputs beside the image that the target doesn't take, and every node without a lowering."""
        refused = [
            Unsupported(
                "input",
                str(value.name),
                f"no {tensor_spec(value).dtype} input beside the image goes there; say what it always holds "
                f"with --input-value {value.name}=VALUE",
            )
            for value in model.graph.inputs[1:]
            if tensor_spec(value).dtype not in self.tensors
        ]
        return [*refused, *self.unsupported(model)]

    @abstractmethod
    def compile(self, model: ir.Model, job: Job, out: Path) -> Artifact:
        """Write the artifact into the existing, empty folder ``out``.

        Args:
            model: A clean graph (see ``repedge.graph``); it is not changed.
            job: Names, precision, preprocessing.
            out: Folder to write into. The same graph and job give the same bytes.
        """

    @abstractmethod
    def open(self, path: Path, job: Job, outputs: Sequence[str], threads: int | None = None) -> Runner:
        """Open a written artifact for running.

        Args:
            path: The artifact's main file.
            job: The job it was compiled with.
            outputs: Names of the outputs in the order in which `Runner.run` returns them.
            threads: CPU threads; None leaves it to the runtime.
        """

    def scheme(self, precision: Precision, options: Mapping[str, Any] = NONE) -> QuantScheme | None:
        """What the integers of a precision demand, where an option may choose among several; None: none."""
        return self.schemes.get(precision)

    def missing_modules(self) -> list[str]:
        """Modules in ``needs`` that are not installed."""
        return [m for m in self.needs if importlib.util.find_spec(m) is None]

    def check(self, job: Job) -> None:
        """Refuse a job that `compile` could not do, whatever the graph.

        Raises:
            UserError: Another target's precision, or an option that means nothing there.
        """
        if job.precision not in self.precisions:
            known = ", ".join(self.precisions)
            raise UserError(f"{self.name} has no precision {job.precision}; choose from {known}")
        for name in job.options:
            option = self.options.get(name)
            if option is None or (option.precisions is not None and job.precision not in option.precisions):
                raise UserError(f"{self.name} has no option {name} at {job.precision}")

    def threshold(self, precision: Precision) -> Threshold:
        """What a precision promises.

        Raises:
            UserError: The word is the target's own, and the target does not say.
        """
        found = self.thresholds.get(precision) or THRESHOLDS.get(precision)
        if found is None:
            raise UserError(
                f"the target {self.name} does not say what its precision {precision} promises: its "
                "`thresholds` lack it"
            )
        return found

    def files(self, main: Path) -> list[Path]:
        """Every file that an artifact is made of: ``main`` or, of a package, the files in it, in name order.

        Raises:
            UserError: One is missing, or lies outside of the artifact's folder.
        """
        if main.is_dir():
            return sorted(p for p in main.rglob("*") if p.is_file() and not is_litter(p))
        return [main, *beside(main, self.companions(main))]

    def companions(self, main: Path) -> Sequence[str]:
        """Names of the files that ``main`` needs beside it."""
        return ()

    def note(self) -> str:
        """What `repedge doctor` should say of the target on this machine; may be empty."""
        return ""


def tensor_spec(value: ir.Value, name: str | None = None) -> TensorSpec:
    """An input beside the image as an artifact has it that takes it as the graph does."""
    dtype = "float32" if value.dtype is None else value.dtype.numpy().name
    return TensorSpec(name or str(value.name), dtype, tuple(shape_of(value)))


def beside(main: Path, names: Sequence[str]) -> list[Path]:
    """The files of these names in the folder of ``main``.

    Raises:
        UserError: One is missing, or its name leads out of the folder.
    """
    found = []
    for name in dict.fromkeys(names):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{main} keeps weights in {name!r}, outside of its folder")
        if not (main.parent / name).is_file():
            raise UserError(f"{main} needs {name} beside it, but there is no such file")
        found.append(main.parent / name)
    return found
