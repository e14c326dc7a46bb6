"""Calibration's memory does not depend on the number of images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from calib_nets import clean, he, images, mixed, mobile

from repedge.calib.levels.learned import learn_levels
from repedge.calib.levels.ranges import ranges
from repedge.calib.simulation import observe as observing
from repedge.calib.simulation.heap import stacked
from repedge.calib.simulation.observe import observe
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.structure import own_parameters
from repedge.errors import UserError
from repedge.targets.tflite.scheme import TFLITE_W8A8

SIZE = 96
GROWTH = """
import resource, sys
from test_memory import net, photos
from repedge.calib.recipe import calibrate
from repedge.targets.tflite.scheme import TFLITE_W8A8

peaks = []
for count in (64, 640):
    calibrate(net(), photos(count), TFLITE_W8A8, "default")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) / (2**20 if sys.platform == "darwin" else 2**10))
"""


def net():
    """Two convolutions on pictures of some size."""
    rng = np.random.default_rng(0)
    weights = {"w0": he(rng, 16, 3, 3, 3), "w1": he(rng, 16, 1, 3, 3), "w2": he(rng, 10, 16)}
    weights |= {f"b{i}": np.full(n, 0.1, np.float32) for i, n in enumerate((16, 16, 10))}
    body = """
      c0 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x, w0, b0)
      r0 = Relu(c0)
      c1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=16> (r0, w1, b1)
      r1 = Relu(c1)
      p = GlobalAveragePool(r1)
      f = Flatten(p)
      y = Gemm <transB=1> (f, w2, b2)
    """
    return clean(f"net (float[1,3,{SIZE},{SIZE}] x) => (float[1,10] y) {{ {body} }}", weights)


def photos(count: int):
    """Pictures one by one."""
    for seed in range(count):
        yield images(1, SIZE, seed=seed)


@pytest.mark.slow
def test_ten_times_the_images_take_no_more_memory() -> None:
    pytest.importorskip("resource")
    here = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", GROWTH],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": here},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The images alone are 64 MB, the first layer's activations 85 MB.
    assert float(done.stdout.split()[-1]) < 24, "MB more"


@pytest.mark.slow
@pytest.mark.parametrize("names", [None, {"r", "y"}])
def test_a_walk_is_the_network_and_keeps_only_what_is_still_read(names) -> None:
    model, x = mixed(), images(12)
    simulator, seen = Simulator(model), {}
    for step, states in simulator.walk([x[:6], x[6:]], names):
        later = simulator.steps[simulator.steps.index(step) + 1 :]
        needed = {n for s in later for n in s.reads}
        for values in states:
            assert set(values) <= {*step.writes, *needed, *simulator.outputs}
        for name in step.writes:
            seen[name] = np.concatenate([v[name].numpy() for v in states])
    assert set(seen) == (names or {n for s in simulator.steps for n in s.writes})
    for name, value in seen.items():
        np.testing.assert_array_equal(value, _whole(model, name, [x[:6], x[6:]]))


def _whole(model, name: str, parts) -> np.ndarray:
    found: list[np.ndarray] = []
    simulator = Simulator(model)
    for part in parts:
        simulator.run(part, {name: lambda y: found.append(y.numpy().copy())})
    return np.concatenate(found)


@pytest.mark.slow
def test_learning_reads_only_the_images_it_comes_to() -> None:
    x = images(40)
    model = mobile()
    own_parameters(model)
    stats = observe(model, [x], moments=40)
    plan = ranges(model, stats, TFLITE_W8A8)
    read: set[int] = set()

    def some(indices):
        read.update(indices)
        for i in range(0, len(indices), 4):
            yield np.stack([x[k % 40] for k in indices[i : i + 4]])

    _, _, _, costs = learn_levels(
        model, stats, plan, some, range(10_000), range(10_000, 10_004), steps=2, images_per_step=8
    )
    assert costs
    assert len(read) == 2 * 8 + 4


@pytest.mark.slow
@pytest.mark.parametrize("make", [mobile, mixed])
def test_moments_are_the_same_by_few_groups_at_a_time(make, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make(), images(10)
    whole = observe(model, [x[:6], x[6:]], moments=8).moments
    monkeypatch.setattr(observing, "COLUMNS", 2000)
    parts = observe(model, [x[:6], x[6:]], moments=8).moments
    assert whole.keys() == parts.keys()
    for name, m in whole.items():
        np.testing.assert_array_equal(m.mean, parts[name].mean)
        for a, b in zip(m.cov, parts[name].cov, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        assert m.count == parts[name].count


def test_statistics_only_of_the_tensors_asked_for() -> None:
    model, x = mobile(), images(8)
    all_of_them, some = observe(model, [x]), observe(model, [x], tensors={"x", "r1"})
    assert set(some.tensors) == {"x", "r1"}
    for name, t in some.tensors.items():
        np.testing.assert_array_equal(t.highs, all_of_them.tensors[name].highs)
    with pytest.raises(UserError, match="Conv node"):
        observe(model, [np.where(x > 2, np.float32(3e38), x)], tensors={"r1"})


def test_stacked_is_concatenate() -> None:
    parts = [np.full((n, 3), n, np.float32) for n in (4, 4, 60, 200, 1)]
    np.testing.assert_array_equal(stacked([p] for p in parts)[0], np.concatenate(parts))
    with pytest.raises(ValueError, match="nothing"):
        stacked([])
