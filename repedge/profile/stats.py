"""What can be concluded from latencies: quantiles, intervals, ratios, and when to distrust them.

Latencies are neither normal nor independent: they have a long right tail, they drift with temperature
and they come in runs of slow and fast. So a median's interval is bootstrapped in blocks (Künsch 1989,
made circular by Politis and Romano 1992), and two artifacts are compared over several rounds, each in
fresh processes: the same file in two processes differs by where its memory lies, by a per cent or two,
which no number of runs in one process shows. The rounds' log ratios are independent, and Student's t
over them gives the ratio's interval (the method of batch means).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from repedge.devices.protocol import RawProfile

RESAMPLES = 1000
MIN_EFFECT = 0.01
"""Ratios nearer to 1 than this are never called a difference: nobody acts on them."""

# Student's t, two-sided: degrees of freedom -> quantile at 95 % and at 99 %.
T95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)
T99 = (
    63.657,
    9.925,
    5.841,
    4.604,
    4.032,
    3.707,
    3.499,
    3.355,
    3.250,
    3.169,
    3.106,
    3.055,
    3.012,
    2.977,
    2.947,
)


@dataclass(frozen=True)
class Summary:
    """Latencies in milliseconds; ``low`` and ``high`` bound the median at 95 %."""

    min: float
    p50: float
    p90: float
    p99: float
    mean: float
    std: float
    low: float
    high: float


def summarize(samples: Sequence[float]) -> Summary:
    """Quantiles (linear between neighbours), mean, standard deviation (n - 1), the median's interval."""
    x = np.asarray(samples, np.float64)
    p50, p90, p99 = (float(v) for v in np.percentile(x, [50, 90, 99]))
    low, high = median_interval(x)
    std = float(x.std(ddof=1)) if len(x) > 1 else 0.0
    return Summary(float(x.min()), p50, p90, p99, float(x.mean()), std, low, high)


def block_length(x: np.ndarray) -> int:
    """Runs that belong together: twice the first lag without autocorrelation, at least n ** (1/3)."""
    n = len(x)
    centred = np.argsort(np.argsort(x)) - (n - 1) / 2  # ranks: one slow run must not hide the rest
    power = float(centred @ centred)
    least, most = max(1, round(n ** (1 / 3))), max(1, n // 4)
    if power == 0:
        return least
    lag = 1
    while lag < most and float(centred[:-lag] @ centred[lag:]) / power > 2 / math.sqrt(n):
        lag += 1
    return min(max(least, 2 * lag if lag > 1 else 1), most)


def median_interval(x: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Circular block bootstrap of the median, seeded: the same samples give the same interval."""
    n = len(x)
    if n < 3:
        return float(np.min(x)), float(np.max(x))
    length = block_length(x)
    starts = np.random.default_rng(0).integers(0, n, (RESAMPLES, -(-n // length)))
    index = (starts[..., None] + np.arange(length)) % n
    medians = np.median(x[index.reshape(RESAMPLES, -1)[:, :n]], axis=1)
    low, high = np.percentile(medians, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


@dataclass(frozen=True)
class Ratio:
    """How many times as long B takes as A.

    Attributes:
        value, low, high: The ratio of medians and its 95 % interval.
        verdict: ``faster``, ``slower`` or ``no difference shown``, about B.
    """

    value: float
    low: float
    high: float
    verdict: str


def paired_ratio(rounds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Ratio:
    """B over A from rounds of runs that were taken in turns.

    Within a round, run i of A and run i of B were taken within milliseconds of each other, so that
    drift cancels in their ratio; the median over the pairs ignores disturbances of single runs. A
    difference is claimed where the 99 % interval over the rounds leaves out 1 and the ratio is at
    least `MIN_EFFECT` from it: one false alarm in a hundred, not one in twenty.
    """
    logs = np.array([np.median(np.log(np.asarray(b)) - np.log(np.asarray(a))) for a, b in rounds])
    if len(logs) < 2:
        return unpaired_ratio(rounds[0][0], rounds[0][1])
    mean, error = float(logs.mean()), float(logs.std(ddof=1)) / math.sqrt(len(logs))
    df = min(len(logs) - 1, len(T95))
    return _ratio(mean, T95[df - 1] * error, T99[df - 1] * error)


def unpaired_ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """B over A from two separate measurements, by the bootstrap of each median.

    What changed between the two measurements (temperature, other load) is not in the interval.
    """
    medians, errors = [], []
    for x in (np.asarray(a, np.float64), np.asarray(b, np.float64)):
        low, high = median_interval(x)
        medians.append(math.log(float(np.median(x))))
        errors.append((math.log(high) - math.log(low)) / (2 * 1.96))
    error = math.hypot(*errors)
    return _ratio(medians[1] - medians[0], 1.96 * error, 2.576 * error)


def _ratio(log: float, half95: float, half99: float) -> Ratio:
    value = math.exp(log)
    shown = abs(log) > half99 and abs(value - 1) >= MIN_EFFECT
    verdict = ("slower" if log > 0 else "faster") if shown else "no difference shown"
    return Ratio(value, math.exp(log - half95), math.exp(log + half95), verdict)


def warnings(raw: RawProfile) -> list[str]:
    """Sentences for what makes these times doubtful."""
    x = np.asarray(raw.samples_ms)
    found = []
    p50, p90 = (float(v) for v in np.percentile(x, [50, 90]))
    if len(x) >= 10 and p90 > 1.15 * p50:
        found.append(f"noisy: the 90th percentile is {p90 / p50:.2f} times the median; quiet the machine")
    third = len(x) // 3
    if third >= 10:
        first, last = float(np.median(x[:third])), float(np.median(x[-third:]))
        spread = float(np.percentile(x, 75) - np.percentile(x, 25))
        if abs(last - first) > max(0.05 * first, spread):
            word = "slower (thermal throttling?)" if last > first else "faster (warm-up too short?)"
            found.append(f"drift: the last third ran {abs(last / first - 1):.0%} {word} than the first")
    if raw.stable is False:
        found.append("the warm-up ended at its bound before the times were stable")
    h = raw.host
    if h.load_average is not None and h.cores and h.load_average > 0.5 * h.cores:
        found.append(f"other work: the load average was {h.load_average:.1f} on {h.cores} cores")
    if h.governor not in (None, "", "performance"):
        found.append(f"the CPU governor is {h.governor!r}, not 'performance': the clock may change")
    hot = max((t for t in (h.temperature_before, h.temperature_after) if t is not None), default=0)
    if hot > 80:
        found.append(f"hot: {hot:.0f} degrees Celsius; the clock may be throttled")
    return found
