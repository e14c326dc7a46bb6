"""What a target is: data about a format, a table of lowerings, `compile` and `open`.

A target is one class in one obvious file, listed in ``TARGETS`` of ``repedge.targets`` or in the
entry-point group ``repedge.targets`` of another package. Nothing here imports another target.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from repedge.config import InputKind, Precision, Preprocess


@dataclass(frozen=True)
class Job:
    """Everything a target needs to know beside the graph.

    Attributes:
        name: Stem of the artifact's file names.
        precision: One of the target's ``precisions``.
        input_kind: ``uint8`` folds the preprocessing into the artifact, ``float32`` leaves it out.
        preprocess: How an image becomes the network's input; recorded in the artifact's metadata.
        labels: Class names in output order; empty if there are none.
        description, author, license, version: Free text for the artifact's metadata.
        options: Options that only this target knows, such as coreml's ``deployment_target``.
    """

    name: str
    precision: Precision
    preprocess: Preprocess
    input_kind: InputKind = "uint8"
    labels: tuple[str, ...] = ()
    description: str = ""
    author: str = ""
    license: str = ""
    version: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


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
    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run the artifact on a batch (looping over it where the batch size is fixed).

        Args:
            batch: For input kind ``uint8``, pixels uint8 [N, H, W, 3] in RGB order ([N, H, W, 1] for
                GRAY); for ``float32``, the network's own input float32 [N, C, H, W].

        Returns:
            float32 outputs in the order and layout of the graph's outputs (NCHW where 4-D), each
            with leading axis N.

        Raises:
            DeviceError: The runtime failed.
        """

    def close(self) -> None:  # noqa: B027 - most runtimes free themselves
        """Free the runtime's memory."""


@dataclass(frozen=True)
class Unsupported:
    """One node that a target can't take."""

    op: str
    node: str
    why: str
    source: str = ""


class Target(ABC):
    """A format to compile to. Subclasses are stateless; class attributes are the description."""

    name: ClassVar[str]
    title: ClassVar[str]
    """One line for `repedge targets`."""
    suffix: ClassVar[str]
    """Ending of the main file, with the dot."""
    precisions: ClassVar[tuple[Precision, ...]]
    """In order of preference; the first is the default."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules that `compile` and `open` import."""
    executor: ClassVar[str]
    """Name of what `open` runs the artifact in."""

    @abstractmethod
    def unsupported(self, model: ir.Model) -> Sequence[Unsupported]:
        """Every node of the clean graph without a lowering; reads the same table that `compile` uses."""

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

    def missing_modules(self) -> list[str]:
        """Modules in ``needs`` that are not installed."""
        return [m for m in self.needs if importlib.util.find_spec(m) is None]
