"""manifest.json: what a bundle says of itself."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from repedge import tasks
from repedge.config import InputKind, Preprocess
from repedge.disk import regular
from repedge.errors import UserError
from repedge.precision import Precision
from repedge.tasks.base import Part, Task

SCHEMA_VERSION = 1


MANIFEST = "manifest.json"


REFERENCE = "reference.onnx"


GOLDEN = "golden"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Model):
    """One file of the bundle; ``path`` is relative, with forward slashes."""

    path: str
    size: int
    sha256: str


class Tensor(_Model):
    """An input or output of the artifact; see ``repedge.targets.base.TensorSpec``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str = ""
    kind: str = "tensor"


class PartFigures(_Model):
    """How a part of an output compares with the float reference.

    Attributes:
        output: Name of the output.
        name, unit: What the numbers are; empty where nobody knows.
        axis, start, stop: The part, as the graph has the output; see `repedge.tasks.base.Part`.
        max_abs_err, max_rel_err, sqnr_db: As of an output.
    """

    output: str
    name: str = ""
    unit: str = ""
    axis: int = Field(ge=1, le=15)
    start: int = Field(ge=0)
    stop: int = Field(ge=1)
    max_abs_err: float
    max_rel_err: float
    sqnr_db: float


class Verification(_Model):
    """How the artifact's outputs compare with the float reference on real images.

    Attributes:
        passed: Whether every threshold of the precision holds.
        n: Images compared.
        max_abs_err, max_rel_err, sqnr_db: Of the worst output.
        figures: The task's own, by key, such as the share of images that keep their best class. In JSON
            they stand flat among the other keys; as attributes, too. ``intervals`` beside them in JSON are
            the 95 % confidence intervals of those that are shares of the images.
        executor: What ran the artifact.
        images: Where the images came from.
        failures: A sentence for each threshold that was missed.
        others: SQNR in dB of further ways to run the artifact that were held against the same thresholds,
            such as with float16 rounding after every operator.
        simulated_sqnr_db: What the plan's integers give in simulation, of the worst output; None where there
            are none.
        truth: The task's first metric, that of the float network as ``float_KEY``, and ``labelled``, the
            number of images behind them; empty where nobody knows what is in the images.
        remarks: Sentences on outputs of which these images say nothing.
        parts: Of outputs that hold numbers of several kinds, such as boxes beside scores; the figures above
            are then of the worst part.
    """

    passed: bool
    n: int
    max_abs_err: float
    max_rel_err: float
    sqnr_db: float
    figures: dict[str, float | None] = Field(default_factory=dict)
    executor: str
    images: str
    failures: tuple[str, ...] = ()
    others: dict[str, float] = Field(default_factory=dict)
    simulated_sqnr_db: float | None = None
    truth: dict[str, float] = Field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    parts: tuple[PartFigures, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        """JSON has the figures flat, and what follows from them; what is no number is left to be refused."""
        if isinstance(data, dict):
            data = {key: value for key, value in data.items() if key != "intervals"}
        if not isinstance(data, dict) or "figures" in data:
            return data
        flat = {
            key: value
            for key, value in data.items()
            if key not in cls.model_fields
            and re.fullmatch(r"[a-z][a-z0-9_]{0,63}", str(key))
            and _is_figure(value)
        }
        return {**{key: value for key, value in data.items() if key not in flat}, "figures": _unnested(flat)}

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        intervals = tasks.intervals_json(fields["figures"], fields["n"])
        figures = tasks.figures_json(fields.pop("figures"))
        fields["parts"] = [part.model_dump() for part in fields["parts"]]
        before = ("passed", "n", "max_abs_err", "max_rel_err", "sqnr_db")
        head = {name: fields.pop(name) for name in before}
        return {**head, **figures, "intervals": intervals, **fields}

    def __getattr__(self, name: str) -> Any:
        figures = tasks.nested(self.__dict__.get("figures") or {})
        if name in figures or name in tasks.EARLIER["figures"]:
            return figures.get(name)
        return super().__getattr__(name)  # type: ignore[misc]


class Origin(_Model):
    """Where the network came from."""

    model: str
    description: str
    checkpoint_sha256: str | None = None
    license: str = ""


class Manifest(_Model):
    """manifest.json.

    Attributes:
        task: What the outputs mean, a name of `repedge.tasks`; empty, and not written, where the outputs'
            shapes say it themselves.
        answer: What the task read from the graph; see `repedge.tasks.base.Task.settings`. Not written where
            that is nothing.
        preprocess_from: Field of the preprocessing -> where its value is from.
    """

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1)
    repedge: str
    name: str
    target: str
    precision: Precision
    artifact: str
    input_kind: InputKind
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    preprocess: Preprocess
    preprocess_from: dict[str, str] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()
    task: str = ""
    answer: dict[str, Any] = Field(default_factory=dict)
    requires: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    options: dict[str, Any] = Field(default_factory=dict)
    fusion: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    verification: Verification | None = None
    origin: Origin
    toolchain: dict[str, str] = Field(default_factory=dict)
    command: tuple[str, ...] = ()
    files: tuple[FileEntry, ...] = ()
    digest: str = ""

    @model_serializer(mode="wrap")
    def _without_what_says_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        for name in ("task", "answer"):
            if not content.get(name):
                content.pop(name, None)
        return content

    @model_validator(mode="after")
    def _makes_sense(self) -> Manifest:
        pre = self.preprocess
        if not len(pre.mean) == len(pre.std) == pre.channels:
            raise ValueError(f"preprocess: mean and std are not one number per channel of {pre.color}")
        floor = self.options.get("min_sqnr", 0.0)
        if not _is_decibels(floor):
            raise ValueError(f"options: min_sqnr is {floor!r:.40}, not a number of decibels")
        if not isinstance((self.quantization or {}).get("calibration", {}), dict):
            raise ValueError("quantization: calibration is not an object")
        if self.artifact in (MANIFEST, REFERENCE) or self.artifact.split("/")[0] == GOLDEN:
            raise ValueError(f"artifact: {self.artifact!r} is another part of the bundle")
        return self


