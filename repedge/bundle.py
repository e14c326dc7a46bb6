"""The bundle: a folder with an artifact, its manifest and what proves it.

A bundle is whole or absent: it is written beside its final place and renamed. Every reader goes
through `Bundle.open`, which checks the size and sha256 of every file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from repedge.atomic import move, os_errors, remove, sweep
from repedge.config import InputKind, Precision, Preprocess
from repedge.errors import UserError

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


class Verification(_Model):
    """How the artifact's outputs compare with the float reference on real images."""

    passed: bool
    n: int
    max_abs_err: float
    max_rel_err: float
    sqnr_db: float
    agree_top1: float | None
    kl: float | None = None
    executor: str
    images: str
    failures: tuple[str, ...] = ()


class Origin(_Model):
    """Where the network came from."""

    model: str
    description: str
    checkpoint_sha256: str | None = None
    license: str = ""


class Manifest(_Model):
    """manifest.json."""

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
    labels: tuple[str, ...] = ()
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

    @model_validator(mode="after")
    def _makes_sense(self) -> Manifest:
        pre = self.preprocess
        if not len(pre.mean) == len(pre.std) == pre.channels:
            raise ValueError(f"preprocess: mean and std are not one number per channel of {pre.color}")
        floor = self.options.get("min_sqnr", 0.0)
        if isinstance(floor, bool) or not isinstance(floor, (int, float)) or not math.isfinite(floor):
            raise ValueError(f"options: min_sqnr is {floor!r}, not a number of decibels")
        if self.artifact in (MANIFEST, REFERENCE) or self.artifact.split("/")[0] == GOLDEN:
            raise ValueError(f"artifact: {self.artifact!r} is another part of the bundle")
        return self


def digest_of(manifest: dict[str, Any]) -> str:
    """sha256 of a manifest as JSON with sorted keys and no blanks, its own ``digest`` left out.

    It finds accidents, such as a flipped byte. It is no signature: whoever means to change a manifest
    can compute it.
    """
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose files are all as the manifest says."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Read a bundle and check every file's hash.

        Raises:
            UserError: No bundle there, an unreadable manifest, a newer schema, or a missing, extra or
                changed file.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        listed = {entry.path for entry in manifest.files}
        for entry in manifest.files:
            _check_file(path, entry)
        extra = sorted({p.as_posix() for p in _files(path)} - listed - {MANIFEST})
        if extra:
            raise UserError(f"bundle {path} holds {extra[0]!r}, which its manifest does not list; remove it")
        if manifest.artifact not in listed and not any(p.startswith(manifest.artifact + "/") for p in listed):
            raise UserError(f"bundle {path} has no artifact {manifest.artifact!r}; compile it again")
        return cls(path, manifest)

    @property
    def artifact(self) -> Path:
        """The file or package that a runtime loads."""
        return self.path / self.manifest.artifact

    @property
    def reference(self) -> Path | None:
        """The float reference graph, or None in a bundle made with ``--no-reference``."""
        file = self.path / REFERENCE
        return file if file.exists() else None

    @property
    def size_bytes(self) -> int:
        """Bytes of the artifact alone: what an app downloads."""
        return artifact_bytes(self.artifact)


def is_bundle(path: Path | str | os.PathLike[str]) -> bool:
    """Whether a folder has a manifest.

    Raises:
        UserError: It is a folder without one, which is neither a bundle nor a model.
    """
    if (Path(path) / MANIFEST).is_file():
        return True
    if str(path) and Path(path).is_dir():
        raise UserError(
            f"{path} is a folder without a {MANIFEST}, so no bundle; `repedge compile` makes bundles"
        )
    return False


def artifact_bytes(artifact: Path) -> int:
    """Total size of a file, or of the files of a package folder; for an IR, .xml and .bin."""
    if artifact.is_dir():
        return sum(p.stat().st_size for p in artifact.rglob("*") if p.is_file())
    companion = artifact.with_suffix(".bin") if artifact.suffix == ".xml" else None
    return artifact.stat().st_size + (companion.stat().st_size if companion and companion.exists() else 0)


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not os.path.isfile(file):  # unlike Path.is_file, says no where a name is impossible
        raise UserError(f"{path} is not a bundle: it has no {MANIFEST}; `repedge compile` makes bundles")
    try:
        data = json.loads(file.read_bytes())
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise UserError(
                f"bundle {path} has schema {version}, newer than this repedge reads; upgrade repedge"
            )
        manifest = Manifest.model_validate(data)
        if manifest.digest != digest_of(data):
            raise ValueError("it is not what was written: its digest differs")
        return manifest
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file} is damaged ({_first_reason(e)}); compile the bundle again") from e
    except OSError as e:
        raise UserError(f"{file} can't be read: {e.strerror or e}") from e


