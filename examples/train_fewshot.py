"""Train a matching network with a RepViT embedding on Omniglot, characters of many alphabets.

    python examples/train_fewshot.py --data omniglot.zip --out build/train
    python examples/train_fewshot.py --data omniglot.zip --out build/train --device cuda --minutes 2

The archive holds 20 drawings of each character, ``ALPHABET/CHARACTER/*.png``; it learns all alphabets but
Sanskrit, each character in its four quarter turns being a class, and is judged on Sanskrit, which it never
saw: 1000 episodes of 20 characters, one drawing of each known. A step is an episode, too: many classes, one
drawing of each known, one asked for. The run is seeded, writes a checkpoint every few hundred steps and
goes on from it when started again; at the end it prints the share of right answers with its 95 % interval
and writes ``matching_repvit_m0_6.safetensors`` (fp16, training form). It needs repedge and what that needs
(on a machine for training torch, safetensors, Pillow and pydantic are enough).
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
from training.mosaic import uniform

from repedge.config import Preprocess
from repedge.models.registry import create, spec
from repedge.photos.images import pixels

MODEL = "matching_repvit_m0_6"
ASKED = "Sanskrit"
SIDE = 96
WAYS, EPISODES = 20, 1000
SHARPNESS = 16.0
"""What cosines are multiplied by while it learns; the order of the answers does not depend on it."""


def drawings(archive: Path, asked: bool, side: int) -> torch.Tensor:
    """Drawings uint8 [characters, 20, side, side], grey: of `ASKED`, or of all others."""
    pre = Preprocess(size=(side, side), resize=None, color="GRAY", mean=(0.0,), std=(1.0,))
    characters: dict[str, list[np.ndarray]] = {}
    with zipfile.ZipFile(archive) as z:
        for name in sorted(n for n in z.namelist() if n.endswith(".png")):
            if name.startswith(f"{ASKED}/") == asked:
                image = Image.open(io.BytesIO(z.read(name))).convert("L")
                characters.setdefault(name.rpartition("/")[0], []).append(pixels(image, pre)[..., 0])
    return torch.from_numpy(np.stack([np.stack(drawn) for drawn in characters.values()]))


def normal(grey: torch.Tensor) -> torch.Tensor:
    """Drawings [n, H, W] in 0..255 -> the network's input [n, 3, H, W]."""
    row = spec(MODEL)
    mean, std = (torch.tensor(v, device=grey.device).view(1, 3, 1, 1) for v in (row.mean, row.std))
    return (grey[:, None].float() / 255 - mean) / std


def distorted(grey: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Drawings turned by up to 15 degrees, scaled, sheared and shifted; white around."""
    n = len(grey)
    angle = uniform((n,), -0.26, 0.26, rng)
    scale = uniform((2, n), 0.8, 1.25, rng)
    shear = uniform((n,), -0.2, 0.2, rng)
    shift = uniform((2, n), -0.12, 0.12, rng)
    cos, sin = angle.cos(), angle.sin()
    rows = (
        torch.stack((scale[0] * cos, shear - sin, shift[0]), -1),
        torch.stack((sin, scale[1] * cos, shift[1]), -1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, *grey.shape[1:]], align_corners=False)
    ink = 255 - grey[:, None].float()
    return 255 - F.grid_sample(ink, grid, align_corners=False)[:, 0]


def episode(drawn: torch.Tensor, ways: int, rng: torch.Generator) -> torch.Tensor:
    """Two drawings of each of ``ways`` classes, [2, ways, side, side]; a class is a character and a turn."""
    characters, each = drawn.shape[:2]
    chosen = torch.randperm(4 * characters, generator=rng, device=rng.device)[:ways]
    order = uniform((len(chosen), each), 0, 1, rng).argsort(1)[:, :2]
    pairs = drawn[chosen[:, None] // 4, order]
    turns = (chosen % 4)[:, None, None, None]
    for k in (1, 2, 3):
        pairs = torch.where(turns == k, pairs.rot90(k, (2, 3)), pairs)
    return pairs.transpose(0, 1).contiguous()


def judge(drawn: torch.Tensor, episodes: int) -> Callable[[nn.Module], dict[str, float]]:
    """What says how good an embedding is: right answers of episodes, and half their 95 % interval."""

    @torch.no_grad()
    def reached(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        flat = drawn.flatten(0, 1)
        vectors = torch.cat([model(normal(x.to(device))).cpu() for x in flat.split(100)])
        vectors = vectors.view(*drawn.shape[:2], -1)
        rng, right = np.random.default_rng(0), []
        for _ in range(episodes):
            ways = rng.choice(len(drawn), WAYS, replace=False)
            known, query = rng.permuted(np.tile(np.arange(drawn.shape[1]), (WAYS, 1)), axis=1)[:, :2].T
            likeness = vectors[ways, query] @ vectors[ways, known].T
            right.append(float((likeness.argmax(1) == torch.arange(WAYS)).float().mean()))
        return {"accuracy": float(np.mean(right)), "ci95": float(1.96 * np.std(right) / episodes**0.5)}

    return reached


def main(argv: list[str] | None = None) -> dict[str, float]:
    """The command line; returns what the weights reach."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    arguments(parser, batch=128, lr=0.002, steps=600)
    parser.add_argument("--side", type=int, default=SIDE, help="of the input, pixels")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of the judgement")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    training = Training(MODEL, create(MODEL), args)
    drawn = drawings(args.data, False, args.side).to(training.device)

    def loss_of(training: Training, rng: torch.Generator) -> torch.Tensor:
        pairs = episode(drawn, args.batch, rng)
        vectors = training.forward(normal(distorted(pairs.flatten(0, 1), rng))).float()
        likeness = SHARPNESS * vectors[: len(vectors) // 2] @ vectors[len(vectors) // 2 :].T
        own = torch.arange(len(likeness), device=likeness.device)
        return (F.cross_entropy(likeness, own) + F.cross_entropy(likeness.T, own)) / 2

    return training.run(loss_of, judge(drawings(args.data, True, args.side), args.episodes))


if __name__ == "__main__":
    main()
