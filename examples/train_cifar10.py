"""Train a named network on CIFAR-10, in training form: the two bundled demos, or one of full width.

    python examples/train_cifar10.py repvit_demo --data cifar10.zip --out build/train
    python examples/train_cifar10.py repvit_demo --data cifar10.zip --out build/second \
        --recipe repvit-second --start build/train/repvit_demo.safetensors

repedge/models/weights/README.md has the runs that made the bundled weights, in order.

RepVGG-A0 of full width learns on 48x48 inputs, so that one CPU core is enough; it is compiled and
evaluated at that side, with CIFAR-10's statistics:

    python examples/train_cifar10.py repvgg_a0 --data cifar10.zip --out build/a0
    repedge compile repvgg_a0 --weights build/a0/repvgg_a0.safetensors --input-size 48 --resize none \
        --mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616 --target tflite --precision w8a8 \
        --calib PHOTOS

The archive holds JPEG files as ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``. The run is seeded,
writes a checkpoint after every epoch and goes on from it when started again; it uses the GPU where
there is one and bf16 arithmetic where the hardware has it. At the end it prints test top-1 and
writes ``NAME.safetensors`` (fp16, training form).
"""

from __future__ import annotations

import argparse
import io
import math
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from repedge.models.registry import CIFAR10, create
from repedge.models.registry import CIFAR10_MEAN as MEAN
from repedge.models.registry import CIFAR10_STD as STD

SIZE = 64  # input side of the shipped networks; CIFAR's 32x32 is resized bilinearly


@dataclass(frozen=True)
class Recipe:
    """How one family is trained.

    Attributes:
        optimizer: ``sgd`` (Nesterov) or ``adamw``, as the family's authors use.
        sizes: Progressive resizing: (share of the epochs, input side) up to which it holds; the last
            side is the one that the network is evaluated at, and to be compiled for.
        cutout: Side in pixels of the square that is blanked in every 32x32 photo; 0 for none.
        smoothing: Of the labels.
        ema: Decay per step of the running average of the weights, which is then what is kept; 0 for none.
    """

    optimizer: str
    lr: float
    weight_decay: float
    epochs: int
    sizes: tuple[tuple[float, int], ...]
    cutout: int
    smoothing: float
    ema: float = 0.0

    @property
    def side(self) -> int:
        """Input side of the evaluation, in pixels."""
        return self.sizes[-1][1]


RECIPES = {
    "repvit": Recipe("adamw", 0.002, 0.05, 16, ((0.35, 32), (0.6, 48), (1.0, SIZE)), 8, 0.05),
    "repvit-second": Recipe("adamw", 0.001, 0.05, 12, ((1.0, SIZE),), 0, 0.0),
    "repvit-third": Recipe("adamw", 0.0006, 0.05, 6, ((1.0, SIZE),), 8, 0.1),
    "repvgg": Recipe("sgd", 0.2, 5e-4, 24, ((0.5, 48), (1.0, SIZE)), 0, 0.0),
    "repvgg-second": Recipe("sgd", 0.1, 5e-4, 12, ((1.0, SIZE),), 12, 0.1),
    "repvgg-last": Recipe("sgd", 0.03, 5e-4, 5, ((1.0, SIZE),), 8, 0.05),
    "repvgg-long": Recipe("sgd", 0.1, 5e-4, 20, ((1.0, SIZE),), 12, 0.1, ema=0.998),
    "repvgg-end": Recipe("sgd", 0.06, 5e-4, 10, ((1.0, SIZE),), 8, 0.05, ema=0.998),
    "repvgg_a0": Recipe("sgd", 0.2, 5e-4, 10, ((0.4, 32), (1.0, 48)), 0, 0.0),
}


