"""Pickles of strangers: their tensors are read, nothing in them runs."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repedge.disk.damaged import ARCHIVE
from repedge.errors import UserError


def read_pickle(path: Path) -> Any:
    """What a file of ``torch.save`` holds; nothing in it runs.

    Raises:
        UserError: It is damaged, or holds objects that are no networks.
    """
    import torch

    with path.open("rb") as f:
        zipped = f.read(4) == b"PK\x03\x04"  # as torch tells; zipfile looks at the end, which may be damaged
    if zipped:
        _check_zip(path)
    try:
        # Mapped, so that a checkpoint's optimizer state is never read; files older than torch 1.6
        # (and TorchScript) are no plain zip and can't be.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the error says what matters
            with torch.sparse.check_sparse_tensor_invariants():  # else their indices lead anywhere in memory
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if culprit := _culprit(str(error)):
            if zipped and (networks := _networks(path)):
                return networks
            raise UserError(
                f"{path} holds Python objects beside tensors ({culprit}), and loading those could run "
                "anything; re-save its state_dict as .safetensors where you trust it"
            ) from error
        raise UserError(
            f"{path} is truncated or no checkpoint (not a pickle of tensors); download or save it again"
        ) from error
    except Exception as error:  # torch raises many kinds on damaged files
        raise UserError(
            f"{path} is truncated or no checkpoint ({first_line(error)}); download or save it again"
        ) from error


def _networks(path: Path) -> Mapping[str, Any]:
    """The tensors of networks that were pickled whole; empty where there is none."""
    from repedge.models.files import objects

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return objects.networks(path)
    except Exception:  # of a damaged file or an attack; the refusal names the culprit
        return {}


def _check_zip(path: Path) -> None:
    """torch stores its entries uncompressed: more bytes inside than outside is a zip bomb.

    torch itself does not look at their checksums.
    """
    try:
        with zipfile.ZipFile(path) as z:
            members = z.infolist()
            inside = sum(i.file_size for i in members)
            names = z.namelist()
            bomb = inside > 2 * path.stat().st_size + (1 << 20)
            summed = any(i.CRC for i in members)  # torch can be told to leave the checksums out
            damaged = z.testzip() if summed and not bomb else None
    except ARCHIVE as error:
        raise UserError(f"{path} is a damaged archive; download or save it again") from error
    if damaged is not None:
        raise UserError(
            f"{path} is damaged: the checksum of {damaged!r} in it differs; download or save it again"
        )
    if bomb:
        raise UserError(f"{path} unpacks to {inside / 1e9:.1f} GB, far over its size, so it is not loaded")
    if any(n.endswith("constants.pkl") for n in names):
        raise UserError(
            f"{path} is a TorchScript program; save the state_dict of the network it was made from instead"
        )


def _culprit(message: str) -> str:
    """The object that torch refused, from its message (``GLOBAL posix.system was not an allowed...``).

    It is empty where torch stumbled over something else.
    """
    for line in message.splitlines():
        words = line.split()
        if "GLOBAL" in words and words.index("GLOBAL") + 1 < len(words):
            return words[words.index("GLOBAL") + 1]
    return ""


def first_line(error: BaseException) -> str:
    """The first sentence of an error, or its kind where it has none."""
    sentence = str(error).strip().split("\n")[0].split(". ")[0]
    return sentence[:160] if " " in sentence else type(error).__name__
