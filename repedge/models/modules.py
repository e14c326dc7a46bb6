"""A torch module of someone else's: a copy to work on, what it takes, whether it was ever trained.

The copy is on the CPU and in float32, and shares no tensor with the module, which stays as it is: mode of
each submodule, device, dtype, gradients, hooks, statistics.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from repedge.errors import UserError
from repedge.models.files import unusable

if TYPE_CHECKING:
    import torch
    from torch import nn

LIKELY = (3, 1, 4, 2, *range(5, 17))
"""Channels of images, the usual ones first."""

FEW, SPREAD = 64, 0.2
"""So many numbers or more, drawn evenly, have the standard deviation of their range up to this share."""


def own_copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU, floats as float32, without gradients, in eval mode.

    What can't be copied (a lock, a logger's stream) is shared.

    Raises:
        UserError: The module forbids copies, or has no values.
    """
    import torch

    memo = {id(t): _own(t) for m in module.modules() for t in _tensors(vars(m).values())}
    try:
        made = copy.deepcopy(module, dict(memo))
    except Exception as error:
        with torch.no_grad():
            made = _partly_shared(module, memo, error)
    return made.eval().requires_grad_(False)


def unwrapped(module: nn.Module) -> nn.Module:
    """Without wrappers for several devices."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    while isinstance(module, (DataParallel, DistributedDataParallel)):
        module = module.module
    return module


def _own(t: torch.Tensor) -> torch.Tensor:
    """A leaf on the CPU that shares no memory; a parameter's is a parameter."""
    import torch

    if t.is_meta:
        raise UserError("the module is on the meta device, shapes without values; load its weights first")
    dtype = torch.float32 if t.is_floating_point() else t.dtype
    mine = t.detach().to("cpu", dtype, copy=True)
    if isinstance(t, torch.nn.Parameter):
        return torch.nn.Parameter(mine, requires_grad=False)
    return mine


def _tensors(values: Iterable[Any], depth: int = 4) -> Iterator[torch.Tensor]:
    """Tensors among values and in the containers among them."""
    import torch

    for value in values:
        if isinstance(value, torch.Tensor):
            if not torch.nn.parameter.is_lazy(value):
                yield value
        elif isinstance(value, dict) and depth:
            yield from _tensors(value.values(), depth - 1)
        elif isinstance(value, (list, tuple)) and depth:
            yield from _tensors(value, depth - 1)


def _partly_shared(module: nn.Module, memo: dict[int, Any], error: Exception) -> nn.Module:
    """A copy that shares what can't be copied with the module."""
    for m in module.modules():
        for name, value in vars(m).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(value, {**memo, **{id(other): other for other in module.modules()}})
            except Exception:
                memo[id(value)] = value
    try:
        return copy.deepcopy(module, memo)
    except Exception:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{type(module).__name__} can't be copied ({type(error).__name__}: {reason[:160]}), and repedge "
            "changes no module of yours; pass package.module:factory, which makes one"
        ) from error


def settle(module: nn.Module, check: bool) -> nn.Module:
    """A module of ours in eval mode on the CPU, float32, without gradients.

    Args:
        check: Whether its weights may be no numbers.

    Raises:
        UserError: They are none.
    """
    import torch

    for key, value in module.state_dict().items() if check else ():
        if isinstance(value, torch.Tensor) and (problem := unusable(key, value)):
            raise UserError(f"{problem}; the network can't be compiled like this")
    return module.to("cpu", torch.float32).eval().requires_grad_(False)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """The global random generators that are loaded go on as if nothing had been drawn meanwhile."""
    python, torch, numpy = random.getstate(), sys.modules.get("torch"), sys.modules.get("numpy")
    theirs = torch.get_rng_state() if torch is not None else None
    legacy = numpy.random.get_state() if numpy is not None else None
    try:
        yield
    finally:
        random.setstate(python)
        if torch is not None:
            torch.set_rng_state(theirs)
        if numpy is not None:
            numpy.random.set_state(legacy)


