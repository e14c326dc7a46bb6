"""A Core ML program in memory and its execution, op by op, in the program's own precision.

A value of type fp16 is held as float32 whose every element is an fp16 number: each op computes in
float32 from such numbers (so convolutions and matrix products accumulate in float32) and its result is
rounded once, to nearest even, overflowing to infinity. That is fp16 arithmetic with nothing else lost;
it is not bit for bit what any one Apple device does (the Neural Engine's accumulators and activation
tables are not published), and subnormal fp16 numbers are kept where some hardware flushes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from repedge.errors import DeviceError, UserError
from repedge.targets.coreml.interpreter.weights import DType

if TYPE_CHECKING:
    from torch import Tensor

MAX_CACHED_BYTES = 1 << 30
"""Weights are kept as float32 after their first use up to this much memory (all of RepVGG-B3's 111 M
parameters take 444 MB); those beyond are converted from the mapped file at every run."""


@dataclass(frozen=True)
class Feature:
    """One input or output of a program, as an app sees it.

    Attributes:
        name: Name in the model's description.
        kind: ``image``, ``multiarray``, ``string`` (a class label) or ``dictionary`` (label -> probability).
        dtype: numpy's name; ``uint8`` for images (8-bit pixels), empty for labels and dictionaries.
        shape: (H, W, 3) or (H, W) for an image, else the program's shape with -1 for dynamic axes.
        color: ``RGB``, ``BGR``, ``GRAYSCALE`` or ``GRAYSCALE_FLOAT16`` for an image: the channel order
            that the *program* gets; images are always fed as RGB.
    """

    name: str
    kind: Literal["image", "multiarray", "string", "dictionary"]
    dtype: str = ""
    shape: tuple[int, ...] = ()
    color: str = ""


@dataclass(frozen=True)
class Result:
    """One value that an op produces: its name and what the program declares about it."""

    name: str
    dtype: DType | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One operation, ready to call: constants converted to what the function wants, the rest by name."""

    op: str
    name: str
    function: Callable[..., Any]
    rounds: bool
    results: tuple[Result, ...]
    fixed: Mapping[str, Any]
    values: Mapping[str, tuple[tuple[str, ...], Callable[[list[Any]], Any]]]
    dead: list[str] = field(default_factory=list)
    """Values that no later step reads."""


