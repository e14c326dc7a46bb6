"""What a network takes: one image, and any number of further tensors.

The graph's first input is the image, float32 [1, C, H, W], whatever the network's own order and layout; what
the user states as a constant is no input any more.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.photos.tensors import Tensors

COLOURS = (1, 3, 4)
"""Channels that an image may have."""

IMAGE_TYPES = ("float32", "float16", "uint8")


@dataclass(frozen=True)
class Given:
    """What the user says of a network's inputs.

    Attributes:
        image: Name of the image; None where only one input can be it.
        constants: Name -> what an input always holds; it becomes part of the network.
        samples: Name -> samples of a further input, as the user gave them.
    """

    image: str | None = None
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def named(self) -> tuple[str, ...]:
        """Every input that something is said of, but for the image."""
        return (*self.constants, *self.samples)


@dataclass(frozen=True)
class Declared:
    """An input as the network declares it; an open axis is 0."""

    name: str
    dtype: str
    dims: tuple[int, ...] | None


@dataclass(frozen=True)
class Form:
    """How a file wants what the graph made of it takes as float32 [1, C, H, W] and tensors.

    Attributes:
        image: Name of the image among the file's inputs; empty: the first of them.
        channels_last: Whether the file has it as [1, H, W, C].
        pixels: Whether the file has it as uint8.
        constants: Name -> what is fed to inputs that the graph has as constants.
        tensors: The other inputs, in the file's order, with samples.
    """

    image: str
    channels_last: bool = False
    pixels: bool = False
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=Tensors)

    def of_image(self, x: np.ndarray) -> np.ndarray:
        """Images float32 [N, C, H, W] as the file wants them."""
        x = x.transpose(0, 2, 3, 1) if self.channels_last else x
        return np.round(x).clip(0, 255).astype(np.uint8) if self.pixels else x


def settle(inputs: Sequence[Declared], given: Given, where: Any) -> Form:
    """Which input is the image, and what all others hold.

    Args:
        inputs: Of the network, without its weights.
        given: By the user.
        where: What errors call the network.

    Raises:
        UserError: No image or several that could be it, an input that nothing is said of, one that the
            network does not have, or values that don't fit.
    """
    known = [i.name for i in inputs]
    _check_known((*given.named, *([given.image] if given.image else [])), known, where)
    twice = [name for name in given.constants if name in given.samples]
    if twice or given.image in given.named:
        raise UserError(f"the input {twice[0] if twice else given.image!r} of {where} is given twice")
    image = _image(inputs, given, where)
    rest = [i for i in inputs if i is not image]
    missing = [i.name for i in rest if i.name not in given.named]
    if missing:
        raise UserError(
            f"{where} takes {', '.join(map(repr, missing))} beside the image {image.name!r}: give samples "
            f"with --inputs FILE.npz, or say what it always holds with --input-value {missing[0]}=VALUE"
        )
    constants = {i.name: constant(i, given.constants[i.name]) for i in rest if i.name in given.constants}
    tensors = Tensors({i.name: samples(i, given.samples[i.name]) for i in rest if i.name in given.samples})
    last = image.dims is not None and channels_last(image.dims)
    return Form(image.name, last, image.dtype == "uint8", constants, tensors)


def _check_known(names: Iterable[str], known: Sequence[str], where: Any) -> None:
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(map(repr, known))}"
            raise UserError(f"{where} has no input {name!r}; {hint}")


def _image(inputs: Sequence[Declared], given: Given, where: Any) -> Declared:
    if given.image is not None:
        return next(i for i in inputs if i.name == given.image)
    free = [i for i in inputs if i.name not in given.named]
    if len(free) == 1:
        return free[0]  # whatever is wrong with it is said where it is read
    fitting = [i for i in free if _could_be_image(i)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(i.name for i in inputs) or "none"
    if not fitting:
        raise UserError(f"{where} must have one input that is an image [N, C, H, W]; its inputs are {names}")
    several = ", ".join(i.name for i in fitting)
    raise UserError(
        f"{where} has several inputs that could be the image ({several}): name it with --image-input"
    )


def _could_be_image(value: Declared) -> bool:
    if value.dims is None or len(value.dims) != 4 or value.dtype not in IMAGE_TYPES:
        return False
    axis = 3 if channels_last(value.dims) else 1
    return value.dims[0] in (0, 1) and value.dims[axis] in (0, *COLOURS)


def channels_last(dims: Sequence[int]) -> bool:
    """Whether [N, H, W, C] is meant, as files of TensorFlow have it."""
    if len(dims) != 4 or dims[1] in COLOURS:
        return False
    return dims[3] in (1, 3) or (dims[3] in COLOURS and dims[1] > 0)


def constant(declared: Declared, array: np.ndarray) -> np.ndarray:
    """A stated value in the shape and type of an input: itself, or one number for all elements.

    Raises:
        UserError: It does not fit.
    """
    array = _typed(declared, array)
    dims = declared.dims
    if dims is None or _fits(array.shape, dims):
        return array
    if 0 not in dims and array.size in (1, int(np.prod(dims))):
        return np.array(np.broadcast_to(array.reshape(()), dims) if array.size == 1 else array.reshape(dims))
    raise UserError(
        f"the input {declared.name!r} is {_text(dims)}, which a value of {list(array.shape)} does not fit"
    )


def samples(declared: Declared, array: np.ndarray) -> np.ndarray:
    """Samples [n, ...] of an input, each of exactly its shape.

    Where the network says what shape that is, arrays of it are one sample, and a first axis of 1 may be
    the one that counts samples.

    Raises:
        UserError: They don't fit.
    """
    array = _typed(declared, array)
    dims = declared.dims
    if dims is None:
        if array.ndim == 0:
            raise UserError(
                f"the samples of the input {declared.name!r} are one number; give an array [n, ...]"
            )
        return array
    if array.ndim == len(dims) + 1 and _fits(array.shape[1:], dims):
        return array
    if dims and dims[0] in (0, 1) and _fits(array.shape[1:], dims[1:]) and array.ndim == len(dims):
        return array[:, None]
    if _fits(array.shape, dims):
        return array[None]
    raise UserError(
        f"the input {declared.name!r} is {_text(dims)}, which samples of {list(array.shape)} do not fit; "
        f"give an array [n, {', '.join(str(d or '?') for d in dims)}]"
    )


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(d in (0, s) for s, d in zip(shape, dims, strict=True))


def _typed(declared: Declared, array: np.ndarray) -> np.ndarray:
    """In the input's own type; int64 stands for all integers."""
    if not declared.dtype:
        return array
    wanted = np.dtype(declared.dtype)
    if wanted.kind in "iub" and array.dtype.kind == "f" and (array != np.round(array)).any():
        raise UserError(f"the input {declared.name!r} is {declared.dtype}, and its values are not whole")
    return array.astype(np.float32 if wanted.kind == "f" else wanted)


