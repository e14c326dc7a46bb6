"""Weights files made to hurt, or damaged on their way."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from repedge.errors import UserError
from repedge.models.files import checkpoint as files
from repedge.models.files import load_checkpoint, unusable

WEIGHT = {"conv.weight": torch.ones(2, 2)}


@pytest.mark.parametrize(
    "content",
    [
        {(1, 2): torch.ones(3)},
        {("a", "b"): WEIGHT, 5: 6},
        {"conv.weight": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
        {"conv.weight": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8), "b": 1},
        {"model": {"model": {"model": {"model": {"model": {"model": WEIGHT}}}}}},
        {"k" * 10**6: 1},
        {"conv.weight": torch.zeros(1).expand(1 << 26)},
        {f"w{i}": torch.zeros(1).expand(1 << 20) for i in range(40)},
        {"w": torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**5, 10**5))},
        [torch.ones(2)],
        torch.ones(2),
    ],
)
def test_odd_contents_are_one_sentence(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    if (message := refusal(tmp_path / "w.pth")) is None:
        state = load_checkpoint(tmp_path / "w.pth")
        assert all(t.dtype == torch.float32 for t in state.values())
    else:
        assert str(tmp_path / "w.pth") in message
        assert len(message) < 2500


def refusal(path: Path) -> str | None:
    try:
        load_checkpoint(path)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("index", [-1, 2, 10**12])
def test_indices_of_sparse_tensors_lead_nowhere(tmp_path: Path, index: int) -> None:
    """torch would read and write wherever they lead, and crash."""
    indices = torch.tensor([[0, index]])
    state = {"w": torch.sparse_coo_tensor(indices, torch.ones(2), (2,), check_invariants=False)}
    torch.save(state, tmp_path / "w.pth")
    assert "w.pth" in str(refusal(tmp_path / "w.pth"))


def test_every_flipped_byte_that_matters_is_found(tmp_path: Path) -> None:
    """torch does not look at the checksums of its own archives."""
    state = {f"layer{i}.weight": torch.randn(8, 16) for i in range(4)}
    torch.save(state, tmp_path / "good.pth")
    data = (tmp_path / "good.pth").read_bytes()
    dice = random.Random(0)
    for i in range(60):
        at = dice.randrange(len(data))
        (tmp_path / "w.pth").write_bytes(data[:at] + bytes([data[at] ^ 1 << i % 8]) + data[at + 1 :])
        try:
            found = load_checkpoint(tmp_path / "w.pth")
        except UserError:
            continue
        assert all(torch.equal(found[k], state[k]) for k in state), (
            at
        )  # it was in the filling between entries


def test_archives_without_checksums_are_read(tmp_path: Path) -> None:
    """``torch.serialization.set_crc32_options(False)`` writes zeros."""
    serialization = pytest.importorskip("torch.serialization")
    if not hasattr(serialization, "set_crc32_options"):
        pytest.skip("this torch always writes them")
    before = serialization.get_crc32_options()
    serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHT, tmp_path / "w.pth")
    finally:
        serialization.set_crc32_options(before)
    assert torch.equal(load_checkpoint(tmp_path / "w.pth")["conv.weight"], WEIGHT["conv.weight"])


@pytest.mark.parametrize("at", [0, 5, 9])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_are_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch, at: int, value: float) -> None:
    monkeypatch.setattr(files, "PIECE", 4)
    t = torch.arange(10, dtype=torch.float32)
    assert unusable("w", t) == ""
    t[at] = value
    assert unusable("w", t.reshape(2, 5).t()).startswith("1 of the 10 values of w are ")
    assert unusable("bn.running_var", -torch.arange(10.0)) == "bn.running_var has negative variances"
