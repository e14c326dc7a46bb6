"""The bundle: a folder with an artifact, its manifest and what proves it.

A bundle is whole or absent: it is written beside its final place and renamed. Every reader goes
through `Bundle.open`, which checks the size and sha256 of every file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from repedge.bundle.manifest import (
    MANIFEST,
    REFERENCE,
    FileEntry,
    Manifest,
    _read_manifest,
    digest_of,
    listed_files,
)
from repedge.disk import leftovers
from repedge.disk.atomic import Kind, check_own, move, os_errors, remove, sweep
from repedge.disk.litter import is_litter
from repedge.errors import UserError
from repedge.hashing import sha256

BUNDLE = Kind("bundle", listed_files)


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
        found = {p.as_posix() for p in _files(path) if not is_litter(path / p)}
        extra = sorted(found - listed - {MANIFEST})
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
    if not os.path.isfile(file) or file.is_symlink():  # unlike Path.is_file, says no to an impossible name
        raise UserError(f"bundle {root} lacks {entry.path!r}; compile it again")
    try:
        same = file.stat().st_size == entry.size and sha256(file) == entry.sha256
    except OSError as e:
        raise UserError(f"{file} can't be read: {e.strerror or e}") from e
    if not same:
        raise UserError(f"{file} is not what was compiled (its sha256 differs); compile the bundle again")


def _files(root: Path) -> list[PurePosixPath]:
    found = (p for p in root.rglob("*") if p.is_symlink() or not p.is_dir())
    return sorted(PurePosixPath(p.relative_to(root).as_posix()) for p in found)


def check_free(final: Path, force: bool, kind: Kind = BUNDLE) -> None:
    """Fail where something is that a folder of this kind may not replace; nothing is touched.

    Raises:
        UserError: It exists and ``force`` is not set, or what exists is not of this kind, or holds files that
            repedge did not write.
    """
    if os.path.lexists(final):
        if not force:
            raise UserError(f"{final} exists; choose another --out or pass --force to replace it")
        check_own(final, kind)


def check_destination(final: Path, force: bool, kind: Kind = BUNDLE) -> None:
    """Fail early, before any work, where the folder could not be written.

    Raises:
        UserError: As `check_free`, or the folder above is not writable.
    """
    if not str(final) or "\0" in str(final):
        raise UserError(f"{str(final)!r} is no name that a file can have; choose another --out")
    leftovers.sweep_temporary()
    with os_errors(final):
        sweep(final, kind)
        check_free(final, force, kind)
        final.parent.mkdir(parents=True, exist_ok=True)
        with leftovers.held(final.parent, f".{final.name}.partial"):
            pass


@contextlib.contextmanager
def writing(final: Path, force: bool = False, kind: Kind = BUNDLE) -> Iterator[Draft]:
    """A temporary folder beside ``final`` that becomes the bundle when `Draft.publish` is called.

    Left without publishing (an error, Ctrl-C), the folder is removed; after a kill -9 it stays behind
    under a hidden name that no reader takes for a bundle, and the next write to the same folder
    removes it.

    Raises:
        UserError: The disk is full, the folder is read-only, or the bundle exists (without force).
    """
    check_destination(final, force, kind)
    with os_errors(final):
        temporary, lock = leftovers.make(final.parent, f".{final.name}.partial")
        try:
            yield Draft(temporary, final, force, kind)
        finally:
            remove(temporary)
            leftovers.release(lock)


@dataclass(frozen=True)
class Draft:
    """A bundle (or another kind of folder) being written in ``path``."""

    path: Path
    final: Path
    force: bool
    kind: Kind = field(default=BUNDLE)

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

    def publish(self) -> Path:
        """Move the folder to its final name, and return that.

        Raises:
            UserError: What is there now may not be replaced, or something removed what was written.
        """
        self._check_whole(self.path)
        move(self.path, self.final, self.kind if self.force else None)
        self._check_whole(self.final)
        return self.final

    def _check_whole(self, folder: Path) -> None:
        listed = self.kind.files(folder)
        if listed is None or not all((folder / name).is_file() for name in listed):
            raise UserError(f"{self.final} was removed while it was being written; make it again")

    def reject(self) -> Path:
        """Keep a bundle that failed its checks aside as ``NAME.rejected`` and return that path.

        It takes the place of an earlier rejected bundle, and of nothing else: where something else has the
        name, it becomes ``NAME.rejected-2``, and so on.
        """
        aside = self.final.with_name(self.final.name + ".rejected")
        number = 1
        while os.path.lexists(aside) and not _replaceable(aside):
            number += 1
            aside = self.final.with_name(f"{self.final.name}.rejected-{number}")
        move(self.path, aside, BUNDLE)
        return aside


def _replaceable(folder: Path) -> bool:
    try:
        check_own(folder, BUNDLE)
    except UserError:
        return False
    return not folder.is_symlink()


def still_there(path: Path) -> None:
    """Fail where a folder that was written in this run is gone at its end.

    Raises:
        UserError: It is gone.
    """
    if not path.is_dir():
        raise UserError(f"{path} was written, and something removed it before the end; make it again")
