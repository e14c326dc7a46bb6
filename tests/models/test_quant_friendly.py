"""QARepVGG and RepOpt-VGG: published sizes, keys, fusing, and the optimizer's scales."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from weights_files import State, shaken

import repedge
from repedge import passes
from repedge.errors import UserError
from repedge.graph.export import export_module
from repedge.graph.run import Session
from repedge.models.checkpoints import identify, load_into
from repedge.models.qarepvgg import QARepVGG
from repedge.models.registry import create, spec
from repedge.models.repopt import (
    BlockScales,
    RepOptSearch,
    RepOptVGG,
    SearchBlock,
    merged,
    read_scales,
    reparameterize,
)
from repedge.models.repvgg import RepVGG
from repedge.passes.fusion.fuse import fuse

SMALL: dict[str, Any] = {"depths": (2, 3, 4, 1), "widths": (0.25, 0.25, 0.125, 0.125)}
X = torch.randn(2, 3, 45, 64, generator=torch.Generator().manual_seed(1))

# Trained parameters of the training form. QARepVGG-B0: `n_parameters` in the authors' B0_log.txt; of the
# others nobody published one. RepOpt-VGG in millions: the table in RepOptimizers' README.
TRAINING = {"qarepvgg_b0": 15808616}
MILLIONS = {"repopt_vgg_b1": 51.8, "repopt_vgg_b2": 80.3, "repopt_vgg_l1": 76.0, "repopt_vgg_l2": 118.1}
# Deploy form: QARepVGG's is RepVGG's (arXiv:2212.01593, figure 1), whose sizes the RepVGG paper has.
DEPLOYED = {
    "qarepvgg_a0": 8.30,
    "qarepvgg_a1": 12.78,
    "qarepvgg_a2": 25.49,
    "qarepvgg_b0": 14.33,
    "qarepvgg_b1": 51.82,
    "qarepvgg_b1g2": 41.36,
    "qarepvgg_b1g4": 36.12,
    "qarepvgg_b2": 80.31,
    "qarepvgg_b2g4": 55.77,
}


def size(name: str, **more: bool) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create(name, **more).parameters())


def test_training_forms_have_the_published_sizes() -> None:
    assert {name: size(name) for name in TRAINING} == TRAINING
    assert {name: round(size(name) / 1e6, 1) for name in MILLIONS} == MILLIONS


def test_deploy_forms_have_the_published_sizes() -> None:
    cut = {name: int(size(name, deploy=True) / 1e4) / 100 for name in DEPLOYED}
    assert cut == DEPLOYED


# --- the block equations, float64 -----------------------------------------------------------------


def affine(s: State, key: str) -> tuple[Tensor, Tensor]:
    scale = s[key + ".weight"] / (s[key + ".running_var"] + 1e-5).sqrt()
    return scale.view(-1, 1, 1, 1), s[key + ".bias"] - s[key + ".running_mean"] * scale


def qarepvgg_kernel(s: State, key: str) -> tuple[Tensor, Tensor]:
    """``BN(BN(3x3) + 1x1 + identity)`` as one kernel and bias, written as the paper has it."""
    dense = s[key + ".rbr_dense.conv.weight"]
    inner, bias = affine(s, key + ".rbr_dense.bn")
    kernel = dense * inner + F.pad(s[key + ".rbr_1x1.weight"], (1, 1, 1, 1))
    if not key.endswith((".0", "stage0")):  # neither the width nor the resolution changes
        for i in range(len(kernel)):
            kernel[i, i % kernel.shape[1], 1, 1] += 1
    outer, shift = affine(s, key + ".bn")
    return kernel * outer, bias * outer.flatten() + shift


def repopt_kernel(s: State, key: str) -> tuple[Tensor, Tensor]:
    scale, shift = affine(s, key + ".bn")
    return s[key + ".conv.weight"] * scale, shift


def blocks_of(depths: tuple[int, ...]) -> list[str]:
    return ["stage0", *(f"stage{n}.{i}" for n, depth in enumerate(depths, 1) for i in range(depth))]


def fused(state: State, kernel_of, name: str) -> State:
    """Deploy form of a training-form state dict; ``name``: what the merged convolution is called."""
    out = {k: v for k, v in state.items() if k.startswith("linear.")}
    for key in blocks_of(SMALL["depths"]):
        out[f"{key}.{name}.weight"], out[f"{key}.{name}.bias"] = kernel_of(state, key)
    return out


def doubles(net: nn.Module) -> State:
    return {k: v.double() for k, v in net.state_dict().items()}


CASES = [
    (QARepVGG, {}, qarepvgg_kernel, "rbr_reparam"),
    (QARepVGG, {"groups": 4}, qarepvgg_kernel, "rbr_reparam"),
    (RepOptVGG, {}, repopt_kernel, "conv"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("network", "more", "kernel_of", "name"), CASES)
@torch.no_grad()
def test_both_forms_are_one_function(network, more, kernel_of, name) -> None:
    torch.manual_seed(0)
    net = shaken(network(**SMALL, num_classes=11, **more)).double()
    deploy = network(**SMALL, num_classes=11, deploy=True, **more).eval().double()
    deploy.load_state_dict(fused(doubles(net), kernel_of, name))
    torch.testing.assert_close(deploy(X.double()), net(X.double()), rtol=1e-11, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "more", "kernel_of", "name"), CASES)
@torch.no_grad()
def test_repedge_fuses_them_to_plain_convolutions(network, more, kernel_of, name) -> None:
    torch.manual_seed(0)
    net = shaken(network(**SMALL, num_classes=11, **more))
    model = export_module(net, (1, *X.shape[1:]))
    passes.canonicalize(model)
    merges = fuse(model)
    passes.simplify(model)
    blocks = blocks_of(SMALL["depths"])
    assert Counter(node.op_type for node in model.graph) == {
        "Conv": len(blocks),
        "Relu": len(blocks),
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }
    assert merges.left == []
    want = net.double()(X[:1].double()).numpy()
    (got,) = Session(model, 1).run(X[:1].numpy())
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


def test_the_deploy_form_of_qarepvgg_is_repvggs() -> None:
    with torch.device("meta"):
        ours, theirs = (n(**SMALL, deploy=True).state_dict() for n in (QARepVGG, RepVGG))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_forms_that_do_not_fuse_are_not_built() -> None:
    with pytest.raises(ValueError, match="squeeze-excite"):
        QARepVGG(**SMALL, se=16)


# --- checkpoints ------------------------------------------------------------------------------------

# Copied from the authors' code, so that writer and reader can't err alike.
KEYS = {
    "qarepvgg_a0": (
        "stage0.rbr_dense.conv.weight",
        "stage0.rbr_dense.bn.running_var",
        "stage0.rbr_1x1.weight",
        "stage0.bn.weight",
        "stage3.13.bn.num_batches_tracked",
        "stage4.0.rbr_1x1.weight",
        "linear.bias",
    ),
    "repopt_vgg_b1": ("stage0.conv.weight", "stage0.bn.bias", "stage3.15.conv.weight", "linear.weight"),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_the_authors(name: str) -> None:
    with torch.device("meta"):
        keys = set(create(name).state_dict())
    assert keys >= set(KEYS[name])
    assert len(keys) == {"qarepvgg_a0": 22 * 12 + 2, "repopt_vgg_b1": 28 * 6 + 2}[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qarepvgg_a0", "qarepvgg_b1g2", "qarepvgg_b2g4", "repopt_vgg_l2"])
def test_every_form_is_recognized_and_loads(name: str) -> None:
    for deploy in (False, True):
        with torch.device("meta"):
            state = create(name, num_classes=5, deploy=deploy).state_dict()
        finding = identify(state)
        plain = deploy and name.startswith("qa")  # the same keys as RepVGG's: that is what it looks like
        assert finding.name == (name.replace("qarepvgg", "repvgg") if plain else name)
        assert (finding.form, finding.num_classes) == ("deploy" if deploy else "training", 5)
        net, found = load_into(name, state)
        assert found.name == name
        assert isinstance(net, RepOptVGG if "repopt" in name else QARepVGG)


def test_a_checkpoint_of_the_other_kind_is_refused() -> None:
    with torch.device("meta"):
        state = create("qarepvgg_a0").state_dict()
        with pytest.raises(UserError, match=r"does not fit repvgg_a0: .* it looks like qarepvgg_a0"):
            load_into("repvgg_a0", state)


@pytest.mark.slow
def test_inspect_says_what_it_is(tmp_path: Path) -> None:
    net = create("qarepvgg_a0", num_classes=3)
    torch.save({"model": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "qa.pth")
    found = repedge.inspect(tmp_path / "qa.pth").found
    assert "training form, 3 classes, official layout, looks like qarepvgg_a0" in found


@pytest.mark.parametrize(
    ("typed", "name"), [("RepOpt-VGG-B1", "repopt_vgg_b1"), ("QARepVGG-B1g4", "qarepvgg_b1g4")]
)
def test_names(typed: str, name: str) -> None:
    assert spec(typed).name == name


# --- RepOptimizer -----------------------------------------------------------------------------------


def searched(**more) -> RepOptSearch:
    torch.manual_seed(0)
    net = RepOptSearch(**SMALL, num_classes=5, **more)
    with torch.no_grad():
        for key, p in net.named_parameters():
            if "scale_" in key:
                p.uniform_(0.3, 1.2)
    return net


@pytest.mark.parametrize("alone", [True, False])
def test_scales_come_from_scales_files_and_search_checkpoints(tmp_path: Path, alone: bool) -> None:
    state = searched().state_dict()
    kept = {k: v for k, v in state.items() if "scale_" in k or not alone}
    torch.save(kept if alone else {"model": kept, "epoch": 3}, tmp_path / "scales.pth")
    scales = read_scales(tmp_path / "scales.pth")
    assert list(scales) == blocks_of(SMALL["depths"])
    assert torch.equal(scales["stage3.1"].dense, state["stage3.1.scale_conv.weight"])
    assert torch.equal(scales["stage3.1"].pointwise, state["stage3.1.scale_1x1.weight"])
    assert torch.equal(scales["stage3.1"].identity, state["stage3.1.scale_identity.weight"])
    assert scales["stage3.0"].identity is None
    assert "RepOptimizer's scales" in str(identify(kept))
    with pytest.raises(UserError, match="RepOptimizer's scales .*; train with them"):
        load_into("repopt_vgg_b1", kept)


def test_scales_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(searched().state_dict(), tmp_path / "scales.pth")
    scales = read_scales(tmp_path / "scales.pth")
    with pytest.raises(UserError, match="of another network: 11 blocks, not 10"):
        reparameterize(RepOptVGG((2, 3, 3, 1), SMALL["widths"]), scales)
    with pytest.raises(UserError, match="of another network: stage0 has 32 channels, its scales 16"):
        reparameterize(RepOptVGG(SMALL["depths"], (0.5, 0.25, 0.125, 0.125)), scales)
    with pytest.raises(UserError, match="deploy form"):
        reparameterize(RepOptVGG(**SMALL, deploy=True), scales)
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "none.pth")
    with pytest.raises(UserError, match="has no RepOptimizer scales in it"):
        read_scales(tmp_path / "none.pth")


def scales_of(net: RepOptSearch) -> dict[str, BlockScales]:
    return {
        name: BlockScales(
            block.scale_conv.weight.detach().clone(),
            block.scale_1x1.weight.detach().clone(),
            None if block.scale_identity is None else block.scale_identity.weight.detach().clone(),
        )
        for name, block in net.named_modules()
        if isinstance(block, SearchBlock)
    }


def kernels(net: RepOptSearch) -> dict[str, Tensor]:
    """The merged kernel of every block as it stands."""
    now = scales_of(net)
    return {
        name: merged(block.conv.weight.detach(), block.conv_1x1.weight.detach(), now[name])
        for name, block in net.named_modules()
        if isinstance(block, SearchBlock)
    }


def trained(net: nn.Module, steps: int = 4) -> list[float]:
    """Losses of a few steps of SGD with all that the equivalence allows: momentum, decay, Nesterov."""
    rng = torch.Generator().manual_seed(3)
    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2)
    losses = []
    for _ in range(steps):
        x = torch.randn(8, 3, 48, 48, generator=rng, dtype=torch.float64)
        loss = F.cross_entropy(net.train()(x), torch.arange(8) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_training_is_the_branched_networks() -> None:
    """Paper, 3.1: constant scales with branches = a plain network with the factors on its gradients."""
    branched = searched().double()
    for key, p in branched.named_parameters():
        if "scale_conv" in key or "scale_1x1" in key:
            p.requires_grad_(False)
    plain = RepOptVGG(**SMALL, num_classes=5).double()
    reparameterize(plain, scales_of(branched))
    same = {k: v for k, v in branched.state_dict().items() if k in plain.state_dict()}
    plain.load_state_dict(same | {f"{k}.conv.weight": v for k, v in kernels(branched).items()})
    want, got = trained(branched), trained(plain)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    for key, kernel in kernels(branched).items():
        torch.testing.assert_close(plain.state_dict()[f"{key}.conv.weight"], kernel, rtol=1e-8, atol=1e-10)


def test_fresh_kernels_start_as_merged_branches() -> None:
    """Scales of zero but for the identity leave the identity; handles give gradients back."""
    torch.manual_seed(0)
    plain = RepOptVGG(**SMALL)
    identity_alone = {
        name: BlockScales(
            torch.zeros_like(scale.dense),
            torch.zeros_like(scale.pointwise),
            None if scale.identity is None else torch.ones_like(scale.identity),
        )
        for name, scale in scales_of(searched()).items()
    }
    handles = reparameterize(plain, identity_alone)
    kernel = plain.get_parameter("stage3.2.conv.weight")
    assert torch.equal(kernel[:, :, 1, 1], torch.eye(len(kernel)))
    assert kernel.count_nonzero() == len(kernel)
    kernel.sum().backward()
    assert torch.equal(kernel.grad[:, :, 1, 1], torch.eye(len(kernel)))
    for handle in handles:
        handle.remove()
    kernel.grad = None
    kernel.sum().backward()
    assert torch.equal(kernel.grad, torch.ones_like(kernel))
