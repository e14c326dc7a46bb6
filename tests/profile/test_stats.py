"""Quantiles, intervals and verdicts, on synthetic latencies whose truth is known."""

import numpy as np
import pytest

from repedge.devices.protocol import HostInfo, RawProfile
from repedge.profile import stats


def noisy(rng, n, base=5.0):
    """Latencies as machines give them: a log-normal body in slow waves, and rare long stalls."""
    wave = np.zeros(n)
    for i in range(1, n):
        wave[i] = 0.8 * wave[i - 1] + rng.normal(0, 0.01)
    stalls = np.where(rng.random(n) < 0.05, rng.exponential(2.0, n), 0)
    return base * np.exp(rng.normal(0, 0.01, n) + wave) * (1 + stalls)


def comparison(rng, ratio=1.0, rounds=6, runs=16, layout=0.01, drift=0.1):
    """Rounds of two artifacts that take turns; each process has a speed of its own."""
    taken = []
    for _ in range(rounds):
        common = noisy(rng, runs) * np.linspace(1, 1 + drift, runs)
        sides = [common * np.exp(rng.normal(0, layout)) * noisy(rng, runs, 1.0) * r for r in (1, ratio)]
        taken.append(tuple(sides))
    return taken


def test_summary_agrees_with_numpy():
    x = np.random.default_rng(0).gamma(3, 2, 101)
    s = stats.summarize(x.tolist())
    assert (s.p50, s.p90, s.p99) == pytest.approx(tuple(np.percentile(x, [50, 90, 99])), rel=1e-12)
    assert (s.min, s.mean, s.std) == pytest.approx((x.min(), x.mean(), x.std(ddof=1)), rel=1e-12)
    assert s.low <= s.p50 <= s.high


def test_one_run_is_summarised_without_spread():
    s = stats.summarize([3.0])
    assert (s.p50, s.low, s.high, s.std) == (3.0, 3.0, 3.0, 0.0)


def test_the_same_samples_give_the_same_interval():
    x = np.random.default_rng(1).normal(10, 1, 60)
    assert stats.median_interval(x) == stats.median_interval(x)


@pytest.mark.slow
def test_median_interval_covers_the_true_median_of_independent_runs():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(100):
        low, high = stats.median_interval(rng.lognormal(0, 0.3, 80))
        hits += low <= 1 <= high
    assert hits >= 88  # nominal 95 of 100; three standard deviations are 7


def test_runs_that_depend_on_each_other_widen_the_interval():
    rng = np.random.default_rng(3)
    wave = np.repeat(rng.normal(10, 1, 10), 10)  # ten plateaus of ten equal runs
    shuffled = rng.permutation(wave)
    widths = [high - low for low, high in map(stats.median_interval, (wave, shuffled))]
    assert stats.block_length(wave) > stats.block_length(shuffled)
    assert widths[0] > 1.5 * widths[1]


@pytest.mark.slow
def test_identical_artifacts_are_rarely_told_apart():
    """Nominal: 1 in 100. At most 1 in 20 comparisons may claim a difference; 400 leave 8 as a bound."""
    rng = np.random.default_rng(4)
    verdicts = [stats.paired_ratio(comparison(rng)).verdict for _ in range(400)]
    assert sum(v != "no difference shown" for v in verdicts) <= 8


@pytest.mark.slow
def test_the_95_percent_interval_of_the_ratio_covers_the_truth():
    rng = np.random.default_rng(5)
    found = [stats.paired_ratio(comparison(rng, ratio=1.03)) for _ in range(300)]
    assert sum(r.low <= 1.03 <= r.high for r in found) >= 273  # nominal 285, three deviations are 11


@pytest.mark.parametrize(("ratio", "verdict"), [(1.10, "slower"), (0.90, "faster")])
def test_ten_per_cent_is_found(ratio, verdict):
    rng = np.random.default_rng(6)
    found = [stats.paired_ratio(comparison(rng, ratio)).verdict for _ in range(100)]
    assert found.count(verdict) >= 95


def test_a_difference_nobody_acts_on_is_not_claimed():
    rng = np.random.default_rng(7)
    exact = [((5 + rng.normal(0, 1e-6, 10)).tolist(), [5.02] * 10) for _ in range(6)]
    found = stats.paired_ratio(exact)
    assert found.low > 1
    assert found.verdict == "no difference shown"


def test_drift_between_rounds_cancels():
    rounds = [([4.0 * k] * 5, [5.0 * k] * 5) for k in (1, 2, 3, 4)]
    found = stats.paired_ratio(rounds)
    assert found.value == pytest.approx(1.25, rel=1e-12)
    assert found.verdict == "slower"


def test_separate_measurements_are_compared_by_their_medians():
    rng = np.random.default_rng(8)
    a, b = rng.normal(10, 0.3, 100).tolist(), rng.normal(12, 0.3, 100).tolist()
    found = stats.unpaired_ratio(a, b)
    assert found.value == pytest.approx(1.2, abs=0.02)
    assert found.low < found.value < found.high
    assert found.verdict == "slower"
    assert stats.unpaired_ratio(a, a[::-1]).verdict == "no difference shown"


def raw(samples, **more):
    return RawProfile(runtime="tflite", samples_ms=tuple(samples), **more)


def test_quiet_runs_have_no_warning():
    assert stats.warnings(raw(np.random.default_rng(9).normal(10, 0.1, 90))) == []


@pytest.mark.parametrize(
    ("samples", "more", "word"),
    [
        ([10.0] * 70 + [30.0] * 20, {}, "noisy"),
        (np.linspace(10, 15, 90), {}, "throttling"),
        ([10.0] * 20, {"stable": False}, "warm-up"),
        ([10.0] * 20, {"host": HostInfo(load_average=3.0, cores=4)}, "other work"),
        ([10.0] * 20, {"host": HostInfo(governor="powersave")}, "powersave"),
        ([10.0] * 20, {"host": HostInfo(temperature_after=91.0)}, "91 degrees"),
    ],
)
def test_doubtful_runs_say_so(samples, more, word):
    assert any(word in w for w in stats.warnings(raw(samples, **more)))
