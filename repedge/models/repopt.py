"""RepOpt-VGG and the scales of its optimizer (Ding et al., ICLR 2023, arXiv:2205.15242).

RepOpt-VGG is plain while it is trained, too: 3x3 convolution, BN, ReLU. What RepVGG's branches are good
for is in its start and its gradients instead: `reparameterize` sets both from scales that a search
network has learnt (the authors' ``RepOpt-VGG-B1-scales.pth``), so no merged branch can put outliers
into the weights.

    net = create("repopt_vgg_b1", num_classes=20)
    reparameterize(net, read_scales("RepOpt-VGG-B1-scales.pth"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=4e-5)

State-dict keys are those of the authors' release (``stage1.0.conv.weight``, ``stage1.0.bn.weight``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from repedge.errors import UserError
from repedge.models.repvgg import RepVGG


class PlainBlock(nn.Module):
    """3x3 convolution, BN and ReLU; the BN is in the convolution in deploy form."""

    def __init__(
        self, inp: int, out: int, stride: int, *, groups: int = 1, se: int = 0, deploy: bool = False
    ) -> None:
        if se:
            raise ValueError("RepOpt-VGG was published without squeeze-excite")
        super().__init__()
        self.deploy = deploy
        self.conv = nn.Conv2d(inp, out, 3, stride, 1, groups=groups, bias=deploy)
        if not deploy:
            self.bn = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.relu(y if self.deploy else self.bn(y))


class RepOptVGG(RepVGG):
    """A RepVGG of plain blocks; its arguments without ``se``."""

    block = PlainBlock


class Scale(nn.Module):
    """One factor per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(1, -1, 1, 1)


class SearchBlock(nn.Module):
    """``ReLU(BN(s * 3x3 x + t * 1x1 x + u * x))`` with trained factors per channel."""

    def __init__(
        self, inp: int, out: int, stride: int, *, groups: int = 1, se: int = 0, deploy: bool = False
    ) -> None:
        if deploy or se or groups != 1:
            raise ValueError("the search network is dense and for training only")
        super().__init__()
        self.conv = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.scale_conv = Scale(out)
        self.conv_1x1 = nn.Conv2d(inp, out, 1, stride, bias=False)
        self.scale_1x1 = Scale(out)
        self.scale_identity = Scale(out) if inp == out and stride == 1 else None
        self.bn = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale_conv(self.conv(x)) + self.scale_1x1(self.conv_1x1(x))
        if self.scale_identity is not None:
            y = y + self.scale_identity(x)
        return self.relu(self.bn(y))


class RepOptSearch(RepVGG):
    """The network that learns the scales, on a small data set such as CIFAR-100 (paper, 3.2).

    Save its ``state_dict`` after training; `read_scales` takes it.
    """

    block = SearchBlock

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The further from its stage's beginning a block is, the smaller it starts beside the identity.
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            for number, block in enumerate(stage):  # type: ignore[arg-type]
                start = math.sqrt(2 / number) if number else 1.0
                nn.init.constant_(block.scale_conv.weight, start)
                nn.init.constant_(block.scale_1x1.weight, start)


@dataclass(frozen=True)
class BlockScales:
    """Searched factors of one block, float32 [out channels] each.

    Attributes:
        dense: Of the 3x3 convolution.
        pointwise: Of the 1x1 convolution.
        identity: Of the identity; None where the block changes the width or the resolution.
    """

    dense: Tensor
    pointwise: Tensor
    identity: Tensor | None = None


Scales = Mapping[str, BlockScales]  # by block: "stage0", "stage1.0", ...


def read_scales(path: Path | str) -> dict[str, BlockScales]:
    """Read the scales of a searched network: the authors' scales file or a `RepOptSearch` checkpoint.

    Returns:
        Scales by block name, in the order of the network.

    Raises:
        UserError: The file cannot be read or has no scales in it.
    """
    from repedge.models.files import load_checkpoint

    state = load_checkpoint(path)
    names = [k.removesuffix(".scale_conv.weight") for k in state if k.endswith(".scale_conv.weight")]
    if not names:
        raise UserError(f"{path} has no RepOptimizer scales in it (keys such as stage1.0.scale_conv.weight)")
    found = {}
    for name in sorted(names, key=_place):
        if f"{name}.scale_1x1.weight" not in state:
            raise UserError(f"{path}: {name} has a scale of its 3x3 convolution, but none of its 1x1")
        found[name] = BlockScales(
            dense=state[f"{name}.scale_conv.weight"].flatten(),
            pointwise=state[f"{name}.scale_1x1.weight"].flatten(),
            identity=_flat(state.get(f"{name}.scale_identity.weight")),
        )
    return found


