"""What the user says about a model's input and output: size, preprocessing, labels."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from repedge.config import Color, Interpolation, Letterbox, Preprocess
from repedge.disk import regular
from repedge.errors import UserError
from repedge.graph.inputs import Given
from repedge.photos.tensors import as_tensor, read_array, read_arrays

MAX_SIDE = 16384  # pixels; larger is a slip of the finger, and would exhaust memory
InputSize = str | int | Sequence[int]
Numbers = str | float | Sequence[float]


def parse_input_size(size: InputSize) -> tuple[int, int]:
    """``224`` or ``HxW`` -> (height, width) in pixels.

    Raises:
        UserError: It is not one or two positive whole numbers.
    """
    wrong = f"input size {size!r} is not a side or HEIGHTxWIDTH in pixels, such as 224 or 256x192"
    if isinstance(size, str):
        m = re.fullmatch(r"\s*(\d+)\s*(?:[xX×,]\s*(\d+))?\s*", size)
        if m is None:
            raise UserError(wrong)
        sides = [int(m[1]), int(m[2] or m[1])]
    else:
        given = list(size) if isinstance(size, Iterable) else [size, size]
        if len(given) != 2 or any(isinstance(s, bool) or not hasattr(s, "__index__") for s in given):
            raise UserError(wrong)
        sides = [operator.index(s) for s in given]  # numpy's integers, too
    if not all(0 < s <= MAX_SIDE for s in sides):
        raise UserError(
            f"input size {sides[0]}x{sides[1]} is impossible; sides go from 1 to {MAX_SIDE} pixels"
        )
    return sides[0], sides[1]


def _numbers(value: Numbers, option: str, channels: int) -> tuple[float, ...]:
    """One number per channel; a single one stands for all."""
    try:
        parts = value.replace(",", " ").split() if isinstance(value, str) else value
        found = tuple(float(p) for p in (parts if isinstance(parts, (list, tuple)) else [parts]))  # type: ignore[list-item, arg-type]
    except (TypeError, ValueError):
        raise UserError(f"--{option} {value!r} is not a list of numbers such as 0.485,0.456,0.406") from None
    found = found * channels if len(found) == 1 else found
    if len(found) != channels:
        raise UserError(f"--{option} has {len(found)} numbers, but the network takes {channels} channels")
    if any(not abs(v) <= 4 for v in found):
        raise UserError(f"--{option} {value} is not on the [0, 1] scale of pixels; divide by 255")
    return found


def adjust(
    base: Preprocess,
    channels: int = 3,
    *,
    input_size: InputSize | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    resize: int | str | None = None,
    interpolation: str | None = None,
    color: str | None = None,
) -> Preprocess:
    """A preprocessing with the user's changes.

    Another input size keeps the share that the crop takes of the resized image. A network of one
    channel is GRAY, with the average of an RGB mean and std. ``mean`` and ``std`` are in the order of
    ``color``; where they are not given, BGR turns the base's around.

    Args:
        channels: Of the network's input.
        resize: Short side before the centre crop; ``squash`` (or ``none``) for none; ``letterbox`` for the
            whole image with bars beside it, ``letterbox:0`` with black ones, ``letterbox-corner`` with the
            image at the top left.

    Raises:
        UserError: An option makes no sense, or does not go with the network's channels.
    """
    if channels not in (1, 3):
        raise UserError(f"the network takes {channels} channels; repedge feeds images of 1 or 3")
    wanted = _choice(color, "color", get_args(Color)) or ("GRAY" if channels == 1 else base.color)
    if (wanted == "GRAY") != (channels == 1):
        wanted = color or base.color
        raise UserError(
            f"the network takes {channels} channel{'s' * (channels > 1)}, which does not go with {wanted}"
        )
    changes: dict[str, Any] = {"color": wanted}
    changes["size"] = base.size if input_size is None else parse_input_size(input_size)
    changes["resize"], changes["letterbox"] = _geometry(base, changes["size"], resize)
    changes["interpolation"] = (
        _choice(interpolation, "interpolation", get_args(Interpolation)) or base.interpolation
    )
    for name, given, old in (("mean", mean, base.mean), ("std", std, base.std)):
        changes[name] = (
            _reorder(old, base.color, wanted) if given is None else _numbers(given, name, channels)
        )
    try:
        return Preprocess(**changes)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}") from error


def _choice(value: str | None, option: str, allowed: Sequence[str]) -> str | None:
    if value is None:
        return None
    for word in allowed:
        if word.lower() == str(value).lower():
            return word
    raise UserError(f"--{option} {value!r} is none of {', '.join(allowed)}")


def _geometry(
    base: Preprocess, size: tuple[int, int], resize: int | str | None
) -> tuple[int | None, Letterbox | None]:
    """The short side before the crop, or the letterbox, or neither."""
    if resize is None:
        if base.resize is None or size == base.size:
            return base.resize, base.letterbox
        return max(1, round(max(size) * base.resize / max(base.size))), None
    word = resize.lower() if isinstance(resize, str) else ""
    if word in ("squash", "none"):
        return None, None
    if m := re.fullmatch(r"letterbox(-corner)?(?::(\d{1,3}))?", word):
        value = int(m[2] or 114)
        if value > 255:
            raise UserError(f"--resize {resize}: the bars' value goes from 0 to 255")
        return None, Letterbox(value=value, corner=bool(m[1]))
    try:
        side = int(resize)
    except (TypeError, ValueError):
        raise UserError(
            f"--resize {resize!r} is neither pixels nor squash, letterbox or letterbox-corner"
        ) from None
    if not 0 < side <= MAX_SIDE:
        raise UserError(f"--resize {side} is impossible; sides go from 1 to {MAX_SIDE} pixels")
    return side, None


def _reorder(values: tuple[float, ...], old: Color, new: str) -> tuple[float, ...]:
    if new == "GRAY" and len(values) > 1:
        return (round(sum(values) / len(values), 6),)
    if new != "GRAY" and len(values) == 1:
        return values * 3
    return values[::-1] if old != new and len(values) == 3 else values


def read_given(
    image: str | None,
    samples: str | Path | Mapping[str, Any] | None,
    values: Mapping[str, Any] | Sequence[str] | None,
) -> Given:
    """What the user says of a network's inputs.

    Args:
        image: Name of the image.
        samples: Arrays by name, or a .npz of them.
        values: By name, or words ``NAME=VALUE``, VALUE a number, several with commas, or a .npy file.

    Raises:
        UserError: A word is not of the form, a file can't be read, or a value is no array of numbers.
    """
    if isinstance(values, str):
        values = [values]
    named = dict(values) if isinstance(values, Mapping) else dict(map(_named_value, values or ()))
    constants = {str(name): as_tensor(value, f"--input-value {name}") for name, value in named.items()}
    return Given(image, constants, {} if samples is None else read_arrays(samples))


def _named_value(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    wrong = f"--input-value {word!r}: write NAME=VALUE, with a number, several with commas, or a .npy file"
    if not equals or not name.strip():
        raise UserError(wrong)
    if text.endswith(".npy"):
        return name.strip(), read_array(text, "--input-value")
    try:
        numbers = [float(t) if set(t) & set(".eEnN") else int(t) for t in text.split(",")]
    except ValueError:
        raise UserError(wrong) from None
    return name.strip(), numbers if len(numbers) > 1 else numbers[0]


def read_labels(labels: str | Path | Sequence[str], num_classes: int | None = None) -> tuple[str, ...]:
    """Class names in output order.

    Args:
        labels: The names, or a file: one name a line; or JSON: a list, ``{"0": "tench"}``,
            ``{"0": ["n01440764", "tench"]}`` or ``{"tench": 0}``.
        num_classes: Outputs of the network, where known.

    Raises:
        UserError: The file is missing or not of these forms, a name has control characters other than
            tabs and line breaks, or the number of names is not ``num_classes``.
    """
    where = "the labels"
    if isinstance(labels, (str, Path)):
        where = f"{labels}"
        names = _label_file(Path(labels))
    else:
        if not isinstance(labels, Iterable):
            raise UserError(f"labels are a file or a list of names, not {labels!r}")
        names = [str(n) for n in labels]
    if not names:
        raise UserError(f"{where}: no class names in it")
    for name in names:
        if any((ord(c) < 32 and c not in "\t\n") or 0xD800 <= ord(c) < 0xE000 for c in name):
            raise UserError(f"{where}: the class name {name!r} has characters that are no text")
    if num_classes is not None and len(names) != num_classes:
        raise UserError(f"{where}: {len(names)} class names for a network of {num_classes} classes")
    return tuple(names)


def _label_file(path: Path) -> list[str]:
    try:
        text = regular.read_text(path, "utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no labels file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as labels ({error})") from error
    if path.suffix.lower() != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return _label_json(json.loads(text))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(
            f'{path} is not JSON labels; write a list of names, or {{"0": "first", "1": "second"}}'
        ) from error


def _label_json(found: Any) -> list[str]:
    if isinstance(found, list):
        return [_label(n) for n in found]
    if all(isinstance(v, int) for v in found.values()):  # name -> index
        found = {str(index): name for name, index in found.items()}
    return [_label(found[str(i)]) for i in range(len(found))]


def _label(value: Any) -> str:
    """A name, or the last of torchvision's [synset, name] pairs."""
    if isinstance(value, list):
        value = value[-1]
    if not isinstance(value, str):
        raise TypeError(value)
    return value
