"""Targets that can't take a model: named together, while the others are built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from repedge import targets
from repedge.compiler.request import Built
from repedge.errors import UnsupportedModel, UserError
from repedge.precision import Precision
from repedge.targets.base import in_words

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Refused:
    """One bundle that was asked for and can't be.

    Attributes:
        target, precision: What was asked for.
        why: A sentence.
    """

    target: str
    precision: Precision
    why: str

    def as_json(self) -> dict[str, str]:
        """One element of ``refused`` in the JSON of ``repedge compile``."""
        return dict(vars(self))


@dataclass(frozen=True)
class Outcome:
    """What came of a request: bundles, and what can't be one."""

    built: tuple[Built, ...] = ()
    refused: tuple[Refused, ...] = ()


def operators_missing(graph: ir.Model, chosen: Sequence[str]) -> Mapping[str, str]:
    """Why targets can't take a clean graph, by name; those that can are not in it.

    Raises:
        UnsupportedModel: No chosen target can; another one is named that could.
    """
    reasons = {}
    for name in dict.fromkeys(chosen):
        refused = targets.get(name).refused(graph)
        if refused:
            reasons[name] = in_words(refused)
    if len(reasons) == len(set(chosen)):
        others = [t for t in targets.installed() if t.name not in chosen]
        able = [t.name for t in others if not t.refused(graph)]
        hint = f"; these targets have them all: {', '.join(able)}" if able else ""
        raise UnsupportedModel(f"the model has operators without a lowering: {_listed(reasons)}{hint}")
    return {name: f"the model has operators without a lowering: {why}" for name, why in reasons.items()}


def nothing_built(refused: Sequence[tuple[Refused, UserError]]) -> UserError:
    """The error of a request of which nothing could be built."""
    first = refused[0][1]
    whys = {f"{r.target} {r.precision}": r.why for r, _ in refused}
    return first if len(set(whys.values())) == 1 else UserError(_listed(whys))


def _listed(reasons: Mapping[str, str]) -> str:
    """Reasons, those that several share once."""
    by_why: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_why.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in by_why.items())
