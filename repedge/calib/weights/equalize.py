"""Cross-layer equalization by what the activations are, not only by weights.

A channel between two layers is divided by r > 0 and the next layer's weights are multiplied by it:

    y = W2 act(W1 x + b1) + b2  =  (W2 r) act((W1 / r) x + b1 / r) + b2

exact where ``act(x / r) = act(x) / r``, that is for positively homogeneous functions (Relu, LeakyRelu,
PRelu, none, pooling). Clip, Gelu, HardSwish, Sigmoid and the like are not; they and tensors with other
readers are left alone. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", arXiv:1906.04721, section 4.1, with the activations' own range in place of the weights'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from repedge.calib.simulation.observe import Statistics
from repedge.calib.structure import Layer, layers, own_parameters, set_array
from repedge.calib.weights.gates import open_gates
from repedge.graph.values import const, only_reader, shape_of

HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
)
"""Operators that commute with a positive factor per channel."""

CLAMP = 64.0
"""Factors lie between 1 / CLAMP and CLAMP."""


@dataclass(frozen=True)
class Pair:
    """Two layers with nothing but homogeneous operators between them.

    Attributes:
        producer, consumer: The layers.
        between: Every value from the producer's output to the consumer's input.
        repeat: Consumer inputs per channel (more than 1 behind a Flatten of several cells).
    """

    producer: Layer
    consumer: Layer
    between: tuple[ir.Value, ...]
    repeat: int = 1


def pairs(model: ir.Model) -> list[Pair]:
    """All pairs of layers that can be equalized exactly, in the graph's order."""
    by_node = {la.node: la for la in layers(model)}
    found = []
    for layer in by_node.values():
        if layer.node.op_type not in ("Conv", "Gemm") or layer.bias is None or layer.axis is None:
            continue
        pair = _follow(layer, by_node)
        if pair is not None:
            found.append(pair)
    return found


def _follow(layer: Layer, by_node: dict[ir.Node, Layer]) -> Pair | None:
    value, between, repeat = layer.out, [layer.out], 1
    while True:
        node = only_reader(value)
        if node is None or node.inputs[0] is not value:
            return None
        if node in by_node:
            consumer = by_node[node]
            ok = node.op_type in ("Conv", "Gemm") and consumer.axis is not None
            return Pair(layer, consumer, tuple(between), repeat) if ok else None
        if node.op_type == "Flatten" and len(shape_of(value)) == 4:
            repeat = int(np.prod(shape_of(value)[2:]))
        elif node.op_type not in HOMOGENEOUS or repeat != 1 or not _plain(node):
            return None
        value = node.outputs[0]
        between.append(value)


def _plain(node: ir.Node) -> bool:
    """Whether nothing but the first input is data and nothing but the first output is given."""
    return len(node.outputs) == 1 and all(v is None or const(v) is not None for v in node.inputs[1:])


def equalize(
    model: ir.Model,
    stats: Statistics,
    *,
    alpha: float = 0.5,
    clamp: float = CLAMP,
    weights: float = 0.5,
    depthwise: float | None = None,
    quantile: float | None = None,
) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Even out the ranges of channels; the float function stays what it was.

    Args:
        model: A clean graph; not changed.
        stats: Of its activations, by `observe`.
        alpha: How far: 0 not at all, 1 until all channels of a tensor have the same range.
        clamp: Factors lie between ``1 / clamp`` and ``clamp``.
        weights: How far the weights that read a channel are evened out against its range, for consumers
            whose filters mix channels (a depthwise filter has a scale of its own anyway).
        depthwise: ``alpha`` in front of depthwise filters, where it costs their weights nothing; None
            for ``alpha``.
        quantile: A channel's range is this quantile over images of its greatest magnitude; None for the
            mean.

    Returns:
        A new model, and for every changed tensor the factors [C] that it was divided by. Pass these to
        `Statistics.divided` instead of observing again.
    """
    found = {}
    for pair in pairs(model):
        power = alpha if depthwise is None or not pair.consumer.depthwise else depthwise
        r = _factor(pair, stats, power, clamp, weights, quantile)
        if r is not None and not np.all(r == 1):
            found[str(pair.between[-1].name)] = r
    return scaled(model, found)


def scaled(model: ir.Model, by: Mapping[str, np.ndarray]) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The same function with the channels of pairs divided by factors of one's own choice.

    Args:
        model: A clean graph; not changed.
        by: Name of the value that a pair's consumer reads -> factors > 0 [C].

    Returns:
        As `equalize`.
    """
    model = model.clone()
    own_parameters(model)
    factors: dict[str, np.ndarray] = {}
    for pair in pairs(model):
        r = by.get(str(pair.between[-1].name))
        if r is None:
            continue
        _apply(pair, r)
        for value in pair.between:
            repeat = pair.repeat if len(shape_of(value)) == 2 and pair.repeat > 1 else 1
            factors[str(value.name)] = np.repeat(r, repeat)
    return model, factors


