"""Small artifacts and scripted agents for the profile tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx.parser

from repedge import targets
from repedge.devices.protocol import EngineRef, HostInfo, ProfileRequest, RawProfile
from repedge.profile.measure import engine_ref
from repedge.profile.result import Profile, summarize
from repedge.profile.subject import TORCH, Subject

if TYPE_CHECKING:
    import torch

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (uint8[1, 16, 16, 3] image) => (float[1, 4] logits) {
  x = Cast<to = 1>(image)
  y = Transpose<perm = [0, 3, 1, 2]>(x)
  z = GlobalAveragePool(y)
  f = Flatten(z)
  w = Constant<value = float[3, 4] {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>()
  logits = MatMul(f, w)
}
"""
NAN = NET.replace("logits = MatMul(f, w)", "m = MatMul(f, w)\n n = Neg(m)\n logits = Log(n)")


def engine_of(runtime: str) -> EngineRef:
    """What the agent is told of a runtime's engine."""
    known = [t.engine for t in targets.installed() if t.engine is not None]
    return engine_ref(next(e for e in (TORCH, *known) if e.runtime == runtime))


def asked(runtime: str, **more: Any) -> ProfileRequest:
    """A request for a runtime."""
    return ProfileRequest(**{"runtime": runtime, "engine": engine_of(runtime), **more})


def save_onnx(path: Path, text: str = NET) -> Path:
    model = onnx.parser.parse_model(text)
    onnx.save(model, path)
    return path


def profile(samples: Sequence[float] = (1.0, 1.1, 1.2) * 10, **more: Any) -> Profile:
    """The profile of made-up latencies."""
    raw = RawProfile(runtime="tflite", threads=1, samples_ms=tuple(samples), host=HostInfo(cpu="x"), **more)
    (engine,) = (t.engine for t in targets.installed() if t.name == "tflite")
    assert engine is not None
    return summarize(Subject("net", Path("net.tflite"), engine, "tflite"), "local", "latency", raw)


@cache
def module() -> torch.nn.Sequential:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


class ScriptedTransport:
    """A `repedge.devices.base.Transport` that plays back lines; None is the end, an exception is raised."""

    def __init__(self, *lines: str | type[BaseException] | None, trouble: str = "") -> None:
        self.lines, self.closed, self._trouble = list(lines), 0, trouble
        self.sent: list[Any] = []

    def send(self, line: str) -> None:
        self.sent.append(json.loads(line))

    def receive(self, timeout: float) -> str | None:
        line = self.lines.pop(0) if self.lines else None
        if isinstance(line, type):
            raise line
        return line

    def trouble(self) -> str:
        return self._trouble

    def close(self) -> None:
        self.closed += 1


def answer(**message: Any) -> str:
    return "@repedge " + json.dumps(message)
