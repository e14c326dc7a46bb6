"""A weights file -> its tensors under their bare names."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge.errors import UserError
from repedge.models.files.pickles import first_line, read_pickle

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
SUFFIXES = (*PICKLED, ".safetensors")

# Entries that training scripts keep the weights under, in the order they are looked for. The authors
# evaluate ``model``; averaged weights are taken where there is nothing else.
NESTS = (
    "model",
    "state_dict",
    "model_state_dict",
    "net",
    "network",
    "module",
    "params",
    "weights",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema_model",
    "ema",
    "params_ema",
    "shadow",
)
# What wrappers (DataParallel, torch.compile, Lightning, detectors) put before every key.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "ema.")
JUNK = ("total_ops", "total_params")  # counters that profilers leave in state dicts
PIECE = 1 << 22
"""Values of a tensor that are looked at together; a large tensor would not fit into memory twice."""
SPARSEST = 16
"""A sparse tensor may have this many times more values than its file has bytes."""


class Checkpoint(dict[str, "Tensor"]):
    """The tensors of a weights file under their bare keys, float32 where they were floats.

    Attributes:
        path: Where they came from; None if made in memory.
        entry: Entry of the file they were under, such as ``model``; empty at the top.
        also: Other entries of the file that hold weights.
        prefix: What was cut off every key.
        dtype: The most frequent dtype in the file, such as ``float16``.
    """

    path: Path | None = None
    entry: str = ""
    also: tuple[str, ...] = ()
    prefix: str = ""
    dtype: str = "float32"


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` or ``.safetensors`` file.

    Pickles are read with ``weights_only=True``, so nothing in them runs; of networks that were pickled whole
    only the tensors are (`repedge.models.files.objects`). Nesting (``model``,
    ``state_dict``, ``model_ema``...) and prefixes common to all keys (``module.``...) are taken off.

    Returns:
        Tensors on the CPU that own their memory; floating ones as float32.

    Raises:
        UserError: The file is missing, unreadable, truncated, no checkpoint, holds more than tensors
            and plain values, or has NaN or infinite weights.
    """
    path = Path(path)
    _check_file(path)
    found = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else read_pickle(path)
    tensors, entry, also = _unwrap(found, path)
    state = strip_prefixes(tensors)
    state.path, state.entry, state.also = path, entry, also
    _check_sizes(path, state)
    state.dtype = _common_dtype(state)
    for key in state:
        try:
            state[key] = _own(state[key])
        except Exception as error:  # quantized, packed and other tensors that torch can't bring to float32
            kind = str(state[key].dtype).removeprefix("torch.")
            raise UserError(f"{path}: {key} is {kind}, which can't be read as float32 weights") from error
        if problem := unusable(key, state[key]):
            raise UserError(f"{path}: {problem}; the weights are damaged, use another checkpoint")
    return state


def _check_file(path: Path) -> None:
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; name the weights file in it")
    if not os.path.exists(path):  # unlike Path.exists, says no where a folder above may not be read
        raise UserError(f"there is no file {path}")
    if not os.path.isfile(path):
        raise UserError(f"{path} is a device or a pipe; copy the weights into a file")
    if path.suffix.lower() == ".onnx":
        raise UserError(f"{path} is a whole model, not weights; pass it as the model: repedge compile {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} does not end in {', '.join(SUFFIXES)}; is it a checkpoint?")
    try:
        with path.open("rb") as f:
            head = f.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise UserError(f"{path} is empty; download or save it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise UserError(f"{path} is a web page, not weights; the download went wrong")


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, OverflowError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({first_line(error)}); download or save it again"
        ) from error


