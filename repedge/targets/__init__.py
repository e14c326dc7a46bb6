"""A folder for each target; look one up with `get`. A new one is its folder and a line here."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge.errors import UserError

if TYPE_CHECKING:
    from repedge.targets.base import Target

TARGETS = {
    "coreml": "repedge.targets.coreml.target:CoreML",
    "tflite": "repedge.targets.tflite.target:TFLite",
    "openvino": "repedge.targets.openvino.target:OpenVINO",
    "gpu": "repedge.targets.gpu.target:GPU",
}

DEFAULT = "coreml"
"""What Python's `repedge.compile` builds for, unless it is told."""

DEFAULT_INTEGERS = "tflite"
"""Whose integers `repedge diagnose` looks at, unless it is told."""

GROUP = "repedge.targets"
"""Entry-point group of other packages' targets: name = the target's name, object = its class."""


def entry_points() -> Any:
    """What other packages registered."""
    from importlib import metadata  # not for `repedge --help`

    return metadata.entry_points(group=GROUP)


def names() -> list[str]:
    """Built-in targets first, then those that other packages registered."""
    extra = {e.name for e in entry_points()} - TARGETS.keys()
    return [*TARGETS, *sorted(extra)]


def get(name: str) -> Target:
    """The target called ``name``, in any spelling, or by one of its `repedge.targets.base.Target.aliases`.

    Raises:
        UserError: There is no such target, or another package's does not load.
    """
    if name in TARGETS:
        module, _, cls = TARGETS[name].partition(":")
        return getattr(importlib.import_module(module), cls)()
    for entry in entry_points():
        if entry.name == name:
            return _plugin(entry.name, entry.value, entry.load)
    meant = _meant(name)
    if meant is not None:
        return meant
    close = difflib.get_close_matches(name.lower(), names(), n=1)
    hint = f"did you mean {close[0]}? There are " if close else "there are "
    raise UserError(f"there is no target {name!r}; {hint}{', '.join(names())}")


def _meant(word: str) -> Target | None:
    """The target that is spelt otherwise, or that others call so."""
    letters = "".join(c for c in word.lower() if c.isalnum())
    for target in installed():
        if letters in (target.name, *target.aliases):
            return target
    return None


def _plugin(name, value, load) -> Target:  # type: ignore[no-untyped-def]
    from repedge.targets.base import Target

    try:
        made = load()()
    except Exception as e:  # a plug-in may fail in any way
        raise UserError(f"the target plug-in {value} does not load: {e}") from e
    if not isinstance(made, Target):
        raise UserError(f"the target plug-in {value} is not a repedge.targets.base.Target")
    if made.name != name:
        raise UserError(
            f"the target plug-in {value} is registered as {name!r} but calls itself {made.name!r}"
        )
    return made


def installed() -> list[Target]:
    """Every target that loads."""
    found = []
    for name in names():
        try:
            found.append(get(name))
        except UserError:
            if name in TARGETS:
                raise
    return found


def precisions() -> list[str]:
    """Every precision word that a target offers."""
    words = [p for target in installed() for p in target.precisions]
    return sorted(dict.fromkeys(words), key=_place)


def _place(word: str) -> tuple[int, str]:
    """Shared words in the order of their table, a target's own after them."""
    from repedge.precision import THRESHOLDS

    order = list(THRESHOLDS)
    return (order.index(word), "") if word in order else (len(order), word)


def of_file(path: Path) -> Target | None:
    """The target whose artifacts have this ending; None if there is none."""
    for target in installed():
        own = (target.suffix, *(target.engine.suffixes if target.engine else ()))
        if path.suffix in own:
            return target
    return None


def files_of(name: str, artifact: Path) -> list[Path]:
    """Every file of a target's artifact; see `repedge.targets.base.Target.files`."""
    return get(name).files(artifact)


def size_of(name: str, artifact: Path) -> int:
    """Bytes of an artifact alone: what an app downloads."""
    return sum(p.stat().st_size for p in files_of(name, artifact))
