"""Running a torch module once and writing down what it does; see ``export`` for why so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from repedge.graph.aten import TABLE
from repedge.graph.aten.builder import Builder, Unlowerable, tensor_key, type_of

_TAG = "_repedge_traced"

METADATA_ONLY = frozenset(
    name for kind in ("zeros", "ones", "full", "empty") for name in (f"new_{kind}", f"{kind}_like")
)
"""They read the shape and the type of a tensor, not its values: their results are constants."""


class Refused(BaseException):
    """The tracer can't follow the module. Not an Exception, so that the module does not catch it."""


@dataclass
class _Traced:
    """What a tensor that depends on the input is in the graph.

    Attributes:
        value: Its graph value; None for the result of an operator outside the table.
        version: Count of in-place writes to its storage when ``value`` was recorded.
    """

    value: ir.Value | None
    version: int


class Tracer(TorchDispatchMode):
    """Records the ATen operators that depend on the input.

    Operators on constants alone (a transposed weight, a grid) just run: their results are constants.
    """

    def __init__(
        self, module: torch.nn.Module, call: Callable[..., Any], inputs: Mapping[str, torch.Tensor]
    ) -> None:
        """Get ready to run ``call``, which runs ``module``, on the inputs in their order."""
        super().__init__()
        self._module, self._call = module, call
        self._tensors = [t.clone() for t in inputs.values()]  # the module may overwrite them
        tensors = [
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ]
        self._builder = Builder({tensor_key(t): name for name, t in reversed(tensors)})
        self._own_storages = {_storage(t) for _, t in tensors}
        # A weak reference keeps a storage's address from being used again, but not its memory.
        self._storages: dict[int, StorageWeakRef] = {}  # those that depend on the input
        self._writes: dict[int, int] = {}  # storage -> in-place writes so far
        self._unknown: dict[str, str] = {}  # operator (and why not) -> first module that uses it
        self._refused: str | None = None
        self._inputs = [self._builder.input(name, t) for name, t in inputs.items()]
        for tensor, value in zip(self._tensors, self._inputs, strict=True):
            self._track(tensor, value)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: PyTorch would else import torch._dynamo (1.3 s) to shield this mode from torch.compile."""
        return False

    def run(self) -> Any:
        """The module's own result.

        Raises:
            Refused: It does something that no graph can hold.
        """
        with (
            _fused_attention_off(),
            _module_path(self._module, self._builder),
            _Watch(self._check_read, self._builder),
            self,
        ):
            return self._call(*self._tensors)

    def finish(self, outputs: Mapping[str, torch.Tensor]) -> ir.Model | str:
        """The graph of the recorded run, or why there is none: every unknown operator at once."""
        reasons = [] if self._refused is None else [self._refused]
        if self._unknown:
            listed = (f"{op} (in {where})" if where else op for op, where in self._unknown.items())
            reasons.append(f"operators outside repedge's table: {', '.join(listed)}")
        if reasons:
            return "; ".join(reasons)
        try:
            operands = {name: self._operand(t) for name, t in outputs.items()}
        except Refused as why:
            return str(why)
        if unknown := [name for name, operand in operands.items() if operand is None]:
            return f"the output {unknown[0]!r} is of an operator outside repedge's table"
        types = {name: type_of(outputs[name]) for name in operands}
        values = {name: self._builder.value(operand, types[name]) for name, operand in operands.items()}
        return self._builder.finish(self._inputs, values)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        written = _written(func, args, kwargs)
        traced = [t for t in _tensors((args, kwargs)) if self._traced(t) is not None]
        if not traced or _name(func) in METADATA_ONLY:
            self._check_constant(func, written)
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            self._refuse("the model's Python code reads the value of a tensor that depends on the image")
        if any(self._traced(t) is None for t in written):
            self._refuse(f"aten.{_name(func)} writes what depends on the image into a constant tensor")
        # Operands are looked up before the operator runs: it may overwrite them.
        known = None not in [self._operand(t) for t in traced]
        operands = _mapped(self._operand, (args, kwargs))
        result = func(*args, **kwargs)
        for tensor in written:
            self._writes[_storage(tensor)] = self._writes.get(_storage(tensor), 0) + 1
        self._builder.arguments = args
        self._record(func, operands if known else None, result)
        return result

    def _record(self, func: Any, operands: Any, result: Any) -> None:
        """Lower one operator; ``operands`` is None if they hang on an unknown operator."""
        name = _name(func)
        lowered: Any = None
        self._builder.result = result
        try:
            if name not in TABLE:
                raise Unlowerable("")
            if operands is not None:
                _require_float32(result)
                lowered = TABLE[name](self._builder, *operands[0], **operands[1])
        except Unlowerable as why:
            title = f"aten.{name} with {why}" if str(why) else f"aten.{name}"
            self._unknown.setdefault(title, self._builder.path)
        results = [result] if isinstance(result, torch.Tensor) else list(result or ())
        values = lowered if isinstance(lowered, list) else [lowered]
        for i, tensor in enumerate(results):
            if isinstance(tensor, torch.Tensor):
                self._track(tensor, values[i] if i < len(values) else None)

    def _check_constant(self, func: Any, written: list[torch.Tensor]) -> None:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._refuse(f"aten.{_name(func)} draws random numbers in eval mode")
        for tensor in written:
            if _storage(tensor) in self._own_storages or self._builder.borrows(_storage(tensor)):
                self._refuse(f"aten.{_name(func)} changes a parameter, a buffer or a constant in eval mode")

    def _check_read(self, func: Any, tensor: torch.Tensor) -> None:
        if self._traced(tensor) is not None:
            self._refuse(f"the model's code takes a tensor that depends on the image to {func.__name__}")

    def _track(self, tensor: torch.Tensor, value: ir.Value | None) -> None:
        storage = _storage(tensor)
        if storage not in self._storages:
            self._storages[storage] = StorageWeakRef(tensor.untyped_storage())
        setattr(tensor, _TAG, _Traced(value, self._writes.get(storage, 0)))

    def _traced(self, tensor: torch.Tensor) -> _Traced | None:
        """None for a constant."""
        found = getattr(tensor, _TAG, None)
        if found is None:
            reference = self._storages.get(_storage(tensor))
            if reference is not None and not reference.expired():
                self._refuse("a tensor that depends on the image shares memory with a constant")
        return found

    def _operand(self, tensor: torch.Tensor) -> Any:
        """A constant as it is; else the graph value, None if that is unknown."""
        found = self._traced(tensor)
        if found is None:
            return tensor
        if found.version != self._writes.get(_storage(tensor), 0):
            self._refuse("a tensor is read after an in-place operator changed its memory through a view")
        return found.value

    def _refuse(self, why: str) -> None:
        self._refused = self._refused or why
        raise Refused(why)


_READS = (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__, torch.Tensor.__dlpack__)


_INSTANCE_NORMS = (torch.nn.functional.instance_norm, torch.instance_norm)


class _Watch(TorchFunctionMode):
    """Reports the methods that read a tensor without any ATen operator, and what they are part of."""

    def __init__(self, report: Callable[[Any, torch.Tensor], None], builder: Builder) -> None:
        super().__init__()
        self._report, self._builder = report, builder

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in _READS:
            self._report(func, args[0])
        if func not in _INSTANCE_NORMS:
            return func(*args, **(kwargs or {}))
        self._builder.normalizes_instances = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._builder.normalizes_instances = False


def _name(func: Any) -> str:
    """``aten.add_.Tensor`` -> ``add.Tensor``, ``aten.relu.default`` -> ``relu``."""
    packet = func._overloadpacket.__name__
    if func._schema.is_mutable and packet.endswith("_") and not packet.endswith("__"):
        packet = packet[:-1]
    overload = func._overloadname
    return packet if overload == "default" else f"{packet}.{overload}"


def _written(func: Any, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """The arguments that the operator overwrites."""
    if not func._schema.is_mutable:
        return []
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[i] if i < len(args) else kwargs.get(argument.name))
    return list(_tensors(found))


def _require_float32(result: Any) -> None:
    for tensor in _tensors(result):
        if tensor.dtype.is_floating_point and tensor.dtype != torch.float32:
            raise Unlowerable(f"a {str(tensor.dtype).removeprefix('torch.')} result")


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


def _mapped(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """The same nesting with every tensor replaced."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        return [_mapped(function, item) for item in tree]
    if isinstance(tree, dict):
        return {key: _mapped(function, item) for key, item in tree.items()}
    return tree


@contextlib.contextmanager
def _fused_attention_off() -> Iterator[None]:
    """PyTorch's transformer layers by their parts, not as one operator of inference."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _module_path(module: torch.nn.Module, builder: Builder) -> Iterator[None]:
    """Keep ``builder.path`` at the dotted name of the submodule that is running."""
    names = {id(m): name for name, m in module.named_modules()}
    outer: list[str] = []

    def enter(m: torch.nn.Module, _: Any) -> None:
        outer.append(builder.path)
        builder.path = names.get(id(m), builder.path)

    def leave(m: torch.nn.Module, *_: Any) -> None:
        builder.path = outer.pop()

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
