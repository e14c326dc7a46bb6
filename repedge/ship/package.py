"""From one bundle, or two precisions of one model, to a package: check, render, write, rename."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repedge.bundle.folder import Bundle, writing
from repedge.bundle.manifest import MANIFEST, digest_of
from repedge.errors import UserError
from repedge.ship import golden, names
from repedge.ship.context import context
from repedge.ship.platforms import PLATFORMS, Platform
from repedge.version import __version__

MARKER = "repedge-package.json"
"""In every package; `ship` with ``force`` replaces only folders that have one."""

TEMPLATES = Path(__file__).parent / "templates"
COMMON = {"LICENSES.md": "LICENSES.md"}


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
    """

    path: Path
    platform: str
    name: str
    variants: tuple[str, ...]
    files: int
    size_bytes: int
    artifact_bytes: int

    @property
    def next_step(self) -> str:
        """A command to go on with."""
        return PLATFORMS[self.platform].next_step.format(out=self.path, name=self.name)

    def as_json(self) -> dict[str, Any]:
        """The JSON of ``repedge ship``, without the version."""
        return {**vars(self), "path": str(self.path), "variants": list(self.variants)}


def ship(
    bundles: Sequence[Path | str], to: str, out: Path | str, *, name: str | None = None, force: bool = False
) -> Shipped:
    """Write a package for app developers.

    Args:
        bundles: A bundle, or two of the same model in different precisions; the first is the default.
        to: A key of `repedge.ship.platforms.PLATFORMS`.
        out: The package's folder, which must not exist.
        name: Of the type or module in the package; None makes one of the model's name.
        force: Replace an earlier package.

    Raises:
        UserError: A damaged bundle, one that does not fit the platform, two that do not fit each
            other, a name that is no identifier, labels that do not fit the output, or an ``out`` that
            exists. Nothing is written then.
    """
    platform, out = platform_of(to), Path(out)
    opened = [Bundle.open(path) for path in bundles]
    check(opened, platform)
    identifier = names.identifier(name, opened[0].manifest.name, platform.language)
    _check_out(out, opened, force)
    goldens = [golden.read(b) for b in opened]
    values = context(opened, goldens, platform, identifier)
    with writing(out, force) as draft:
        _write(draft.path, opened, goldens, platform, values)
        files = [p for p in draft.path.rglob("*") if p.is_file()]
        shipped = Shipped(
            out,
            platform.name,
            identifier,
            tuple(values["variants"]),
            len(files),
            sum(p.stat().st_size for p in files),
            sum(b.size_bytes for b in opened),
        )
        draft.publish()
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
        _check_outputs(b)
    if len(bundles) == 2:
        _check_pair(*bundles)


def _check_target(b: Bundle, platform: Platform) -> None:
    m = b.manifest
    if m.target in platform.targets:
        return
    fits = " or ".join(f"--target {t}" for t in platform.targets)
    able = ", ".join(p.name for p in PLATFORMS.values() if m.target in p.targets)
    hint = f"; this bundle fits --to {able}" if able else ""
    raise UserError(
        f"{b.artifact.name} is a {m.target} artifact, which {platform.name} apps can't run: "
        f"compile {m.name} with {fits}{hint}"
    )


def _check_outputs(b: Bundle) -> None:
    m = b.manifest
    if len(m.inputs) != 1 or not m.outputs:
        raise UserError(f"bundle {b.path} has {len(m.inputs)} inputs; a package takes models with one image")
    first = m.outputs[0]
    if m.labels and len(first.shape) == 2 and first.shape[1] != len(m.labels):
        raise UserError(
            f"bundle {b.path} has {len(m.labels)} labels, but its output {first.name!r} has {first.shape[1]} "
            "values; compile it again with --labels that fit"
        )


def _check_pair(a: Bundle, b: Bundle) -> None:
    for field in ("target", "inputs", "outputs", "labels", "preprocess", "input_kind"):
        if getattr(a.manifest, field) != getattr(b.manifest, field):
            raise UserError(
                f"{a.path} and {b.path} differ in {field}; ship takes two precisions of one model"
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
    if force and out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise UserError(f"{out} exists and is no package, so --force will not replace it; move it away")


def _write(
    root: Path, bundles: Sequence[Bundle], goldens: Sequence[golden.Golden], platform: Platform,
    values: dict[str, Any],
) -> None:  # fmt: skip
    place = {"name": values["name"], "lower": values["lower"]}
    for b, vectors in zip(bundles, goldens, strict=True):
        variant = b.manifest.precision
        _copy_artifact(b, root / platform.model_dir.format(variant=variant, **place))
        golden.write(vectors, root / platform.golden_dir.format(variant=variant, **place))
        manifest = MANIFEST if b is bundles[0] else f"manifest-{variant}.json"
        (root / manifest).write_text(_public(b.path / MANIFEST), encoding="utf-8", newline="\n")
    for path, text in render(platform, values).items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="\n")
    (root / MARKER).write_text(json.dumps(_marker(values, platform), indent=2) + "\n", encoding="utf-8")


PRIVATE = ("source", "sha256", "skipped")
"""What a manifest says of the calibration photos that their owner may not want in an app: names."""


def _public(manifest: Path) -> str:
    """The manifest's text, without the names of the photos that it was calibrated on."""
    text = manifest.read_text(encoding="utf-8")
    content = json.loads(text)
    calibration = (content.get("quantization") or {}).get("calibration") or {}
    if not calibration:
        return text
    for key in PRIVATE:
        calibration.pop(key, None)
    return json.dumps({**content, "digest": digest_of(content)}, indent=2, ensure_ascii=False) + "\n"


def render(platform: Platform, values: dict[str, Any]) -> dict[str, str]:
    """Path in the package -> text, for every template of the platform that the target asks for."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # source code: every value goes through a filter of `names`
    )
    environment.filters.update(names.LITERALS)
    place = {"name": values["name"], "lower": values["lower"]}
    texts = {}
    files = {f"common/{k}": v for k, v in COMMON.items()}
    files |= {f"{platform.name}/{k}": v for k, v in platform.files.items()}
    for template, path in files.items():
        template, _, only = template.partition("@")
        if not only or only == values["target"]:
            texts[path.format(**place)] = environment.get_template(f"{template}.jinja").render(values)
    return texts


def _copy_artifact(b: Bundle, folder: Path) -> None:
    """The artifact as ``model.*``; an IR brings its weights, an ONNX file its external data."""
    folder.mkdir(parents=True)
    artifact = b.artifact
    if artifact.is_dir():
        shutil.copytree(artifact, folder / f"model{artifact.suffix}", copy_function=shutil.copyfile)
        return
    shutil.copyfile(artifact, folder / f"model{artifact.suffix}")
    if artifact.suffix == ".xml":
        shutil.copyfile(artifact.with_suffix(".bin"), folder / "model.bin")
    if artifact.suffix == ".onnx":
        for beside in sorted(artifact.parent.glob(f"{artifact.name}?*")):
            shutil.copyfile(beside, folder / beside.name)


def _marker(values: dict[str, Any], platform: Platform) -> dict[str, Any]:
    return {
        "repedge": __version__,
        "platform": platform.name,
        "name": values["name"],
        "target": values["target"],
        "variants": [
            {"precision": word, "artifact_bytes": v["bytes"], "tolerances": v["tolerances"]}
            for word, v in values["variants"].items()
        ],
    }