class _Enough(BaseException):
    """The first operator that mixes channels took the image. No Exception: the module is to let it pass."""


def channels_of(
    module: nn.Module,
    size: tuple[int, int],
    said: Sequence[int] = (),
    run: Callable[[torch.Tensor], Any] | None = None,
) -> int:
    """Channels of the image that a module takes: with them it gets to its first convolution or product.

    Which layer sees the image first only running the module tells: a head may be defined before the stem, and
    a stem may fold pixels into channels.

    Args:
        module: In eval mode, on the CPU.
        size: Height and width of its input, pixels.
        said: What the user says of it; tried first.
        run: The module as a function of its image, where it takes more; None: itself.

    Returns:
        The first of ``said`` and `LIKELY` that runs. Where none does, what was said or the first 2-D
        convolution takes, or 3: whoever runs the module finds out what is wrong with it.
    """
    import torch

    first = next((m.in_channels for m in module.modules() if isinstance(m, torch.nn.Conv2d)), 3)
    for channels in dict.fromkeys((*said, *LIKELY, first)):
        if takes(run or module, (1, channels, *size)):
            return channels
    return next(iter(said), first)


def takes(module: Callable[[torch.Tensor], Any], shape: tuple[int, int, int, int]) -> bool:
    """Whether a module runs on an image of this shape up to its first convolution or product."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # as `repedge.graph.trace.Tracer`: else PyTorch loads torch._dynamo, 1.3 s

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            name = func._overloadpacket.__name__
            if any(word in name for word in ("convolution", "mm", "matmul", "linear")):
                raise _Enough
            return result

    try:
        with torch.no_grad(), Watch():
            module(torch.zeros(shape))
    except _Enough:
        return True
    except Exception:
        return False
    return True


def is_initial(module: nn.Module) -> bool:
    """Whether all weights of a network have the values that they were made with: nobody trained it.

    Told by the normalization layers, where there are some: their statistics are those of no image at all, and
    their factors are all 1 or 0. Where there are none: by weights and biases that all fill PyTorch's initial
    range evenly.
    """
    import torch

    kinds = (torch.nn.modules.batchnorm._NormBase, torch.nn.LayerNorm, torch.nn.GroupNorm)
    norms = [m for m in module.modules() if isinstance(m, kinds)]
    told = [m for m in norms if any(True for _ in (*m.parameters(False), *m.buffers(False)))]
    if told:
        return all(_fresh_norm(m) for m in told)
    weighted = [
        m for m in module.modules() if isinstance(m, (torch.nn.modules.conv._ConvNd, torch.nn.Linear))
    ]
    large = [m for m in weighted if m.weight.numel() >= FEW]
    return bool(large) and all(_fresh_weights(m) for m in large)


def _fresh_norm(m: Any) -> bool:
    mean, var = getattr(m, "running_mean", None), getattr(m, "running_var", None)
    weight, bias = getattr(m, "weight", None), getattr(m, "bias", None)
    counted = getattr(m, "num_batches_tracked", None)
    return (
        (mean is None or not bool(mean.any()))
        and (var is None or bool((var == 1).all()))
        and (counted is None or int(counted) == 0)
        and (weight is None or bool(((weight == 1) | (weight == 0)).all()))
        and (bias is None or not bool(bias.any()))
    )


def _fresh_weights(m: Any) -> bool:
    """Kaiming's uniform with ``a=sqrt(5)``, PyTorch's default: U(-b, b) with b = 1 / sqrt(fan in)."""
    weight = m.weight.detach()
    fan_in = weight[0].numel()
    bound = 1 / math.sqrt(fan_in)
    if m.bias is not None and float(m.bias.detach().abs().max()) > bound * (1 + 1e-6):
        return False
    even = float(weight.std()) / (bound / math.sqrt(3))
    return float(weight.abs().max()) <= bound * (1 + 1e-6) and abs(even - 1) < SPREAD
