"""What a bundle keeps of the inputs beside the image, for those who run its artifact again."""

from __future__ import annotations

import numpy as np

from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import GOLDEN
from repedge.errors import UserError

PREFIX = "input:"
"""In golden.npz: what stands ahead of an input's name in the float graph."""


def beside(bundle: Bundle) -> dict[str, np.ndarray]:
    """Samples [n, ...] of the inputs beside the image, under the float graph's names, in their order.

    Raises:
        UserError: They do not fit the manifest.
    """
    taken = bundle.manifest.inputs[1:]
    if not taken:
        return {}
    try:
        with np.load(bundle.path / GOLDEN / "golden.npz", allow_pickle=False) as arrays:
            found = {k.removeprefix(PREFIX): arrays[k] for k in arrays.files if k.startswith(PREFIX)}
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"bundle {bundle.path} has no usable golden vectors ({e}); compile it again") from e
    if [a.shape[1:] for a in found.values()] != [tuple(t.shape) for t in taken]:
        raise UserError(f"the golden vectors of {bundle.path} do not fit its manifest; compile it again")
    return found