def _place(name: str) -> list[int]:
    """``stage1.10`` -> [1, 10]."""
    return [int(n) for n in re.findall(r"\d+", name)]


def _flat(scale: Tensor | None) -> Tensor | None:
    return None if scale is None else scale.flatten()


def reparameterize(net: RepOptVGG, scales: Scales) -> list[RemovableHandle]:
    """Make plain SGD train a fresh RepOpt-VGG as if it had the search network's branches.

    Both rules of the paper (3.1): the 3x3 kernels start as the merged branches of fresh convolutions,
    and every gradient of theirs is multiplied by `gradient_factors` before the optimizer sees it. That
    is exact for SGD with any momentum and weight decay, not for optimizers that rescale gradients
    (Adam), and not with gradient clipping. Move the network to its device before.

    Args:
        net: In training form, with fresh weights.
        scales: As `read_scales` returns them.

    Returns:
        A handle per convolution; ``handle.remove()`` gives it its own gradient back.

    Raises:
        UserError: The scales are of another network, or ``net`` is in deploy form.
    """
    convs = _convolutions(net)
    if any(conv.bias is not None for conv in convs.values()):
        raise UserError("a network in deploy form is not to be trained; create it without deploy=True")
    _check(convs, scales)
    handles = []
    for name, conv in convs.items():
        scale = BlockScales(*(_like(conv.weight, s) for s in vars(scales[name]).values()))
        point = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False).weight.detach().to(conv.weight)
        with torch.no_grad():
            conv.weight.copy_(merged(conv.weight, point, scale))
        factors = gradient_factors(scale, conv.in_channels)
        handles.append(conv.weight.register_hook(partial(torch.mul, factors)))
    return handles


def merged(dense: Tensor, point: Tensor, scale: BlockScales) -> Tensor:
    """The one 3x3 kernel [O, I, 3, 3] of scaled 3x3 [O, I, 3, 3], 1x1 [O, I, 1, 1] and identity."""
    kernel = dense * _per_output(scale.dense) + F.pad(point * _per_output(scale.pointwise), (1, 1, 1, 1))
    if scale.identity is not None:
        kernel = kernel + F.pad(torch.diag(scale.identity)[:, :, None, None], (1, 1, 1, 1))
    return kernel


def gradient_factors(scale: BlockScales, inputs: int) -> Tensor:
    """What a merged kernel's gradient is multiplied by under SGD, [O, inputs, 3, 3] (paper, eq. 4).

    A weight that is ``s a + t b`` of two trained ones moves by ``s^2 + t^2`` times its own gradient.
    The identity's factor is trained itself, so it adds one where it stands.
    """
    factors = (_per_output(scale.dense) ** 2).repeat(1, inputs, 3, 3)
    factors[:, :, 1, 1] += scale.pointwise[:, None] ** 2
    if scale.identity is not None:
        factors[:, :, 1, 1] += torch.eye(inputs).to(factors)
    return factors


def _per_output(scale: Tensor) -> Tensor:
    return scale.view(-1, 1, 1, 1)


def _like(weight: Tensor, scale: Tensor | None) -> Any:
    return None if scale is None else scale.to(weight)


def _convolutions(net: RepOptVGG) -> dict[str, nn.Conv2d]:
    return {n: m.conv for n, m in net.named_modules() if isinstance(m, PlainBlock)}


def _check(convs: Mapping[str, nn.Conv2d], scales: Scales) -> None:
    another = "the scales are of another network"
    if odd := sorted(set(convs) ^ set(scales), key=_place):
        raise UserError(f"{another}: {len(scales)} blocks, not {len(convs)} (such as {odd[0]})")
    for name, conv in convs.items():
        scale = scales[name]
        identity = conv.in_channels == conv.out_channels and conv.stride == (1, 1)
        widths = {len(s) for s in vars(scale).values() if s is not None}
        if widths != {conv.out_channels} or identity != (scale.identity is not None):
            raise UserError(
                f"{another}: {name} has {conv.out_channels} channels, "
                f"its scales {', '.join(map(str, sorted(widths)))}"
            )
