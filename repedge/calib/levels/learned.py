"""How much of a tensor's range each channel gets, and the range itself, learned by gradient at the output.

`repedge.calib.weights.equalize` and the range rules go by one statistic of the activations. Here a channel's
factor follows what its rounding and clipping cost at the network's output: the factors of a pair of layers
(see `equalize.Pair`) leave the float function what it is, so that only the integers' errors are learned.
The gradients of a step's size are those of Esser et al., "Learned Step Size Quantization",
arXiv:1902.08153, section 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from repedge.calib.distance import Distance, squares
from repedge.calib.levels.search import free_groups
from repedge.calib.plan import QuantPlan
from repedge.calib.simulation.heap import give_back
from repedge.calib.simulation.observe import Statistics
from repedge.calib.simulation.simulator import Rounding, Simulator
from repedge.calib.weights.bias import correct_bias_at_once
from repedge.calib.weights.equalize import pairs, scaled
from repedge.calib.weights.influence import weight_influence
from repedge.calib.weights.rounding import round_weights
from repedge.graph.count import macs_of

Images = Callable[[Sequence[int]], Iterable[np.ndarray]]
"""Indices of images -> batches of them, float32 [N, C, H, W]."""

BUDGET = 225e9
"""Multiply-accumulates of the training images, forward, all together: larger networks see fewer images."""
FEWEST = 30
"""Steps of the largest networks."""
MOMENTUM, MEMORY = 0.5, 0.98
LIMIT = 4.0
"""Of a channel's gradient, in root mean squares of its tensor's: one image's must not move it for good."""
PROBED = 60
"""Images that the weights' influence is estimated from."""
GPTQ_SHARE = 0.5
"""Of the cost of independent errors of the weights, what is left when they are rounded by covariance."""


