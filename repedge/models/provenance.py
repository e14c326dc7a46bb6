"""Where each value of a network's preprocessing is from: a flag, its configuration, the file, or nowhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from repedge.config import Preprocess

ASSUMED = "assumed"
"""Nobody said it: the usual values of ImageNet networks."""

FIELDS = ("size", "color", "resize", "interpolation", "mean", "std")
"""What has an origin; ``resize`` is the whole geometry."""

FLAGS = {
    "size": "input_size", "color": "color", "resize": "resize", "interpolation": "interpolation",
    "mean": "mean", "std": "std",
}  # fmt: skip
"""Field -> the option that sets it."""


def origins(known: Mapping[str, str], rest: str, options: Collection[str]) -> dict[str, str]:
    """Field -> where its value is from.

    Args:
        known: Fields that the model's configuration or file sets, and what that is called.
        rest: Where the others are from.
        options: Names of the options that the user gave.
    """
    return {
        field: f"--{FLAGS[field].replace('_', '-')}" if FLAGS[field] in options else known.get(field, rest)
        for field in FIELDS
    }


def configured(config: Mapping[str, Any]) -> set[str]:
    """Fields that timm's ``pretrained_cfg`` (or a config.json that holds one) sets."""
    cfg = config.get("pretrained_cfg", config)
    keys = set(cfg) if isinstance(cfg, dict) else set()
    named = {"input_size": "size", "interpolation": "interpolation", "mean": "mean", "std": "std"}
    found = {field for key, field in named.items() if key in keys}
    return found | ({"resize"} if keys & {"crop_pct", "crop_mode"} else set())


def described(pre: Preprocess, said: Mapping[str, str]) -> str:
    """The preprocessing in a line, its values grouped by where they are from."""
    groups: dict[str, list[str]] = {}
    for field, words in _words(pre):
        groups.setdefault(said.get(field, ASSUMED), []).append(words)
    shown = [f"{', '.join(words)} ({origin})" for origin, words in groups.items() if origin != ASSUMED]
    if ASSUMED in groups:
        shown.append(f"{', '.join(groups[ASSUMED])} (assumed, as for ImageNet: check with the training code)")
    return "; ".join(shown)


def _words(pre: Preprocess) -> Iterator[tuple[str, str]]:
    yield "size", f"{pre.size[0]}x{pre.size[1]}"
    yield "color", pre.color
    if pre.letterbox is not None:
        yield "resize", f"letterbox of {pre.letterbox.value}"
    else:
        yield "resize", "squashed" if pre.resize is None else f"short side {pre.resize}, centre crop"
    yield "interpolation", pre.interpolation
    for field, values in (("mean", pre.mean), ("std", pre.std)):
        yield field, f"{field} {','.join(f'{v:.4g}' for v in values)}"
