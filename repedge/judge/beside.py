"""What a bundle's artifact and its float reference are fed beside the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repedge.bundle import golden
from repedge.bundle.folder import Bundle
from repedge.errors import UserError
from repedge.graph.inputs import Declared, samples
from repedge.photos.tensors import Tensors, read_arrays

Given = str | Path | Mapping[str, Any] | None


def tensors_of(bundle: Bundle, given: Given = None) -> Tensors:
    """Samples of the inputs beside the image, under the float graph's names: the user's, else golden ones.

    Args:
        bundle: The bundle.
        given: Arrays [n, ...] by name, or a .npz of them.

    Raises:
        UserError: The bundle has none that fit its manifest, or the user's don't fit.
    """
    own, taken = golden.beside(bundle), bundle.manifest.inputs[1:]
    if given is None:
        return Tensors(own)
    if not taken:
        raise UserError(f"{bundle.path} takes the image alone; leave --inputs out")
    arrays, found = read_arrays(given), {}
    for name, spec in zip(own, taken, strict=True):
        array = next((arrays.pop(n) for n in (name, spec.name) if n in arrays), None)
        if array is None:
            raise UserError(f"{bundle.path} takes {name!r} beside the image, which --inputs does not have")
        found[name] = samples(Declared(name, spec.dtype, tuple(spec.shape)), array)
    if arrays:
        raise UserError(f"{bundle.path} has no input {next(iter(arrays))!r}; it has {', '.join(found)}")
    return Tensors(found)


def artifact_run(bundle: Bundle, tensors: Tensors, run: Callable[..., Any]) -> Callable[[np.ndarray], Any]:
    """``run`` of the bundle's runner for images alone, which go with the samples in turn."""
    return tensors.named([t.name for t in bundle.manifest.inputs[1:]]).along(run)
