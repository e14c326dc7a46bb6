"""From one bundle, or two precisions of one model, to a package: check, render, write, rename."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from repedge import hashing, targets
from repedge.bundle.folder import Bundle, check_free, still_there, writing
from repedge.bundle.manifest import MANIFEST, Manifest, digest_of, task_of
from repedge.disk import regular
from repedge.disk.atomic import Kind
from repedge.errors import UserError
from repedge.ship import golden, names
from repedge.ship.context import context
from repedge.ship.platforms import PLATFORMS, Platform
from repedge.ship.render import Layers
from repedge.version import __version__

MARKER = "repedge-package.json"
"""In every package; `ship` with ``force`` replaces only folders that have one, and only what it lists."""

MODEL = "model"
"""What the artifact is called in a package: the stem of its files."""

MAY_DIFFER = frozenset(
    ("schema_version", "repedge", "name", "precision", "artifact", "requires", "notes", "options", "fusion",
     "quantization", "verification", "origin", "toolchain", "command", "files", "digest")
)  # fmt: skip
"""Fields of a manifest that two precisions of one model need not share: all that an app doesn't see."""


@dataclass(frozen=True)
class Shipped:
    """A package that was written.

    Attributes:
        path: Its folder.
        platform: Name of the platform.
        name: What the type or module in it is called.
        variants: Precision words, the default one first.
        files: Number of files.
        size_bytes: Of all files; ``artifact_bytes`` of the artifacts alone.
        unverified: Variants that are not shown to be the model that they were made from, and why not.
    """

    path: Path
    platform: str
    name: str
    variants: tuple[str, ...]
    files: int
    size_bytes: int
    artifact_bytes: int
    unverified: Mapping[str, str] = field(default_factory=dict)

    @property
    def next_step(self) -> str:
        """A command to go on with."""
        return PLATFORMS[self.platform].next_step.format(out=shlex.quote(str(self.path)), name=self.name)

    def as_json(self) -> dict[str, Any]:
        """The JSON of ``repedge ship``, without the version."""
        return {
            **vars(self),
            "path": str(self.path),
            "variants": list(self.variants),
            "unverified": dict(self.unverified),
        }


def ship(
    bundles: Sequence[Path | str],
    to: str,
    out: Path | str,
    *,
    name: str | None = None,
    force: bool = False,
    allow_unverified: bool = False,
) -> Shipped:
    """Write a package for app developers.

    Args:
        bundles: A bundle, or two of the same model in different precisions; the first is the default.
        to: A key of `repedge.ship.platforms.PLATFORMS`.
        out: The package's folder, which must not exist.
        name: Of the type or module in the package; None makes one of the model's name.
        force: Replace an earlier package.
        allow_unverified: Take bundles that failed their verification, too; the package's README says so.

    Raises:
        UserError: A damaged bundle, one that is not verified, one that does not fit the platform, two that
            do not fit each other, a name that is no identifier, something that the task refuses, or an
            ``out`` that exists. Nothing is written then.
    """
    platform, out = platform_of(to), Path(out)
    opened = [Bundle.open(path, allow_unverified) for path in bundles]
    check(opened, platform)
    m = opened[0].manifest
    layers = Layers.of(platform, targets.get(m.target), task_of(m))
    identifier = names.identifier(name, m.name, platform.language, layers.stems)
    _check_out(out, opened, force)
    goldens = [golden.read(b) for b in opened]
    values = context(opened, goldens, platform, identifier)
    texts = layers.render(values)
    with writing(out, force, PACKAGE) as draft:
        _write(draft.path, opened, goldens, platform, values, texts)
        files = [p for p in draft.path.rglob("*") if p.is_file()]
        shipped = Shipped(
            out,
            platform.name,
            identifier,
            tuple(values["variants"]),
            len(files),
            sum(p.stat().st_size for p in files),
            sum(b.size_bytes for b in opened),
            {b.manifest.precision: b.unverified for b in opened if b.unverified},
        )
        draft.publish()
    still_there(out)
    return shipped


def platform_of(word: str) -> Platform:
    """The row of `PLATFORMS`.

    Raises:
        UserError: There is none.
    """
    if word not in PLATFORMS:
        raise UserError(f"--to {word!r} is unknown; choose from {', '.join(PLATFORMS)}")
    return PLATFORMS[word]


def check(bundles: Sequence[Bundle], platform: Platform) -> None:
    """Whether the bundles fit the platform and each other; see `ship` for what is raised."""
    if not 1 <= len(bundles) <= 2:
        raise UserError(f"ship takes one bundle, or two precisions of one model; it got {len(bundles)}")
    for b in bundles:
        _check_target(b, platform)
        _check_signature(b)
    if len(bundles) == 2:
        _check_pair(*bundles)


def fitting(platform: Platform) -> list[str]:
    """Names of the targets whose artifacts run on a platform, as far as they are installed."""
    return [t.name for t in targets.installed() if platform.name in t.ship]