def _unwrap(found: Any, path: Path) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Tensors, the dotted entry they were under, and the other entries with tensors."""
    entry: list[str] = []
    also: tuple[str, ...] = ()
    for _ in range(5):
        if not isinstance(found, Mapping):
            what = type(found).__name__
            raise UserError(f"{path} holds a {what}, not a state dict; save model.state_dict() instead")
        if tensors := _tensors(found):
            return tensors, ".".join(entry), also
        nests = [n for n in NESTS if isinstance(found.get(n), Mapping) and found[n]]
        nests = nests or [k for k, v in found.items() if isinstance(k, str) and _tensors(v)]
        if not nests:
            break
        also = also or tuple(n for n in nests[1:] if _tensors(found[n]))
        entry.append(nests[0])
        found = found[nests[0]]
    keys = ", ".join(str(k)[:60] for k in list(found)[:6])
    raise UserError(f"{path} holds no weights ({f'its entries are {keys}' if keys else 'it has no entries'})")


def _tensors(found: Any) -> dict[str, Tensor]:
    import torch

    if not isinstance(found, Mapping):
        return {}
    return {
        k: v.detach()
        for k, v in found.items()
        if isinstance(k, str) and isinstance(v, torch.Tensor) and not k.endswith(JUNK)
    }


def strip_prefixes(tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Take off what every key begins with, as long as that is one of ``PREFIXES``."""
    state = Checkpoint(tensors)
    again = True
    while again and state:
        again = False
        for prefix in PREFIXES:
            if all(k.startswith(prefix) and len(k) > len(prefix) for k in state):
                cut = Checkpoint({k[len(prefix) :]: v for k, v in state.items()})
                cut.prefix = state.prefix + prefix
                state, again = cut, True
    if any("_orig_mod." in k for k in state):  # torch.compile on submodules
        inner = Checkpoint({k.replace("_orig_mod.", ""): v for k, v in state.items()})
        inner.prefix = state.prefix
        state = inner
    return state


def _check_sizes(path: Path, state: Mapping[str, Tensor]) -> None:
    """A tensor may say that it is far larger than what is stored of it: strides of 0, sparse layouts."""
    import torch

    size = path.stat().st_size
    total = 0
    for key, t in state.items():
        if t.is_meta:
            raise UserError(
                f"{path}: {key} is a meta tensor, a shape without values; save the trained weights"
            )
        if t.is_nested:
            raise UserError(f"{path}: {key} is a nested tensor, which no network has as a weight")
        most = size if t.layout == torch.strided else SPARSEST * size
        total += t.numel()
        if t.numel() > most + (1 << 20) or total > SPARSEST * size + (1 << 20):
            raise UserError(
                f"{path}: {key} unpacks to {t.numel() * t.element_size() / 1e9:.1f} GB, far over the size of "
                "the file, so it is not loaded"
            )


def _common_dtype(state: Mapping[str, Tensor]) -> str:
    sizes: dict[str, int] = {}
    for t in state.values():
        name = str(t.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + t.numel()
    return max(sizes, key=lambda n: sizes[n])


def _own(t: Tensor) -> Tensor:
    """A dense float32 (or integer) copy that does not point into a mapped file."""
    import torch

    t = t.to_dense() if t.layout != torch.strided else t
    t = t.dequantize() if t.is_quantized else t
    return t.to(torch.float32, copy=True) if t.is_floating_point() else t.clone()


def unusable(key: str, t: Tensor) -> str:
    """What makes a tensor useless as a weight, as a clause; empty if nothing does."""
    import torch

    if not t.is_floating_point() or not t.numel():
        return ""
    pieces = t.detach().reshape(-1).split(PIECE)
    # The double-precision sum of finite float32 numbers is finite: one pass, no mask in memory.
    if not all(math.isfinite(p.sum(dtype=torch.float64).item()) for p in pieces):
        bad = sum(int((~torch.isfinite(p)).sum()) for p in pieces)
        kind = "NaN" if any(bool(torch.isnan(p).any()) for p in pieces) else "infinite"
        return f"{bad} of the {t.numel()} values of {key} are {kind}"
    if key.endswith("running_var") and any(bool((p < 0).any()) for p in pieces):
        return f"{key} has negative variances"
    return ""
