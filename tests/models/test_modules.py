"""Modules of someone else's: they stay as they are, say what they take, and whether they were trained."""

from __future__ import annotations

import copy
import random
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import repedge
from repedge.errors import UserError
from repedge.models.modules import is_initial
from repedge.models.source import resolve


class Training(nn.Module):
    """A network in the middle of its training: partly frozen, in eval mode, hooks, tied weights, a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.frozen = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)
        self.tied = nn.Linear(8, 5)
        self.tied.weight = self.head.weight
        self.seen: list[int] = []
        self.lock = threading.Lock()
        self.train()
        self.frozen.eval().requires_grad_(False)
        self.head.register_forward_hook(lambda m, i, o: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.frozen(self.stem(x)).mean((2, 3))
        return self.head(y) + self.tied(y)


def facts(module: nn.Module) -> list[Any]:
    """All that a training script would notice."""
    found: list[Any] = []
    for name, m in module.named_modules():
        hooks = [id(h) for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        found.append((name, id(m), m.training, hooks, sorted(vars(m))))
    for name, t in (*module.named_parameters(remove_duplicate=False), *module.named_buffers()):
        grad = None if t.grad is None else t.grad.tolist()
        where = (id(t), t.data_ptr(), t.dtype, t.device, t.requires_grad, t._version, sorted(vars(t)))
        found.append((name, where, grad, t.tolist()))
    return found


def draws() -> tuple[Any, ...]:
    """What the global random generators would give next."""
    state = random.getstate(), torch.get_rng_state(), np.random.get_state()
    found = random.random(), torch.rand(2).tolist(), np.random.rand(2).tolist()
    random.setstate(state[0])
    torch.set_rng_state(state[1])
    np.random.set_state(state[2])
    return found


def step(module: nn.Module) -> list[float]:
    """One step of training with dropout; the loss and a gradient."""
    torch.manual_seed(3)
    x = torch.randn(4, 3, 32, 32, dtype=next(module.parameters()).dtype)
    loss = module(x).square().sum()
    loss.backward()
    return [loss.item(), *module.head.weight.grad.flatten().tolist()]  # type: ignore[union-attr, operator]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_callers_module_stays_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = Training().to(dtype)
    step(module)  # with gradients and statistics
    twin = Training().to(dtype)
    twin.load_state_dict(copy.deepcopy(module.state_dict()))
    before, random_before = facts(module), draws()
    options: dict[str, Any] = {"input_size": 32, "targets": ["tflite"], "count": 1}
    assert repedge.compile(module, out=tmp_path, **options).passed
    repedge.diagnose(module, input_size=32)
    repedge.inspect(module, input_size=32)
    with pytest.raises(UserError):  # exists
        repedge.compile(module, out=tmp_path, **options)
    with pytest.raises(UserError):
        repedge.compile(module, out=tmp_path / "x", **{**options, "input_size": 3}, labels=["a"])
    assert facts(module) == before
    assert draws() == random_before
    module.zero_grad()
    assert step(module) == step(twin)


def test_an_error_leaves_it_as_it_is() -> None:
    class Broken(Training):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("not today")

    module = Broken()
    before = facts(module)
    with pytest.raises(UserError, match="not today"):
        resolve(module, input_size=32).graph()
    assert facts(module) == before
    kept = module.head.weight[0, 0].item()
    module.head.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        resolve(module)
    module.head.weight.data[0, 0] = kept
    assert facts(module) == before


def test_weights_go_into_the_copy(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    module(torch.zeros(1, 3, 8, 8))
    file = tmp_path / "other.pth"
    torch.save({k: v + 1 for k, v in module.state_dict().items()}, file)
    before = facts(module)
    source = resolve(module, weights=file, input_size=8)
    assert facts(module) == before
    assert source.module is not None
    assert torch.equal(source.module[0].weight, module[0].weight + 1)  # type: ignore[index, operator, arg-type]


def test_tied_parameters_stay_tied_and_nothing_is_shared() -> None:
    module = Training()
    made = resolve(module, input_size=32).module
    assert isinstance(made, Training)
    assert made.head.weight is made.tied.weight
    theirs = {t.data_ptr() for t in module.state_dict().values()}
    assert not theirs & {t.data_ptr() for t in made.state_dict().values()}
    assert made.lock is module.lock  # what can't be copied
    assert made.seen is not module.seen


def test_tensors_that_are_no_leaves() -> None:
    """Old weight normalization keeps the product as an attribute, with its history."""
    with pytest.warns(FutureWarning):
        module = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
    module(torch.zeros(1, 3, 8, 8))
    before = facts(module)
    made = resolve(module, input_size=8).module
    x = torch.randn(1, 3, 8, 8)
    assert made is not None
    assert torch.equal(made(x), module(x))
    assert facts(module) == before


def test_a_factory_that_keeps_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("kept_nets")
    fake.NET = Training()  # type: ignore[attr-defined]
    fake.make = lambda: fake.NET  # type: ignore[attr-defined]
    fake.fresh = Training  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kept_nets", fake)
    before = facts(fake.NET)
    for name in ("NET", "make"):
        assert resolve(f"kept_nets:{name}", input_size=32).module is not fake.NET
    assert facts(fake.NET) == before


def test_a_network_of_ours_is_in_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def fresh() -> nn.Module:
        net = Training()
        made.append(net.head.weight.data_ptr())
        return net

    fake = types.ModuleType("fresh_nets")
    fake.fresh = fresh  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fresh_nets", fake)
    source = resolve("fresh_nets:fresh", input_size=32)
    assert source.module is not None
    assert [source.module.head.weight.data_ptr()] == made  # type: ignore[union-attr, operator]


def test_wrappers_for_several_devices_are_taken_off() -> None:
    inner = Training()
    source = resolve(nn.DataParallel(inner), input_size=32)
    assert isinstance(source.module, Training)
    assert source.name == "Training"


# --- channels -------------------------------------------------------------------------------------


class Focus(nn.Module):
    """YOLOv5's stem: four pixels become channels."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.head = nn.Conv2d(16, 5, 1)  # defined before the stem
        self.conv = nn.Conv2d(4 * channels, 16, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.head(self.conv(torch.cat(parts, 1)).relu())


class Functional(nn.Module):
    """A convolution that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.conv2d(x, self.kernel))


class Averaged(nn.Module):
    """RGB in, grey inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv((x * torch.tensor([0.3, 0.6, 0.1]).view(1, 3, 1, 1)).sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("module", "channels"),
    [
        (Focus(), 3),
        (Focus(1), 1),
        (nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 1)), 3),
        (nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(16, 8, 1)), 1),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 1)), 3),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 8, 1)), 1),
        (Functional(), 1),
        (Averaged(), 3),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)), 3),
        (nn.Sequential(nn.Flatten(), nn.Linear(64 * 64, 2)), 1),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(7, 2)), 3),  # does not run at this size
    ],
)
def test_running_a_module_tells_its_channels(module: nn.Module, channels: int) -> None:
    source = resolve(module, input_size=64)
    assert source.input_shape == (1, channels, 64, 64)
    assert source.preprocess.color == ("GRAY" if channels == 1 else "RGB")


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Focus(4), {}, "takes 4 channels; repedge feeds images of 1 or 3"),
        (nn.Conv2d(5, 8, 1), {}, "takes 5 channels"),
        (nn.Conv2d(1, 8, 1), {"color": "BGR"}, "takes 1 channel, which does not go with BGR"),
        (Focus(), {"color": "GRAY"}, "takes 3 channels, which does not go with GRAY"),
    ],
)
def test_what_is_no_image_is_said_rightly(module: nn.Module, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(module, input_size=64, **options)


# --- initial values -------------------------------------------------------------------------------


def _nets() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "norms": nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)),
        "layer": nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.LazyLinear(4)),
        "plain": nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
    }


