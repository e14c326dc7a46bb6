"""The model table: published sizes, names, preprocessing, and parity with the block equations."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from weights_files import fused_repvgg, fused_repvit, shaken

from repedge.errors import UserError
from repedge.models.registry import MODELS, canonical, create, spec
from repedge.models.repvgg import RepVGG, RepVGGplus
from repedge.models.repvit import RepViT

# Parameters in millions and multiply-accumulates in billions, 1000 classes.
# train params, train MACs: timm's results-imagenet.csv and benchmark-infer-*.csv (counted by fvcore at
#   the input size of the row); B1g2 from mmclassification's configs/repvgg/README.md.
# deploy params, deploy MACs: RepVGG paper, tables 4 and 5 (224x224, parameters cut, not rounded);
#   D2se from mmclassification (rounded); RepViT README (M2.3's 22.9 is the fused one).
# A dash (None) where nobody published a figure.
PUBLISHED: dict[str, tuple[float | None, float | None, float | None, float | None]] = {
    "repvgg_a0": (9.11, 1.52, 8.30, 1.4),
    "repvgg_a1": (14.09, 2.64, 12.78, 2.4),
    "repvgg_a2": (28.21, 5.70, 25.49, 5.1),
    "repvgg_b0": (15.82, 3.41, 14.33, 3.1),
    "repvgg_b1": (57.42, 13.16, 51.82, 11.8),
    "repvgg_b1g2": (45.78, 9.82, 41.36, 8.8),
    "repvgg_b1g4": (39.97, 8.15, 36.12, 7.3),
    "repvgg_b2": (89.02, 20.45, 80.31, 18.4),
    "repvgg_b2g4": (61.76, 12.63, 55.77, 11.3),
    "repvgg_b3": (123.09, 29.16, 110.96, 26.2),
    "repvgg_b3g4": (83.83, 17.89, 75.62, 16.1),
    "repvgg_d2se": (133.33, 74.57, 120.39, None),
    "repvit_m0_9": (5.49, 0.83, 5.1, 0.8),
    "repvit_m1_0": (7.30, 1.13, 6.8, 1.1),
    "repvit_m1_1": (8.80, 1.36, 8.2, 1.3),
    "repvit_m1_5": (14.64, 2.31, 14.0, 2.3),
    "repvit_m2_3": (23.69, 4.57, 22.9, 4.5),
}


def params(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def macs(module: nn.Module, size: tuple[int, int], *, norms: bool = False) -> float:
    """Billions of multiply-accumulates of convolutions and linear layers.

    ``norms`` adds what fvcore adds in eval mode: two per value that a batch normalization puts out.
    """
    total = 0

    def count(m: nn.Module, inputs: object, y: Tensor) -> None:
        nonlocal total
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            total += y.numel() * m.weight[0].numel()
        elif norms:
            total += 2 * y.numel()

    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)):
            m.register_forward_hook(count)
    module.eval()(torch.empty(1, 3, *size, device="meta"))
    return total / 1e9


def agrees(value: float, published: float | None) -> bool:
    """Equal at the published number of digits, rounded or (as the RepVGG paper does) cut."""
    if published is None:
        return True
    digits = len(str(published).split(".")[1])
    return abs(value - published) <= 0.5 * 10**-digits or math.floor(value * 10**digits) == round(
        published * 10**digits
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    train_params, train_macs, deploy_params, deploy_macs = PUBLISHED[name]
    row = MODELS[name]
    with torch.device("meta"):
        train, deploy = create(name), create(name, deploy=True)
    assert agrees(params(train), train_params)
    assert agrees(params(deploy), deploy_params)
    assert agrees(macs(deploy, (224, 224)), deploy_macs)
    # fvcore also counts pooling and means, by its version: 0.1 % at most.
    assert macs(train, row.input_size, norms=True) == pytest.approx(train_macs, rel=1e-3, abs=5e-3)


@pytest.mark.parametrize("width", ["b2", "b3"])
def test_two_groups_lie_between_one_and_four(width: str) -> None:
    """Nobody published B2g2 and B3g2; grouped weights go with 1 / groups."""
    dense, four = (PUBLISHED[f"repvgg_{width}{g}"] for g in ("", "g4"))
    with torch.device("meta"):
        size = params(create(f"repvgg_{width}g2"))
    assert size == pytest.approx(dense[0] - (dense[0] - four[0]) * 2 / 3, abs=0.015)


def test_l2pse_is_d2_with_gates_and_auxiliary_heads() -> None:
    """No size was published: D2se's published one, other gates (1/4 after the ReLU), three heads."""
    widths = [64, *[160] * 8, *[320] * 14, *[640] * 24, 2560]

    def gates(reduction: int) -> float:
        return sum(2 * w * (w // reduction) + w + w // reduction for w in widths) / 1e6

    heads = sum(9 * c * c + 2 * c + 1000 * c + 1000 for c in (160, 320, 640)) / 1e6
    with torch.device("meta"):
        train, deploy = create("repvggplus_l2pse"), create("repvggplus_l2pse", deploy=True)
    assert params(train) == pytest.approx(133.33 - gates(16) + gates(4) + heads, abs=0.01)
    assert params(deploy) == pytest.approx(120.39 - gates(16) + gates(4), abs=0.01)


def test_the_second_head_costs_one_head() -> None:
    with torch.device("meta"):
        one, two = (create("repvit_m0_6", distillation=d) for d in (False, True))
    assert round((params(two) - params(one)) * 1e6) == 320 * 1000 + 1000 + 2 * 320


# --- parity with the block equations, float64, functional ------------------------------------------


def bn(x: Tensor, s: dict[str, Tensor], key: str) -> Tensor:
    shape = (1, -1, 1, 1) if x.dim() == 4 else (1, -1)
    scale = s[key + ".weight"] / (s[key + ".running_var"] + 1e-5).sqrt()
    return (x - s[key + ".running_mean"].view(shape)) * scale.view(shape) + s[key + ".bias"].view(shape)


def gate(x: Tensor, s: dict[str, Tensor], down: str, up: str) -> Tensor:
    z = x.mean((2, 3))
    z = torch.relu(z @ s[down + ".weight"][:, :, 0, 0].T + s[down + ".bias"])
    z = torch.sigmoid(z @ s[up + ".weight"][:, :, 0, 0].T + s[up + ".bias"])
    return x * z[:, :, None, None]


def repvgg_block(x: Tensor, s: dict[str, Tensor], key: str, stride: int) -> Tensor:
    wide = s[key + ".rbr_dense.conv.weight"]
    groups = x.shape[1] // wide.shape[1]
    y = bn(F.conv2d(x, wide, None, stride, 1, 1, groups), s, key + ".rbr_dense.bn")
    narrow = s[key + ".rbr_1x1.conv.weight"]
    y = y + bn(F.conv2d(x, narrow, None, stride, 0, 1, groups), s, key + ".rbr_1x1.bn")
    if key + ".rbr_identity.weight" in s:
        y = y + bn(x, s, key + ".rbr_identity")
    if key + ".se.down.weight" in s:
        y = gate(y, s, key + ".se.down", key + ".se.up")
    y = torch.relu(y)
    return gate(y, s, key + ".post_se.down", key + ".post_se.up") if key + ".post_se.down.weight" in s else y


def repvgg_reference(x: Tensor, s: dict[str, Tensor], stages: dict[str, tuple[int, int]]) -> Tensor:
    """``stages``: key before the block number -> (blocks, stride)."""
    x = repvgg_block(x, s, "stage0", 2)
    for stage, (depth, stride) in stages.items():
        for i in range(depth):
            x = repvgg_block(x, s, f"{stage}.{i}", stride if i == 0 else 1)
    return x.mean((2, 3)) @ s["linear.weight"].T + s["linear.bias"]


def repvit_reference(x: Tensor, s: dict[str, Tensor]) -> Tensor:
    def conv(x: Tensor, key: str, stride: int = 1) -> Tensor:
        w = s[key + ".c.weight"]
        groups = x.shape[1] // w.shape[1]
        return bn(F.conv2d(x, w, None, stride, w.shape[-1] // 2, 1, groups), s, key + ".bn")

    x = conv(F.gelu(conv(x, "features.0.0", 2)), "features.0.2", 2)
    for i in range(1, 1 + max(int(k.split(".")[1]) for k in s if k.startswith("features."))):
        mixer = f"features.{i}.token_mixer"
        if mixer + ".2.c.weight" in s:
            x = conv(conv(x, mixer + ".0", 2), mixer + ".2")
        else:
            w, b = s[mixer + ".0.conv1.weight"], s[mixer + ".0.conv1.bias"]
            y = conv(x, mixer + ".0.conv") + F.conv2d(x, w, b, groups=x.shape[1]) + x
            x = bn(y, s, mixer + ".0.bn")
            if mixer + ".1.fc1.weight" in s:
                x = gate(x, s, mixer + ".1.fc1", mixer + ".1.fc2")
        mlp = f"features.{i}.channel_mixer.m"
        x = x + conv(F.gelu(conv(x, mlp + ".0")), mlp + ".2")
    x = x.mean((2, 3))
    heads = [k.removesuffix(".l.weight") for k in s if k.endswith(".l.weight")]
    scores = [bn(x, s, h + ".bn") @ s[h + ".l.weight"].T + s[h + ".l.bias"] for h in heads]
    return torch.stack(scores).mean(0)


def doubles(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.double() for k, v in module.state_dict().items()}


SMALL: dict[str, Any] = {"depths": (2, 3, 4, 1), "widths": (0.25, 0.25, 0.125, 0.125)}
X = torch.randn(2, 3, 45, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"groups": 2}, {"groups": 4}, {"se": 4}])
@torch.no_grad()
def test_repvgg_follows_the_paper(more: dict) -> None:
    torch.manual_seed(0)
    net = shaken(RepVGG(**SMALL, num_classes=11, **more))
    stages = {f"stage{i + 1}": (d, 2) for i, d in enumerate(SMALL["depths"])}
    want = repvgg_reference(X.double(), doubles(net), stages)
    torch.testing.assert_close(net.double()(X.double()), want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net.float()(X), want.float(), rtol=1e-4, atol=1e-5)
    deploy = RepVGG(**SMALL, num_classes=11, deploy=True, **more).eval()
    deploy.load_state_dict(fused_repvgg(net.state_dict()))
    torch.testing.assert_close(deploy(X), want.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_repvggplus_follows_the_authors() -> None:
    torch.manual_seed(0)
    net = shaken(RepVGGplus(**SMALL, num_classes=11))
    stages = {
        "stage1.blocks": (2, 2),
        "stage2.blocks": (3, 2),
        "stage3_first.blocks": (2, 2),
        "stage3_second.blocks": (2, 1),
        "stage4.blocks": (1, 2),
    }
    want = repvgg_reference(X.double(), doubles(net), stages)
    torch.testing.assert_close(net.double()(X.double()), want, rtol=1e-10, atol=1e-12)
    deploy = RepVGGplus(**SMALL, num_classes=11, deploy=True).eval()
    deploy.load_state_dict(fused_repvgg(net.float().state_dict()))
    torch.testing.assert_close(deploy(X), want.float(), rtol=1e-4, atol=1e-5)
    assert set(net.train()(X)) == {"main", "stage1_aux", "stage2_aux", "stage3_first_aux"}


@pytest.mark.slow
@pytest.mark.parametrize("distillation", [False, True])
@torch.no_grad()
def test_repvit_follows_the_authors(distillation: bool) -> None:
    torch.manual_seed(0)
    config: dict[str, Any] = {"widths": (16, 24, 32, 40), "depths": (3, 1, 5, 2), "num_classes": 11}
    net = shaken(RepViT(**config, distillation=distillation))
    want = repvit_reference(X.double(), doubles(net))
    torch.testing.assert_close(net.double()(X.double()), want, rtol=1e-10, atol=1e-12)
    deploy = RepViT(**config, deploy=True).eval()
    deploy.load_state_dict(fused_repvit(net.float().state_dict()))
    torch.testing.assert_close(deploy(X), want.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_squeeze_excites_stand_where_the_authors_put_them() -> None:
    """Entries of ``features`` with SE, read off the configuration lists of model/repvit.py."""
    where = {
        "repvit_m0_6": [1, 4, 7, 9, 11, 13, 17],
        "repvit_m0_9": [1, 5, 9, 11, 13, 15, 17, 19, 21, 25],
        "repvit_m1_5": [1, 3, 7, 9, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 39, 41],
    }
    for name, want in where.items():
        with torch.device("meta"):
            keys = create(name).state_dict()
        assert [int(k.split(".")[1]) for k in keys if k.endswith("token_mixer.1.fc1.weight")] == want


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("RepVGG-A0", "repvgg_a0"),
        ("repvgg_a0", "repvgg_a0"),
        ("RepVGG-B1g4", "repvgg_b1g4"),
        ("RepVGGplus-L2pse", "repvggplus_l2pse"),
        ("RepViT-M0.9", "repvit_m0_9"),
        ("repvit m2.3", "repvit_m2_3"),
    ],
)
def test_names_in_any_spelling(typed: str, name: str) -> None:
    assert canonical(typed) == name
    assert spec(typed).name == name


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("repvit_m0_8", "repvit_m0_9"), ("regvgg_a2", "repvgg_a2"), ("xyz", "repedge models")],
)
def test_unknown_names_get_a_hint(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=meant):
        canonical(typed)


