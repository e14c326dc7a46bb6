"""Networks that repedge did not write: the user's factories and ONNX files."""

from __future__ import annotations

import importlib
import operator
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge.errors import UserError

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


@dataclass(frozen=True)
class OnnxInput:
    """The image input of an ONNX file; a side of 0 is left open by the file."""

    channels: int
    height: int
    width: int
    nodes: int


def read_onnx_input(path: Path) -> OnnxInput:
    """Read the shape of an ONNX file's one input [N, C, H, W], without its external data.

    Raises:
        UserError: It is no ONNX file, or its input is no image.
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
    inputs = [i for i in graph.input if i.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs) or "none"
        raise UserError(f"{path} must have one input, an image; it has {len(inputs)} ({names})")
    shape = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    if len(shape) != 4:
        raise UserError(f"{path}: its input {inputs[0].name!r} has {len(shape)} axes, not [N, C, H, W]")
    _, channels, height, width = shape
    if channels not in (1, 3) and width in (1, 3):
        raise UserError(f"{path} takes [N, H, W, C]; export it with channels first, [N, C, H, W]")
    return OnnxInput(channels or 3, height, width, len(graph.node))