@pytest.mark.parametrize("kind", ["norms", "layer", "plain"])
def test_initial_weights_are_told_from_trained_ones(kind: str) -> None:
    net = _nets()[kind]
    net(torch.randn(2, 3, 16, 16)) if kind == "layer" else None
    assert is_initial(net.eval())
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 16, 16)).square().mean().backward()
        optimizer.step()
    assert not is_initial(net.eval())


def test_published_weights_are_no_initial_ones() -> None:
    for name in ("repvit_demo", "repvgg_demo"):
        assert not resolve(name).warnings


def test_networks_that_nobody_trained_are_told_of() -> None:
    assert "random weights" in resolve("repvgg_a0", random_weights=True).warnings[0]
    (warning,) = resolve(_nets()["norms"], input_size=32).warnings
    assert "all at their initial values" in warning
    assert "--weights FILE" in warning


@pytest.mark.slow
def test_untrained_networks_are_told_of_wherever_one_looks(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="all at their initial values"):
        report = repedge.compile(
            _nets()["norms"], input_size=32, targets=["tflite"], count=1, out=tmp_path, min_sqnr=60
        )
    assert "all at their initial values" in report.as_json()["warnings"][0]
    manifest = repedge.Bundle.open(report.bundles[0].path).manifest
    assert "all at their initial values" in manifest.notes[0]
    assert "all at their initial values" in repedge.inspect(_nets()["norms"], input_size=32).warnings[0]
