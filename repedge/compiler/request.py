"""What to build: the options of one compile run, checked before any work, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repedge import targets
from repedge.bundle.folder import check_destination
from repedge.bundle.manifest import Verification
from repedge.compiler.budget import Budget, SearchResult
from repedge.compiler.quantization import Calibration
from repedge.config import InputKind, Preprocess
from repedge.errors import UserError
from repedge.judge.samples import COUNT
from repedge.judge.verification import check_count
from repedge.precision import Precision
from repedge.scheme import QuantScheme
from repedge.targets.base import NONE, Job
from repedge.targets.options import route
from repedge.tasks.base import Task


@dataclass(frozen=True)
class Check:
    """How artifacts are verified.

    Attributes:
        images: Photos to verify on: a folder, .zip or .npz; None for those that calibration left over, or
            bundled ones where there are none.
        count: How many of them.
        min_sqnr: Replaces the precision's SQNR threshold, dB.
    """

    images: Any = None
    count: int = COUNT
    min_sqnr: float | None = None

    def check(self) -> None:
        """Refuse what can't be meant.

        Raises:
            UserError: A count below 1, or a threshold that is no number.
        """
        check_count(self.count)
        if self.min_sqnr is not None and not math.isfinite(self.min_sqnr):
            raise UserError(f"an SQNR threshold is a number of decibels, not {self.min_sqnr}")


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        builds: (target, precision) of every bundle.
        out: Folder that receives the bundles.
        input_kind: What the artifacts take; see `repedge.config.InputKind`.
        force: Replace bundles that exist.
        reference: Whether the bundles carry the float reference graph.
        verify: How the artifacts are verified.
        calibration: Photos for the precisions with integer activations.
        budget: How much accuracy these may cost; layers are raised to float to keep to it.
        task: Name of what the outputs mean; None lets them say it.
        options: Target options such as ``deployment_target``, or ``coreml.deployment_target``.
        about: author, license, description, version for the artifacts' metadata.
        command: The command line, recorded in the manifests.
    """

    builds: tuple[tuple[str, Precision], ...]
    out: Path = Path("build")
    input_kind: InputKind = "uint8"
    force: bool = False
    reference: bool = True
    verify: Check = Check()
    calibration: Calibration | None = None
    budget: Budget | None = None
    task: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()

    @property
    def needs_photos(self) -> bool:
        """Whether any bundle has integer activations."""
        return any(integer_scheme(*build) is not None for build in self.builds)

    def scheme_of(self, target: str, precision: Precision) -> QuantScheme | None:
        """`integer_scheme` of one bundle, with its options."""
        return integer_scheme(target, precision, self.options_of(target, precision))

    def options_of(self, target: str, precision: Precision) -> dict[str, Any]:
        """The options of one bundle's target, checked; raises as `repedge.targets.options.route`."""
        return route(self.options, self.builds)[target, precision]

    def check(self) -> None:
        """Fail where options don't go together, or a precision lacks what it needs, such as photos.

        Raises:
            UserError: Says which.
        """
        if self.calibration is None and self.needs_photos:
            raise UserError("8-bit activations need photos to calibrate on: pass --calib FOLDER")
        kept = self.calibration is not None and self.calibration.keep_float
        if (self.budget is not None or kept) and not self.needs_photos:
            raise UserError(
                "an accuracy budget or --keep-float is for w8a8 or w8a16: name one with --precision"
            )
        for (target, precision), options in route(self.options, self.builds).items():
            job = Job("model", precision, Preprocess(), input_kind=self.input_kind, options=options)
            targets.get(target).check(job)

    def check_destinations(self, name: str) -> None:
        """Fail before any work where a bundle of the model ``name`` could not be written.

        Raises:
            UserError: Says which.
        """
        for target, precision in self.builds:
            check_destination(bundle_path(self.out, name, target, precision), self.force)


def bundle_path(out: Path, name: str, target: str, precision: str) -> Path:
    """Where a bundle goes: ``OUT/MODEL-TARGET-PRECISION``."""
    return out / f"{name}-{target}-{precision}"


def integer_scheme(
    target: str, precision: Precision, options: Mapping[str, Any] = NONE
) -> QuantScheme | None:
    """What a target's integers demand at a precision with integer activations; None at any other."""
    scheme = targets.get(target).scheme(precision, options)
    return None if scheme is None or scheme.weights_only else scheme


@dataclass(frozen=True)
class Built:
    """One bundle that was written (or rejected, when ``verify.passed`` is false)."""

    path: Path
    target: str
    precision: Precision
    size_bytes: int
    verify: Verification
    seconds: dict[str, float]
    budget: SearchResult | None = None
    task: Task | None = None
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """One element of ``bundles`` in the JSON of ``repedge compile``."""
        return {
            "path": str(self.path),
            "target": self.target,
            "precision": self.precision,
            "size_bytes": self.size_bytes,
            "verify": self.verify.model_dump(),
            "seconds": self.seconds,
            **({} if self.budget is None else {"budget": self.budget.as_json()}),
        }
