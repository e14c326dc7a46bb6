"""The peers: what people use today, called the way their documentation says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from repedge.models.registry import create

COMPARED = (
    "torch", "litert-torch", "coremltools", "openvino", "ai-edge-litert", "onnxruntime",
    "ai-edge-quantizer", "nncf",
)  # fmt: skip


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


def ai_edge_quantize(model: Path, photos: Sequence[np.ndarray], path: Path) -> None:
    """ai-edge-quantizer: float .tflite -> static w8a8 .tflite; photos are float32 [1, C, H, W]."""
    from ai_edge_quantizer import quantizer, recipe

    session = quantizer.Quantizer(str(model), recipe.static_wi8_ai8())
    name, channels_last = _tflite_input(model)
    turned = [x.transpose(0, 2, 3, 1) if channels_last else x for x in photos]
    data = {"serving_default": [{name: np.ascontiguousarray(x)} for x in turned]}
    result = session.quantize(session.calibrate(data, num_threads=1))
    path.unlink(missing_ok=True)
    result.export_model(str(path))


def _tflite_input(model: Path) -> tuple[str, bool]:
    """The name of the signature's input, and whether its channels come last."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(model)).get_signature_runner("serving_default")
    ((name, detail),) = runner.get_input_details().items()
    return name, int(detail["shape"][-1]) == 3


def as_integers(x: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """What a TensorFlow Lite input of integers takes for real numbers."""
    if detail["dtype"] == np.float32:
        return x
    (scale, zero), limits = detail["quantization"], np.iinfo(detail["dtype"])
    return np.clip(np.round(x / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def as_reals(y: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """What the integers of an output stand for."""
    if detail["dtype"] == np.float32:
        return y
    scale, zero = detail["quantization"]
    return ((y.astype(np.float32) - zero) * scale).astype(np.float32)


def nncf_quantize(
    model: Path, photos: Sequence[np.ndarray], path: Path, fast: bool = True, ignored: Sequence[str] = ()
) -> None:
    """NNCF: float IR -> int8 IR; ``fast`` is its default bias correction, else the accurate one.

    ``ignored`` are types of operators that stay float, as exporters of detectors tell it.
    """
    import nncf
    import openvino as ov

    done = nncf.quantize(
        ov.Core().read_model(str(model)),
        nncf.Dataset(list(photos)),
        subset_size=len(photos),
        fast_bias_correction=fast,
        **({"ignored_scope": nncf.IgnoredScope(types=list(ignored))} if ignored else {}),
    )
    ov.save_model(done, str(path), compress_to_fp16=False)


def onnxruntime_quantize(
    model: Path, photos: Sequence[np.ndarray], path: Path, per_channel: bool = True, symmetric: bool = False
) -> None:
    """onnxruntime: float ONNX -> QDQ ONNX with the static quantizer's own defaults."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = path.with_suffix(".ready.onnx")
    quant_pre_process(str(model), str(ready))

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            import onnx

            name = onnx.load(str(ready), load_external_data=False).graph.input[0].name
            self._rest = iter([{name: x} for x in photos])

        def get_next(self) -> Any:
            return next(self._rest, None)

    options = {"ActivationSymmetric": True, "WeightSymmetric": True} if symmetric else {}
    quantize_static(
        str(ready),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        extra_options=options,
    )
    ready.unlink()


def versions() -> dict[str, str]:
    """What was compared."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {}
    for name in COMPARED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
