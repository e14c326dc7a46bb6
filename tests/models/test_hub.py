"""Weights from the hub: a real huggingface_hub client against a local server that speaks its protocol."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from hub_server import COMMIT, Hub
from safetensors.torch import save
from weights_files import repvgg_in_timm, shaken

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.models import hub
from repedge.models.hub import Address
from repedge.models.registry import create, spec
from repedge.models.source import resolve

CONFIG = {
    "architecture": "repvgg_demo",
    "num_classes": 7,
    "pretrained_cfg": {
        "input_size": [3, 96, 128],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.3],
        "license": "mit",
    },
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def timm_file() -> bytes:
    torch.manual_seed(0)
    return save(repvgg_in_timm(shaken(create("repvgg_demo", num_classes=7)).state_dict()))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://timm/repvgg_a0.rvgg_in1k", Address("timm/repvgg_a0.rvgg_in1k")),
        ("hf://a/b@v1.0", Address("a/b", "v1.0")),
        ("hf://a/b/sub/net.safetensors", Address("a/b", None, "sub/net.safetensors")),
        ("hf://a/b@main/net.pth", Address("a/b", "main", "net.pth")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["hf://", "hf://timm", "hf:///x/y", "hf://a/b/../../c", "hf://a b/c", "hf://a/b@"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="hf://ORG/NAME"):
        Address.parse(text)


@pytest.mark.slow
def test_fetch_and_cache(server: Hub, timm_file: bytes) -> None:
    server.repos["timm/net"] = {"model.safetensors": timm_file, "config.json": json.dumps(CONFIG).encode()}
    first = hub.fetch(Address("timm/net"))
    assert first.path.read_bytes() == timm_file
    assert first.commit == COMMIT
    assert first.config == CONFIG
    assert "GET /cdn/timm/net/model.safetensors" in server.log
    server.log.clear()
    assert hub.fetch(Address("timm/net")).path == first.path
    assert not [line for line in server.log if line.startswith("GET /cdn")]


@pytest.mark.slow
def test_model_with_weights_and_preprocessing_from_the_hub(server: Hub, timm_file: bytes) -> None:
    server.repos["timm/net"] = {"model.safetensors": timm_file, "config.json": json.dumps(CONFIG).encode()}
    source = resolve("repvgg_demo", weights="hf://timm/net")
    assert source.preprocess == Preprocess(
        size=(96, 128), resize=142, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3)
    )
    assert source.input_shape == (1, 3, 96, 128)
    assert "hf://timm/net at 0123456789ab: training form, 7 classes, timm layout" in source.description
    assert source.labels == ()
    assert resolve("repvgg_demo", weights="hf://timm/net", input_size="64").input_shape == (1, 3, 64, 64)


@pytest.mark.slow
def test_pretrained(server: Hub) -> None:
    torch.manual_seed(0)
    file = save(repvgg_in_timm(create("repvgg_a0").state_dict()))
    server.repos["timm/repvgg_a0.rvgg_in1k"] = {"model.safetensors": file}
    source = resolve("RepVGG-A0", pretrained=True)
    assert source.preprocess == spec("repvgg_a0").preprocess  # no config.json: the table's
    assert source.license == "MIT"
    assert source.name == "repvgg_a0"


@pytest.mark.slow
def test_other_files_and_revisions(server: Hub, timm_file: bytes, tmp_path: Path) -> None:
    torch.save({"state_dict": create("repvgg_demo").state_dict()}, tmp_path / "w.pth")
    pth = (tmp_path / "w.pth").read_bytes()
    server.repos["me/both"] = {"model.safetensors": timm_file, "old/w.pth": pth, "pytorch_model.bin": pth}
    server.repos["me/bin"] = {"pytorch_model.bin": pth}
    assert hub.fetch(Address("me/both")).path.name == "model.safetensors"
    assert hub.fetch(Address("me/bin")).path.name == "pytorch_model.bin"
    source = resolve("repvgg_demo", weights=f"hf://me/both@{COMMIT}/old/w.pth")
    assert "10 classes, official layout" in source.description
    with pytest.raises(UserError, match="no revision 'v9'.*--weights FILE"):
        hub.fetch(Address("me/both", "v9"))


@pytest.mark.slow
def test_missing_files_are_answered_with_what_is_there(server: Hub) -> None:
    server.repos["me/odd"] = {"best.pth": b"x", "README.md": b"y"}
    with pytest.raises(UserError, match=r"has no model.safetensors or pytorch_model.bin \(it has best.pth\)"):
        hub.fetch(Address("me/odd"))
    with pytest.raises(UserError, match="has no last.pth"):
        hub.fetch(Address("me/odd", None, "last.pth"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "no repository me/net .*private.*--weights FILE"),
        ((404, "RepoNotFound"), "no repository me/net .*--weights FILE"),
        ((403, "GatedRepo"), "gated.*hf auth login.*--weights FILE"),
        ((500, ""), "HTTP 500.*--weights FILE"),
    ],
)
def test_refusals(server: Hub, answer: tuple[int, str] | None, words: str) -> None:
    if answer:
        server.repos["me/net"] = answer
    with pytest.raises(UserError, match=words) as caught:
        hub.fetch(Address("me/net"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_damage_on_the_way_is_seen(server: Hub, timm_file: bytes) -> None:
    server.repos["me/net"] = {"model.safetensors": timm_file}
    server.damage = True
    with pytest.raises(UserError, match="damaged"):
        hub.fetch(Address("me/net"))


def test_offline(server: Hub, timm_file: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.repos["me/net"] = {"model.safetensors": timm_file, "config.json": json.dumps(CONFIG).encode()}
    cached = hub.fetch(Address("me/net"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens on the discard port
    again = hub.fetch(Address("me/net"))
    assert (again.path, again.config) == (cached.path, CONFIG)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match="cannot be reached.*--weights FILE"):
        hub.fetch(Address("me/net"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be reached.*--weights FILE"):
        resolve("repvgg_a0", pretrained=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("repvit_m0_6", "releases/download/v1.0/repvit_m0_6_distill_300e.pth and pass --weights FILE"),
        ("repvgg_b1g2", "RepVGG-B1g2-train.pth at https://.*--weights FILE"),
        ("repvgg_b3g2", "no weights were published.*--weights FILE"),
    ],
)
def test_weights_that_are_not_on_the_hub(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve(name, pretrained=True)


def test_configurations() -> None:
    base = Preprocess()
    assert hub.preprocess_of({}, base) == base
    assert hub.preprocess_of({"crop_pct": 0.95}, base).resize == 235
    assert hub.preprocess_of({"crop_mode": "squash", "crop_pct": 1.0}, base).resize is None
    for bad in ({"crop_pct": 0}, {"mean": "x"}, {"std": [0, 0, 0]}, {"input_size": 224}):
        with pytest.raises(UserError, match="pretrained_cfg"):
            hub.preprocess_of({"pretrained_cfg": bad}, base)