def load_split(archive: Path, split: str, cache: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N]; decoded once, then read from ``cache``."""
    file = cache / f"cifar10-{split}.npz"
    if not file.exists():
        with zipfile.ZipFile(archive) as z:
            names = sorted(n for n in z.namelist() if n.startswith(f"{split}/") and n.endswith(".jpg"))
            classes = sorted({n.split("/")[1] for n in names})
            images = np.stack([np.asarray(Image.open(io.BytesIO(z.read(n))).convert("RGB")) for n in names])
            labels = np.array([classes.index(n.split("/")[1]) for n in names])
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, images=images.transpose(0, 3, 1, 2), labels=labels)
    data = np.load(file)
    return torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])


def prepare(images: torch.Tensor, size: int, device: torch.device) -> torch.Tensor:
    """uint8 [N, 3, 32, 32] -> normalised float [N, 3, size, size] on ``device``."""
    x = images.to(device).float().div_(255)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))
    x = (x - mean) / std
    if size != x.shape[-1]:
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def augment(images: torch.Tensor, cutout: int, rng: torch.Generator) -> torch.Tensor:
    """Random 4-pixel shift (reflected border), horizontal flip and ``cutout`` per image."""
    n = len(images)
    padded = F.pad(images.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    dy, dx = torch.randint(0, 9, (2, n), generator=rng)
    rows = dy[:, None] + torch.arange(32)
    cols = dx[:, None] + torch.arange(32)
    flip = torch.rand(n, generator=rng) < 0.5
    cols = torch.where(flip[:, None], cols.flip(1), cols)
    out = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
    if not cutout:
        return out
    cy, cx = torch.randint(0, 32, (2, n), generator=rng)
    r = torch.arange(32)
    inside = [(r - c[:, None]).abs() < cutout // 2 for c in (cy, cx)]
    hole = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(hole[:, None], torch.tensor(118, dtype=torch.uint8), out)


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear warm-up over the first tenth, cosine to zero after it."""
    warm = max(1, total // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))


def make_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """No weight decay on batch normalization and biases."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    lr, decay = recipe.lr, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=decay)
    return torch.optim.SGD(groups, lr=lr, weight_decay=decay, momentum=0.9, nesterov=True)


@torch.no_grad()
def accuracy(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, size: int, device: torch.device
) -> float:
    """Top-1 share in fp32 at an input side of ``size``."""
    model.eval()
    hits = 0
    for i in range(0, len(images), 500):
        logits = model(prepare(images[i : i + 500], size, device))
        hits += int((logits.argmax(1).cpu() == labels[i : i + 500]).sum())
    return hits / len(images)


def train(args: argparse.Namespace, recipe: Recipe) -> None:
    """Train, and write the averaged weights; goes on from a checkpoint in ``args.out``."""
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = load_split(args.data, "train", args.out)
    test = load_split(args.data, "test", args.out)
    model = create(args.model, num_classes=len(CIFAR10)).to(device)
    optimizer = make_optimizer(model, recipe)
    if args.start:
        model.load_state_dict({k: v.float() for k, v in load_file(args.start).items()})
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
    kept = mean.module if recipe.ema else model
    state_file, start = args.out / f"{args.model}.pt", 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        mean.load_state_dict(state["mean"])
        start = state["epoch"] + 1
    for epoch in range(start, recipe.epochs):
        began = time.time()
        rng = torch.Generator().manual_seed(args.seed * 1000 + epoch)  # the same order after a resume
        size = next(side for share, side in recipe.sizes if epoch < share * recipe.epochs)
        loss = one_epoch(model, mean, optimizer, recipe, images, labels, epoch, size, args.batch, rng)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        state["mean"] = mean.state_dict()
        torch.save(state, state_file.with_suffix(".tmp"))
        state_file.with_suffix(".tmp").replace(state_file)
        seen = epoch % 4 == 3 or epoch == recipe.epochs - 1
        note = f" test top-1 {accuracy(kept, *test, recipe.side, device):.4f}" if seen else ""
        took = time.time() - began
        print(f"epoch {epoch + 1}/{recipe.epochs} size {size} loss {loss:.3f}{note} {took:.0f} s", flush=True)
    weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in kept.state_dict().items()}
    save_file(weights, args.out / f"{args.model}.safetensors")
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    share = accuracy(model, *test, recipe.side, device)
    print(f"{args.model}: test top-1 of the stored fp16 weights at {recipe.side}x{recipe.side} {share:.4f}")


def one_epoch(
    model: torch.nn.Module,
    mean: AveragedModel,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    images: torch.Tensor,
    labels: torch.Tensor,
    epoch: int,
    size: int,
    batch: int,
    rng: torch.Generator,
) -> float:
    """Train one epoch at an input side of ``size``; returns the mean loss."""
    device = next(model.parameters()).device
    order = torch.randperm(len(images), generator=rng)
    steps = len(images) // batch
    model.train()
    total = 0.0
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch * steps + step, recipe.epochs * steps, recipe.lr)
        x = prepare(augment(images[chosen], recipe.cutout, rng), size, device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(x)
        target = labels[chosen].to(device)
        loss = F.cross_entropy(logits.float(), target, label_smoothing=recipe.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        mean.update_parameters(model)
        total += loss.item()
    return total / steps


@torch.no_grad()
def average(args: argparse.Namespace, recipe: Recipe) -> None:
    """Mean of several runs' weights (Izmailov et al., UAI 2018), batch statistics taken anew."""
    states = [load_file(f) for f in args.average]
    mean = {
        k: sum(s[k].float() for s in states) / len(states) if v.is_floating_point() else v
        for k, v in states[0].items()
    }
    model = create(args.model, num_classes=len(CIFAR10))
    model.load_state_dict(mean)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over the batches that follow
    images, _ = load_split(args.data, "train", args.out)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:4000]
    model.train()
    for batch in order.split(250):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(prepare(images[batch], recipe.side, torch.device("cpu")))
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(weights, args.out / f"{args.model}-average.safetensors")
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    share = accuracy(model, *load_split(args.data, "test", args.out), recipe.side, torch.device("cpu"))
    print(f"{args.model}: test top-1 of the averaged fp16 weights {share:.4f}")


def main() -> None:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("model", help="a name from `repedge models`, such as repvit_demo; 10 classes")
    parser.add_argument("--data", type=Path, required=True, help="cifar10.zip")
    parser.add_argument("--out", type=Path, default=Path("build/train"))
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="default: the model's, or its family's")
    parser.add_argument(
        "--start", type=Path, help="weights to start from: NAME.safetensors of an earlier run"
    )
    parser.add_argument("--average", type=Path, nargs="+", help="average these weights instead of training")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    known = [n for n in (args.recipe, args.model, args.model.split("_")[0]) if n in RECIPES]
    if not known:
        parser.error(f"{args.model} has no recipe of its own; choose one with --recipe")
    recipe = RECIPES[known[0]]
    if args.average:
        average(args, recipe)
        return
    train(args, replace(recipe, epochs=args.epochs) if args.epochs else recipe)


if __name__ == "__main__":
    main()
