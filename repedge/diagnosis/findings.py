"""The diagnosis in a few sentences, from its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from repedge import tasks
from repedge.diagnosis.layers import Diagnosis, LayerDiagnosis, Whole
from repedge.diagnosis.metrics import cost, times

GROWN = 4.0
"""Range growth (two bits) from which a merged kernel is counted."""

WILD = 2.0
"""Outlier ratio from which a tensor is counted."""


def findings(d: Diagnosis) -> list[str]:
    """What stands out: the network as a whole, merging, weights, activations, dead channels, cost."""
    return [*whole(d), *details(d)]


def details(d: Diagnosis) -> list[str]:
    """`findings` without that of the network as a whole."""
    return [*_merging(d), *_weights(d), *_activations(d), *_operators(d), *_dead(d), *_cost(d)]


def whole(d: Diagnosis) -> list[str]:
    """The network as a whole; nothing without images."""
    if d.stock is None or d.planned is None:
        return []
    return [
        f"The whole network in simulated integers: {_whole(d.stock, d.images)} as stock tools calibrate; "
        f"{_whole(d.planned, d.images)} with the recipe {d.planned.recipe!r} "
        f"(on the {d.images} calibration images)."
    ]


def _merging(d: Diagnosis) -> Iterator[str]:
    merged = [la for la in d.layers if la.growth is not None]
    peaked = [la for la in d.layers if (la.weights.centre_to_ring or 0) > GROWN]
    if merged:
        grown = [la for la in merged if (la.growth or 0) > GROWN]
        worst = max(merged, key=lambda la: la.growth or 0)
        bits = math.log2(max(worst.growth or 1, 1))
        yield (
            f"Merging widened {len(grown) or 'none'} of {len(merged)} merged kernels to more than {GROWN:g} "
            f"times the range of their widest branch; most in {worst.name}, {times(worst.growth or 0)} in "
            f"the median channel, which takes {bits:.1f} of its 8 bits from that branch."
        )
    elif peaked:
        worst = max(peaked, key=lambda la: la.weights.centre_to_ring or 0)
        yield (
            f"{len(peaked)} kernels have a centre tap more than {GROWN:g} times the others (most in "
            f"{worst.name}: {times(worst.weights.centre_to_ring or 0)}), as merged identity branches leave "
            "it; the training form would show what each branch lost."
        )


def _weights(d: Diagnosis) -> Iterator[str]:
    usual = median(la.weights.sqnr_db for la in d.layers)
    loss = [la.weights.sqnr_db - la.weights.sqnr_per_tensor_db for la in d.layers]
    worst = min(d.layers, key=lambda la: la.weights.sqnr_db)
    yield (
        f"Weights with a scale per output channel keep {usual:.0f} dB in the median layer and "
        f"{worst.weights.sqnr_db:.0f} dB in the worst ({worst.name}); one scale per layer would "
        f"cost another {median(loss):.0f} dB ({max(loss):.0f} dB where it matters most)."
    )


def _activations(d: Diagnosis) -> Iterator[str]:
    seen = [la for la in d.layers if la.reads is not None]
    if not seen:
        yield "Activations were not looked at: no photos were given (--calib FOLDER)."
        return
    wild = [la for la in seen if _outlier(la) > WILD]
    worst = max(seen, key=_outlier)
    yield (
        f"{len(wild)} of {len(seen)} layers read a tensor whose largest value is more than {WILD:g} "
        f"times the mean of the images' largest; most at {worst.name}: {times(_outlier(worst))}."
    )


def _operators(d: Diagnosis) -> Iterator[str]:
    if d.float_ops:
        named = ", ".join(f"{count} {op}" for op, count in d.float_ops.items())
        yield f"These operators run in float32 between integers, as {d.scheme} has none for them: {named}."


def _outlier(la: LayerDiagnosis) -> float:
    return la.reads.outlier if la.reads else 0.0


def _dead(d: Diagnosis) -> Iterator[str]:
    dead = sum(la.dead for la in d.layers)
    if dead:
        channels = sum(la.channels for la in d.layers)
        where = f"{sum(la.dead > 0 for la in d.layers)} of the layers"
        yield (
            f"{dead} of {channels} channels never change, in {where}: a smaller network "
            "would compute the same."
        )


def _cost(d: Diagnosis) -> Iterator[str]:
    costly = sorted((la for la in d.layers if la.cost is not None), key=lambda la: -(la.cost or 0))
    total = sum(la.cost or 0 for la in costly)
    if total > 0:
        few = costly[:3]
        share = sum(la.cost or 0 for la in few) / total
        names = ", ".join(f"{la.name} ({cost(la.cost or 0)})" for la in few)
        yield f"With the recipe the costliest layers alone are {names}: {share:.0%} of the sum over all."


def _whole(w: Whole, n: int) -> str:
    known = [(tasks.figure(key), value) for key, value in w.figures.items() if value is not None]
    return ", ".join([f"{w.sqnr_db:.1f} dB", *(f"{f.title} {f.text(value, n)}" for f, value in known)])
