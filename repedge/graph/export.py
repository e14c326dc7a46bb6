"""torch.nn.Module -> float ONNX graph.

The module runs once, in eval mode, on a random image, under a dispatch mode (PyTorch, "torch
dispatch") that sees every ATen operator below autograd and looks it up in ``aten.TABLE``. Like
``torch.export`` in its non-strict mode this follows Python as it is, and like it refuses what it
can't follow: reading a tensor's value into Python, random numbers, writing to a parameter, reading
memory that another view changed. What the table or the tracer refuses goes to the stock exporter,
``torch.onnx.export(dynamo=True)``.

Why not ``torch.export``: CPU seconds in a fresh process, imports included, are 0.6 here against 2.1
for RepVGG-A0 and 0.6 against 2.8 for RepViT-M0.9 (0.2 against 0.6 and 0.3 against 1.5 seconds the
second time), before anything is translated. The module's own outputs come with it, so the graph can
be held against them at no cost.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from repedge.errors import UnsupportedModel, UserError
from repedge.graph.aten.builder import OPSET
from repedge.graph.inputs import Form
from repedge.graph.values import check_weights
from repedge.photos.tensors import Tensors

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("repedge")

INPUT = "input"
SEED = 0


@dataclass(frozen=True)
class Exported:
    """A module's graph and what the module itself computed while it was exported.

    Attributes:
        model: The graph: opset 20, float32, batch 1, an input named ``input`` (and the module's further ones
            by their names), a static shape on every value. Its weights share the module's memory.
        input: The image the module ran on, float32 [1, C, H, W], standard normal.
        outputs: The module's outputs for it, in the order of the graph's outputs.
    """

    model: ir.Model
    input: np.ndarray
    outputs: tuple[np.ndarray, ...]


def export_module(
    module: torch.nn.Module, input_shape: tuple[int, int, int, int], form: Form | None = None
) -> ir.Model:
    """The graph of a module; see `export`."""
    return export(module, input_shape, form).model


def export(
    module: torch.nn.Module, input_shape: tuple[int, int, int, int], form: Form | None = None
) -> Exported:
    """Export a module in eval mode (its training flags are put back afterwards).

    Outputs are named after the keys of a dict, ``output_0`` and so on for a tuple or list, and
    ``logits`` (rank 2) or ``output`` for a single tensor.

    Args:
        module: Takes one float32 image batch, and what ``form`` says; parameters float32, on the CPU.
        input_shape: (1, C, H, W) in pixels.
        form: Which parameter of ``forward`` is the image, and what the others hold; None: there is one.

    Raises:
        UserError: The module does not run on this input, does not return tensors, is not float32,
            or holds NaN or infinite weights.
        UnsupportedModel: It has operators that neither the table nor the stock exporter knows.
    """
    import torch

    _check_input(module, input_shape)
    image = torch.randn(input_shape, generator=torch.Generator().manual_seed(SEED))
    call = Call(module, form)
    with single_thread(), _eval_mode(module), torch.no_grad():
        return _export(call, image)


class Call:
    """A module as a function of its image and its further inputs, in the order of the graph's inputs.

    Args:
        module: The module.
        form: As for `export`.

    Attributes:
        names: Of the graph's inputs.
        held: Constants by name.
    """

    def __init__(self, module: torch.nn.Module, form: Form | None = None) -> None:
        import torch

        self.module = module
        self._form = form or Form(INPUT)
        self.held = {n: torch.from_numpy(a) for n, a in self._form.constants.items()}
        self.names = (INPUT, *self._form.tensors.arrays)

    def first(self) -> list[torch.Tensor]:
        """The first sample of each further input."""
        import torch

        return [torch.from_numpy(a[0]) for a in self._form.tensors.at(0, 1).values()]

    def __call__(self, image: torch.Tensor, *tensors: torch.Tensor) -> Any:
        """The module's own result."""
        if not tensors and not self.held:
            return self.module(image)
        further = dict(zip(self.names[1:], tensors, strict=True))
        return self.module(**{self._form.image: image, **self.held, **further})


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """PyTorch on one thread.

    A few images gain nothing from more, and on a busy machine its threads wait for each other at
    every operator: three passes of RepVGG-A0 took 7 seconds instead of 0.3 beside other work.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _export(call: Call, image: torch.Tensor) -> Exported:
    from repedge.graph.trace import Refused, Tracer

    inputs = [image, *call.first()]
    tracer = Tracer(call.module, call, dict(zip(call.names, inputs, strict=True)))
    failure = ""
    try:
        result = tracer.run()
    except Refused:
        result = _run_plainly(call, inputs)
    except Exception as error:
        result = _run_plainly(call, inputs)  # the user's own mistake shows without the tracer as well
        failure = f"the model can't be followed ({_first_line(error)})"
    outputs = named_outputs(result)
    model = failure or tracer.finish(outputs)
    if isinstance(model, str):
        logger.info("%s; using torch.onnx's exporter", model)
        model = _stock_export(call, inputs, list(outputs), model)
    check_weights(model)
    return Exported(model, image.numpy(), tuple(t.detach().numpy().copy() for t in outputs.values()))


def named_outputs(result: Any) -> dict[str, torch.Tensor]:
    """A module's result as ``{output name: tensor}``.

    Raises:
        UserError: There is something other than tensors in it, or nothing.
    """
    import torch

    if isinstance(result, torch.Tensor):
        return {"logits" if result.ndim == 2 else "output": result}
    found = dict(_flatten(result, ""))
    if not found:
        raise UserError("the model returns no tensor")
    return found


def _flatten(result: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    if isinstance(result, torch.Tensor):
        yield name, result
    elif isinstance(result, Mapping):
        for key, value in result.items():
            yield from _flatten(value, f"{name}_{key}" if name else str(key))
    elif isinstance(result, (tuple, list)):
        for i, value in enumerate(result):
            yield from _flatten(value, f"{name}_{i}" if name else f"output_{i}")
    else:
        where = f" under {name!r}" if name else ""
        raise UserError(
            f"the model returns {type(result).__name__}{where} in eval mode; "
            "it must return a tensor, or a tuple, list or dict of tensors"
        )


def _check_input(module: torch.nn.Module, shape: Sequence[int]) -> None:
    import torch

    if len(shape) != 4 or shape[0] != 1 or any(not isinstance(n, int) or n < 1 for n in shape):
        raise UserError(
            f"the input shape must be (1, channels, height, width), all positive, not {tuple(shape)}"
        )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.device.type != "cpu":
            raise UserError(f"{name!r} is on {tensor.device}; move the model to the CPU first: module.cpu()")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{name!r} is {dtype}; repedge starts from float32: module.float()")


@contextlib.contextmanager
def _eval_mode(module: torch.nn.Module) -> Iterator[None]:
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in flags:
            m.training = training


def _run_plainly(call: Call, inputs: Sequence[torch.Tensor]) -> Any:
    try:
        return call(*(t.clone() for t in inputs))
    except Exception as error:
        image = inputs[0]
        size = "x".join(map(str, image.shape[2:]))
        further = "".join(
            f", {name} {list(t.shape)}" for name, t in zip(call.names[1:], inputs[1:], strict=True)
        )
        raise UserError(
            f"the model does not run on a {size} image with {image.shape[1]} channels{further} "
            f"({type(error).__name__}: {_first_line(error)}); try another --input-size"
        ) from error


def _stock_export(call: Call, inputs: Sequence[torch.Tensor], names: list[str], reason: str) -> ir.Model:
    """``torch.onnx.export(dynamo=True)`` brought into the form that the table gives."""
    import torch

    from repedge.graph.load import normalize

    class Plain(torch.nn.Module):
        """The module with its inputs in the graph's order."""

        def __init__(self) -> None:
            super().__init__()
            self.module = call.module

        def forward(self, *tensors: torch.Tensor) -> Any:
            return call(*tensors)

    module = call.module if len(inputs) == 1 and not call.held else Plain().eval()
    try:
        with _quiet():
            program = torch.onnx.export(
                module, tuple(inputs), dynamo=True, opset_version=OPSET, input_names=list(call.names),
                output_names=names, verbose=False,
            )  # fmt: skip
        assert program is not None, "without a file name the exporter returns the program"
        tensors = Tensors({n: t.numpy()[None] for n, t in zip(call.names[1:], inputs[1:], strict=True)})
        return normalize(program.model, None, form=Form(INPUT, tensors=tensors))
    except Exception as error:
        raise UnsupportedModel(f"{reason}, and torch.onnx's exporter failed: {_cause(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence an exporter that reports its progress, and why it gives up, on every channel there is."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