def replay(model: ir.Model, factors: Mapping[str, Sequence[float]]) -> ir.Model:
    """The graph as `equalize` and `repedge.calib.weights.gates.open_gates` left it.

    Args:
        model: The graph before; not changed.
        factors: As the plan recorded them (`QuantPlan.equalization`).
    """
    model = open_gates(model, factors)
    own_parameters(model)
    for pair in pairs(model):
        r = factors.get(str(pair.producer.out.name))
        if r is not None:
            _apply(pair, np.asarray(r, np.float64))
    return model


def _factor(
    pair: Pair, stats: Statistics, alpha: float, clamp: float, weights: float, quantile: float | None
) -> np.ndarray | None:
    """Division factor per channel, float64 [C]; 1 for channels that are never on."""
    name = str(pair.between[-1].name)
    if name not in stats.tensors:
        return None
    found = stats.tensors[name]
    t = found.channel_magnitude if quantile is None else found.channel_quantile(quantile)
    if pair.repeat > 1:
        t = t.reshape(-1, pair.repeat).max(1)
    alive = t > 1e-6 * max(float(t.max()), 1e-30)
    if alive.sum() < 2:
        return None
    ratio = (t[alive] / np.exp(np.log(t[alive]).mean())) ** alpha
    if not pair.consumer.depthwise and weights:
        w = _reading(pair)[alive]
        w = np.maximum(w, 1e-3 * w.max() if w.max() > 0 else 1.0)
        ratio = ratio * (np.exp(np.log(w).mean()) / w) ** weights
    r = np.ones(len(t))
    r[alive] = np.clip(ratio, 1 / clamp, clamp)
    return r


def _reading(pair: Pair) -> np.ndarray:
    """Greatest magnitude of the consumer's weights that read each channel, [C]."""
    w = np.abs(pair.consumer.array)
    if pair.consumer.node.op_type == "Conv":
        groups = pair.consumer.groups
        return w.reshape(groups, -1, *w.shape[1:]).max((1, 3, 4)).reshape(-1)
    per_input = w.max(pair.consumer.axis or 0)
    return per_input.reshape(-1, pair.repeat).max(1)


def _apply(pair: Pair, r: np.ndarray) -> None:
    first, second = pair.producer, pair.consumer
    assert first.axis is not None
    assert first.bias is not None
    w = first.array.astype(np.float64)
    shape = [1] * w.ndim
    shape[first.axis] = -1
    bias = const(first.bias)
    assert bias is not None
    set_array(first.weight, w / r.reshape(shape))
    set_array(first.bias, bias.astype(np.float64) / r)
    w = second.array.astype(np.float64)
    if second.node.op_type == "Conv":
        groups = second.groups
        per_group = r.reshape(groups, 1, -1, 1, 1)
        grouped = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
        set_array(second.weight, (grouped * per_group).reshape(w.shape))
    else:
        per_input = np.repeat(r, pair.repeat)
        set_array(second.weight, w * (per_input[None] if second.axis == 0 else per_input[:, None]))
