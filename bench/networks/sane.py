"""Random weights of a network made sane, by one rule for all networks.

As a network comes from its factory, noise grows by a fifth in each layer with BatchNorm and ReLU, and what
tells one photo from another is lost among what all photos have in common: such a MobileOne-S0 is 25 dB from
itself where weights and the outputs of convolutions round to fp16, and 16 dB in what depends on the photo
(the published weights: 41 and 40 dB). So, layer by layer, on photos:

1. a kernel is, half each, random and a random combination of the patches that it meets, less what all photos
   have there in common. That is what gradient descent adds to a kernel; each photo counts the same;
2. a BatchNorm has the statistics of the photos, but no variance under a tenth of its layer's mean: a channel
   that hardly moves on these photos would explode on the next one. Its shift is between 0 and 0.5;
3. LayerScale factors and the like, which begin at 0 or 1e-6, are spread over 0.2 to 0.6, as they are after
   training. (At 1e-6 most of a network does nothing, and its errors can't be seen.)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def spread_scales(module: Any) -> None:
    """Give parameters that are constant and near 0, as they are before training, values of after it."""
    import torch

    for key, p in module.named_parameters():
        if p.numel() < 2 or float(p.detach().abs().max()) > 0.1 or float(p.detach().std()) > 1e-8:
            continue
        with torch.no_grad():
            if key.endswith("bias"):
                p.normal_(0.0, 0.02)
            else:
                p.uniform_(0.2, 0.6)


def settle(module: Any, x: Any) -> None:
    """Give kernels and BatchNorms what training gives them (head of the file), layer by layer, in one run.

    Args:
        module: Changed in place, left in eval mode.
        x: Photos, float32 [N, 3, H, W].
    """
    import torch

    nn = torch.nn
    hooks: dict[Any, Any] = {}

    def once(layer: Any, given: Sequence[Any]) -> None:
        hooks.pop(layer).remove()
        (norm if isinstance(layer, nn.modules.batchnorm._BatchNorm) else kernel)(layer, given[0])

    for layer in module.eval().modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)):
            hooks[layer] = layer.register_forward_pre_hook(once)
    with torch.no_grad():
        module(x)
    for hook in hooks.values():
        hook.remove()


def kernel(layer: Any, x: Any) -> None:
    """Half of what the kernels are becomes random combinations of the patches of ``x`` that they meet.

    Half of that, in turn, tells photos apart as wholes: its coefficients are the same all over a photo.
    """
    import torch

    weight, groups = layer.weight, getattr(layer, "groups", 1)
    common = sum(patches(layer, one) for one in x) / len(x)
    found = torch.zeros(groups, weight.shape[0] // groups, common.shape[1])
    for one in x:
        own = patches(layer, one) - common
        own /= own.square().mean().sqrt().clamp_min(1e-12)
        places = own.shape[2]
        found += torch.randn(*found.shape[:2], 1) * own.mean(2)[:, None] * places**0.5
        found += torch.randn(*found.shape[:2], places) @ own.transpose(1, 2)
    found = found.reshape(weight.shape)
    if float(found.abs().max()) < 1e-6:  # what does not depend on the photo
        return
    axes = tuple(range(1, weight.dim()))
    long = [t.square().sum(axes, keepdim=True).sqrt() for t in (weight, found)]
    weight.copy_((weight + found * long[0] / long[1].clamp_min(1e-12)) * 0.5**0.5)


def patches(layer: Any, one: Any) -> Any:
    """What a layer's kernels meet in one item of its input: float32 [groups, in one kernel, places]."""
    import torch

    if isinstance(layer, torch.nn.Linear):
        return one.reshape(-1, one.shape[-1]).T[None]
    of = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return torch.nn.functional.unfold(one[None], *of).unflatten(1, (layer.groups, -1))[0]


def norm(layer: Any, x: Any) -> None:
    """BatchNorm's statistics of ``x`` [N, C, ...], and a shift."""
    x = x.transpose(0, 1).flatten(1)
    variance = x.var(1, correction=0)
    layer.running_mean.copy_(x.mean(1))
    layer.running_var.copy_(variance.clamp_min(0.1 * float(variance.mean())))
    if layer.bias is not None:
        layer.bias.uniform_(0.0, 0.5)


def batch(images: Path, size: Sequence[int], count: int = 16) -> Any:
    """Photos as the network takes them, float32 [count, 3, H, W]."""
    import numpy as np
    import torch
    from PIL import Image

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    found = sorted(p for p in images.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))[:count]
    if len(found) < 2:
        sys.exit(f"{images} has fewer than two photos")
    rows = []
    for path in found:
        with Image.open(path) as photo:
            pixels = np.asarray(photo.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR))
        rows.append((pixels / 255 - mean) / std)
    return torch.from_numpy(np.stack(rows).transpose(0, 3, 1, 2).astype(np.float32))
