"""Checkpoint files: layouts, forms, nesting, prefixes, and everything that can be wrong with one."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from weights_files import fused_repvgg, fused_repvit, repvgg_in_timm, repvit_in_timm, shaken

from repedge.errors import UserError
from repedge.models.checkpoints import identify, load_checkpoint, load_into, load_strictly
from repedge.models.registry import create

State = dict[str, Tensor]
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def network(name: str, **more) -> nn.Module:
    torch.manual_seed(0)
    return shaken(create(name, **more))


@torch.no_grad()
def same(net: nn.Module, other: nn.Module, rtol: float = 0.0) -> None:
    assert not other.training
    torch.testing.assert_close(other(X), net(X), rtol=rtol, atol=rtol)


@pytest.fixture
def small() -> State:
    return network("repvgg_demo").state_dict()


# --- layouts and forms ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("classes", [7, 200])
def test_repvgg_in_all_layouts_and_forms(classes: int) -> None:
    net = network("repvgg_a0", num_classes=classes)
    official = net.state_dict()
    fused = fused_repvgg(official)
    for state, form, layout in (
        (official, "training", "official"),
        (repvgg_in_timm(official), "training", "timm"),
        (fused, "deploy", "official"),
        (repvgg_in_timm(fused), "deploy", "timm"),
    ):
        loaded, finding = load_into("repvgg_a0", state)
        same(net, loaded, 0.0 if form == "training" else 1e-4)
        assert str(finding) == f"{form} form, {classes} classes, {layout} layout, looks like repvgg_a0"


@pytest.mark.slow
@pytest.mark.parametrize("distillation", [False, True])
def test_repvit_in_all_layouts_and_forms(distillation: bool) -> None:
    net = network("repvit_m0_9", num_classes=20, distillation=distillation)
    official = net.state_dict()
    fused = fused_repvit(official)
    depths = (2, 2, 14, 2)  # of timm's repvit_m0_9
    head = "distillation head" if distillation else "no distillation head"
    for state, found in (
        (official, f"training form, 20 classes, {head}, official layout"),
        (repvit_in_timm(official, depths), f"training form, 20 classes, {head}, timm layout"),
        (fused, "deploy form, 20 classes, official layout"),
        (repvit_in_timm(fused, depths), "deploy form, 20 classes, timm layout"),
    ):
        loaded, finding = load_into("repvit_m0_9", state)
        same(net, loaded, 0.0 if "training" in found else 1e-4)
        assert str(finding) == f"{found}, looks like repvit_m0_9"


@pytest.mark.slow
def test_timm_names_are_timms() -> None:
    """A few names copied from real files' listings, so that writer and reader can't err alike."""
    with torch.device("meta"):
        vit = repvit_in_timm(create("repvit_m0_9").state_dict(), (2, 2, 14, 2))
        vgg = repvgg_in_timm(create("repvgg_d2se").state_dict())
    for key in (
        "stem.conv1.c.weight",
        "stages.0.blocks.0.token_mixer.conv.bn.running_var",
        "stages.0.blocks.0.se.fc1.weight",
        "stages.2.downsample.pre_block.token_mixer.conv1.bias",
        "stages.2.downsample.spatial_downsample.c.weight",
        "stages.2.downsample.channel_downsample.bn.bias",
        "stages.2.downsample.ffn.conv2.bn.weight",
        "stages.2.blocks.13.channel_mixer.conv1.c.weight",
        "head.head.l.bias",
        "head.head_dist.bn.running_mean",
    ):
        assert key in vit
    for key in (
        "stem.conv_kxk.conv.weight",
        "stages.0.1.identity.weight",
        "stages.3.0.conv_1x1.bn.bias",
        "stages.2.23.attn.fc2.bias",
        "head.fc.weight",
    ):
        assert key in vgg


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["repvgg_b1g2", "repvgg_b2g4", "repvgg_d2se", "repvggplus_l2pse", "repvit_m2_3"]
)
def test_every_size_is_recognized(name: str) -> None:
    for deploy in (False, True):
        with torch.device("meta"):
            state = create(name, num_classes=5, deploy=deploy).state_dict()
        finding = identify(state)
        assert (finding.name, finding.num_classes) == (name, 5)
        assert finding.form == ("deploy" if deploy else "training")
        assert finding.aux == (name == "repvggplus_l2pse" and not deploy)


def test_auxiliary_heads_may_be_absent() -> None:
    with torch.device("meta"):
        state = create("repvggplus_l2pse").state_dict()
        finding = load_into("repvggplus_l2pse", {k: v for k, v in state.items() if "_aux" not in k})[1]
    assert not finding.aux
    assert finding.form == "training"


@pytest.mark.slow
def test_grey_images(small: State) -> None:
    net = network("repvgg_demo", in_channels=1)
    loaded, finding = load_into("repvgg_demo", net.state_dict())
    assert loaded(torch.zeros(1, 1, 64, 64)).shape == (1, 10)
    assert "1 input channel," in str(finding)


@pytest.mark.slow
def test_counters_may_be_absent_or_too_many(small: State) -> None:
    bare = {k: v for k, v in small.items() if not k.endswith("num_batches_tracked")}
    same(network("repvgg_demo"), load_into("repvgg_demo", bare)[0])


# --- files ----------------------------------------------------------------------------------------


def saved(path: Path, what: object, **options) -> Path:
    torch.save(what, path, **options)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".safetensors"])
def test_formats(tmp_path: Path, small: State, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_file(small, path)
    else:
        torch.save(small, path)
    state = load_checkpoint(path)
    assert state.keys() == small.keys()
    for key, value in small.items():
        assert torch.equal(state[key], value)


def test_files_older_than_torch_1_6(tmp_path: Path, small: State) -> None:
    path = saved(tmp_path / "old.pth", small, _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint(path)["linear.weight"], small["linear.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, small: State, dtype: torch.dtype) -> None:
    path = tmp_path / "half.safetensors"
    save_file({k: v.to(dtype) if v.is_floating_point() else v for k, v in small.items()}, path)
    state = load_checkpoint(path)
    assert {t.dtype for t in state.values()} == {torch.float32, torch.int64}
    assert torch.equal(state["linear.weight"], small["linear.weight"].to(dtype).float())
    assert f"stored as {str(dtype).removeprefix('torch.')}" in str(identify(state))
    assert {p.dtype for p in load_into("repvgg_demo", state)[0].parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.model."]
)
def test_prefixes(tmp_path: Path, small: State, prefix: str) -> None:
    path = saved(tmp_path / "net.pth", {prefix + k: v for k, v in small.items()})
    assert load_checkpoint(path).keys() == small.keys()


def test_compiled_submodules(tmp_path: Path, small: State) -> None:
    path = saved(
        tmp_path / "net.pth", {k.replace("stage2.", "stage2._orig_mod."): v for k, v in small.items()}
    )
    assert load_checkpoint(path).keys() == small.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nested", "entry"),
    [
        (lambda s: {"model": s, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}, "model"),
        (lambda s: {"state_dict": OrderedDict(s), "arch": "x"}, "state_dict"),
        (lambda s: {"model_ema": s}, "model_ema"),
        (lambda s: {"ema": {"state_dict": s}, "updates": 2}, "ema.state_dict"),
        (lambda s: {"generator": s}, "generator"),
    ],
)
def test_nesting(tmp_path: Path, small: State, nested, entry: str) -> None:
    state = load_checkpoint(saved(tmp_path / "net.pth", nested(small)))
    assert state.keys() == small.keys()
    assert f"from its entry '{entry}'" in str(identify(state))


def test_averaged_weights_beside_the_plain_ones_are_told(tmp_path: Path, small: State) -> None:
    ema = {k: torch.zeros_like(v) for k, v in small.items()}
    state = load_checkpoint(saved(tmp_path / "net.pth", {"model_ema": ema, "model": small}))
    assert torch.equal(state["linear.weight"], small["linear.weight"])
    assert "it also has model_ema" in str(identify(state))


def test_weights_outlive_their_file(tmp_path: Path, small: State) -> None:
    for path in (saved(tmp_path / "net.pth", small), tmp_path / "net.safetensors"):
        if path.suffix == ".safetensors":
            save_file(small, path)
        state = load_checkpoint(path)
        path.write_bytes(b"\0" * path.stat().st_size)
        assert torch.equal(state["linear.weight"], small["linear.weight"])


# --- what can be wrong ----------------------------------------------------------------------------


def refuses(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (path.name, *words):
        assert word in message


def test_missing_folder_empty_and_foreign_files(tmp_path: Path) -> None:
    refuses(tmp_path / "absent.pth", "there is no file")
    (tmp_path / "dir.pth").mkdir()
    refuses(tmp_path / "dir.pth", "folder")
    for name, content, word in (
        ("empty.pth", b"", "empty"),
        ("empty.safetensors", b"", "empty"),
        ("photo.pth", b"\x89PNG\r\n\x1a\n" * 30, "no checkpoint"),
        ("photo.safetensors", b"\x89PNG\r\n\x1a\n" * 30, "not a whole safetensors file"),
        ("notes.txt", b"hello", ".safetensors"),
        ("net.onnx", b"hello", "pass it as the model"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("login.safetensors", b"<!DOCTYPE html><html></html>", "web page"),
    ):
        (tmp_path / name).write_bytes(content)
        refuses(tmp_path / name, word)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.pth")
    refuses(tmp_path / "net.pth", "pipe")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["net.pth", "old.pth", "net.safetensors"])
def test_truncated(tmp_path: Path, small: State, kind: str, share: float) -> None:
    path = tmp_path / kind
    if kind.endswith("safetensors"):
        save_file(small, path)
    else:
        torch.save(small, path, _use_new_zipfile_serialization=kind != "old.pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refuses(path, "again")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_run_code_are_refused(tmp_path: Path, small: State, zipped: bool) -> None:
    trace = tmp_path / "ran"
    path = tmp_path / "bomb.pth"
    torch.save({**small, "bomb": Bomb(trace)}, path, _use_new_zipfile_serialization=zipped)
    refuses(path, "Python objects", "mkdir", ".safetensors")
    path.write_bytes(pickle.dumps(Bomb(trace)))
    refuses(path)
    assert not trace.exists()


def test_zip_bombs_are_not_unpacked(tmp_path: Path, small: State) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(4_000_000)}, buffer)
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert path.stat().st_size < 100_000
    refuses(path, "unpacks to")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(tmp_path: Path, small: State, value: float) -> None:
    small["stage2.1.rbr_1x1.bn.bias"][3] = value
    refuses(saved(tmp_path / "nan.pth", small), "stage2.1.rbr_1x1.bn.bias", "1 of the")


def test_negative_variances(tmp_path: Path, small: State) -> None:
    small["stage0.rbr_1x1.bn.running_var"][0] = -1
    refuses(saved(tmp_path / "net.pth", small), "negative variances")


@pytest.mark.parametrize("what", [{"epoch": 3, "lr": 0.1}, {}, [1, 2], torch.zeros(3), {"a": {"b": {}}}])
def test_files_without_weights(tmp_path: Path, what: object) -> None:
    refuses(saved(tmp_path / "net.pth", what))


# --- what does not fit ----------------------------------------------------------------------------


def misfit(name: str, state: State) -> str:
    with pytest.raises(UserError) as caught:
        load_into(name, state)
    return str(caught.value)


def test_another_size_of_the_family() -> None:
    with torch.device("meta"):
        message = misfit("repvit_m1_0", create("repvit_m0_9", num_classes=9).state_dict())
    assert "keys of the wrong shape (features.0.0.c.weight is [24, 3, 3, 3], not [28, 3, 3, 3]; " in message
    assert message.endswith("; it looks like repvit_m0_9, training form, 9 classes")


def test_another_family_in_timm_names() -> None:
    with torch.device("meta"):
        message = misfit("repvit_m1_0", repvgg_in_timm(create("repvgg_a0", deploy=True).state_dict()))
    assert "605 keys missing (features.0.0.c.weight; " in message
    assert "unexpected (stem.reparam_conv.weight; " in message  # the file's own names
    assert message.endswith("; it looks like repvgg_a0, deploy form, 1000 classes")


def test_missing_and_unexpected_keys_are_counted(small: State) -> None:
    del small["linear.bias"]
    small["extra"] = torch.zeros(1)
    message = misfit("repvgg_demo", small)
    assert "1 key missing (linear.bias), 1 key unexpected (extra)" in message
    assert "looks like" not in message


def test_backbones_without_a_classifier(small: State) -> None:
    message = misfit("repvgg_demo", {k: v for k, v in small.items() if not k.startswith("linear")})
    assert "2 keys missing (linear.weight; linear.bias)" in message


def test_integer_weights(small: State) -> None:
    small["linear.weight"] = small["linear.weight"].to(torch.int8)
    assert "1 key not floating point (linear.weight is int8)" in misfit("repvgg_demo", small)


def test_something_else() -> None:
    state = {"conv.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}
    assert "neither a RepVGG nor a RepViT" in misfit("repvgg_a0", state)
    finding = identify(state)
    assert finding.family is None
    assert "2 tensors such as conv.weight, fc.bias" in str(finding)


def test_an_unnamed_size() -> None:
    from repedge.models.repvgg import RepVGG

    with torch.device("meta"):
        finding = identify(RepVGG((2, 2, 2, 1), (1, 1, 1, 1)).state_dict())
    assert finding.name is None
    assert "a repvgg of no known size" in str(finding)


def test_users_own_modules() -> None:
    state = {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2)}
    net = load_strictly(nn.Sequential(nn.Linear(3, 2)), state)
    assert torch.equal(net(torch.ones(1, 3)), torch.full((1, 2), 4.0))
    with pytest.raises(UserError, match=r"1 key missing \(0.weight\), 1 key unexpected \(1.weight\)"):
        load_strictly(
            nn.Sequential(nn.Linear(3, 2)), {"1.weight": state["0.weight"], "0.bias": state["0.bias"]}
        )