def _text(dims: Sequence[int]) -> str:
    return f"[{', '.join(str(d or '?') for d in dims)}]"


# --- in a graph ------------------------------------------------------------------------------------------


def declared(graph: ir.Graph) -> list[Declared]:
    """The inputs of a graph that are not weights."""
    return [_declared(v) for v in graph.inputs if v.name not in graph.initializers]


def _declared(value: ir.Value) -> Declared:
    dims = None
    if value.shape is not None:
        dims = tuple(d if isinstance(d, int) and d > 0 else 0 for d in value.shape)
    return Declared(str(value.name), "" if value.dtype is None else value.dtype.numpy().name, dims)


def arrange(graph: ir.Graph, form: Form) -> ir.Value:
    """Make constants of stated inputs, put the image first, and fix the shapes of the others; in place.

    Returns:
        The image, [1, C, H, W] as far as the file says; a file's Transposes of it are taken out.
    """
    values = {str(v.name): v for v in graph.inputs}
    for name, array in form.constants.items():
        value = values[name]
        graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(array.shape), value.const_value.dtype
        graph.register_initializer(value)
    for name, shape in form.tensors.shapes.items():
        values[name].shape = ir.Shape(shape)
    image = values[form.image] if form.image else graph.inputs[0]
    if form.pixels:
        image.dtype = ir.DataType.FLOAT
    graph.inputs.remove(image)
    if form.channels_last:
        image = _channels_first(graph, image)
    graph.inputs.insert(0, image)
    return image


def _channels_first(graph: ir.Graph, old: ir.Value) -> ir.Value:
    """A new input [N, C, H, W] in place of one of [N, H, W, C]."""
    n, h, w, c = old.shape or (1, None, None, None)
    new = ir.Value(
        name=old.name, shape=ir.Shape([n, c, h, w]), type=ir.TensorType(old.dtype or ir.DataType.FLOAT)
    )
    old.name = f"{old.name}/channels_last"
    for use in list(old.uses()):
        node = use.node
        if node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [])) == [0, 3, 1, 2]:
            out = node.outputs[0]
            if not out.is_graph_output():
                out.replace_all_uses_with(new)
                node.graph.remove(node, safe=True)  # type: ignore[union-attr]
    if old.uses():
        back = ir.node("Transpose", [new], {"perm": [0, 2, 3, 1]}, name=f"{new.name}/channels_last")
        back.outputs[0].name, back.outputs[0].shape = old.name, old.shape
        back.outputs[0].type = ir.TensorType(old.dtype or ir.DataType.FLOAT)
        old.replace_all_uses_with(back.outputs[0])
        graph.insert_before(next(iter(graph)), back)
    return new
