"""State dicts in the layouts and forms that people have, made from our own networks.

The timm names are spelled out from ``timm/models/{byobnet,repvit}.py``, the fused weights from the
papers' equations, both independently of ``repedge.models``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Eval mode, with batch-norm statistics and scales far from the defaults."""
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert m.running_mean is not None
            assert m.running_var is not None
            with torch.no_grad():
                m.weight.uniform_(0.5, 1.5, generator=g)
                m.bias.normal_(0, 0.2, generator=g)
                m.running_mean.normal_(0, 0.2, generator=g)
                m.running_var.uniform_(0.5, 2, generator=g)
    return module.eval()


# --- timm's names ---------------------------------------------------------------------------------

REPVGG_TIMM = (
    ("rbr_dense.", "conv_kxk."),
    ("rbr_1x1.", "conv_1x1."),
    ("rbr_identity.", "identity."),
    ("rbr_reparam.", "reparam_conv."),
    ("se.down.", "attn.fc1."),
    ("se.up.", "attn.fc2."),
    ("stage0.", "stem."),
    ("stage1.", "stages.0."),
    ("stage2.", "stages.1."),
    ("stage3.", "stages.2."),
    ("stage4.", "stages.3."),
    ("linear.", "head.fc."),
)


def repvgg_in_timm(state: State) -> State:
    out = {}
    for key, value in state.items():
        for ours, theirs in REPVGG_TIMM:
            key = key.replace(ours, theirs)
        out[key] = value
    return out


def repvit_in_timm(state: State, depths: tuple[int, int, int, int]) -> State:
    """``depths`` as timm counts: without the pre-block of each downsampling."""
    names = {
        "features.0.0.": "stem.conv1.",
        "features.0.2.": "stem.conv2.",
        "classifier.classifier.": "head.head.",
        "classifier.classifier_dist.": "head.head_dist.",
        "classifier.weight": "head.weight",
        "classifier.bias": "head.bias",
    }
    number = 1
    for stage, depth in enumerate(depths):
        if stage > 0:
            names |= _block(number, f"stages.{stage}.downsample.pre_block.")
            down, ours = f"stages.{stage}.downsample.", f"features.{number + 1}."
            names[ours + "token_mixer.0."] = down + "spatial_downsample."
            names[ours + "token_mixer.2."] = down + "channel_downsample."
            names[ours + "channel_mixer.m.0."] = down + "ffn.conv1."
            names[ours + "channel_mixer.m.2."] = down + "ffn.conv2."
            number += 2
        for i in range(depth):
            names |= _block(number, f"stages.{stage}.blocks.{i}.")
            number += 1
    out = {}
    for key, value in state.items():
        (ours,) = [n for n in names if key.startswith(n)]
        out[names[ours] + key[len(ours) :]] = value
    return out


def _block(number: int, theirs: str) -> dict[str, str]:
    ours = f"features.{number}."
    return {
        ours + "token_mixer.0.": theirs + "token_mixer.",
        ours + "token_mixer.1.": theirs + "se.",
        ours + "channel_mixer.m.0.": theirs + "channel_mixer.conv1.",
        ours + "channel_mixer.m.2.": theirs + "channel_mixer.conv2.",
    }


# --- deploy form, from the block equations in float64 ---------------------------------------------


def _affine(state: State, bn: str) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch normalization."""
    scale = state[bn + "weight"].double() / (state[bn + "running_var"].double() + 1e-5).sqrt()
    return scale, state[bn + "bias"].double() - state[bn + "running_mean"].double() * scale


def _conv_bn(state: State, conv: str, bn: str) -> tuple[Tensor, Tensor]:
    scale, shift = _affine(state, bn)
    return state[conv + "weight"].double() * scale.view(-1, 1, 1, 1), shift


def _in_3x3(kernel: Tensor) -> Tensor:
    return nn.functional.pad(kernel, (1, 1, 1, 1))


def fused_repvgg(state: State) -> State:
    """RepVGG paper, 3.3: three branches -> one 3x3 convolution with a bias."""
    out = {k: v for k, v in state.items() if "rbr_" not in k and "_aux" not in k}
    for key in state:
        if not key.endswith("rbr_dense.conv.weight"):
            continue
        block = key.removesuffix("rbr_dense.conv.weight")
        kernel, bias = _conv_bn(state, block + "rbr_dense.conv.", block + "rbr_dense.bn.")
        small, shift = _conv_bn(state, block + "rbr_1x1.conv.", block + "rbr_1x1.bn.")
        kernel, bias = kernel + _in_3x3(small), bias + shift
        if block + "rbr_identity.weight" in state:
            scale, shift = _affine(state, block + "rbr_identity.")
            eye = torch.zeros_like(kernel)
            for i in range(len(kernel)):
                eye[i, i % kernel.shape[1], 1, 1] = scale[i]
            kernel, bias = kernel + eye, bias + shift
        out[block + "rbr_reparam.weight"], out[block + "rbr_reparam.bias"] = kernel.float(), bias.float()
    return out


def fused_repvit(state: State) -> State:
    """RepViT paper, 3.2, and averaged heads: ``replace_batchnorm``'s result."""
    out = {}
    for key, value in state.items():
        if key.endswith(".conv.c.weight"):
            mixer = key.removesuffix("conv.c.weight")
            kernel, bias = _conv_bn(state, mixer + "conv.c.", mixer + "conv.bn.")
            eye = _in_3x3(torch.ones(len(kernel), 1, 1, 1, dtype=torch.float64))
            kernel = kernel + _in_3x3(state[mixer + "conv1.weight"].double()) + eye
            scale, shift = _affine(state, mixer + "bn.")
            bias = (bias + state[mixer + "conv1.bias"].double()) * scale + shift
            out[mixer + "weight"], out[mixer + "bias"] = kernel * scale.view(-1, 1, 1, 1), bias
        elif key.endswith(".c.weight"):
            layer = key.removesuffix("c.weight")
            out[layer + "weight"], out[layer + "bias"] = _conv_bn(state, layer + "c.", layer + "bn.")
        elif ".token_mixer.1." in key:  # squeeze-excite
            out[key] = value
    heads = [k.removesuffix("l.weight") for k in state if k.endswith(".l.weight")]
    weights, biases = [], []
    for head in heads:
        scale, shift = _affine(state, head + "bn.")
        weight = state[head + "l.weight"].double()
        weights.append(weight * scale)
        biases.append(weight @ shift + state[head + "l.bias"].double())
    out["classifier.weight"] = torch.stack(weights).mean(0)
    out["classifier.bias"] = torch.stack(biases).mean(0)
    return {k: v.float() for k, v in out.items()}