def _is_figure(value: Any) -> bool:
    """A number, none, or an object of such: figures that stand together."""
    if isinstance(value, dict):
        return all(_is_figure(v) and not isinstance(v, dict) for v in value.values())
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _unnested(figures: dict[str, Any]) -> dict[str, Any]:
    """What `repedge.tasks.nested` makes objects of, flat again."""
    found: dict[str, Any] = {}
    for key, value in figures.items():
        found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return found


def _is_decibels(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # a whole number of 400 digits
        return False


def task_of(manifest: Manifest) -> Task:
    """What the outputs of a bundle's artifact mean.

    Raises:
        UserError: The manifest names a task that is not known here, or one that does not fit the outputs.
    """
    parts: dict[str, tuple[Part, ...]] = {}
    for p in manifest.verification.parts if manifest.verification else ():
        parts[p.output] = (*parts.get(p.output, ()), Part(p.axis, p.start, p.stop, p.name, p.unit))
    return tasks.of_outputs(manifest.outputs, manifest.labels, manifest.task, parts, manifest.answer)


def digest_of(manifest: dict[str, Any]) -> str:
    """sha256 of a manifest as JSON with sorted keys and no blanks, its own ``digest`` left out.

    It finds accidents, such as a flipped byte. It is no signature: whoever means to change a manifest
    can compute it.
    """
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def listed_files(folder: Path) -> frozenset[str] | None:
    """Relative paths of the files that a bundle's manifest lists, and of the manifest.

    It asks for no more of the manifest than that it is whole and was written by repedge, so that bundles of
    other versions are known, too. None where there is no such manifest.
    """
    try:
        data = json.loads(regular.read_bytes(folder / MANIFEST))
        if not isinstance(data["repedge"], str) or data["digest"] != digest_of(data):
            return None
        return frozenset(str(entry["path"]) for entry in data["files"]) | {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not os.path.isfile(file):  # unlike Path.is_file, says no where a name is impossible
        raise UserError(f"{path} is not a bundle: it has no {MANIFEST}; `repedge compile` makes bundles")
    try:
        data = json.loads(regular.read_text(file))
        json.dumps(data, ensure_ascii=False).encode()  # raises where a string is half of a character
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise UserError(
                f"bundle {path} has schema {version}, newer than this repedge reads; upgrade repedge"
            )
        manifest = Manifest.model_validate(data)
        if manifest.digest != digest_of(data):
            raise ValueError("it is not what was written: its digest differs")
        return manifest
    except (ValueError, RecursionError, OverflowError, AttributeError, TypeError) as e:
        raise UserError(f"{file} is damaged ({_first_reason(e)}); compile the bundle again") from e
    except OSError as e:
        raise UserError(f"{file} can't be read: {e.strerror or e}") from e


def _first_reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return (str(error) or type(error).__name__).splitlines()[0][:200]
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    return (f"{where}: {reason}" if where else reason)[:200]
