"""Golden vectors of a bundle in a form that every language reads: raw little-endian arrays.

0.png ...        the images
pixels.u8        what decoding, resizing and cropping must make of them, uint8 [N, H, W, C]
input_I.bin      what input I beside the image was given, [N, ...] in its own type
expected_I.f32   output I of the artifact when it was verified, float32 [N, ...] in its own layout
and what the task adds (`repedge.tasks.base.Task.golden`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from repedge import targets
from repedge.bundle.folder import Bundle
from repedge.bundle.golden import arrays, beside
from repedge.bundle.manifest import task_of
from repedge.errors import UserError
from repedge.photos.images import decode, view


@dataclass(frozen=True)
class Golden:
    """Golden vectors of one bundle.

    Attributes:
        images: PNG files, in order.
        pixels: uint8 [N, H, W, C].
        outputs: One float32 [N, ...] per output, in the artifact's own layout.
        tolerances: Per output, the largest absolute difference that passes.
        beside: One array [N, ...] per input beside the image.
        more: Further files, by name, that the task compares an app's answers with.
    """

    images: tuple[bytes, ...]
    pixels: np.ndarray
    outputs: tuple[np.ndarray, ...]
    tolerances: tuple[float, ...]
    beside: tuple[np.ndarray, ...] = ()
    more: Mapping[str, bytes] = field(default_factory=dict)


def read(bundle: Bundle) -> Golden:
    """Load and check the golden vectors of a bundle.

    Raises:
        UserError: They are missing, or do not fit the manifest.
    """
    folder, m = bundle.path / "golden", bundle.manifest
    stored = arrays(bundle)
    outputs = [a for key, a in stored.items() if key.startswith("output:")]
    references = [a for key, a in stored.items() if key.startswith("reference:")]
    try:
        pixels = stored["pixels"]
        images = tuple((folder / f"{i}.png").read_bytes() for i in range(len(pixels)))
    except (OSError, KeyError, TypeError) as e:  # a number has no length
        raise UserError(f"bundle {bundle.path} has no usable golden vectors ({e}); compile it again") from e
    expected = (len(pixels), *m.preprocess.size, m.preprocess.channels)
    if pixels.dtype != np.uint8 or pixels.shape != expected or len(outputs) != len(m.outputs):
        raise UserError(f"the golden vectors of {bundle.path} do not fit its manifest; compile it again")
    return Golden(
        images,
        pixels,
        tuple(_stored(y, spec.layout) for y, spec in zip(outputs, m.outputs, strict=True)),
        tuple(tolerance(bundle, y) for y in references),
        tuple(beside(bundle).values()),
        task_of(m).golden(outputs, [view(decode(io.BytesIO(i)).size, m.preprocess) for i in images]),
    )


def tolerance(bundle: Bundle, reference: np.ndarray) -> float:
    """How far an app's output may be from the verified one.

    As far as the verified output was from the float model (the manifest's ``max_abs_err``), plus what
    the precision's arithmetic rounds differently elsewhere (`repedge.precision.Threshold.elsewhere`), to
    three digits. How far an unverified artifact is from the float model says nothing of what is near
    enough: there it is the rounding alone.
    """
    m = bundle.manifest
    error = 0.0 if bundle.unverified or m.verification is None else m.verification.max_abs_err
    share = targets.get(m.target).threshold(m.precision).elsewhere
    return float(f"{error + share * float(np.abs(reference).max(initial=0)):.3g}")


def _stored(y: np.ndarray, layout: str) -> np.ndarray:
    """Outputs come as the graph has them (NCHW); the artifact may have its channels last."""
    y = y.transpose(0, 2, 3, 1) if layout == "NHWC" and y.ndim == 4 else y
    return np.ascontiguousarray(y, dtype="<f4")


def write(golden: Golden, folder: Path) -> None:
    """Write the files described above into ``folder``."""
    folder.mkdir(parents=True)
    for i, data in enumerate(golden.images):
        (folder / f"{i}.png").write_bytes(data)
    (folder / "pixels.u8").write_bytes(golden.pixels.tobytes())
    for i, array in enumerate(golden.beside):
        (folder / f"input_{i}.bin").write_bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
    for i, y in enumerate(golden.outputs):
        (folder / f"expected_{i}.f32").write_bytes(y.tobytes())
    for name, data in golden.more.items():
        (folder / name).write_bytes(data)
