"""What a bundle keeps of real answers, for those who run its artifact again."""

from __future__ import annotations

import zipfile
from functools import partial

import numpy as np

from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import GOLDEN
from repedge.disk import damaged
from repedge.errors import UserError

PREFIX = "input:"
"""In golden.npz: what stands ahead of an input's name in the float graph."""


LARGEST = 2**30
"""Bytes of all arrays; they are of two photos."""


def arrays(bundle: Bundle) -> dict[str, np.ndarray]:
    """The arrays of golden.npz, by name.

    Raises:
        UserError: There are none, or they can't be read.
    """
    file = bundle.path / GOLDEN / "golden.npz"
    refusal = partial("bundle {} has no usable golden vectors ({}); compile it again".format, bundle.path)
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > LARGEST:
            raise UserError(refusal(f"{size >> 20} MiB in golden.npz, at most {LARGEST >> 20} are read"))
        with np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (*damaged.ARCHIVE, KeyError, MemoryError) as e:
        raise UserError(refusal(e)) from e


def beside(bundle: Bundle) -> dict[str, np.ndarray]:
    """Samples [n, ...] of the inputs beside the image, under the float graph's names, in their order.

    Raises:
        UserError: They can't be read, or do not fit the manifest.
    """
    taken = bundle.manifest.inputs[1:]
    if not taken:
        return {}
    found = {k.removeprefix(PREFIX): a for k, a in arrays(bundle).items() if k.startswith(PREFIX)}
    if [a.shape[1:] for a in found.values()] != [tuple(t.shape) for t in taken]:
        raise UserError(f"the golden vectors of {bundle.path} do not fit its manifest; compile it again")
    return found
