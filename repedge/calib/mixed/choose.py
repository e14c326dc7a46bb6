"""Mixed plans: which layers to raise to float32, by name or the cheapest that meet an accuracy budget."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from repedge.calib.distance import Distance
from repedge.calib.mixed.raising import Raise, keep_float, nodes_to_raise, raises
from repedge.calib.plan import QuantPlan
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.structure import layers
from repedge.errors import CheckFailed, UserError
from repedge.graph.count import macs_of
from repedge.scheme import QuantScheme

Batches = Callable[[], Iterable[np.ndarray]]
Measure = Callable[[ir.Model, QuantPlan], float]


@dataclass(frozen=True)
class Trial:
    """One attempt of the search.

    Attributes:
        raised: How many layers read float32.
        nodes: How many nodes are float32 for that.
        cost: As measured.
        layers: The raised layers.
        macs: Share of the network's multiply-accumulates that is float32, 0 to 1.
        weights: Those of the layers that have float32 weights, too.
    """

    raised: int
    nodes: int
    cost: float
    layers: tuple[str, ...] = ()
    macs: float = 0.0
    weights: tuple[str, ...] = ()


class BudgetNotMet(CheckFailed):
    """No allowed set of raised layers meets the budget.

    Attributes:
        trials: Every attempt, in order.
    """

    def __init__(self, budget: float, most: int, trials: Sequence[Trial]) -> None:
        table = "; ".join(f"{t.raised} raised: {t.cost:.4g}" for t in trials)
        super().__init__(f"the budget of {budget:g} is not met with up to {most} layers in float32 ({table})")
        self.trials = tuple(trials)


def named(model: ir.Model, patterns: Sequence[str]) -> list[str]:
    """The nodes whose names match.

    Args:
        model: A graph.
        patterns: Names or glob patterns (``*``, ``?``, ``[..]``), with or without the operator that a
            node's name ends in: ``features.0.c/Conv`` and ``features.0.c`` are the same. A layer is also
            called by the module that it came from, as `repedge diagnose` shows it.

    Raises:
        UserError: A pattern matches no node.
    """
    nodes = [str(node.name) for node in model.graph]
    stems = {name: name.rpartition("/")[0] or name for name in nodes}
    shown = {la.name: la.node.metadata_props.get("source", la.name) for la in layers(model)}
    found: dict[str, None] = {}
    for pattern in patterns:
        hits = [n for n in nodes if _called((n, stems[n], shown.get(n, n)), pattern)]
        if not hits:
            known = dict.fromkeys(shown.values())
            close = difflib.get_close_matches(pattern, [*known, *shown, *stems.values()], n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}?" if close else f"its layers are {', '.join([*known][:8])}, ..."
            raise UserError(f"no layer is called {pattern!r}; {hint}")
        found.update(dict.fromkeys(hits))
    return list(found)


def _called(names: Sequence[str], pattern: str) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)


def chosen_float(model: ir.Model, scheme: QuantScheme, patterns: Sequence[str]) -> dict[str, str]:
    """What must stay float32 for the named layers to do so: node -> why, as `calibrate` takes it.

    Raises:
        UserError: A pattern matches no node.
    """
    plan, weighted = QuantPlan(scheme=scheme), {la.name for la in layers(model)}
    names = named(model, patterns)
    found = dict.fromkeys(names, "kept in float by name")
    for name in names:
        for other in nodes_to_raise(model, plan, name) if name in weighted else ():
            found.setdefault(other, f"beside {name}, which is kept in float by name")
    return found


def choose(
    model: ir.Model,
    reference: ir.Model,
    plan: QuantPlan,
    batches: Batches,
    budget: float,
    *,
    measure: Measure | None = None,
    distance: Distance | None = None,
    most: int | None = None,
    order: Callable[[], Sequence[Raise]] | None = None,
    lowered: int = 0,
) -> tuple[ir.Model, QuantPlan, list[Trial]]:
    """The cheapest layers in float32 that bring the output within the budget.

    Args:
        model: The calibrated graph.
        reference: The float graph with the same equalization.
        plan: Its plan.
        batches: Images for what each layer gives (and for the default measure).
        budget: Greatest cost that is accepted, in the unit of ``measure``.
        measure: (graph, plan) -> cost, for instance of the real artifact; by default
            `Distance.cost` of the simulation on ``batches``.
        distance: Of the network's answers; None: by what its outputs say they are.
        most: Greatest number of layers to raise; None: a quarter of them, at least 1.
        order: Gives what may be raised, best first, where integers alone don't meet the budget; None:
            `repedge.calib.mixed.raising.raises`.
        lowered: Once the budget is met, up to this many raises are taken back, one by one, those of the
            highest price first; they stay so where the budget is still met.

    Returns:
        Graph and plan within the budget, and every trial in order. A raised layer reads float32, so that
        what writes its input is float32, too, where the target's integer operators give only integers;
        its weights keep their 8 bits unless they are raised as well.

    Raises:
        BudgetNotMet: Not even ``most`` raised layers are enough; the trials are in the message.
    """
    distance = distance or Distance.of(model)
    wanted = None if measure else Simulator(reference).answers(batches())

    def simulated(m: ir.Model, p: QuantPlan) -> float:
        assert wanted is not None
        return distance.cost(wanted, Simulator(m, p).answers(batches()))

    judge = measure or simulated
    macs = macs_of(model)
    trials: list[Trial] = []

    def attempt(taken: Sequence[Raise]) -> tuple[ir.Model, QuantPlan]:
        """One trial: these layers and what must be raised with them."""
        names = list(dict.fromkeys(r.node for r in taken))
        nodes = list(dict.fromkeys(n for name in names for n in nodes_to_raise(model, plan, name)))
        weights = [r.node for r in taken if r.weights] if plan.scheme.weights_alone else nodes
        why = f"one of {len(names)} layers that give most at the output for their price, or beside one"
        made = keep_float(model, reference, plan, nodes, why, weights=weights) if names else (model, plan)
        share = sum(macs.get(n, 0) for n in nodes) / max(1, sum(macs.values()))
        wide = tuple(n for n in weights if n in names)
        trials.append(Trial(len(names), len(nodes), judge(*made), tuple(names), share, wide))
        return made

    best = attempt(())
    if trials[0].cost <= budget:
        return *best, trials
    found = list(raises(model, reference, plan, batches, distance) if order is None else order())
    total = len({r.node for r in found})
    found = _first_layers(found, max(1, total // 4) if most is None else most)
    low, high, best = 0, 1, attempt(found[:1])
    while trials[-1].cost > budget and high < len(found):
        low, high = high, min(2 * high, len(found))
        best = attempt(found[:high])
    if trials[-1].cost > budget:
        raise BudgetNotMet(budget, trials[-1].raised, trials)
    while high - low > 1:
        middle = (low + high) // 2
        made = attempt(found[:middle])
        if trials[-1].cost <= budget:
            high, best = middle, made
        else:
            low = middle
    kept = found[:high]
    # The last one raised was needed: the search found that the set without it is too costly.
    for one in sorted(kept[:-1], key=lambda r: -r.price)[:lowered]:
        fewer = [r for r in kept if r is not one and (one.weights or r.node != one.node)]
        made = attempt(fewer)
        if trials[-1].cost <= budget:
            kept, best = fewer, made
    return *best, trials


def _first_layers(found: Sequence[Raise], most: int) -> list[Raise]:
    """What comes before the first raise of one layer too many."""
    seen: set[str] = set()
    for i, one in enumerate(found):
        seen.add(one.node)
        if len(seen) > most:
            return list(found[:i])
    return list(found)
