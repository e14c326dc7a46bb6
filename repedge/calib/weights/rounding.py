"""Which integer each weight becomes: nearest, or the choice with the least error at the layer's output.

The measure is the *centred* error ``d H d'`` with d = rounded - exact weight (a row of it) and H the
covariance of what the filter reads: the mean error that is left is a constant per channel, which bias
correction takes out exactly. Frantar et al., "GPTQ", arXiv:2210.17323, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from repedge.calib.plan import QuantPlan, WeightQuant
from repedge.calib.simulation.observe import Moments, Statistics
from repedge.calib.structure import Layer, own_parameters, place, set_array
from repedge.errors import UserError
from repedge.graph.values import const
from repedge.scheme import QuantScheme

Method = Literal["nearest", "closed-form", "adaround"]

DAMP = 0.01
"""Share of the mean variance that is added to each input's."""
ENUMERATED = 9
"""Filters of at most this many weights are enumerated (2^9 choices), wider ones go through GPTQ."""


def round_weights(
    model: ir.Model,
    plan: QuantPlan,
    scheme: QuantScheme,
    stats: Statistics | None = None,
    *,
    method: Method = "closed-form",
    steps: int = 500,
    float_nodes: Collection[str] = (),
) -> ir.Model:
    """Put the weights of every integer layer on their grid.

    Args:
        model: A clean graph; not changed.
        plan: Receives ``weights``; its ranges bound the weight scales from below (see `weight_scale`).
        scheme: The target's rules.
        stats: Statistics with moments; layers without are rounded to nearest.
        method: ``nearest``, or ``closed-form``: exact enumeration for filters of up to 9 weights
            (depthwise 3x3), GPTQ and a descent over single weights for all others. ``adaround`` learns
            on from GPTQ's choice, and keeps what it learned for the filters that are better for it.
        steps: Of ``adaround``; other methods take none.
        float_nodes: Names of nodes that stay in float32.

    Returns:
        A new model whose weights are exactly integer times scale.

    Raises:
        UserError: An unknown method.
    """
    if method not in get_args(Method):
        raise UserError(f"there is no rounding {method!r}; choose from {', '.join(get_args(Method))}")
    model = model.clone()
    own_parameters(model)
    plan.weights = {}
    for i, layer in enumerate(place(model, scheme, float_nodes).layers):
        limit = scheme.weight_limit(first=i == 0)
        scale, raised = weight_scale(layer, plan, scheme, limit)
        moments = stats.moments.get(layer.name) if stats is not None else None
        if method == "nearest" or moments is None or layer.node.op_type == "ConvTranspose":
            q, how = nearest(layer.array, _along(layer, scale), limit), "nearest"
        else:
            q, how = closed_form(layer, scale, moments, limit, steps if method == "adaround" else 0)
        set_array(layer.weight, q * _along(layer, scale))
        plan.weights[str(layer.weight.name)] = WeightQuant(
            node=layer.name,
            axis=layer.axis if scheme.per_channel else None,
            scale=[float(s) for s in np.unique(scale)] if not scheme.per_channel else scale.tolist(),
            limit=limit,
            rounding=how,
            raised=raised,
        )
    return model


def weight_scale(layer: Layer, plan: QuantPlan, scheme: QuantScheme, limit: int) -> tuple[np.ndarray, int]:
    """Scale of each output channel, float32 [C] (all equal for per-tensor schemes).

    ``max |w| / limit``, but at least ``|b| / (s_x * bias_limit)``, so that the bias of a channel with
    next to no weights fits its integer.

    Returns:
        The scales, and how many channels the bias has raised.
    """
    w = np.abs(layer.array.astype(np.float64))
    axis = layer.axis
    if not scheme.per_channel or axis is None:
        peak = np.full(1 if axis is None else w.shape[axis], w.max(initial=0.0))
    else:
        peak = w.max(tuple(i for i in range(w.ndim) if i != axis))
    scale = peak / limit
    top = float(scale.max(initial=0.0)) or 1.0
    scale = np.where(peak > 0, scale, top / 1024)
    raised = 0
    x = plan.tensors.get(str(layer.x.name))
    bias = const(layer.bias)
    if scheme.bias != "float32" and x is not None and bias is not None:
        floor = np.abs(bias.astype(np.float64)) / (x.scale * scheme.bias_limit)
        if not scheme.per_channel or axis is None:
            floor = np.full_like(scale, floor.max(initial=0.0))
        raised = int((floor > scale).sum())
        # A margin, for correction changes the bias afterwards.
        scale = np.maximum(scale, 2 * floor)
    return np.maximum(scale, 1e-30).astype(np.float32), raised


