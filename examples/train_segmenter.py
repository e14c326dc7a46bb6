"""Train LR-ASPP with a RepViT backbone on CamVid, street scenes in eleven classes.

    python examples/train_segmenter.py --data camvid.zip --out build/train
    python examples/train_segmenter.py --data camvid.zip --out build/train --device cuda --minutes 3

The archive holds ``train/*.jpg`` and ``val/*.jpg`` and, in ``trainannot`` and ``valannot``, a PNG of class
indices for each (11 = void). CamVid is CC BY-NC: what is trained on it is for comparisons, not for
products. The run is seeded, writes a checkpoint every few hundred steps and goes on from it when started
again; at the end it prints mIoU and the share of right pixels on ``val`` and writes
``lraspp_repvit_m0_9.safetensors`` (fp16, training form). It needs repedge and what that needs (on a machine
for training torch, safetensors, Pillow and pydantic are enough).
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from training.loop import Training, arguments
from training.mosaic import moved, recoloured, turned, uniform

from repedge.models.registry import create, spec

MODEL = "lraspp_repvit_m0_9"
LABELS = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian",
    "Bicyclist",
)  # fmt: skip
VOID = len(LABELS)


def split(archive: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Photos uint8 [n, 3, H, W] and class indices uint8 [n, H, W] of ``train`` or ``val``."""
    photos, masks = [], []
    with zipfile.ZipFile(archive) as z:
        for file in sorted(n for n in z.namelist() if n.startswith(f"{name}/") and n.endswith(".jpg")):
            photo = Image.open(io.BytesIO(z.read(file))).convert("RGB")
            mask = Image.open(io.BytesIO(z.read(f"{name}annot/{Path(file).stem}.png")))
            photos.append(np.asarray(photo).transpose(2, 0, 1))
            masks.append(np.asarray(mask, dtype=np.uint8))
    return torch.from_numpy(np.stack(photos)), torch.from_numpy(np.stack(masks))


def normal(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in 0..255 -> the network's input."""
    row = spec(MODEL)
    mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (row.mean, row.std))
    return (pixels.float() / 255 - mean) / std


def batch(
    photos: torch.Tensor, masks: torch.Tensor, n: int, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Photos scaled, shifted, mirrored and recoloured, and their class indices; void where no photo is."""
    height, width = masks.shape[1:]
    index = torch.randint(len(photos), (n,), generator=rng, device=rng.device)
    size = torch.tensor([width, height], device=rng.device)
    matrix, extent = turned(n, (height, width), (0.6, 2.0), False, rng)
    upright = matrix[:, 1, 1] < 0  # a street has an up: only left and right are exchanged
    matrix[upright, 1] = matrix[upright, 1].neg()
    matrix[upright, 1, 2] = 0
    shift = (size - extent) * uniform((n, 2), 0, 1, rng)
    matrix = moved(matrix, shift)
    back = torch.linalg.inv_ex(matrix[:, :, :2]).inverse
    offset = -(back @ matrix[:, :, 2:])
    # From pixels to -1..1 on both sides, as `affine_grid` wants it.
    origin = (back @ size[:, None].float() + 2 * offset) / size[:, None] - 1
    theta = torch.cat((back * size / size[:, None], origin), -1)
    grid = F.affine_grid(theta, [n, 3, height, width], align_corners=False)
    drawn = F.grid_sample(photos[index].float(), grid, padding_mode="border", align_corners=False)
    own = masks[index].float()[:, None] - VOID  # so that the border, 0, is void
    truth = F.grid_sample(own, grid, mode="nearest", align_corners=False)[:, 0] + VOID
    return normal(recoloured(drawn, rng, 0.1, 0.4, 0.3)), truth.round().long()


def weights(masks: torch.Tensor) -> torch.Tensor:
    """Of each class in the loss: the inverse root of its share of the pixels, 1 in the mean."""
    share = torch.bincount(masks.flatten().long(), minlength=VOID + 1)[:VOID].float()
    inverse = (share / share.sum()).clamp(1e-4).rsqrt()
    return inverse / inverse.mean()


def judge(photos: torch.Tensor, masks: torch.Tensor) -> Callable[[nn.Module], dict[str, float]]:
    """What says how good a network is: mean IoU over the classes, void left out, and right pixels."""

    @torch.no_grad()
    def reached(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        table = torch.zeros(VOID + 1, VOID)
        for x, truth in zip(photos.split(8), masks.split(8), strict=True):
            answer = model(normal(x.to(device))).argmax(1).cpu()
            pairs = truth.long() * VOID + answer
            table += torch.bincount(pairs.flatten(), minlength=(VOID + 1) * VOID).view(VOID + 1, VOID)
        known = table[:VOID]
        right = known.diagonal()
        union = known.sum(0) + known.sum(1) - right
        return {"miou": float((right / union.clamp(1)).mean()), "pixels": float(right.sum() / known.sum())}

    return reached


def main(argv: list[str] | None = None) -> dict[str, float]:
    """The command line; returns what the weights reach."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    arguments(parser, batch=16, lr=0.002, steps=1200)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    photos, masks = split(args.data, "train")
    val = split(args.data, "val")
    training = Training(MODEL, create(MODEL, num_classes=len(LABELS)), args)
    weight = weights(masks).to(training.device)
    photos, masks = photos.to(training.device), masks.to(training.device)

    def loss_of(training: Training, rng: torch.Generator) -> torch.Tensor:
        x, truth = batch(photos, masks, args.batch, rng)
        return F.cross_entropy(training.forward(x).float(), truth, weight, ignore_index=VOID)

    return training.run(loss_of, judge(*val))


if __name__ == "__main__":
    main()
