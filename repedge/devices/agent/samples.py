"""From the sample file to the arrays that each run is fed."""

from __future__ import annotations

import numpy as np

from repedge.devices.agent.engine import AgentError

FREE = 224  # a dynamic image axis is measured at this size, a dynamic batch axis at 1


def prepare(inputs: list, spec: object) -> list:
    """Sets of arrays, one array per input each; images go to the first 4-D input that is none beside them."""
    shapes = [_fixed(shape) for _, _, shape in inputs]
    read, beside = ([None], {}) if not isinstance(spec, dict) else _read(spec)
    images = list(read)
    image_input = next((i for i, s in enumerate(shapes) if len(s) == 4 and inputs[i][0] not in beside), -1)
    sets = []
    for n, image in enumerate(images):
        arrays = []
        for i, (name, dtype, _) in enumerate(inputs):
            if name in beside:
                arrays.append(np.ascontiguousarray(beside[name][n].astype(dtype).reshape(shapes[i])))
            elif i == image_input and image is not None and isinstance(spec, dict):
                arrays.append(fit(image, shapes[i], np.dtype(dtype), spec.get("layout", "NHWC")))
            else:
                arrays.append(_noise(shapes[i], np.dtype(dtype), seed=n))
        sets.append(arrays)
    return sets


def _fixed(shape: object) -> tuple:
    """Dynamic axes replaced: 1 for the batch, `FREE` for the image's sides, 3 for colours."""
    dims = [int(d) if isinstance(d, (int, np.integer)) and d > 0 else 0 for d in shape]  # type: ignore[attr-defined]
    last = len(dims) == 4 and dims[3] in (1, 3)
    defaults = [1, FREE, FREE, 3] if last else [1, 3, FREE, FREE]
    return tuple(d or (defaults[i] if i < 4 else 1) for i, d in enumerate(dims))


def _read(spec: dict) -> tuple:
    """The images, and name -> samples of what is beside them, all from one file."""
    count, beside = int(spec["count"]), {}
    try:
        with open(spec["path"], "rb") as file:
            images = _part(file, spec, count)
            for tensor in spec.get("beside") or ():
                beside[str(tensor["name"])] = _part(file, tensor, count)
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise AgentError(f"the input samples can't be read: {e}") from e
    return images, beside


def _part(file: object, spec: dict, count: int) -> np.ndarray:
    shape = (count, *(int(d) for d in spec["shape"]))
    size = 1
    for side in shape:
        size *= side
    return np.fromfile(file, dtype=np.dtype(spec["dtype"]), count=size).reshape(shape)  # type: ignore[call-overload, no-any-return]


def fit(sample: np.ndarray, shape: tuple, dtype: np.dtype, layout: str) -> np.ndarray:
    """A sample [1, ...] in an input's shape, layout and type; pixels go to 0..1 where floats are taken."""
    if tuple(sample.shape) == shape and sample.dtype == dtype:
        return np.ascontiguousarray(sample)
    image = sample[0] if layout == "NHWC" else sample[0].transpose(1, 2, 0)  # [H, W, C]
    channels_last = shape[3] in (1, 3, 4)
    n, h, w, c = shape if channels_last else (shape[0], shape[2], shape[3], shape[1])
    rows = np.arange(h) * image.shape[0] // h
    columns = np.arange(w) * image.shape[1] // w
    image = image[rows][:, columns][:, :, np.arange(c) % image.shape[2]]
    if image.dtype == np.uint8 and dtype.kind == "f":
        image = image.astype(np.float32) / 255
    elif image.dtype == np.uint8 and dtype == np.int8:
        image = image.astype(np.int16) - 128
    batch = np.broadcast_to(
        image if channels_last else image.transpose(2, 0, 1), (*shape[:0], n, *_tail(shape))
    )
    return np.ascontiguousarray(batch.astype(dtype))


def _tail(shape: tuple) -> tuple:
    return tuple(shape[1:])


def _noise(shape: tuple, dtype: np.dtype, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu":
        low, high = (0, 256) if dtype == np.uint8 else (-128, 128) if dtype == np.int8 else (0, 2)
        return generator.integers(low, high, shape).astype(dtype)
    return np.zeros(shape, dtype)


def check_finite(outputs: list) -> None:
    """AgentError if an output has NaN or infinite values: such a run's time means nothing."""
    for name, array in outputs:
        array = np.asarray(array)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise AgentError(f"output {str(name)!r} has NaN or infinite values, so the times mean nothing")