def learn_levels(
    model: ir.Model,
    stats: Statistics,
    plan: QuantPlan,
    images: Images,
    train: Sequence[int],
    held_out: Sequence[int],
    *,
    distance: Distance | None = None,
    steps: int = 150,
    images_per_step: int = 4,
    rate: float = 0.03,
    effort: float = 1.0,
    seed: int = 0,
) -> tuple[ir.Model, dict[str, np.ndarray], QuantPlan, dict[str, float]]:
    """Learn factors per channel where two layers make them free, and a factor per range elsewhere.

    Args:
        model: The float graph; not changed.
        stats: Its statistics, with moments.
        plan: With ranges; not changed.
        images: Gives the images with the indices asked for.
        train: Indices of the images to learn from.
        held_out: Indices of others: what was learned is given up unless the network with all its integers
            is nearer to the float one on these.
        distance: Of the network's answers; None: by what its outputs say they are.
        steps: Optimizer steps, with a cosine schedule; fewer for large networks, down to `FEWEST`.
            Many steps of few images get further than the same images in fewer steps.
        images_per_step: At most; fewer for large networks (see `BUDGET`).
        rate: Root mean square change of a tensor's logarithmic factors in the first step.
        effort: How many times `BUDGET` may be spent.
        seed: Of the images' order.

    Returns:
        The model with factors applied, the factors by tensor (see `repedge.calib.weights.equalize.equalize`),
        the plan with changed ranges, and the cost on the held-out images, ``before`` and ``after`` (or the
        old model and plan, and no factors).
    """
    student = _Student(model, plan)
    if not student.log:
        return model, {}, plan, {}
    affordable = int(effort * BUDGET / sum(macs_of(model).values()))
    count = max(min(4, images_per_step), min(images_per_step, affordable // steps))
    steps = min(steps, max(FEWEST, affordable // count))
    order = np.random.default_rng(seed).permutation(len(train))
    used = np.sort(order[: steps * count])  # of however many photos, those that the steps come to
    distance = distance or Distance.of(model)
    wanted = _floats(model, images([train[k] for k in used]))
    probed = images([train[int(k)] for k in order[: min(PROBED, steps * count)]])
    noise = _WeightNoise(model, student, stats, plan, probed, seed, distance)
    give_back()
    optimizer, position = _Descent(student.log), 0
    for step in range(steps):
        chosen = [int(order[(position + i) % len(order)]) for i in range(count)]
        position += count
        done = 0
        for x in images([train[k] for k in chosen]):
            rows = np.searchsorted(used, chosen[done : done + len(x)])
            done += len(x)
            error = distance.error(student(torch.from_numpy(x)), [w[rows] for w in wanted])
            if not error.requires_grad:  # an operator without one lies between all levels and the output
                return model, {}, plan, {}
            (error / count).backward()
        noise.backward()
        optimizer.step(rate * 0.5 * (1 + math.cos(math.pi * step / steps)))
    give_back()
    factors, learned_plan = student.result(plan)
    changed, all_factors = scaled(model, factors)
    changed_stats = stats.divided(changed, all_factors)
    exact = _floats(model, images(held_out))
    costs = {
        "before": _cost(distance, exact, model, stats, plan, images(held_out)),
        "after": _cost(distance, exact, changed, changed_stats, learned_plan, images(held_out)),
    }
    give_back()
    if costs["after"] < costs["before"]:
        return changed, all_factors, learned_plan, costs
    return model, {}, plan, costs


def _floats(model: ir.Model, images: Iterable[np.ndarray]) -> list[torch.Tensor]:
    """Every output of the float network, [N, ...] each."""
    return [torch.from_numpy(y) for y in Simulator(model).answers(images)]


def _cost(
    distance: Distance,
    wanted: Sequence[torch.Tensor],
    model: ir.Model,
    stats: Statistics,
    plan: QuantPlan,
    images: Iterable[np.ndarray],
) -> float:
    """Mean relative square error with rounded weights, too, for factors change their scales.

    Without the nearness, which two dozen images can't tell: they would give up what is learned by chance.
    """
    plan = plan.model_copy(deep=True)
    rounded = round_weights(model, plan, plan.scheme, stats, float_nodes=plan.float_nodes)
    rounded = correct_bias_at_once(rounded, model, plan, stats)
    got = [torch.from_numpy(y) for y in Simulator(rounded, plan).answers(images)]
    return float(squares(distance.alone(got), distance.alone(wanted)).mean())


class _Descent:
    """Adam, but with one second moment per tensor: channels that hardly matter hardly move."""

    def __init__(self, parameters: dict[str, torch.Tensor]) -> None:
        self._parameters = list(parameters.values())
        self._first = [torch.zeros_like(p) for p in self._parameters]
        self._second = [0.0] * len(self._parameters)
        self._steps = 0

    def step(self, rate: float) -> None:
        self._steps += 1
        for i, p in enumerate(self._parameters):
            if p.grad is None:
                continue
            self._second[i] = MEMORY * self._second[i] + (1 - MEMORY) * float((p.grad**2).mean())
            size = math.sqrt(self._second[i] / (1 - MEMORY**self._steps)) + 1e-30
            self._first[i] = MOMENTUM * self._first[i] + (1 - MOMENTUM) * p.grad.clamp(
                -LIMIT * size, LIMIT * size
            )
            with torch.no_grad():
                p -= rate * self._first[i] / (1 - MOMENTUM**self._steps) / size
            p.grad = None


class _Round(torch.autograd.Function):
    """``clamp(round(x / step), low, high) * step`` with step = scale * exp(log), log [C].

    With ``relu`` that of ``relu(x)``: the clamp does it on the way.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, log: torch.Tensor | None, r: Rounding, relu: bool) -> torch.Tensor:
        step: Any = r.scale
        if log is not None:
            step = r.scale * torch.exp(log).reshape(1, -1, *[1] * (x.ndim - 2))
        exact = x * (1.0 / step)
        low = max(r.low, 0.0) if relu else r.low
        y = torch.round(exact).clamp_(low, r.high).mul_(step)
        ctx.ends = (0.0 if relu else low - 0.5), r.high + 0.5
        ctx.step = step
        # The next layer keeps y, too.
        ctx.save_for_backward(exact, *(() if log is None else (y,)))
        ctx.channels = None if log is None else len(log)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (g,) = gradients
        exact, *rest = ctx.saved_tensors
        slope = torch.ops.aten.hardtanh_backward(g, exact, *ctx.ends)  # one pass, where masks take four
        own = None
        if rest:
            # d y / d log: the rounding error y - x inside, the end of the range y outside.
            part = _dots(g, rest[0], ctx.channels)
            own = part - _dots(slope, exact, ctx.channels) * torch.as_tensor(ctx.step).reshape(-1)
        return slope, own, None, None


def _dots(a: torch.Tensor, b: torch.Tensor, channels: int) -> torch.Tensor:
    """Sum of the products per channel (axis 1), or of all for one channel."""
    if channels == 1:
        return torch.dot(a.reshape(-1), b.reshape(-1)).reshape(1)
    if a.ndim == 2:
        return (a * b).sum(0)
    n = len(a)  # the product below is never written out, as that of vecdot is
    a, b = a.reshape(n * channels, 1, -1), b.reshape(n * channels, 1, -1)
    return torch.bmm(a, b.transpose(1, 2)).reshape(n, channels).sum(0)


class _Student:
    """The network with rounded activations, whose steps are torch parameters."""

    def __init__(self, model: ir.Model, plan: QuantPlan) -> None:
        self.simulator = Simulator(model, plan, weights=False)
        ends = {str(p.between[-1].name): p for p in pairs(model) if p.repeat == 1}
        self.groups = free_groups(model, plan)
        self.log: dict[str, torch.Tensor] = {}
        self._of: dict[str, torch.Tensor] = {}
        self.paired: set[str] = set()
        for first, names in self.groups.items():
            count = 1
            if len(names) == 1 and first in ends:
                count = ends[first].producer.array.shape[ends[first].producer.axis or 0]
                self.paired.add(first)
            self.log[first] = torch.zeros(count, requires_grad=True)
            self._of.update(dict.fromkeys(names, self.log[first]))
        self.readers = {n: ends[n].consumer for n in sorted(self.paired) if not ends[n].consumer.depthwise}

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        simulator = self.simulator
        values = simulator.start(x)
        for step in simulator.steps:
            found = [
                (values[n] if n in values else simulator.constants[n]) if n else None for n in step.reads
            ]
            relu = step.node.op_type == "Relu" and step.rounding[0] is not None
            results: Any = found[0] if relu else step.run(*found)
            results = (results,) if isinstance(results, torch.Tensor) else results
            for name, y, rounding in zip(step.writes, results, step.rounding, strict=False):
                values[name] = y if rounding is None else _Round.apply(y, self._of.get(name), rounding, relu)
            for name in step.dead:
                values.pop(name, None)
        return simulator.returned(values)

    def result(self, plan: QuantPlan) -> tuple[dict[str, np.ndarray], QuantPlan]:
        """Factors per channel, float64 [C] by tensor, and the plan with the other factors in its ranges."""
        plan = plan.model_copy(deep=True)
        factors = {}
        for first, log in self.log.items():
            factor = np.exp(log.detach().numpy().astype(np.float64))
            if first in self.paired:
                factors[first] = factor
                continue
            old, ties = plan.tensors[first], {n: plan.tensors[n].tied_to for n in self.groups[first]}
            by = float(factor[0])
            plan.set_range(ties, old.low * by, old.high * by, f"{old.why}, learned x {by:.3f}")
        return factors, plan


class _WeightNoise:
    """What rounding the weights that read a tensor costs at the output, as far as the factors change it.

    For weights w [O, K] whose errors of unit variance cost f [O, K] that is
    ``sum_o max_k(w r)^2 / limit^2 / 12 sum_k f / r^2``, w r being rounded in steps of its greatest.
    """

    def __init__(
        self,
        model: ir.Model,
        student: _Student,
        stats: Statistics,
        plan: QuantPlan,
        images: Iterable[np.ndarray],
        seed: int,
        distance: Distance,
    ) -> None:
        readers = {n: la for n, la in student.readers.items() if la.name in stats.moments}
        found = (
            weight_influence(model, readers, stats.moments, images, distance, seed=seed) if readers else {}
        )
        unit = GPTQ_SHARE / 12 / plan.scheme.weight_limit(first=False) ** 2
        self._terms = []
        for name, f in found.items():
            layer, log = readers[name], student.log[name]
            w = np.abs(layer.array if layer.axis == 0 else layer.array.T).astype(np.float32)
            shape = (len(f), f.shape[1], len(log) // len(f), -1)  # groups, filters, inputs, taps
            largest = torch.from_numpy(w).reshape(shape).amax(3)
            self._terms.append((log, largest, unit * f.reshape(shape).sum(3)))

    def backward(self) -> None:
        """Add the gradients."""
        for log, w, f in self._terms:
            r = torch.exp(log).reshape(len(w), 1, -1)
            ((w * r).amax(2) ** 2 * (f / r**2).sum(2)).sum().backward()
