"""What int8 will do to a network, layer by layer, before anything is built.

Weights are looked at in the fused float graph. With images, activations are too, and two calibrations are
simulated: the stock one (least and greatest value, nearest rounding) and a recipe. Each layer's cost is
what the output loses when that layer alone is in integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge import tasks
from repedge.calib.distance import Distance
from repedge.calib.plan import QuantPlan
from repedge.calib.recipe import Recipe, calibrate, find_recipe
from repedge.calib.simulation.observe import Statistics, TensorStats, observe
from repedge.calib.simulation.simulator import Outputs
from repedge.calib.steps import affordable
from repedge.calib.structure import TAKING, Layer, channels, layers, own_parameters, place
from repedge.diagnosis.merging import NEGLIGIBLE, Branch
from repedge.diagnosis.weights import WeightFacts, kind, peaks, spread_of, weight_facts, weight_rows
from repedge.errors import UserError
from repedge.graph.values import only_reader
from repedge.operators import ACTIVATIONS
from repedge.photos.feed import Feed
from repedge.scheme import QuantScheme
from repedge.tasks.base import Task
from repedge.tasks.comparison import Agreement
from repedge.tasks.figures import WithFigures

STOCK = "minmax"
"""The recipe that stands for what stock tools do."""

COST_IMAGES = 16
"""Images that the single-layer costs are measured on."""


@dataclass(frozen=True)
class ActivationFacts:
    """A tensor that a layer reads, over the calibration images.

    Attributes:
        tensor: Its name.
        low, high: Least and greatest value.
        outlier: Greatest over mean of the images' largest magnitudes: 7 means that a range wide enough
            for one image wastes 6/7 of it on the average one.
        channel_spread: Greatest over median of the channels' largest magnitudes.
    """

    tensor: str
    low: float
    high: float
    outlier: float
    channel_spread: float


@dataclass(frozen=True)
class Treatment:
    """What the recipe does with a layer and with the tensor that it reads.

    Attributes:
        equalized: Least and greatest factor that its output channels were divided by, or None.
        range: (low, high) of the tensor that it reads, or None where that stays float32.
        range_rule: Where the range comes from.
        rounding: How its weights were rounded; None where they stay float32.
        bias: How its bias was corrected, or None.
        bias_rms: Root mean square of that change over the channels.
        float_why: Why it stays float32, or None.
    """

    equalized: tuple[float, float] | None = None
    range: tuple[float, float] | None = None
    range_rule: str | None = None
    rounding: str | None = None
    bias: str | None = None
    bias_rms: float | None = None
    float_why: str | None = None


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer.

    Attributes:
        index: Place in the graph's order, from 0.
        name: The module that it came from, else the node's name.
        node: The node's name.
        kind: ``dense``, ``depthwise``, ``grouped``, ``pointwise``, ``transposed`` or ``fully connected``.
        channels: Output channels.
        weights: Its weights.
        branches: What it was merged from; empty for one branch or a graph in deploy form.
        reads: What it reads; None without images.
        dead: Output channels that never change (without images: that have no weights).
        cost_stock: `repedge.calib.distance.Distance.cost` with this layer alone in integers, stock
            calibration; None without images, or where it stays float32.
        cost: The same with the recipe.
        treatment: What the recipe does; None without images.
    """

    index: int
    name: str
    node: str
    kind: str
    channels: int
    weights: WeightFacts
    branches: tuple[Branch, ...] = ()
    reads: ActivationFacts | None = None
    dead: int = 0
    cost_stock: float | None = None
    cost: float | None = None
    treatment: Treatment | None = None

    @property
    def growth(self) -> float | None:
        """Range growth of the branch with the widest kernel; None where nothing was merged."""
        return max((b.growth for b in self.branches if b.widest), default=None)

    @property
    def growth_worst(self) -> float | None:
        """The same in the worst output channel."""
        return max((b.growth_worst for b in self.branches if b.widest), default=None)