def _check_target(b: Bundle, platform: Platform) -> None:
    m = b.manifest
    goes_to = targets.get(m.target).ship
    if platform.name in goes_to:
        return
    fits = " or ".join(f"--target {t}" for t in fitting(platform))
    able = ", ".join(p for p in PLATFORMS if p in goes_to)
    hint = f"; this bundle fits --to {able}" if able else ""
    raise UserError(
        f"{b.artifact.name} is a {m.target} artifact, which {platform.name} apps can't run: "
        f"compile {m.name} with {fits}{hint}"
    )


def _check_signature(b: Bundle) -> None:
    m = b.manifest
    if not m.inputs or not m.outputs:
        raise UserError(f"bundle {b.path} says nothing of its inputs and outputs; compile it again")
    try:
        task_of(m).check_labels()
    except UserError as e:
        raise UserError(f"bundle {b.path} contradicts itself: {e}; compile it again") from e


def _check_pair(a: Bundle, b: Bundle) -> None:
    for entry in (name for name in Manifest.model_fields if name not in MAY_DIFFER):
        if getattr(a.manifest, entry) != getattr(b.manifest, entry):
            raise UserError(
                f"{a.path} and {b.path} differ in {entry}; ship takes two precisions of one model"
            )
    if a.manifest.precision == b.manifest.precision:
        raise UserError(
            f"{a.path} and {b.path} are both {a.manifest.precision}; ship takes two precisions of one model"
        )


def _check_out(out: Path, bundles: Sequence[Bundle], force: bool) -> None:
    place = out.resolve()
    for b in bundles:
        own = b.path.resolve()
        if place == own or own in place.parents or place in own.parents:
            raise UserError(f"--out {out} and the bundle {b.path} overlap; choose another --out")
    check_free(out, force, PACKAGE)


def _listed(folder: Path) -> frozenset[str] | None:
    """The files that a package's marker lists, as far as they are as `ship` wrote them; and the marker.

    What an app's developer changed in one of them is theirs; what Python compiled of one is not.
    """
    try:
        entries = json.loads(regular.read_bytes(folder / MARKER))["files"]
        compiled = (p.relative_to(folder).as_posix() for p in folder.rglob("__pycache__/*.pyc"))
        return frozenset(e["path"] for e in entries if _unchanged(folder, **e)) | {MARKER, *compiled}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _unchanged(folder: Path, path: str, sha256: str) -> bool:
    inside = not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
    return inside and (folder / path).is_file() and hashing.sha256(folder / path) == sha256


PACKAGE = Kind("package", _listed)


def _write(
    root: Path, bundles: Sequence[Bundle], goldens: Sequence[golden.Golden], platform: Platform,
    values: dict[str, Any], texts: dict[str, str],
) -> None:  # fmt: skip
    place = {"name": values["name"], "lower": values["lower"]}
    for b, vectors in zip(bundles, goldens, strict=True):
        variant = b.manifest.precision
        _copy_artifact(b, root / platform.model_dir.format(variant=variant, **place))
        golden.write(vectors, root / platform.golden_dir.format(variant=variant, **place))
        manifest = MANIFEST if b is bundles[0] else f"manifest-{variant}.json"
        (root / manifest).write_text(_public(b.path / MANIFEST), encoding="utf-8", newline="\n")
    for path, text in texts.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="\n")
    marker = {**_marker(values, platform), "files": _hashes(root)}
    (root / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _hashes(root: Path) -> list[dict[str, str]]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return [{"path": p.relative_to(root).as_posix(), "sha256": hashing.sha256(p)} for p in files]


PRIVATE = ("source", "sha256", "skipped")
"""What a manifest says of the calibration photos that their owner may not want in an app: names."""


def _public(manifest: Path) -> str:
    """The manifest's text, without the names of the photos that it was calibrated on."""
    text = regular.read_text(manifest)
    content = json.loads(text)
    calibration = (content.get("quantization") or {}).get("calibration") or {}
    if not calibration:
        return text
    for key in PRIVATE:
        calibration.pop(key, None)
    return json.dumps({**content, "digest": digest_of(content)}, indent=2, ensure_ascii=False) + "\n"


def _copy_artifact(b: Bundle, folder: Path) -> None:
    """Every file of the artifact; what is called as it is, is called `MODEL` here.

    ``net.xml`` and ``net.bin`` become ``model.xml`` and ``model.bin``; an ONNX file, which says by name where
    its weights are, is called model.onnx already.
    """
    artifact = b.artifact
    for file in targets.files_of(b.manifest.target, artifact):
        first, *rest = file.relative_to(artifact.parent).parts
        if first.startswith(f"{artifact.stem}."):
            first = MODEL + first.removeprefix(artifact.stem)
        copy = folder.joinpath(first, *rest)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _marker(values: dict[str, Any], platform: Platform) -> dict[str, Any]:
    return {
        "repedge": __version__,
        "platform": platform.name,
        "name": values["name"],
        "target": values["target"],
        "variants": [
            {
                "precision": word,
                "artifact_bytes": v["bytes"],
                "tolerances": v["tolerances"],
                "verified": not v["unverified"],
                **({"why_not": v["unverified"]} if v["unverified"] else {}),
            }
            for word, v in values["variants"].items()
        ],
    }