class MilProgram:
    """A loaded program.

    Attributes:
        inputs, outputs: The signature, in the description's order.
        opset: ``CoreML6`` is iOS 16, ``CoreML7`` iOS 17, ``CoreML8`` iOS 18.
        op_counts: How often each op occurs, constants left out.
        metadata: The description's free text: ``author``, ``license``, ``shortDescription``,
            ``versionString`` and what is user-defined.
    """

    def __init__(
        self,
        inputs: tuple[Feature, ...],
        outputs: tuple[Feature, ...],
        opset: str,
        metadata: Mapping[str, str],
        parameters: Mapping[str, Result],
        constants: dict[str, Any],
        steps: tuple[Step, ...],
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.opset = opset
        self.metadata = dict(metadata)
        self.op_counts = Counter(step.op for step in steps)
        self._parameters = parameters
        self._constants = constants
        self._steps = steps
        self._declared = {r.name: r for step in steps for r in step.results} | dict(parameters)
        self._cache: dict[str, Tensor] = {}
        self._cached_bytes = 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Run the program once.

        Args:
            feeds: By input name. An image is pixels [H, W, 3] in RGB order, or [H, W] / [H, W, 1] for a
                grayscale input: uint8, or float with values 0 to 255. A multiarray is an array of the
                input's shape; it is converted to the input's dtype.

        Returns:
            By output name: an array in the program's dtype, a label (str or int), or label -> probability.

        Raises:
            UserError: The feeds don't fit the inputs.
            DeviceError: An op failed or its result is not what the program declares.
        """
        import torch

        unfit = {f.name for f in self.inputs} ^ set(feeds)
        if unfit:
            raise UserError(
                f"the program's inputs are {[f.name for f in self.inputs]}, but was fed {sorted(feeds)}"
            )
        with torch.inference_mode():
            values: dict[str, Any] = {
                f.name: _fed(f, self._parameters[f.name], np.asarray(feeds[f.name])) for f in self.inputs
            }
            for step in self._steps:
                values.update(zip((r.name for r in step.results), self._call(step, values), strict=True))
                for name in step.dead:
                    del values[name]
            return {f.name: self._returned(f.name, values) for f in self.outputs}

    def _call(self, step: Step, values: Mapping[str, Any]) -> list[Any]:
        arguments = dict(step.fixed)
        for parameter, (names, convert) in step.values.items():
            arguments[parameter] = convert([values[n] if n in values else self._constant(n) for n in names])
        try:
            made = step.function(**arguments)
        except (RuntimeError, ValueError, IndexError, TypeError) as e:
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise DeviceError(f"the MIL op {step.op} {step.name!r} failed: {reason}") from e
        made = list(made) if isinstance(made, (tuple, list)) else [made]
        if len(made) != len(step.results):
            raise DeviceError(
                f"the MIL op {step.op} {step.name!r} gives {len(made)} results where the program has "
                f"{len(step.results)}"
            )
        return [_settled(step, r, value) for r, value in zip(step.results, made, strict=True)]

    def _constant(self, name: str) -> Any:
        if name in self._cache:
            return self._cache[name]
        value = self._constants[name]
        if not isinstance(value, np.ndarray):
            return value
        tensor = _tensor(value)
        size = tensor.numel() * tensor.element_size()
        if self._cached_bytes + size <= MAX_CACHED_BYTES:
            self._cache[name] = tensor
            self._cached_bytes += size
            del self._constants[name]  # decompressed weights need not exist twice
        return tensor

    def _returned(self, name: str, values: Mapping[str, Any]) -> Any:
        value = values[name] if name in values else self._constant(name)
        if isinstance(value, (str, int, dict)):
            return value
        declared = self._declared.get(name)
        dtype = declared.dtype if declared else None
        return np.array(value.numpy(), dtype.array if dtype else None)


def _tensor(array: np.ndarray) -> Tensor:
    """A torch tensor of what the interpreter computes with: float32 for fp16, wider signed for uint16/32."""
    import torch

    if array.dtype in (np.uint16, np.uint32):
        return torch.from_numpy(array.astype(np.int64))
    tensor = torch.from_numpy(np.asarray(array, order="C"))
    return tensor.float() if array.dtype == np.float16 else tensor


def _settled(step: Step, declared: Result, value: Any) -> Any:
    """The value in its declared type, checked against its declared shape."""
    import torch

    if not isinstance(value, torch.Tensor) or declared.dtype is None:
        return value
    shape = tuple(value.shape)
    if len(shape) != len(declared.shape) or any(
        d not in (-1, n) for d, n in zip(declared.shape, shape, strict=True)
    ):
        raise DeviceError(
            f"the MIL op {step.op} {step.name!r} gives shape {shape} where the program declares "
            f"{declared.shape} for {declared.name!r}"
        )
    if declared.dtype.name == "float16":
        return value.half().float() if step.rounds or value.dtype != torch.float32 else value
    carrier = _CARRIERS.get(declared.dtype.array, declared.dtype.array)
    return value.to(getattr(torch, carrier))


_CARRIERS = {"uint16": "int64", "uint32": "int64", "uint64": "int64"}


def _fed(feature: Feature, declared: Result, array: np.ndarray) -> Tensor:
    """What Core ML hands to the program for one fed array."""
    import torch

    if feature.kind == "image":
        array = _image_planes(feature, array)
    elif len(array.shape) != len(declared.shape) or any(
        d not in (-1, n) for d, n in zip(declared.shape, array.shape, strict=True)
    ):
        raise UserError(f"input {feature.name!r} must have shape {declared.shape}, but was fed {array.shape}")
    if array.dtype.kind not in "fiub" or declared.dtype is None:
        raise UserError(f"input {feature.name!r} was fed an array of {array.dtype}; feed numbers")
    tensor = torch.from_numpy(np.array(array, _numeric(declared.dtype)))
    return tensor.half().float() if declared.dtype.name == "float16" else tensor


def _numeric(dtype: DType) -> str:
    """numpy's type that the interpreter computes with."""
    return "float32" if dtype.name == "float16" else _CARRIERS.get(dtype.array, dtype.array)


def _image_planes(feature: Feature, pixels: np.ndarray) -> np.ndarray:
    """[1, C, H, W] in the program's channel order from RGB pixels."""
    gray = feature.color.startswith("GRAYSCALE")
    if gray and pixels.ndim == 2:
        pixels = pixels[:, :, None]
    wanted = (*feature.shape[:2], 1 if gray else 3)
    if pixels.ndim != 3 or any(d not in (-1, n) for d, n in zip(wanted, pixels.shape, strict=True)):
        raise UserError(
            f"image input {feature.name!r} must be fed pixels of shape {wanted}, but was fed {pixels.shape}"
        )
    if feature.color == "BGR":
        pixels = pixels[:, :, ::-1]
    return pixels.transpose(2, 0, 1)[None]
