"""The loop of a training run: schedule, averaged weights, checkpoints; seeded and resumable."""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

EVALUATIONS = 10
"""How often in a run the averaged weights are judged."""


def arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add the options that every run has, with these defaults."""
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the archive")
    add("--out", type=Path, default=Path("build/train"), help="weights and checkpoints; goes on from them")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--steps", type=int, help="steps of the whole schedule")
    add("--minutes", type=float, help="instead of --steps: the schedule takes that long, whatever it holds")
    add("--batch", type=int, help="photos, or classes of an episode, in a step")
    add("--lr", type=float, help="the highest learning rate (AdamW)")
    add("--decay", type=float, default=0.05, help="weight decay of convolutions (AdamW)")
    add("--ema", type=float, default=0.998, help="decay per step of the averaged weights, which are kept")
    add("--keep-every", type=int, default=200, help="steps between checkpoints")
    add("--seed", type=int, default=0)
    parser.set_defaults(**defaults)


class Training:
    """A run of a network, which goes on from the checkpoint that an earlier one left in ``args.out``.

    Every step's random numbers come from the seed and the step's number, so that a run that was killed
    and started again computes what one in a single piece does (to the bit on a CPU).

    Args:
        name: Of the files: ``NAME.pt`` the checkpoint, ``NAME.safetensors`` the weights at the end.
        model: In training form.
        args: What `arguments` gave.
    """

    def __init__(self, name: str, model: nn.Module, args: argparse.Namespace) -> None:
        self.name, self.args = name, args
        self.device = torch.device(args.device)
        torch.backends.cudnn.benchmark = True
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = copy.deepcopy(self.model).eval().requires_grad_(False)
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups(model, args.decay), lr=args.lr, fused=fused)
        self.step, self.seconds = 0, 0.0
        args.out.mkdir(parents=True, exist_ok=True)
        mine, theirs = self.mean.state_dict(), self.model.state_dict()
        floats = [k for k, v in mine.items() if v.is_floating_point()]
        self._averaged, self._moving = [mine[k] for k in floats], [theirs[k] for k in floats]
        self.checkpoint = args.out / f"{name}.pt"
        if self.checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.mean.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"{self.name}: going on after step {self.step}", flush=True)

    def _keep(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        new = self.checkpoint.with_suffix(".tmp")
        torch.save(state, new)
        new.replace(self.checkpoint)

    @property
    def progress(self) -> float:
        """Share of the schedule that is behind, 0 to 1: by time where that is limited, else by steps."""
        if self.args.minutes:
            return min(1.0, self.seconds / (60 * self.args.minutes))
        return min(1.0, self.step / self.args.steps)

    def forward(self, images: torch.Tensor) -> Any:
        """The network's outputs in training mode, computed in bfloat16 where that is exact enough."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return self.model(images.contiguous(memory_format=torch.channels_last))

    def run(
        self,
        loss_of: Callable[[Training, torch.Generator], torch.Tensor],
        judge: Callable[[nn.Module], dict[str, float]],
    ) -> dict[str, float]:
        """Train to the end of the schedule, and write the averaged weights as float16.

        Args:
            loss_of: (this, random numbers on its device) -> loss of a batch.
            judge: Averaged network in eval mode, float32 -> what it reaches.

        Returns:
            What the weights reach as they were written.
        """
        total, seen, judged = torch.zeros((), device=self.device), 0, int(self.progress * EVALUATIONS)
        self.model.train()
        while self.progress < 1:
            began = time.monotonic()
            total, seen = total + self._one(loss_of), seen + 1
            if self.step % 10 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()  # else the clock runs ahead of the work
            self.seconds += time.monotonic() - began
            if self.step % self.args.keep_every == 0:
                self._keep()
            if judged < int(self.progress * EVALUATIONS) < EVALUATIONS:
                judged = int(self.progress * EVALUATIONS)
                self._say(f"loss {float(total) / seen:.4f}", judge(self.mean))
                total, seen = torch.zeros_like(total), 0
        self._keep()
        return self._write(judge)

    def _one(self, loss_of: Callable[[Training, torch.Generator], torch.Tensor]) -> torch.Tensor:
        """One step; returns the loss without waiting for it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * height(self.progress)
        loss = loss_of(self, torch.Generator(self.device).manual_seed(self.args.seed * 1_000_003 + self.step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        self.step += 1
        self._average()
        return loss.detach()

    def _average(self) -> None:
        """Move the averaged weights towards the network's; faster while there are few steps."""
        update = get_ema_multi_avg_fn(min(self.args.ema, (1 + self.step) / (10 + self.step)))
        update(self._averaged, self._moving, self.step)

    def _say(self, text: str, figures: dict[str, float]) -> None:
        reached = " ".join(f"{k} {v:.4f}" for k, v in figures.items())
        took = f"{self.seconds / 60:.1f} min"
        print(f"{self.name}: {self.progress:4.0%} step {self.step} {text} {reached} {took}", flush=True)

    def _write(self, judge: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        state = self.mean.state_dict()
        stored = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        self.mean.load_state_dict({k: v.to(state[k].dtype) for k, v in stored.items()})
        figures = judge(self.mean)
        file = self.args.out / f"{self.name}.safetensors"
        save_file({k: v.cpu().contiguous() for k, v in stored.items()}, file)
        self._say(f"wrote {file.name}", figures)
        return figures


def groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameters for an optimizer: no weight decay on batch normalization and biases."""
    own = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in own if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0},
    ]


def height(progress: float, warm: float = 0.05, last: float = 0.005) -> float:
    """Learning rate over its highest: a linear rise over the share ``warm``, then a cosine to ``last``."""
    if progress < warm:
        return max(progress / warm, 0.01)
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))