@dataclass(frozen=True)
class Whole(WithFigures):
    """The whole network in simulated integers against float32, on the calibration images.

    Attributes:
        recipe: Its name.
        sqnr_db: The least of the outputs.
        figures: The task's figures by key.
    """

    recipe: str
    sqnr_db: float
    figures: Mapping[str, float | None]

    def as_json(self) -> dict[str, Any]:
        """``stock`` or ``planned`` of the JSON."""
        return {"recipe": self.recipe, "sqnr_db": self.sqnr_db, **tasks.figures_json(self.figures)}


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose_graph` found.

    Attributes:
        scheme: Name of the integer rules.
        images: Images looked at; 0 for none.
        cost_images: How many of them the single-layer costs are measured on.
        layers: In the graph's order.
        stock, planned: The whole network; None without images.
        float_ops: Operators that have no integers under the scheme: type -> how many.
        notes: What the recipe decided, in sentences.
        plan: The recipe's plan; None without images.
    """

    scheme: str
    images: int
    cost_images: int
    layers: tuple[LayerDiagnosis, ...]
    stock: Whole | None = None
    planned: Whole | None = None
    float_ops: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    plan: QuantPlan | None = field(default=None, repr=False)

    def as_json(self) -> dict[str, Any]:
        """JSON-able form, without the plan."""
        rows = [{**asdict(la), "growth": la.growth, "growth_worst": la.growth_worst} for la in self.layers]
        return {
            "scheme": self.scheme,
            "images": self.images,
            "cost_images": self.cost_images,
            "stock": None if self.stock is None else self.stock.as_json(),
            "planned": None if self.planned is None else self.planned.as_json(),
            "float_ops": dict(self.float_ops),
            "notes": list(self.notes),
            "layers": rows,
        }


def diagnose_graph(
    model: ir.Model,
    scheme: QuantScheme,
    feed: Feed | None = None,
    recipe: str | Recipe = "default",
    *,
    task: Task | None = None,
    branches: Mapping[str, Sequence[Branch]] | None = None,
    float_nodes: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Diagnosis:
    """Look at every layer of a clean float graph.

    Args:
        model: The fused graph; not changed.
        scheme: The target's integer rules.
        feed: Calibration images; None looks at the weights alone.
        recipe: What would be done about it.
        task: What the outputs mean; None: what they say themselves.
        branches: By `repedge.diagnosis.merging.branch_growth`.
        float_nodes: Nodes that stay in float32 with the recipe: name -> why.
        progress: Told each step as it begins.

    Raises:
        UserError: Nothing to quantize, an unknown recipe, or weights or activations that are not finite.
    """
    recipe = find_recipe(recipe)
    if not place(model, scheme).layers:
        raise UserError(f"the graph {model.graph.name!r} has no layer that {scheme.name} could quantize")
    for layer in layers(model):
        if not np.isfinite(layer.array).all():
            raise UserError(f"{layer.node.op_type} node {layer.name!r} has weights that are NaN or infinite")
    model = model.clone()
    own_parameters(model)
    found = _Network(scheme, task or tasks.of_graph(model))
    if feed is not None:
        from repedge.calib.simulation.batching import images_at_once

        progress("observe activations")
        feed.at_once = images_at_once(model)
        found.stats = observe(model, feed.batches())
        found.simulate(model, feed, recipe, float_nodes or {}, progress)
    rows = tuple(found.layer(i, la, (branches or {}).get(la.name, ())) for i, la in enumerate(layers(model)))
    count = 0 if feed is None else len(feed)
    return Diagnosis(
        scheme.name, count, min(count, found.cost_images), rows, found.stock, found.planned,
        _float_ops(model, scheme), tuple(found.plan.notes) if found.plan else (), found.plan,
    )  # fmt: skip


def _float_ops(model: ir.Model, scheme: QuantScheme) -> dict[str, int]:
    """Operators outside of the integer ones and of the activations that these take along."""
    if scheme.weights_only:
        return {}
    integer = place(model, scheme).nodes

    def taken(node: ir.Node) -> bool:
        x = node.inputs[0] if node.op_type in scheme.fused else None
        before = x.producer() if x is not None else None
        return before is not None and before.op_type in TAKING and str(before.name) in integer

    return dict(
        Counter(n.op_type for n in model.graph if str(n.name) not in integer and not taken(n)).most_common()
    )


class _Network:
    """What is known of the network as a whole, to be read layer by layer."""

    def __init__(self, scheme: QuantScheme, task: Task) -> None:
        self.scheme = scheme
        self.task = task
        self.stats: Statistics | None = None
        self.plan: QuantPlan | None = None
        self.stock: Whole | None = None
        self.planned: Whole | None = None
        self.cost_images = COST_IMAGES
        self._costs_stock: dict[str, float] = {}
        self._costs: dict[str, float] = {}

    def simulate(
        self, model: ir.Model, feed: Feed, recipe: Recipe, float_nodes: Mapping[str, str],
        progress: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Run the stock calibration and the recipe, and measure both."""
        from repedge.calib.simulation.simulator import Simulator

        self.cost_images = min(COST_IMAGES, affordable(model))
        wanted = Simulator(model).answers(feed.batches())
        progress("calibrate as stock tools do")
        rounded, plan = calibrate(model, feed, self.scheme, STOCK, task=self.task)
        self.stock, self._costs_stock = self._measure(model, rounded, plan, feed, wanted, progress)
        rounded, self.plan = calibrate(
            model, feed, self.scheme, recipe, task=self.task, float_nodes=float_nodes, progress=progress
        )
        self.planned, self._costs = self._measure(model, rounded, self.plan, feed, wanted, progress)

    def _measure(
        self, model: ir.Model, rounded: ir.Model, plan: QuantPlan, feed: Feed, wanted: Outputs,
        progress: Callable[[str], None],
    ) -> tuple[Whole, dict[str, float]]:  # fmt: skip
        from repedge.calib.levels.search import layer_costs
        from repedge.calib.simulation.simulator import Simulator
        from repedge.calib.weights.equalize import replay

        name = str(plan.recipe.get("name", ""))
        progress(f"cost of each layer ({name})")
        compared = Agreement(self.task)
        compared.update(wanted, Simulator(rounded, plan).answers(feed.batches()))
        reference = replay(model, plan.equalization)
        costs = layer_costs(
            rounded, reference, plan, lambda: feed.batches(self.cost_images), Distance(self.task)
        )
        whole = Whole(name, compared.sqnr_db, compared.figures())
        return whole, {c.node: c.cost for c in costs}

    def layer(self, index: int, layer: Layer, branches: Sequence[Branch]) -> LayerDiagnosis:
        """Everything about one layer."""
        stats = self.stats.tensors if self.stats else {}
        read = stats.get(str(layer.x.name))
        return LayerDiagnosis(
            index=index,
            name=layer.node.metadata_props.get("source") or layer.name,
            node=layer.name,
            kind=kind(layer),
            channels=channels(layer),
            weights=weight_facts(layer),
            branches=tuple(branches),
            reads=None if read is None else activation_facts(str(layer.x.name), read),
            dead=_dead(layer, stats),
            cost_stock=self._costs_stock.get(layer.name),
            cost=self._costs.get(layer.name),
            treatment=None if self.plan is None else treatment(layer, self.plan),
        )


def activation_facts(name: str, stats: TensorStats) -> ActivationFacts:
    """Look at a tensor's statistics."""
    largest = np.maximum(np.abs(stats.image_lows), np.abs(stats.image_highs)).astype(np.float64)
    mean = float(largest.mean())
    most = max(float(largest.max()), abs(stats.low), abs(stats.high))  # images beyond the reservoir, too
    return ActivationFacts(
        name, stats.low, stats.high, most / mean if mean else 1.0, spread_of(stats.channel_magnitude)
    )


def _dead(layer: Layer, stats: Mapping[str, TensorStats]) -> int:
    """Output channels that never change behind the activation, or that have no weights."""
    value = layer.out
    reader = only_reader(value)
    if reader is not None and reader.op_type in ACTIVATIONS | {"PRelu"}:
        value = reader.outputs[0]
    found = stats.get(str(value.name))
    if found is None:
        size = peaks(weight_rows(layer)[0])
        return int((size <= NEGLIGIBLE * size.max(initial=0.0)).sum())
    width = found.highs.max(0).astype(np.float64) - found.lows.min(0)
    return int((width <= NEGLIGIBLE * max(found.high - found.low, 1e-30)).sum())


def treatment(layer: Layer, plan: QuantPlan) -> Treatment:
    """What a plan says of a layer."""
    factors = plan.equalization.get(str(layer.out.name))
    read = plan.tensors.get(str(layer.x.name))
    weight = plan.weights.get(str(layer.weight.name))
    bias = plan.biases.get(layer.name)
    alone = layer.name in plan.float_nodes and weight is not None  # 8-bit weights, floats are read
    why = None if alone else plan.float_nodes.get(layer.name)
    if weight is None and why is None:
        why = f"{plan.scheme.name} has no integers for it"
    return Treatment(
        equalized=None if not factors else (min(factors), max(factors)),
        range=None if read is None else (read.low, read.high),
        range_rule="of each image" if alone else None if read is None else read.why,
        rounding=None if weight is None else weight.rounding,
        bias=None if bias is None else bias.method,
        bias_rms=None if bias is None else bias.rms,
        float_why=why,
    )
