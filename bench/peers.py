"""The peers: what people use today, called the way their documentation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from repedge.models.registry import create


def fused_module(name: str) -> nn.Module:
    """The named network in deploy form with seeded random weights: the peers are spared the fusing."""
    torch.manual_seed(0)
    return create(name, deploy=True).eval()


def example_input(name: str, size: int = 224) -> torch.Tensor:
    """The network's input, float32 [1, 3, size, size]."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def litert_torch_convert(module: nn.Module, x: torch.Tensor, path: Path) -> None:
    """litert-torch: module -> .tflite fp32."""
    import litert_torch

    litert_torch.convert(module, (x,)).export(str(path))


def coremltools_convert(module: nn.Module, x: torch.Tensor, path: Path) -> None:
    """coremltools: torch.export -> .mlpackage fp16 with an image input."""
    import coremltools as ct

    program = torch.export.export(module, (x,)).run_decompositions({})
    model = ct.convert(
        program,
        inputs=[ct.ImageType(name="image", shape=tuple(x.shape))],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    model.save(str(path))


def openvino_convert(module: nn.Module, x: torch.Tensor, path: Path, fp16: bool = False) -> None:
    """openvino.convert_model: torch.export -> IR."""
    import openvino as ov

    program = torch.export.export(module, (x,))
    model = ov.convert_model(program, example_input=(x,), input=[tuple(x.shape)])
    ov.save_model(model, str(path), compress_to_fp16=fp16)


def versions() -> dict[str, str]:
    """What was compared."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {}
    for name in ("torch", "litert-torch", "coremltools", "openvino", "ai-edge-litert", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
