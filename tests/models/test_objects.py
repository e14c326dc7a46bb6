"""Networks that were pickled whole: their tensors are read, and nothing of what they name is made."""

import os
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from repedge.models.files import load_checkpoint, objects

RAN: list[str] = []


def shout(word):
    RAN.append(word)


class Attack(nn.Module):
    """Calls a function when it is unpickled."""

    def __reduce__(self):
        return shout, ("unpickled",)


@pytest.fixture
def detector(tmp_path, monkeypatch):
    """A detector of somebody's package, saved as their training script does; the package is gone."""
    package = types.ModuleType("models_of_theirs")
    exec(
        "from torch import nn\n"
        "class Block(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)\n"
        "class Detector(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.model = nn.Sequential(Block(), nn.SiLU(), Block())\n"
        "        self.names, self.yaml, self.stride = ['a', 'b'], {'nc': 2}, None\n",
        package.__dict__,
    )
    for name in ("Block", "Detector"):
        getattr(package, name).__module__ = "models_of_theirs"
    monkeypatch.setitem(sys.modules, "models_of_theirs", package)
    torch.manual_seed(0)
    network = package.Detector().half()
    network.register_buffer("scratch", torch.ones(3), persistent=False)
    path = tmp_path / "best.pt"
    torch.save({"epoch": 3, "best_fitness": np.array([0.5]), "model": network, "ema": None}, path)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    monkeypatch.delitem(sys.modules, "models_of_theirs")
    return path, state


def test_tensors_have_the_names_of_the_state_dict(detector):
    path, state = detector
    found = objects.networks(path)["model"]
    assert list(found) == list(state)
    assert all(torch.equal(found[k], state[k]) for k in state)
    assert "models_of_theirs" not in sys.modules


def test_a_network_alone(tmp_path):
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    torch.save(network, tmp_path / "whole.pt")
    assert list(objects.networks(tmp_path / "whole.pt")) == list(network.state_dict())


@pytest.mark.parametrize("wrap", [lambda a: {"model": a}, lambda a: a, lambda a: {"model": nn.Sequential(a)}])
def test_nothing_runs(tmp_path, wrap):
    """The same file runs code where it is loaded as such."""
    path = tmp_path / "attack.pt"
    torch.save(wrap(Attack()), path)
    RAN.clear()
    objects.networks(path)
    assert RAN == []
    torch.load(path, weights_only=False)
    assert RAN == ["unpickled"]


class Calls:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch ran"),
        (eval, "1"),
        (getattr, "abc", "upper"),
        (bytearray, 1 << 40),
        (__import__, "antigravity"),
    ],
)
def test_functions_are_not_called(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "attack.pt"
    torch.save({"model": Calls(*call)}, path)
    assert objects.networks(path) == {}
    assert os.listdir(tmp_path) == ["attack.pt"]


def test_a_module_within_itself_ends(tmp_path):
    network = nn.Sequential(nn.Linear(1, 1))
    network._modules["again"] = network
    torch.save({"model": network}, tmp_path / "loop.pt")
    with pytest.raises(ValueError, match="without end"):
        objects.networks(tmp_path / "loop.pt")


def test_whole_modules_give_their_tensors(tmp_path):
    """As detectors' training scripts save them."""
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    torch.save({"model": network.half(), "ema": None}, tmp_path / "whole.pth")
    found = load_checkpoint(tmp_path / "whole.pth")
    assert list(found) == list(network.state_dict())
    assert (found.entry, found.dtype) == ("model", "float16")
    torch.testing.assert_close(found["0.weight"], network[0].weight.float())