def _along(layer: Layer, scale: np.ndarray) -> np.ndarray:
    shape = [1] * layer.array.ndim
    if layer.axis is not None:
        shape[layer.axis] = -1
    return scale.reshape(shape)


def nearest(w: np.ndarray, scale: np.ndarray, limit: int) -> np.ndarray:
    """``round(w / scale)``, half to even, saturated; float32 holding integers."""
    return np.clip(np.round(w / scale), -limit, limit).astype(np.float32)


def closed_form(
    layer: Layer, scale: np.ndarray, moments: Moments, limit: int, learn_steps: int = 0
) -> tuple[np.ndarray, str]:
    """The integers of a Conv, Gemm or MatMul by covariance, and the name of the method."""
    w = layer.array
    filters = w if layer.axis == 0 else w.T
    groups, k = moments.mean.shape
    rows = filters.reshape(groups, -1, k)
    s = np.broadcast_to(scale, (rows.shape[0] * rows.shape[1],)).reshape(groups, -1, 1)
    parts, start = [], 0
    for cov in moments.cov:
        part = rows[:, :, start : start + cov.shape[1]]
        if cov.shape[1] <= ENUMERATED:
            parts.append(enumerate_choices(part, s, cov, limit))
        else:
            q = gptq(part, s, cov, limit)
            parts.append(adaround(part, s, cov, limit, q, learn_steps) if learn_steps else q)
        start += cov.shape[1]
    q = np.concatenate(parts, 2).reshape(filters.shape)
    wide = "adaround" if learn_steps else "gptq"
    return (q if layer.axis == 0 else q.T), ("enumeration" if k <= ENUMERATED else wide)


