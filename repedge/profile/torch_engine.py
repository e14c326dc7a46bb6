"""torch eager, the reference: a module made by a function of this machine's own Python."""

from __future__ import annotations

import importlib
from typing import Any

from repedge.devices.agent.engine import AgentError, Engine, default_threads


class TorchEager(Engine):
    """See Engine."""

    def __init__(self, artifact: str, request: dict) -> None:
        import numpy as np
        import torch

        self._torch = torch
        self.version = torch.__version__
        self.threads = default_threads(request)
        torch.set_num_threads(self.threads)
        module, _, function = request["factory"].partition(":")
        try:
            make = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as e:
            raise AgentError(f"torch modules are measured on 'local' only: {e}", "user") from e
        self.module, shape = make(**request["factory_args"])
        self.module.eval()
        self.inputs = [("input", np.dtype("float32"), tuple(shape))]
        self._last: Any = None

    def feed(self, arrays: list) -> None:
        """See Engine.feed."""
        self._x = self._torch.from_numpy(arrays[0])

    def invoke(self) -> None:
        """See Engine.invoke."""
        with self._torch.inference_mode():
            self._last = self.module(self._x)

    def outputs(self) -> list:
        """See Engine.outputs."""
        last: Any = self._last
        if isinstance(last, dict):
            last = list(last.values())
        parts = last if isinstance(last, (list, tuple)) else [last]
        return [(str(i), y.numpy()) for i, y in enumerate(parts) if hasattr(y, "numpy")]

    def operators(self, runs: int) -> tuple:
        """See Engine.operators."""
        from repedge.profile.hooks import hook

        with hook(self.module) as timeline, self._torch.inference_mode():
            self.module(self._x)
            timeline.clear()
            for _ in range(runs):
                self.module(self._x)
        ops = [
            {"name": name, "type": kind, "ms": total / runs, "where": "torch"}
            for name, kind, total in timeline.totals()
        ]
        return ops, f"hooks around the innermost modules, mean of {runs} runs"
