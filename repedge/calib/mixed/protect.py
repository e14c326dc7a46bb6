"""Single tensors that 8 bits would ruin the answer with: found by slopes, mended before anything is rounded.

One tensor of a hundred may cost more than all others together: the first convolution of a YOLOX gives some
channels up to 80 and others up to 0.3, and 8 bits for both leave nothing of the second. Where the tensor is
what a SiLU gives or reads, and the target would round around it, its channels are brought to one range
(`repedge.calib.weights.gates`); elsewhere what reads it reads floats, as long as that is little work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from repedge.calib.distance import Distance
from repedge.calib.levels.noise import tensor_influence
from repedge.calib.levels.plateaus import telling
from repedge.calib.levels.ranges import ranges
from repedge.calib.mixed.raising import nodes_around
from repedge.calib.plan import QuantPlan
from repedge.calib.simulation.observe import Statistics
from repedge.calib.structure import Placement, layers, place
from repedge.calib.weights.gates import Gate, factors_of, gate_of, gates, open_gates
from repedge.graph.count import macs_of
from repedge.graph.values import const
from repedge.operators import MOVES
from repedge.scheme import QuantScheme

LEVELS = 255
"""Steps of 8-bit integers."""

WORTH = 8.0
"""Times by which a tensor's cost must fall for its gate to be opened."""


@dataclass
class Protected:
    """What was done.

    Attributes:
        model, stats: The float graph with open gates, and its statistics.
        scheme: The target's rules, where it has the choice with zero points of their own.
        factors: Output of a convolution -> what its channels were divided by.
        nodes: Nodes that are float now.
        before, after: Cost of rounding all tensors, as far as slopes tell.
    """

    model: ir.Model
    stats: Statistics
    scheme: QuantScheme
    factors: dict[str, np.ndarray] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    before: float = 0.0
    after: float = 0.0


def protect(
    model: ir.Model,
    stats: Statistics,
    scheme: QuantScheme,
    batches: Iterable[np.ndarray],
    distance: Distance,
    *,
    float_nodes: Collection[str] = (),
    enough: float = 0.03,
    share: float = 0.1,
    macs: float = 0.08,
) -> Protected:
    """Mend the tensors whose rounding costs most, until all together cost little enough.

    Args:
        model: The float graph; not changed.
        stats: Its statistics.
        scheme: The target's rules.
        batches: Images for the slopes, float32 [N, C, H, W].
        distance: Of the network's answers.
        float_nodes: Nodes that are float already.
        enough: Cost of rounding all tensors that needs no mending.
        share: Of that, what a tensor may cost by itself.
        macs: Share of the network's multiply-accumulates, and of its weights, that may become float.
    """
    done = Protected(model, stats, scheme)
    placed = place(model, scheme, float_nodes)
    names = {n for n, v in placed.values.items() if const(v) is None and v.producer() is not None}
    influence = tensor_influence(model, names, batches, distance)
    costs = _costs(model, stats, scheme, placed, influence, float_nodes)
    done.before = done.after = sum(costs.values())
    if scheme.centred and done.before > enough:
        free = scheme.model_copy(update={"centred": False})
        others = _costs(model, stats, free, placed, influence, float_nodes)
        if sum(others.values()) < done.before / 2:
            done.scheme = scheme = free
            costs, done.after = others, sum(others.values())
    purse = _Purse(model, macs)
    by_tensor = _gates_of(model) if scheme.integer_outputs else {}
    floats = list(float_nodes)
    for root in sorted(costs, key=lambda r: -costs[r]):
        if done.after <= enough or costs[root] <= share * enough:
            break
        gate = by_tensor.get(root)
        if gate is not None and str(gate.x.name) in done.factors:
            continue
        if gate is not None and _gated(gate, stats, influence, costs, done):
            continue
        plan = QuantPlan(scheme=scheme, float_nodes=dict.fromkeys(floats, ""))
        nodes = nodes_around(model, plan, set(placed.groups()[root]))
        if purse.pays(nodes, floats):
            floats += [n for n in nodes if n not in floats]
            done.nodes += tuple(n for n in nodes if n not in done.nodes)
            done.after -= costs[root]
    if done.factors:
        done.model = open_gates(model, done.factors)
        done.stats = _divided(done.model, stats, by_tensor.values(), done.factors)
    return done


def _costs(
    model: ir.Model,
    stats: Statistics,
    scheme: QuantScheme,
    placed: Placement,
    influence: Mapping[str, np.ndarray],
    float_nodes: Collection[str],
) -> dict[str, float]:
    """Of each group of tensors with one scale: variance of its rounding times its influence."""
    plan = ranges(model, stats, scheme, rule="mean", float_nodes=float_nodes)
    found = {}
    for root, names in placed.groups().items():
        rounded = [n for n in names if n in influence and not _moved(placed.values[n])]
        step = plan.tensors[root].scale
        found[root] = step**2 / 12 * sum(float(influence[n].sum()) for n in rounded)
    return found


def _moved(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type in MOVES


def _gates_of(model: ir.Model) -> dict[str, Gate]:
    """Name of what a SiLU reads and of what it gives -> the SiLU."""
    return {str(v.name): gate for gate in gates(model) for v in (gate.x, gate.y)}


def _gated(
    gate: Gate, stats: Statistics, influence: Mapping[str, np.ndarray], costs: dict[str, float],
    done: Protected,
) -> bool:  # fmt: skip
    """Divide a SiLU's channels where that is worth it, and say so in ``done``."""
    x, y = str(gate.x.name), str(gate.y.name)
    if not {x, y} <= costs.keys() or not {x, y} <= influence.keys():
        return False
    t = stats.tensors[x]
    r = factors_of(gate, stats, telling(gate.x, t.low, t.high, LEVELS)[0])
    least = [float((r**2 * influence[n]).sum() / max(influence[n].sum(), 1e-30)) for n in (x, y)]
    saved = sum(costs[n] * (1 - part) for n, part in zip((x, y), least, strict=True))
    if saved < (1 - 1 / WORTH) * (costs[x] + costs[y]):
        return False
    done.factors[x] = r
    done.after -= saved
    return True


class _Purse:
    """How much of the network may still become float."""

    def __init__(self, model: ir.Model, share: float) -> None:
        self._macs = macs_of(model)
        self._sizes = {la.name: la.array.size for la in layers(model)}
        self._left = [share * max(1, sum(self._macs.values())), share * max(1, sum(self._sizes.values()))]

    def pays(self, nodes: Sequence[str], owned: Sequence[str]) -> bool:
        """Whether these nodes can be paid for; then they are."""
        new = [n for n in nodes if n not in owned]
        price = [float(sum(of.get(n, 0) for n in new)) for of in (self._macs, self._sizes)]
        if any(p > left for p, left in zip(price, self._left, strict=True)):
            return False
        self._left = [left - p for p, left in zip(price, self._left, strict=True)]
        return True


def _divided(
    model: ir.Model, stats: Statistics, opened: Iterable[Gate], factors: Mapping[str, np.ndarray]
) -> Statistics:
    """The statistics of the graph with open gates."""
    by: dict[str, np.ndarray] = {}
    old = {}
    for gate in opened:
        x = str(gate.x.name)
        if x in factors:
            by[x] = by[str(gate.y.name)] = factors[x]
            old[gate_of(x)] = stats.tensors[x]
    found = stats.divided(model, by)
    found.tensors.update(old)
    return found
