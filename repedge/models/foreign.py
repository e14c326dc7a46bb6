"""Networks that repedge did not write: the user's factories and ONNX files."""

from __future__ import annotations

import importlib
import inspect
import operator
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge.errors import UserError
from repedge.graph.inputs import Declared, Form, Given, settle

if TYPE_CHECKING:
    from torch import nn


ALONE = 2
"""References to an object that one variable holds, as `sys.getrefcount` counts: its own argument is one."""


def call_factory(text: str) -> tuple[nn.Module, bool]:
    """``package.module:factory`` -> the network it makes (or is), and whether nobody else holds it.

    Raises:
        UserError: No such module or attribute, it fails, or it makes something else; what was raised is
            the error's cause.
    """
    import torch

    where, _, attribute = text.rpartition(":")
    if not all(part.isidentifier() for name in (where, attribute) for part in name.split(".")):
        raise UserError(f"{text!r} is not of the form package.module:factory")
    if (here := os.getcwd()) not in sys.path:  # the console script's path lacks the working directory
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(error.name + ".")):
            raise UserError(f"there is no module {where} (looked in {here} and what is installed)") from error
        raise UserError(f"importing {where} failed: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"importing {where} failed: {_reason(error)}") from error
    try:
        factory = operator.attrgetter(attribute)(module)
    except AttributeError:
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        own = [n for n in public if getattr(vars(module)[n], "__module__", "") == where]
        hint = f"; it has {', '.join(own[:5])}" if own else ""
        raise UserError(f"{where} has no {attribute!r}{hint}") from None
    if isinstance(factory, torch.nn.Module):
        return factory, False
    if not callable(factory):
        raise UserError(
            f"{text} is of type {type(factory).__name__}; it should be a function that makes an nn.Module"
        )
    made = guard(factory, f"{text} failed")
    if not isinstance(made, torch.nn.Module):
        raise UserError(f"{text} returned {type(made).__name__}, not an nn.Module")
    alone = sys.getrefcount(made) == ALONE
    return made, alone


def guard(call: Callable[[], Any], what: str) -> Any:
    """Call foreign code; whatever it raises becomes one sentence, with the original as its cause."""
    try:
        return call()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def module_inputs(module: nn.Module, given: Given) -> Form:
    """Which parameter of a module's ``forward`` is the image, and what the others hold.

    The image is the first one unless the user names it; parameters with a default value are inputs only
    where the user says what they hold.

    Raises:
        UserError: See `repedge.graph.inputs.settle`.
    """
    where = f"the model {type(module).__name__}"
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not named:
        if given.named or given.image:
            raise UserError(f"{where} does not name its inputs, so nothing can be said of one")
        return Form("")
    image = given.image or named[0].name
    wanted = [p.name for p in named if p.default is p.empty or p.name in (image, *given.named)]
    every = [Declared(name, "", None) for name in wanted]
    return settle(every, replace(given, image=image), where)


@dataclass(frozen=True)
class OnnxInput:
    """What an ONNX file takes; a side of the image that the file leaves open is 0.

    Attributes:
        form: Which input is the image and how it lies, and what the others hold.
        channels, height, width: Of the image.
        nodes: Of the graph.
        rounded: QuantizeLinear nodes among them.
    """

    form: Form
    channels: int
    height: int
    width: int
    nodes: int
    rounded: int = 0


def read_onnx_input(path: Path, given: Given | None = None) -> OnnxInput:
    """Read what an ONNX file takes, without its external data.

    Args:
        path: The file.
        given: What the user says of its inputs.

    Raises:
        UserError: It is no ONNX file, none of its inputs is an image, or see `repedge.graph.inputs.settle`.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or no ONNX file") from error
    if not graph.node:
        raise UserError(f"{path} is no ONNX file, or one without nodes")
    weights = {i.name for i in graph.initializer}
    declared = [_declared(i) for i in graph.input if i.name not in weights]
    form = settle(declared, given or Given(), path)
    shape = next(i.dims for i in declared if i.name == form.image)
    if shape is None or len(shape) != 4:
        axes = "no known" if shape is None else str(len(shape))
        raise UserError(f"{path}: its input {form.image!r} has {axes} axes, not [N, C, H, W]")
    n, c, h, w = shape if not form.channels_last else (shape[0], shape[3], *shape[1:3])
    if n > 1:
        raise UserError(f"{path} is made for batches of {n}; export it for batch 1 or a dynamic batch")
    rounded = sum(node.op_type == "QuantizeLinear" for node in graph.node)
    return OnnxInput(form, c or _filter_channels(graph, form.image), h, w, len(graph.node), rounded)


def _declared(value: Any) -> Declared:
    import onnx

    kind = value.type.tensor_type
    dims = tuple(max(0, d.dim_value) for d in kind.shape.dim) if kind.HasField("shape") else None
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    except (KeyError, TypeError, ValueError):
        dtype = ""
    return Declared(value.name, dtype, dims)


def _filter_channels(graph: Any, image: str) -> int:
    """Channels that the first convolution of an image reads; 3 where none does."""
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and node.input[0] == image and len(shapes.get(node.input[1], ())) == 4:
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            return int(shapes[node.input[1]][1]) * group
    return 3