def _first_reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error).splitlines()[0]
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" if where else reason


def _check_file(root: Path, entry: FileEntry) -> None:
    relative = PurePosixPath(entry.path)
    if relative.is_absolute() or ".." in relative.parts or "\\" in entry.path or "\0" in entry.path:
        raise UserError(f"bundle {root} lists {entry.path!r}, a path outside the bundle; it can't be trusted")
    file = root / relative
    if not file.is_file() or file.is_symlink():
        raise UserError(f"bundle {root} lacks {entry.path!r}; compile it again")
    try:
        same = file.stat().st_size == entry.size and sha256(file) == entry.sha256
    except OSError as e:
        raise UserError(f"{file} can't be read: {e.strerror or e}") from e
    if not same:
        raise UserError(f"{file} is not what was compiled (its sha256 differs); compile the bundle again")


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(f)


def _digest(f: Any) -> str:
    digest = hashlib.sha256()
    while chunk := f.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _files(root: Path) -> list[PurePosixPath]:
    found = (p for p in root.rglob("*") if p.is_file() or p.is_symlink())
    return sorted(PurePosixPath(p.relative_to(root).as_posix()) for p in found)


def check_free(final: Path, force: bool) -> None:
    """Fail where something is that a bundle may not replace; nothing is touched.

    Raises:
        UserError: It exists and ``force`` is not set, or what exists is no bundle.
    """
    if os.path.lexists(final):
        if not force:
            raise UserError(f"{final} exists; choose another --out or pass --force to replace it")
        if not (final / MANIFEST).is_file():
            raise UserError(f"{final} exists and is no bundle, so --force will not replace it; move it away")


def check_destination(final: Path, force: bool) -> None:
    """Fail early, before any work, where the bundle could not be written.

    Raises:
        UserError: As `check_free`, or the folder is not writable.
    """
    if "\0" in str(final):
        raise UserError(f"{str(final)!r} is no name that a file can have; choose another --out")
    with os_errors(final):
        sweep(final)
        check_free(final, force)
        final.parent.mkdir(parents=True, exist_ok=True)
        probe = final.parent / f".{final.name}.probe-{uuid.uuid4().hex}"
        try:
            probe.touch()
        finally:
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(final: Path, force: bool = False) -> Iterator[Draft]:
    """A temporary folder beside ``final`` that becomes the bundle when `Draft.publish` is called.

    Left without publishing (an error, Ctrl-C), the folder is removed; after a kill -9 it stays behind
    under a hidden name that no reader takes for a bundle, and the next write to the same place
    removes it.

    Raises:
        UserError: The disk is full, the folder is read-only, or the bundle exists (without force).
    """
    check_destination(final, force)
    temporary = final.parent / f".{final.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with os_errors(final):
        try:
            temporary.mkdir()
            yield Draft(temporary, final, force)
        finally:
            remove(temporary)


@dataclass(frozen=True)
class Draft:
    """A bundle being written in ``path``."""

    path: Path
    final: Path
    force: bool

    def seal(self, manifest: Manifest) -> Manifest:
        """List and hash every file and write the manifest."""
        entries = tuple(
            FileEntry(path=str(p), size=(self.path / p).stat().st_size, sha256=sha256(self.path / p))
            for p in _files(self.path)
            if str(p) != MANIFEST
        )
        sealed = manifest.model_copy(update={"files": entries})
        digest = digest_of(json.loads(sealed.model_dump_json()))
        sealed = sealed.model_copy(update={"digest": digest})
        (self.path / MANIFEST).write_text(sealed.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return sealed

    def publish(self) -> Bundle:
        """Move the folder to its final name."""
        move(self.path, self.final, self.force)
        return Bundle(self.final, _read_manifest(self.final))

    def reject(self) -> Path:
        """Keep a bundle that failed its checks aside as ``NAME.rejected`` and return that path."""
        aside = self.final.with_name(self.final.name + ".rejected")
        move(self.path, aside, force=True)
        return aside
