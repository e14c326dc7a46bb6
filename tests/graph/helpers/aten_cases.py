"""Modules and functions that networks are made of, on a map [1, 4, 8, 10]: what the fast export takes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from exported import Fn
from torch import nn


def heads(x: torch.Tensor) -> torch.Tensor:
    """[1, 2 heads, 80 places, 2]."""
    return x.reshape(1, 2, 2, 80).transpose(2, 3)


def rows(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(2), *layers)


def attend(**options: Any) -> nn.Module:
    return Fn(lambda x: F.scaled_dot_product_attention(heads(x), heads(x) + 1, heads(x) * 2, **options))


class SelfAttention(nn.Module):
    def __init__(self, weights: bool = False, batch_first: bool = True) -> None:
        super().__init__()
        self.layer, self.weights = nn.MultiheadAttention(10, 2, batch_first=batch_first), weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.flatten(1, 2)
        out: torch.Tensor = self.layer(y, y, y, need_weights=self.weights)[0]
        return out


class Encoder(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(10, 2, 20, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x.flatten(1, 2))
        return out


def interpolated(**options: Any) -> nn.Module:
    return Fn(lambda x: F.interpolate(x, **options))


TABLE = torch.linspace(-1, 1, 12).reshape(4, 3)
MASK = torch.linspace(-2, 2, 6400).reshape(80, 80)

CASES: dict[str, nn.Module] = {
    # attention
    "sdpa": attend(),
    "sdpa_mask": attend(attn_mask=MASK),
    "sdpa_truth": attend(attn_mask=(MASK > 0) | (torch.eye(80) > 0)),
    "sdpa_causal": attend(is_causal=True, scale=0.3),
    "sdpa_shared_keys": Fn(
        lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2] * 2, enable_gqa=True)
    ),
    "sdpa_causal_fused": Fn(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
    "sdpa_rank3": Fn(lambda x: F.scaled_dot_product_attention(x[0], x[0], x[0])),
    "sdpa_own_mask": Fn(lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x @ x.mT)),
    "sdpa_own_truth": Fn(lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=(x @ x.mT) > -5)),
    "multihead": SelfAttention(),
    "multihead_weights": SelfAttention(weights=True),
    "multihead_sequence_first": SelfAttention(batch_first=False),
    "encoder": Encoder(),
    "encoder_norm_first": Encoder(norm_first=True, activation="gelu"),
    # normalization
    "group_norm": nn.GroupNorm(2, 4),
    "group_norm_plain": nn.GroupNorm(2, 4, affine=False),
    "group_norm_each": nn.GroupNorm(4, 4),
    "instance_norm": nn.InstanceNorm2d(4),
    "instance_norm_affine": nn.InstanceNorm2d(4, affine=True),
    "instance_norm_tracked": nn.InstanceNorm2d(4, track_running_stats=True),
    "layer_norm_map": nn.LayerNorm([8, 10]),
    "layer_norm_plain": nn.LayerNorm(10, elementwise_affine=False),
    "layer_norm_no_bias": nn.LayerNorm(10, bias=False),
    "rms_norm": nn.RMSNorm(10),
    "local_response": nn.LocalResponseNorm(3),
    "batch_norm_rows": rows(nn.BatchNorm1d(4)),
    # norms and reductions
    "norm": Fn(lambda x: x / x.norm(dim=1, keepdim=True)),
    "normalize": Fn(lambda x: F.normalize(x)),
    "normalize_1": Fn(lambda x: F.normalize(x, p=1)),
    "norm_inf": Fn(lambda x: torch.linalg.vector_norm(x, math.inf, dim=(1, 2))),
    "norm_3": Fn(lambda x: torch.linalg.vector_norm(x, 3, dim=-1)),
    "norm_0": Fn(lambda x: torch.linalg.vector_norm(x.relu(), 0, dim=(2, 3))),
    "norm_all": Fn(lambda x: x.norm()),
    "response": Fn(
        lambda x: x * x.norm(dim=(2, 3), keepdim=True) / (x.norm(dim=(2, 3), keepdim=True).mean(1, True))
    ),
    "cosine": Fn(lambda x: F.cosine_similarity(x, x + 1)),
    "var": Fn(lambda x: x.var(1, keepdim=True)),
    "var_biased": Fn(lambda x: x.var((2, 3), unbiased=False)),
    "std": Fn(lambda x: x.std(1)),
    "var_mean": Fn(lambda x: torch.var_mean(x, 1)),
    "logsumexp": Fn(lambda x: x.logsumexp(1)),
    "prod": Fn(lambda x: x.prod(1)),
    "max_min": Fn(lambda x: x.max() - x.min()),
    "max_dim": Fn(lambda x: x.max(1)),
    "min_dim": Fn(lambda x: x.min(1, keepdim=True)),
    "cumsum": Fn(lambda x: x.cumsum(2)),
    "argmax": Fn(lambda x: x.argmax(1)),
    "argmin": Fn(lambda x: x.argmin(1, keepdim=True)),
    "argmax_all": Fn(lambda x: x.flatten(1).argmax()),
    "topk": Fn(lambda x: x.topk(2, 1)),
    "sort": Fn(lambda x: x.sort(1, descending=True)[0]),
    "argsort": Fn(lambda x: torch.sort(x, dim=1, stable=True)[1]),
    "count": Fn(lambda x: (x > 0).sum((2, 3))),
    "any_all": Fn(lambda x: ((x > 0).any(1), (x > -9).all(), (x > 0).any(), (x > -1).all(2))),
    # positions
    "gather_best": Fn(lambda x: x.gather(1, x.topk(2, 1)[1])),
    "gather_few": Fn(lambda x: x.gather(1, torch.zeros(1, 2, 3, 10, dtype=torch.long))),
    "take_along": Fn(lambda x: torch.take_along_dim(x, x.argmax(1, keepdim=True), 1)),
    "index_select": Fn(lambda x: x.index_select(1, torch.tensor([2, 0, 1]))),
    "index": Fn(lambda x: x[:, [2, 1, -1]]),
    "index_adjacent": Fn(lambda x: x[:, torch.tensor([0, 1]), torch.tensor([2, 3])]),
    "index_apart": Fn(lambda x: x[:, torch.tensor([0, 1]), :, torch.tensor([2, -1])]),
    "index_table": Fn(lambda x: x[0, torch.tensor([[0, 1], [2, 3]])]),
    "index_mask": Fn(lambda x: x[:, torch.tensor([True, False, True, True])]),
    "embedding": Fn(lambda x: F.embedding(x.argmax(1), TABLE)),
    "flip": Fn(lambda x: x.flip(1, 3)),
    "rot90": Fn(lambda x: (x.rot90(1, (2, 3)), x.rot90(2, (2, 3)), x.rot90(3, (2, 3)))),
    "roll": Fn(lambda x: torch.roll(x, (1, -3), (2, 3))),
    "roll_flat": Fn(lambda x: x.roll(3)),
    "as_strided": Fn(lambda x: x.as_strided((1, 4, 4, 5), (320, 80, 20, 2))),
    "as_strided_moved": Fn(lambda x: x.transpose(2, 3).as_strided((4, 80), (80, 1))),
    "as_strided_overlapping": Fn(lambda x: (x * 2).as_strided((1, 4, 8, 8, 3), (320, 80, 10, 1, 1), 0)),
    "unfold": Fn(lambda x: x.unfold(2, 3, 2)),
    "im2col": Fn(lambda x: F.unfold(x, 3, padding=1, stride=2)),
    "col2im": Fn(lambda x: F.fold(F.unfold(x, (2, 4), stride=2), (8, 10), (2, 4), stride=2)),
    "col2im_padded": Fn(
        lambda x: (
            F.fold(F.unfold(x, 3, stride=2, padding=1), (8, 10), 3, stride=2, padding=1),
            F.fold(F.unfold(x[:, :, :7], 2, stride=2), (7, 10), 2, stride=2),
        )
    ),
    "grid_sample": Fn(lambda x: F.grid_sample(x, F.affine_grid(torch.eye(2, 3)[None] * 0.7, [1, 4, 8, 10]))),
    "tril": Fn(lambda x: x.tril(1) - x.triu()),
    # truth
    "where": Fn(lambda x: torch.where(x > 0, x, x * 2)),
    "where_number": Fn(lambda x: torch.where(x >= 0.1, x, 0.0)),
    "masked_fill": Fn(lambda x: x.masked_fill(x < 0, -1.0).masked_fill(x > 1, torch.tensor(0.5))),
    "masked_fill_constant": Fn(lambda x: x.masked_fill(torch.ones(8, 10).tril() == 0, -1e4).softmax(-1)),
    "mask_times": Fn(lambda x: x * (x <= 0.5)),
    "mask_float": Fn(lambda x: (x >= x.mean((2, 3), keepdim=True)).float()),
    "equal": Fn(lambda x: (x.round() == 0).float() + (x.round() != 1).float()),
    "logic": Fn(lambda x: ((x > 0) & (x < 1)) | ~(x > -1)),
    "logic_words": Fn(
        lambda x: torch.logical_xor(x > 0, torch.logical_and(x < 1, torch.logical_not(x < 0.5)))
    ),
    "logic_or": Fn(lambda x: torch.logical_or(x > 1, x < -1) ^ (x > 0)),
    "compare_tensors": Fn(
        lambda x: ((x > x.mean()) & (x < x.amax()), x <= -x, x != x.round(), x == x.relu())
    ),
    "peaks": Fn(lambda x: x * (F.max_pool2d(x, 3, 1, 1) == x).float()),
    # whole numbers
    "to_int": Fn(lambda x: (x * 3).int()),
    "to_long": Fn(lambda x: (x * 3).long() + 1),
    "long_arithmetic": Fn(lambda x: x.argmax(1) * 2 + torch.arange(10)),
    "long_division": Fn(lambda x: (x.flatten(1).topk(3)[1] // 10, x.flatten(1).topk(3)[1] % 10)),
    "long_stack": Fn(lambda x: torch.stack([x.argmax(1), x.argmin(1)], 1)),
    # functions of numbers
    "selu": nn.SELU(),
    "celu": nn.CELU(0.7),
    "logsigmoid": nn.LogSigmoid(),
    "threshold": nn.Threshold(0.2, -1.0),
    "thresholded_relu": nn.Threshold(0.2, 0.0),
    "hardshrink": nn.Hardshrink(),
    "softshrink": nn.Softshrink(),
    "softplus": nn.Softplus(beta=2, threshold=5),
    "softplus_beta": nn.Softplus(beta=2),
    "glu": nn.GLU(1),
    "waves": Fn(
        lambda x: (x.sin(), x.cos(), x.tan(), x.atan(), x.tanh().asin(), x.tanh().acos(), x.sinh(), x.cosh())
    ),
    "rounding": Fn(lambda x: (x.round(), x.trunc(), x.sign(), (x * 4).round() / 4)),
    "logarithms": Fn(
        lambda x: (x.abs().log1p(), x.expm1(), (x.abs() + 1).log2(), x.exp2(), (x.abs() + 1).log10())
    ),
    "powers": Fn(lambda x: (2**x, x.abs() ** 1.5, (x.abs() + 1) ** -0.5, (x.abs() + 0.5) ** x)),
    "remainders": Fn(lambda x: (x % 0.7, x.fmod(0.7), x % (x.abs() + 1), x.fmod(x.abs() + 1))),
    "divisions": Fn(
        lambda x: (x // 0.7, torch.div(x, 0.7, rounding_mode="trunc"), x.div(2, rounding_mode="floor"))
    ),
    "clamp_tensor": Fn(lambda x: torch.clamp(x, min=x.mean(), max=torch.tensor(0.5))),
    "clamp_one_tensor": Fn(lambda x: torch.clamp_max(torch.clamp_min(x, x.mean()), torch.tensor(0.5))),
    "addcdiv": Fn(lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5)),
    "others": Fn(lambda x: (x.erfc(), torch.hypot(x, x + 1), x.sigmoid().logit(), x.sigmoid().logit(0.2))),
    # windows and resizing
    "conv1d": rows(nn.Conv1d(4, 6, 3, 2, 1, groups=2)),
    "conv1d_gate": Fn(
        lambda x: (
            x * F.conv1d(x.mean((2, 3))[:, None], torch.ones(1, 1, 3), padding=1).mT[..., None].sigmoid()
        )
    ),
    "conv_transpose1d": rows(nn.ConvTranspose1d(4, 3, 3, 2)),
    "max_pool1d": rows(nn.MaxPool1d(3, 2, 1)),
    "avg_pool1d": rows(nn.AvgPool1d(3, 2, 1, ceil_mode=True)),
    "avg_pool_divisor": nn.AvgPool2d(2, divisor_override=3),
    "lp_pool": nn.LPPool2d(2, 2),
    "adaptive_uneven": nn.AdaptiveAvgPool2d((3, 4)),
    "adaptive_larger": nn.AdaptiveAvgPool2d((9, 4)),
    "adaptive_one_axis": nn.AdaptiveAvgPool2d((None, 3)),
    "adaptive_max_uneven": nn.AdaptiveMaxPool2d((3, 4)),
    "adaptive_rows": rows(nn.AdaptiveAvgPool1d(7)),
    "adaptive_max_rows": rows(nn.AdaptiveMaxPool1d(7)),
    "pad_rows": rows(nn.ReflectionPad1d(2), nn.ReplicationPad1d(1)),
    "pad_volume": Fn(lambda x: F.pad(F.pad(x, (1,) * 6, "replicate"), (1,) * 6, "reflect")),
    "pad_negative": Fn(lambda x: F.pad(x, (-1, 2, 0, -3))),
    "upsample_rows": rows(nn.Upsample(scale_factor=2, mode="linear"), nn.Upsample(size=50)),
    "upsample_rows_exact": rows(nn.Upsample(scale_factor=1.5, mode="nearest-exact")),
    **{
        f"{mode} {options}": interpolated(mode=mode, **options)
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
        for options in ({"size": (13, 17)}, {"scale_factor": 2}, {"scale_factor": 0.7}, {"size": (5, 6)})
    },
    **{
        f"smooth {mode} {options}": interpolated(mode=mode, antialias=True, **options)
        for mode in ("bilinear", "bicubic")
        for options in ({"size": (5, 6)}, {"size": (13, 10)}, {"scale_factor": 0.5})
    },
    # structure
    "filled": Fn(
        lambda x: torch.cat(
            [
                *(x.new_full((1, 1, 8, 10), 2), x.new_zeros(1, 1, 8, 10), x, x.new_ones(1, 1, 8, 10)),
                *(
                    torch.zeros_like(x),
                    torch.ones_like(x),
                    torch.full_like(x, 0.3),
                    torch.empty_like(x).fill_(2),
                ),
            ],
            1,
        )
    ),
    "anchors": Fn(
        lambda x: (
            x.flatten(2)
            + torch.stack(torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij"))
            .reshape(1, 2, 80)
            .repeat(1, 2, 1)
        )
    ),
    "repeat_interleave": Fn(lambda x: x.repeat_interleave(2, 1)),
    "tensor_split": Fn(lambda x: torch.tensor_split(x, 3, 1)),
    "cat_whole_numbers": Fn(lambda x: torch.cat([x, torch.arange(80).reshape(1, 1, 8, 10)], 1)),
    # products
    "einsum": Fn(lambda x: (torch.einsum("bhqd,bhkd->bhqk", x, x), torch.einsum("nchw,cd->ndhw", x, TABLE))),
    "baddbmm": Fn(lambda x: torch.baddbmm(torch.ones(4, 8, 8), x[0], x[0].mT, alpha=0.5, beta=2)),
    "baddbmm_alone": Fn(lambda x: torch.baddbmm(torch.empty(4, 8, 8), x[0], x[0].mT, alpha=0.5, beta=0)),
    "addmm_scaled": Fn(lambda x: torch.addmm(torch.ones(8), x[0, 0], x[0, 1].T, alpha=0.5, beta=2)),
    "vectors": Fn(
        lambda x: (x[0, 0] @ x[0, 0, 0], x[0, 0, 0] @ x[0, 0, 1], torch.outer(x[0, 0, 0], x[0, 0, 1]))
    ),
}
