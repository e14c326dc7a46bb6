"""What the templates are filled with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import MANIFEST, Tensor, task_of
from repedge.hashing import sha256
from repedge.ship import names
from repedge.ship.golden import Golden
from repedge.ship.names import camel, snake
from repedge.ship.platforms import Platform
from repedge.version import __version__


def context(
    bundles: Sequence[Bundle], goldens: Sequence[Golden], platform: Platform, identifier: str
) -> dict[str, Any]:
    """Names and values that templates use, beside those of `repedge.tasks.base.Task.context`.

    Texts are as the user wrote them: templates escape them.

    Keys:
        name, lower, camel, snake: The package's identifier, as given and in other forms.
        variants: Precision word -> what is known of that bundle; the default one first.
        suffix: Ending of the artifact, without the dot.
        pixels: Values in one image.
        outputs: Name, shape, layout and size of each output, and whether it holds whole numbers (int32).
        tensors: Name, numpy's dtype, shape and size of each input beside the image, and its ``field``, the
            name in the platform's language.
    """
    m = bundles[0].manifest
    pre = m.preprocess
    return {
        **task_of(m).context(goldens[0].outputs),
        "repedge": __version__,
        "name": identifier,
        "lower": _namespace(identifier),
        "camel": camel(identifier),
        "snake": snake(identifier),
        "title": m.name,
        "platform": platform.name,
        "target": m.target,
        "variants": {b.manifest.precision: _variant(b, g) for b, g in zip(bundles, goldens, strict=True)},
        "variant": m.precision,
        "requires": m.requires,
        "suffix": bundles[0].artifact.suffix.removeprefix("."),
        "ios": max(_major(b.manifest.requires.get("iOS", "")) for b in bundles),
        "input": {
            "name": m.inputs[0].name,
            "kind": m.input_kind,
            "channels_last": m.inputs[0].layout == "NHWC",
            "image": m.inputs[0].kind == "image",
        },
        "tensors": _tensors(m.inputs[1:], platform.language),
        "outputs": [_output(t) for t in m.outputs],
        "pre": pre,
        "height": pre.size[0],
        "width": pre.size[1],
        "channels": pre.channels,
        "pixels": pre.size[0] * pre.size[1] * pre.channels,
        "golden": len(goldens[0].images),
        "origin": m.origin,
    }


def _variant(b: Bundle, g: Golden) -> dict[str, Any]:
    m = b.manifest
    return {
        "precision": m.precision,
        "bytes": b.size_bytes,
        "suffix": b.artifact.suffix,
        "digest": sha256(b.path / MANIFEST),
        "tolerances": list(g.tolerances),
        "verification": m.verification,
        "unverified": b.unverified,
        "golden": len(g.images),
        "manifest": m,
    }


def _output(t: Any) -> dict[str, Any]:
    shape = [1, *t.shape[1:]]
    whole = not t.dtype.startswith("float")
    return {"name": t.name, "shape": shape, "layout": t.layout, "size": int(np.prod(shape)), "whole": whole}


def _tensors(beside: Sequence[Tensor], language: str) -> list[dict[str, Any]]:
    fields = names.fields([t.name for t in beside], language)
    return [
        {
            "name": t.name,
            "dtype": t.dtype,
            "shape": list(t.shape),
            "size": int(np.prod(t.shape)),
            "field": field,
        }
        for t, field in zip(beside, fields, strict=True)
    ]


def _major(requirement: str) -> int:
    """``">=17"`` -> 17; the Swift in the packages needs 16."""
    digits = "".join(c if c.isdigit() else " " for c in requirement).split()
    return max(16, int(digits[0])) if digits else 16


def _namespace(identifier: str) -> str:
    """The last part of a Java package or asset folder: lower case, no underscores, no keyword."""
    from repedge.ship.names import RESERVED

    plain = identifier.lower().replace("_", "")
    return plain + "model" if plain in RESERVED["Kotlin"] else plain
