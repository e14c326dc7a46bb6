"""What torch modules no graph can hold: refused in a sentence, or left to the stock exporter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exported import SHAPE, Fn, check
from torch import nn
from torch.nn import functional as F

from repedge.errors import UnsupportedModel, UserError
from repedge.graph.export import export


@pytest.mark.parametrize(
    ("result", "message"),
    [(None, "returns NoneType"), ("cat", "returns str"), ((), "no tensor"), ({"a": None}, "under 'a'")],
)
def test_results_that_are_no_tensors_are_refused(result, message):
    with pytest.raises(UserError, match=message):
        export(Fn(lambda x: result), SHAPE)


def test_an_input_that_the_module_cannot_take(no_fallback):
    with pytest.raises(UserError, match=r"does not run on a 8x10 image with 4 channels.*--input-size"):
        export(nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), SHAPE)
    for shape in ((1, 4, 0, 10), (2, 4, 8, 10), (4, 8, 10)):
        with pytest.raises(UserError, match="input shape"):
            export(nn.ReLU(), shape)  # type: ignore[arg-type]  # one is too short


def test_weights_that_cannot_be_compiled(no_fallback):
    with pytest.raises(UserError, match=r"'weight' is float16.*module\.float"):
        export(nn.Conv2d(4, 4, 1).half(), SHAPE)
    with pytest.raises(UserError, match="'weight' is on meta"):
        export(nn.Conv2d(4, 4, 1, device="meta"), SHAPE)
    broken = nn.Conv2d(4, 4, 1)
    broken.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="'weight' has 1 NaN or infinite values of 16"):
        export(broken, SHAPE)


def test_training_flags_come_back_after_an_error():
    module = nn.Sequential(nn.Flatten(), nn.Linear(7, 3), nn.BatchNorm1d(3).eval())
    with pytest.raises(UserError):
        export(module, SHAPE)
    assert [m.training for m in module.modules()] == [True, True, True, False]


def counted(x):
    return x * 2 if float(x.sum()) > 0 else x


def stale(x):
    y = x * 1
    view = y[:, :2]
    view.relu_()
    return y


def through_numpy(x):
    y = x * 2
    return torch.from_numpy(y.numpy()) + x


class Counter(nn.Module):
    """Changes its own buffer in eval mode."""

    def __init__(self):
        super().__init__()
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Fn(counted), "reads the value of a tensor"),
        (Fn(stale), "in-place operator changed its memory through a view"),
        (Fn(through_numpy), "takes a tensor that depends on the image to numpy"),
        (Fn(lambda x: x + torch.tensor(x.tolist())), "the image to tolist"),
        (Fn(lambda x: x + torch.from_numpy(np.asarray(x) * 1)), "the image to __array__"),
        (Fn(lambda x: x + torch.rand(10)), "draws random numbers"),
        (Fn(lambda x: torch.zeros(4, 8, 10).add_(x[0])), "into a constant tensor"),
        (Counter(), "changes a parameter, a buffer or a constant"),
        (Fn(lambda x: torch.atan2(x, x.median(1)[0])), r"aten\.median\.dim, aten\.atan2"),
        (nn.BatchNorm2d(4, track_running_stats=False), "statistics of the batch itself"),
        (Fn(lambda x: F.max_pool2d(x, 2, return_indices=True)), "output_1"),
        (Fn(lambda x: x.double()), "_to_copy with a float64 result"),
    ],
)
def test_what_no_graph_can_hold_is_left_to_the_stock_exporter(module, why, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("stock exporter's own words.\nmore")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UnsupportedModel, match=why) as caught:
        export(module, SHAPE)
    assert str(caught.value).endswith("failed: stock exporter's own words")


@pytest.mark.slow
def test_the_fallback_gives_the_same_kind_of_graph():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)

        def forward(self, x):
            return {"features": self.norm(self.conv(x)), "head": x.roll(1, 2).mean((2, 3))}

    exported = export(Net(), SHAPE)
    check(exported)
    graph = exported.model.graph
    assert exported.model.opset_imports == {"": 20}
    assert [v.name for v in (*graph.inputs, *graph.outputs)] == ["input", "features", "head"]
    assert "Constant" not in {n.op_type for n in graph}
