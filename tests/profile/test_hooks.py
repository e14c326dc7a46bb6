"""The layer timeline and the stopwatch in a user's own code."""

import logging
from typing import Any

import pytest
import torch
from profile_helpers import module, save_onnx
from torch import nn

import repedge


def test_every_layer_is_an_event_with_its_shape():
    net = module()
    seen: list[Any] = []
    with repedge.profile.hook(net, seen.append) as timeline, torch.inference_mode():
        net(torch.zeros(1, 3, 32, 32))
    assert [e.type for e in timeline.events] == [type(m).__name__ for m in net]
    assert [e.name for e in timeline.events] == [str(i) for i in range(len(net))]
    assert timeline.events[0].shape == (1, 8, 16, 16)
    assert timeline.events == seen
    assert all(e.ms >= 0 for e in timeline.events)
    ends = [e.start_ms + e.ms for e in timeline.events]
    assert all(end <= e.start_ms + 1e-6 for end, e in zip(ends, timeline.events[1:], strict=False))
    assert timeline.total_ms == pytest.approx(sum(e.ms for e in timeline.events))
    assert 0 < timeline.overhead_ms < 5


def test_hooks_are_gone_afterwards_also_after_an_error():
    net = module()
    with pytest.raises(RuntimeError), repedge.profile.hook(net):
        net(torch.zeros(1, 5, 32, 32))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_layer_that_raised_does_not_shift_the_others():
    class Fussy(nn.Module):
        def forward(self, x):
            if x.sum() == 0:
                raise ValueError
            return x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Fussy(), nn.Identity()

        def forward(self, x):
            try:
                x = self.a(x)
            except ValueError:
                x = x + 1
            return self.b(x)

    net = Net()
    with repedge.profile.hook(net) as timeline:
        net(torch.zeros(2))
        net(torch.ones(2))
    assert [e.name for e in timeline.events] == ["b", "a", "b"]


def test_outputs_and_weights_are_untouched():
    net, x = module(), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        expected = net(x)
        with repedge.profile.hook(net):
            assert torch.equal(net(x), expected)


def test_totals_add_the_runs_of_one_layer():
    net = module()
    with repedge.profile.hook(net) as timeline, torch.inference_mode():
        net(torch.zeros(1, 3, 32, 32))
        timeline.clear()
        for _ in range(3):
            net(torch.zeros(1, 3, 32, 32))
    totals = timeline.totals()
    assert len(totals) == len(net)
    assert sum(ms for _, _, ms in totals) == pytest.approx(timeline.total_ms)


def test_an_artifact_has_its_operators_on_the_timeline(tmp_path):
    seen: list[Any] = []
    path = save_onnx(tmp_path / "net.onnx")
    with repedge.profile.hook(path, seen.append, runs=3, warmup=0, threads=1) as timeline:
        pass
    assert {"GlobalAveragePool", "MatMul"} <= {e.type for e in timeline.events}
    assert seen == timeline.events
    assert any(e.shape == (1, 4) for e in seen)


def test_stopwatch_counts_laps_and_logs(caplog):
    watch = repedge.profile.stopwatch("net", every=2, skip=1)
    with caplog.at_level(logging.INFO, "repedge"):
        for _ in range(5):
            with watch:
                pass
    assert watch.summary()["n"] == 4
    assert [r.message.split(",")[0] for r in caplog.records] == ["net: 2 laps", "net: 4 laps"]


def test_stopwatch_in_a_long_loop_keeps_the_newest_laps():
    lines: list[str] = []
    watch = repedge.profile.stopwatch("net", every=50, log=lines.append, keep=20)
    for _ in range(100):
        with watch:
            pass
    assert watch.laps == 100
    assert 10 <= len(watch.samples_ms) <= 20
    assert len(lines) == 2


def test_stopwatch_quantiles():
    watch = repedge.profile.stopwatch()
    assert str(watch) == "stopwatch: no laps"
    watch.samples_ms[:] = [4.0, 1.0, 3.0, 2.0]
    s = watch.summary()
    assert (s["min_ms"], s["p50_ms"], s["p90_ms"], s["mean_ms"]) == pytest.approx((1, 2.5, 3.7, 2.5))


def test_stopwatch_as_decorator_and_around_failures():
    watch = repedge.profile.stopwatch()

    @watch
    def double(x):
        if x < 0:
            raise ValueError
        return 2 * x

    assert double(2) == 4
    with pytest.raises(ValueError):  # noqa: PT011 - raised above, without a text
        double(-1)
    assert double.__name__ == "double"
    assert watch.summary()["n"] == 1