def test_every_model_of_the_issue_is_there() -> None:
    vgg = ["a0", "a1", "a2", "b0", "b1", "b1g2", "b1g4", "b2", "b2g2", "b2g4", "b3", "b3g2", "b3g4", "d2se"]
    vit = ["m0_6", "m0_9", "m1_0", "m1_1", "m1_5", "m2_3"]
    named = {f"repvgg_{v}" for v in vgg} | {"repvggplus_l2pse"} | {f"repvit_{v}" for v in vit}
    friendly = [f"qarepvgg_{v}" for v in ("a0", "a1", "a2", "b0", "b1", "b1g2", "b1g4", "b2", "b2g4")]
    friendly += [f"repopt_vgg_{v}" for v in ("b1", "b2", "l1", "l2")]
    assert {n for n, row in MODELS.items() if not row.headed} == {
        *named,
        *friendly,
        "repvit_demo",
        "repvgg_demo",
    }


@pytest.mark.parametrize(
    ("name", "size", "resize", "filter_"),
    [
        ("repvgg_a0", (224, 224), 256, "bilinear"),  # crop 0.875
        ("repvgg_d2se", (320, 320), 320, "bilinear"),  # crop 1
        ("repvit_m0_9", (224, 224), 235, "bicubic"),  # crop 0.95, rounded down as timm's evaluation does
        ("repvit_demo", (64, 64), None, "bilinear"),  # squashed
    ],
)
def test_preprocessing(name: str, size: tuple, resize: int | None, filter_: str) -> None:
    pre = spec(name).preprocess
    assert (pre.size, pre.resize, pre.interpolation) == (size, resize, filter_)
    assert len(pre.mean) == len(pre.std) == 3


def test_where_the_weights_live() -> None:
    assert spec("repvgg_b3g4").hub == "timm/repvgg_b3g4.rvgg_in1k"
    assert spec("repvgg_b3g4").release.startswith("RepVGG-B3g4-200epochs-train.pth at https://")
    assert spec("repvit_m2_3").hub == "timm/repvit_m2_3.dist_450e_in1k"
    assert spec("repvit_m0_6").hub == ""
    assert spec("repvit_m0_6").release.endswith("/v1.0/repvit_m0_6_distill_300e.pth")


@pytest.mark.slow
def test_one_channel_networks() -> None:
    for name in ("repvgg_demo", "repvit_demo"):
        net = create(name, in_channels=1).eval()
        assert net(torch.zeros(1, 1, 33, 57)).shape == (1, 10)


@pytest.mark.slow
def test_the_table_needs_no_torch() -> None:
    use = "import sys, repedge.models.registry as r; r.spec('RepVGG-A0').preprocess"
    code = f"{use}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
