"""The tensors of a network that was pickled whole, read without making anything that the file names.

Detectors are often saved so (YOLOv5's ``best.pt`` holds its ``DetectionModel``). Of a pickle only tensors,
containers and plain values are made; every class and function that is not on the list below becomes an inert
`Record`, which keeps the state it is given and does nothing. Of records that look like a ``torch.nn.Module``,
parameters and buffers are taken by the names that their ``state_dict`` would have.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MADE = {
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("__builtin__", "set"),  # as protocol 2 names it
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}
"""What is made as the file says; ``torch.float16`` and its like are constants and go through, too."""

DEEPEST = 200  # modules within modules; a deeper nest is a loop or an attack


class Record:
    """Stands for an object of a class that is not made.

    Attributes:
        state: What the file says of it; empty where it says nothing.
    """

    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        """An empty record, whatever the arguments are."""
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Entries of what was a container are let go."""

    def append(self, value: Any) -> None:
        """Likewise."""

    extend = add = append

    def fields(self) -> Mapping[str, Any]:
        """Its attributes, as far as the file says them plainly."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state if isinstance(state, Mapping) else {}


class _Unpickler(pickle.Unpickler):
    """Makes records where the file names a class."""

    def find_class(self, module: str, name: str) -> Any:
        """The thing itself if it is on the list, else a class of records."""
        import torch

        if (module, name) in MADE:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type("Record", (Record,), {})


def networks(path: Path) -> Mapping[str, Any]:
    """The tensors of the networks that a zipped checkpoint holds as objects.

    Args:
        path: A file of ``torch.save`` whose archive was looked at already.

    Returns:
        Of a network alone its tensors by name; of a mapping its entries that are networks, each likewise.

    Raises:
        Exception: Of many kinds, where the file is damaged.
    """
    import torch

    reader = SimpleNamespace(Unpickler=_Unpickler, load=pickle.load, __name__=__name__)
    found = torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader, mmap=True)
    if isinstance(found, Record):
        return tensors(found)
    parts = {k: tensors(v) for k, v in _items(found) if isinstance(v, Record)}
    return {k: v for k, v in parts.items() if v}


def tensors(module: Record, depth: int = 0) -> dict[str, Any]:
    """Parameters and buffers of a record of a module, by their names in its ``state_dict``.

    Raises:
        ValueError: Its modules are nested without end.
    """
    import torch

    if depth > DEEPEST:
        raise ValueError("modules are nested without end")
    fields = module.fields()
    passing = fields.get("_non_persistent_buffers_set")
    found: dict[str, Any] = {}
    for kind in ("_parameters", "_buffers"):
        for name, value in _items(fields.get(kind)):
            if isinstance(value, torch.Tensor) and not (isinstance(passing, set) and name in passing):
                found[name] = value
    for name, inner in _items(fields.get("_modules")):
        if isinstance(inner, Record):
            found.update({f"{name}.{k}": v for k, v in tensors(inner, depth + 1).items()})
    return found


def _items(found: Any) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in found.items() if isinstance(k, str)] if isinstance(found, Mapping) else []
