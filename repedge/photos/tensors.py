"""What a network takes beside its image: samples of tensors that go with the photos in turn."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from repedge.disk import damaged
from repedge.errors import UserError

NONE: Mapping[str, np.ndarray] = MappingProxyType({})
"""A network that takes nothing beside its image."""

KINDS: dict[str, np.dtype[Any]] = {
    "f": np.dtype(np.float32),
    "i": np.dtype(np.int64),
    "u": np.dtype(np.int64),
    "b": np.dtype(bool),
}
"""numpy's kind of number -> what a network is fed."""

LARGEST = 1 << 30
"""Bytes of one array of samples."""

EXACT = 2**24
"""Greatest magnitude of an integer that a float32 holds exactly."""

_T = TypeVar("_T")


class Tensors:
    """Samples of the tensors that a network takes beside its image.

    Photo k goes with sample k of each tensor, from the start again where there are fewer samples.

    Args:
        arrays: Name -> samples [n, ...], in the order of the network's inputs.

    Attributes:
        arrays: The same.
        count: How many samples there are; 0 for a network that takes nothing beside its image.

    Raises:
        UserError: Arrays of different n, other than 1.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray] = NONE) -> None:
        self.arrays = dict(arrays)
        self.count = max((len(a) for a in self.arrays.values()), default=0)
        for name, array in self.arrays.items():
            if len(array) not in (1, self.count):
                raise UserError(
                    f"the samples of the inputs don't go together: {name!r} has {len(array)} and another one "
                    f"{self.count}; give as many of each, or one"
                )

    def __bool__(self) -> bool:
        return bool(self.arrays)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of one sample."""
        return {name: array.shape[1:] for name, array in self.arrays.items()}

    def named(self, names: Sequence[str]) -> Tensors:
        """The same under other names, in the same order."""
        return Tensors(dict(zip(names, self.arrays.values(), strict=True)))

    def at(self, first: int, count: int) -> dict[str, np.ndarray]:
        """The samples of photos ``first`` to ``first + count - 1``, [count, ...] each."""
        return {name: array[(first + np.arange(count)) % len(array)] for name, array in self.arrays.items()}

    def rows(self, images: np.ndarray, first: int = 0) -> np.ndarray:
        """Images [N, ...], of which the first goes with sample ``first``, as calibration takes them.

        That is one row of numbers for each where something is beside it: the image's, then each tensor's, in
        the order of the network's inputs; else the images themselves.
        """
        if not self:
            return images
        beside = self.at(first, len(images)).values()
        parts = [a.reshape(len(images), -1).astype(np.float32) for a in (images, *beside)]
        return np.concatenate(parts, 1)

    def from_first(self, run: Callable[..., _T]) -> Callable[[np.ndarray], _T]:
        """``run``, which takes images [N, ...] and tensors by name, for images alone.

        Every call begins with the first sample.
        """
        return (lambda x: run(x, self.at(0, len(x)))) if self else run

    def along(self, run: Callable[..., _T]) -> Callable[[np.ndarray], _T]:
        """As `from_first`, but each call goes on where the last one stopped."""
        if not self:
            return run
        done = 0

        def following(x: np.ndarray) -> _T:
            nonlocal done
            done += len(x)
            return run(x, self.at(done - len(x), len(x)))

        return following


def read_arrays(given: str | Path | Mapping[str, Any], option: str = "--inputs") -> dict[str, np.ndarray]:
    """Arrays by name, from a .npz file or a mapping, in the types that networks are fed.

    Raises:
        UserError: There is no such file, it is no .npz, or an array holds no numbers, none, too many, or
            some that are not finite.
    """
    if not isinstance(given, Mapping):
        given = _load(Path(given), option)
    return {str(name): as_tensor(value, f"{option} {name}") for name, value in given.items()}


def _load(path: Path, option: str) -> dict[str, np.ndarray]:
    _check_file(path, option)
    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r")
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise UserError(f"{option} {path} is one array; give a .npz of arrays by input name")
        with found:
            for entry in found.zip.infolist() if found.zip else ():
                if entry.file_size > LARGEST:
                    size = f"{entry.file_size >> 20} MiB; at most {LARGEST >> 20} are read"
                    raise UserError(f"{option} {path} holds {entry.filename} of {size}")
            return {name: found[name] for name in found.files}
    except (*damaged.ARCHIVE, KeyError) as error:
        raise UserError(f"{option} {path} can't be read as a .npz of arrays by input name") from error


def read_array(path: str | Path, option: str) -> np.ndarray:
    """The array of a .npy file.

    Raises:
        UserError: There is no such file, or it is no .npy.
    """
    path = Path(path)
    _check_file(path, option)
    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{option} {path} can't be read as a .npy array") from error
    if not isinstance(found, np.ndarray) or found.nbytes > LARGEST:
        raise UserError(f"{option} {path} is no .npy array of at most {LARGEST >> 20} MiB")
    return np.array(found)


def _check_file(path: Path, option: str) -> None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{option} {path} is not a file")
    except (OSError, ValueError):
        raise UserError(f"{option}: there is no file {path}") from None


def as_tensor(value: Any, what: str) -> np.ndarray:
    """A value as a tensor of float32, int64 or bool.

    Args:
        what: What errors call it.

    Raises:
        UserError: It is no array of finite numbers.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise UserError(f"{what} is no array: {error}") from error
    kind = KINDS.get(array.dtype.kind)
    if kind is None:
        raise UserError(f"{what} holds {array.dtype}, not numbers")
    if array.size == 0:
        raise UserError(f"{what} is {list(array.shape)}, which holds nothing")
    array = array.astype(kind)
    if not np.isfinite(array).all():
        raise UserError(f"{what} has NaN or infinite values")
    if array.dtype == np.int64 and np.abs(array).max() > EXACT:
        raise UserError(f"{what} has integers beyond {EXACT}, which artifacts don't hold")
    return np.array(array, order="C")  # of its own: the caller may go on writing
