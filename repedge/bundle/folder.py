"""The bundle: a folder with an artifact, its manifest and what proves it.

A bundle is whole or absent: it is written beside its final place and renamed. Every reader goes
through `Bundle.open`, which checks the size and sha256 of every file.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from repedge.atomic import move, os_errors, remove, sweep
from repedge.bundle.manifest import MANIFEST, REFERENCE, FileEntry, Manifest, _read_manifest, digest_of
from repedge.errors import UserError
from repedge.hashing import sha256


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose files are all as the manifest says."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str, allow_unverified: bool = False) -> Bundle:
        """Read a bundle and check every file's hash.

        Args:
            allow_unverified: Take a bundle that failed its verification, too: `unverified` says so.

        Raises:
            UserError: No bundle there, an unreadable manifest, a newer schema, a missing, extra or
                changed file, or a bundle that is not verified.
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
        bundle = cls(path, manifest)
        if bundle.unverified and not allow_unverified:
            raise UserError(
                f"bundle {path} is not verified ({bundle.unverified}); compile it again, or pass "
                "--allow-unverified to use it all the same"
            )
        return bundle

    @property
    def unverified(self) -> str:
        """Why nothing shows that the artifact is the model it was made from; empty where it was verified."""
        found = self.manifest.verification
        if found is None:
            return "it was never verified"
        return "" if found.passed else "; ".join(found.failures) or "it failed its verification"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever uses the bundle has to know."""
        return (f"bundle {self.path} is not verified: {self.unverified}",) if self.unverified else ()

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
        """Bytes of the artifact alone, what an app downloads: of the files that have its name."""
        main = PurePosixPath(self.manifest.artifact)
        return sum(
            entry.size
            for entry in self.manifest.files
            if entry.path.startswith(f"{main}/")
            or (PurePosixPath(entry.path).parent == main.parent and _stem(entry.path) == _stem(main.name))
        )


def _stem(path: str) -> str:
    """A file's name up to its first ending: ``model`` of ``1/model.onnx.data``."""
    return PurePosixPath(path).name.partition(".")[0]


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
