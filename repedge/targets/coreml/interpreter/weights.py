"""Constants of a saved ML Program: immediate values, blobs of ``weight.bin``, compressed weights.

Formats: ``MIL.proto`` for values; for the weight file, Apple's ``MILBlob/Blob/StorageFormat.hpp``
(a 64-byte header, then 64-byte metadata records, each pointing at raw little-endian data). The file is
memory-mapped, so a weight costs nothing until it is used. Compression ops: iOS 16 and iOS 18 op
definitions of coremltools (``constexpr_*``).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from repedge.errors import UserError


class DType(NamedTuple):
    """One ``DataType`` of MIL.proto.

    Attributes:
        name: As in MIL.proto, lower case (``float16``, ``uint4``).
        array: numpy's type that holds it.
        bits: Stored size of one element; below 8 the elements are packed, low bits first.
        blob: Code in a weight file's metadata, 0 where weight files have none.
    """

    name: str
    array: str
    bits: int
    blob: int = 0


# Number of MIL.proto's enum DataType -> what it is.
DTYPES: dict[int, DType] = {
    1: DType("bool", "bool", 8),
    10: DType("float16", "float16", 16, 1),
    11: DType("float32", "float32", 32, 2),
    12: DType("float64", "float64", 64),
    21: DType("int8", "int8", 8, 4),
    22: DType("int16", "int16", 16, 6),
    23: DType("int32", "int32", 32, 14),
    24: DType("int64", "int64", 64),
    25: DType("int4", "int8", 4, 8),
    31: DType("uint8", "uint8", 8, 3),
    32: DType("uint16", "uint16", 16, 7),
    33: DType("uint32", "uint32", 32, 15),
    34: DType("uint64", "uint64", 64),
    35: DType("uint4", "uint8", 4, 11),
    36: DType("uint2", "uint8", 2, 10),
    37: DType("uint1", "uint8", 1, 9),
    38: DType("uint6", "uint8", 6, 13),
    39: DType("uint3", "uint8", 3, 12),
}
STRING = 2

_HEADER = struct.Struct("<II56x")  # count, version
_METADATA = struct.Struct("<IIQQQ32x")  # sentinel, type, bytes, offset of the data, padding bits
_SENTINEL = 0xDEADBEEF
_VERSION = 2


class WeightFiles:
    """The weight files beside a program, mapped on first use."""

    def __init__(self, folder: Path, package: str) -> None:
        self._folder = folder
        self._package = package
        self._maps: dict[str, np.ndarray] = {}

    def _map(self, name: str) -> np.ndarray:
        if name in self._maps:
            return self._maps[name]
        inside = PurePosixPath(name.removeprefix("@model_path/"))
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"{self._package} refers to the weight file {name!r} outside the package")
        path = self._folder / inside
        if not path.is_file():
            raise UserError(f"{self._package} is incomplete: its weight file {inside} is missing")
        if path.stat().st_size < _HEADER.size:
            raise UserError(f"the weight file {inside} of {self._package} is truncated")
        # Copy-on-write: torch wants writable memory, and nothing ever writes to it.
        mapped = np.memmap(path, mode="c", dtype=np.uint8).view(np.ndarray)
        if _HEADER.unpack_from(mapped.data)[1] != _VERSION:
            raise UserError(f"the weight file {inside} of {self._package} is damaged or of another format")
        self._maps[name] = mapped
        return mapped

    def read(self, name: str, offset: int, dtype: DType, count: int) -> np.ndarray:
        """``count`` elements of the blob whose metadata is at ``offset``, flat; a view where possible.

        Raises:
            UserError: The file is missing, truncated or does not hold what the program says.
        """
        mapped = self._map(name)
        if offset + _METADATA.size > mapped.size:
            raise UserError(f"the weight file {name} of {self._package} is truncated")
        sentinel, code, size, start, padding = _METADATA.unpack_from(mapped.data, offset)
        if sentinel != _SENTINEL or code != dtype.blob or size * 8 - padding != count * dtype.bits:
            raise UserError(
                f"the weight file {name} of {self._package} is damaged: at byte {offset} there are not "
                f"{count} elements of {dtype.name}"
            )
        if start + size > mapped.size:
            raise UserError(f"the weight file {name} of {self._package} is truncated")
        return _decode(mapped[start : start + size], dtype, count)


def _decode(raw: np.ndarray, dtype: DType, count: int) -> np.ndarray:
    if dtype.bits >= 8:
        return raw.view(dtype.array)
    values = unpack_bits(raw, dtype.bits, count)
    if dtype.name.startswith("int"):
        sign = 1 << (dtype.bits - 1)
        return (values.astype(np.int8) ^ sign) - np.int8(sign)
    return values


def unpack_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first ``count`` elements of ``bits`` bits each, packed low bits first, as uint8 [count]."""
    group = math.lcm(bits, 8) // 8  # bytes after which the pattern repeats: at most 3
    per_group = group * 8 // bits
    raw = np.zeros(-(-packed.size // group) * group, np.uint8)
    raw[: packed.size] = packed
    word = np.zeros(raw.size // group, np.uint32)
    for i in range(group):
        word |= raw[i::group].astype(np.uint32) << (8 * i)
    out = np.empty((word.size, per_group), np.uint8)
    for i in range(per_group):
        out[:, i] = (word >> (bits * i)) & ((1 << bits) - 1)
    return out.reshape(-1)[:count]


def value_type(proto_type: Any) -> tuple[DType | None, tuple[int, ...]]:
    """(dtype, shape) of a tensor type, -1 for unknown dimensions; (None, ()) for any other type."""
    if proto_type.WhichOneof("type") != "tensorType":
        return None, ()
    tensor = proto_type.tensorType
    shape = tuple(
        int(d.constant.size) if d.WhichOneof("dimension") == "constant" else -1 for d in tensor.dimensions
    )
    return DTYPES.get(tensor.dataType), shape


def read_value(value: Any, files: WeightFiles) -> Any:
    """The constant in a ``MIL.Value``: a numpy array, a string, or a list of those.

    Raises:
        UserError: The value or its weight file is damaged.
    """
    kind = value.type.WhichOneof("type")
    if kind == "listType":
        return [read_value(v, files) for v in value.immediateValue.list.values]
    if kind != "tensorType":
        raise UserError(f"the program has a constant of type {kind}, which is not known here")
    if value.type.tensorType.dataType == STRING:
        strings = list(value.immediateValue.tensor.strings.values)
        return strings if value.type.tensorType.rank else "".join(strings)
    dtype, shape = value_type(value.type)
    if dtype is None:
        raise UserError(f"the program has constants of data type {value.type.tensorType.dataType}")
    count = math.prod(shape)
    if value.WhichOneof("value") == "blobFileValue":
        flat = files.read(value.blobFileValue.fileName, value.blobFileValue.offset, dtype, count)
    else:
        flat = _read_immediate(value.immediateValue.tensor, dtype, count)
    if flat.size != count:
        raise UserError(f"the program has a constant of shape {shape} with {flat.size} elements")
    return flat.reshape(shape)


def _read_immediate(tensor: Any, dtype: DType, count: int) -> np.ndarray:
    field = tensor.WhichOneof("value")
    if field is None:
        return np.empty(0, dtype.array)
    values = getattr(tensor, field).values
    if field != "bytes":
        return np.array(values, dtype.array)
    raw = np.frombuffer(bytearray(values), np.uint8)
    if raw.size != -(-count * dtype.bits // 8):
        raise UserError(f"the program has a constant of {raw.size} bytes for {count} of {dtype.name}")
    return _decode(raw, dtype, count)


# --- Compressed weights. All arithmetic is exact in float32 and rounded once to the result's type. ---


def _along(vector: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """A per-channel vector shaped to broadcast along ``axis`` of a tensor of ``rank``."""
    if vector.ndim == 0 or vector.size == 1:
        return vector.reshape(())
    return vector.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def affine_dequantize(
    quantized_data: np.ndarray, zero_point: np.ndarray, scale: np.ndarray, axis: np.ndarray
) -> np.ndarray:
    """scale * (quantized_data - zero_point), per tensor or along ``axis``."""
    rank, at = quantized_data.ndim, int(axis)
    shifted = quantized_data.astype(np.float32) - _along(zero_point, rank, at).astype(np.float32)
    return (shifted * _along(scale, rank, at).astype(np.float32)).astype(scale.dtype)


def blockwise_shift_scale(
    data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None
) -> np.ndarray:
    """scale * (data - offset), each scale serving a block of ``data.shape / scale.shape`` elements."""
    blocked: list[int] = []  # [s0, d0/s0, s1, d1/s1, ...]: blocks as axes of their own, nothing repeated
    spread: list[int] = []
    for size, scales in zip(data.shape, scale.shape, strict=True):
        blocked += [scales, size // scales]
        spread += [scales, 1]
    out = data.astype(np.float32).reshape(blocked)
    if offset is not None:
        out = out - offset.astype(np.float32).reshape(spread)
    return (out * scale.astype(np.float32).reshape(spread)).astype(scale.dtype).reshape(data.shape)


def lut_to_dense(
    indices: np.ndarray,
    lut: np.ndarray,
    shape: np.ndarray | None = None,
    vector_axis: np.ndarray | None = None,
) -> np.ndarray:
    """Palette look-up. iOS 16: packed ``indices`` and ``shape``; iOS 18: grouped or vector palettes.

    Args:
        indices: uint8 [bytes], packed (iOS 16), or one index per element (iOS 18).
        lut: [entries] (iOS 16) or [groups per axis.., entries, vector size] (iOS 18).
        shape: Result's shape, iOS 16 only.
        vector_axis: Axis along which a palette's vectors are laid out, iOS 18 only.
    """
    if shape is not None:
        count = math.prod(int(s) for s in shape)
        return lut[unpack_bits(indices, int(lut.size).bit_length() - 1, count)].reshape(shape)
    groups, entries, vector = lut.shape[:-2], lut.shape[-2], lut.shape[-1]
    # Number of the group that serves each element, as a broadcastable sum over the axes.
    group = np.zeros((1,) * indices.ndim, np.int64)
    for axis, n in enumerate(groups):
        along = np.repeat(np.arange(n), indices.shape[axis] // n)
        group = group * n + _along(along, indices.ndim, axis)
    flat = lut.reshape(-1, vector)
    if vector == 1:
        return flat[:, 0][group * entries + indices]
    looked_up = flat[group * entries + indices]  # [*indices.shape, vector]
    at = int(vector_axis if vector_axis is not None else -1) % indices.ndim
    moved = np.moveaxis(looked_up, -1, at + 1)
    out_shape = [s * vector if i == at else s for i, s in enumerate(indices.shape)]
    return np.ascontiguousarray(moved).reshape(out_shape)


def sparse_to_dense(
    nonzero_data: np.ndarray, mask: np.ndarray, shape: np.ndarray | None = None
) -> np.ndarray:
    """Zeros with ``nonzero_data`` where ``mask`` is set; iOS 16 packs the mask and gives ``shape``."""
    if shape is not None:
        sizes = [int(s) for s in shape]
        mask = unpack_bits(mask, 1, math.prod(sizes)).reshape(sizes)
    out = np.zeros(mask.shape, nonzero_data.dtype)
    out[mask != 0] = nonzero_data
    return out


def constexpr_cast(source_val: np.ndarray, output_dtype: str) -> np.ndarray:
    """Stored in one float type, used in another."""
    return source_val.astype({"fp16": np.float16, "fp32": np.float32}[output_dtype])


CONSTEXPR: dict[str, Callable[..., np.ndarray]] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_cast": constexpr_cast,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_sparse_to_dense": sparse_to_dense,
}