def centred_error(d: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """``d H d'`` of each row: d [G, O, K], cov [G, K, K] -> [G, O], in the units of d."""
    return np.einsum("gok,gok->go", d @ cov, d)


def enumerate_choices(w: np.ndarray, scale: np.ndarray, cov: np.ndarray, limit: int) -> np.ndarray:
    """The best of all 2^K choices of rounding each weight down or up.

    Args:
        w: [G, O, K], K small.
        scale: [G, O, 1].
        cov: [G, K, K].
        limit: Greatest magnitude.

    Returns:
        Integers as float32 [G, O, K].
    """
    k = w.shape[2]
    exact = w.astype(np.float64) / scale
    down = np.floor(exact)
    choices = np.array(list(product((0.0, 1.0), repeat=k)))
    result = np.empty(w.shape, np.float32)
    h = cov.astype(np.float64)
    h = h + 1e-6 * np.trace(h, axis1=1, axis2=2)[:, None, None] * np.eye(k) / k
    for g in range(len(w)):
        for o in range(w.shape[1]):
            q = np.clip(down[g, o] + choices, -limit, limit)
            d = q - exact[g, o]
            result[g, o] = q[int(np.einsum("ck,ck->c", d @ h[g], d).argmin())]
    return result


def gptq(w: np.ndarray, scale: np.ndarray, cov: np.ndarray, limit: int, damp: float = DAMP) -> np.ndarray:
    """GPTQ with inputs in order of falling variance, then a descent over single weights.

    A row that comes out worse than rounding to nearest is rounded to nearest.

    Args:
        w: [G, O, K].
        scale: [G, O, 1].
        cov: [G, K, K].
        limit: Greatest magnitude.
        damp: Share of the mean variance added to the diagonal.

    Returns:
        Integers as float32 [G, O, K].
    """
    raw = cov.astype(np.float64)
    diagonal, h = np.einsum("gkk->gk", raw), _damped(raw, damp)
    order = np.argsort(-diagonal, axis=1, kind="stable")
    back = np.argsort(order, axis=1, kind="stable")
    exact = np.take_along_axis(w.astype(np.float64) / scale, order[:, None], 2)
    h = np.take_along_axis(np.take_along_axis(h, order[:, :, None], 1), order[:, None], 2)
    q = _sweep(exact, np.linalg.cholesky(np.linalg.inv(h)).transpose(0, 2, 1), limit)
    q = np.take_along_axis(descend(q, exact, h, limit), back[:, None], 2)
    exact = w.astype(np.float64) / scale
    plain = np.clip(np.round(exact), -limit, limit)
    worse = centred_error(q - exact, raw) > centred_error(plain - exact, raw)
    return np.where(worse[:, :, None], plain, q).astype(np.float32)


def adaround(
    w: np.ndarray, scale: np.ndarray, cov: np.ndarray, limit: int, start: np.ndarray, steps: int
) -> np.ndarray:
    """Learn on from the integers ``start``, then descend; a row that is no better keeps its start.

    Args:
        w, scale, cov, limit: As for `gptq`.
        start: Integers [G, O, K].
        steps: Of gradient descent.

    Returns:
        Integers as float32 [G, O, K].
    """
    from repedge.calib.weights.adaround import Schedule, learn

    raw, exact = cov.astype(np.float64), w.astype(np.float64) / scale
    h = _damped(raw, DAMP)
    q = descend(learn(exact, h, start, limit, Schedule(steps)), exact, h, limit)
    better = centred_error(q - exact, raw) < centred_error(start - exact, raw)
    return np.where(better[:, :, None], q, start).astype(np.float32)


def _damped(cov: np.ndarray, damp: float) -> np.ndarray:
    """A share of the mean variance added to each input's."""
    k = cov.shape[1]
    return cov + (damp * np.einsum("gkk->g", cov) / k + 1e-12)[:, None, None] * np.eye(k)


def _sweep(exact: np.ndarray, upper: np.ndarray, limit: int, width: int = 64) -> np.ndarray:
    """Round column by column, spreading each error over the columns to come; upper: [G, K, K]."""
    w = exact.copy()
    q = np.empty_like(w)
    k = w.shape[2]
    for start in range(0, k, width):
        stop = min(start + width, k)
        errors = np.empty((*w.shape[:2], stop - start))
        for j in range(start, stop):
            q[:, :, j] = np.clip(np.round(w[:, :, j]), -limit, limit)
            e = (w[:, :, j] - q[:, :, j]) / upper[:, j, j][:, None]
            w[:, :, j:stop] -= e[:, :, None] * upper[:, None, j, j:stop]
            errors[:, :, j - start] = e
        w[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return q


def descend(q: np.ndarray, exact: np.ndarray, h: np.ndarray, limit: int, steps: int = 200) -> np.ndarray:
    """Change the one weight of each row that lowers ``d H d'`` most, by one unit, until none does."""
    q = q.astype(np.float64).copy()
    diagonal = np.einsum("gkk->gk", h)[:, None]
    gradient = (q - exact) @ h
    groups, rows = (np.array(i) for i in np.indices(q.shape[:2]))
    for _ in range(steps):
        sign = np.where(gradient > 0, -1.0, 1.0)
        gain = 2 * np.abs(gradient) - diagonal
        gain[np.abs(q + sign) > limit] = -np.inf
        best = gain.argmax(2)
        helps = gain[groups, rows, best] > 1e-9 * diagonal[groups, 0, best]
        if not helps.any():
            break
        g, o, j = groups[helps], rows[helps], best[helps]
        step = sign[g, o, j]
        q[g, o, j] += step
        gradient[g, o] += step[:, None] * h[g, j]
    return q
