"""Bundles for the tests of ship: real ones of a tiny network, and made-up ones that only look real."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from repedge import __version__
from repedge.bundle.folder import writing
from repedge.bundle.manifest import Manifest, Origin, Tensor, Verification
from repedge.config import Preprocess
from repedge.photos import images

LABELS = (
    'a "quoted" one',
    "$dollar ${and} \\(swift) %s {brace} {{ jinja }}",
    "two\nlines\tand a tab",
    "back\\slash\\n and \\u0041",
    "🐕‍🦺 Hündin 犬",
    "??/ trigraph */ // # '''",
    '"""',
)
"""What no language may trip over."""

ARTIFACTS = {
    "tflite": "net.tflite",
    "openvino": "net.xml",
    "coreml": "net.mlpackage",
    "gpu": "repo/net/1/model.onnx",
}


def net(classes: int = len(LABELS)) -> Any:
    """A classifier of 8-bit RGB photos that compiles in a moment."""
    import torch
    from torch import nn

    torch.manual_seed(7)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )
    return layers.eval()


def features(unit: bool = False) -> Any:
    """A network of 8 pooled features, scaled to length 1 or not."""
    import torch
    from torch import nn

    class Unit(nn.Module):
        def forward(self, x: Any) -> Any:
            return x / (x * x).sum(1, keepdim=True).sqrt()

    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *([Unit()] if unit else [])).eval()


def compile_net(
    out: Path, targets: Sequence[str], network: Any = None, labels: Sequence[str] = LABELS, **options: Any
) -> dict[str, Path]:
    """Target -> bundle of a network, by default `net`."""
    import repedge

    report = repedge.compile(
        net() if network is None else network,
        targets=list(targets),
        out=out,
        labels=list(labels) or None,
        count=2,
        **{"input_size": "24x40", "resize": 30, "interpolation": "bicubic", **options},
    )
    assert report.passed
    return {b.target: b.path for b in report.bundles}


def fake(
    folder: Path, target: str = "tflite", *, labels: Sequence[str] = LABELS,
    outputs: Sequence[Tensor] | None = None, precision: Any = "fp32", name: str = "net",
    pre: Preprocess | None = None, input_kind: Any = "uint8", license: str = "Apache-2.0", task: str = "",
    failures: Sequence[str] = (), tensors: Sequence[Tensor] = (),
    answer: Mapping[str, Any] = MappingProxyType({}), values: Sequence[np.ndarray] = (),
) -> Path:  # fmt: skip
    """A bundle whose artifact nothing can load, which is all that rendering needs.

    ``task`` is what the manifest says where the shapes of the outputs don't; ``failures`` are of its
    verification; ``tensors`` are taken beside the image; ``answer`` is what the
    task read from the graph, and ``values`` are golden outputs as the graph has them, noise otherwise.
    """
    pre = pre or Preprocess(size=(24, 40), resize=30)
    outputs = outputs or (Tensor(name="logits", dtype="float32", shape=(1, len(labels) or 3), layout="NC"),)
    artifact = ARTIFACTS[target]
    with writing(folder) as draft:
        _artifact(draft.path / artifact)
        _golden(draft.path, pre, outputs, tensors, values)
        draft.seal(
            Manifest(
                repedge=__version__,
                name=name,
                target=target,
                precision=precision,
                artifact=artifact,
                input_kind=input_kind,
                inputs=(_input(target, pre, input_kind), *tensors),
                outputs=tuple(outputs),
                preprocess=pre,
                labels=tuple(labels),
                task=task,
                answer=dict(answer),
                requires={"iOS": ">=17", "macOS": ">=14"} if target == "coreml" else {"some runtime": ">=1"},
                verification=Verification(
                    passed=not failures, failures=tuple(failures),
                    n=2, max_abs_err=0.5, max_rel_err=0.1, sqnr_db=60,
                    figures={"agree_top1": 1.0}, executor="a test", images="noise",
                ),
                origin=Origin(model="onnx", description="made up", license=license),
            )
        )  # fmt: skip
        return draft.publish()


def _input(target: str, pre: Preprocess, kind: str) -> Tensor:
    h, w, c = *pre.size, pre.channels
    if kind == "uint8":
        image = "image" if target == "coreml" else "tensor"
        return Tensor(name="image", dtype="uint8", shape=(1, h, w, c), layout="NHWC", kind=image)
    last = target == "tflite"
    shape = (1, h, w, c) if last else (1, c, h, w)
    return Tensor(name="image", dtype="float32", shape=shape, layout="NHWC" if last else "NCHW")


def _artifact(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mlpackage":
        (path / "Data").mkdir(parents=True)
        (path / "Manifest.json").write_text("{}")
        (path / "Data" / "weight.bin").write_bytes(b"weights")
        return
    path.write_bytes(b"artifact")
    if path.suffix == ".xml":
        path.with_suffix(".bin").write_bytes(b"weights")
    if path.suffix == ".onnx":
        _with_external_weights(path)


def _with_external_weights(path: Path) -> None:
    """An ONNX file that says where its weights are: its target reads that."""
    import onnx

    weights = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32), "weights")
    value = onnx.helper.make_tensor_value_info("weights", onnx.TensorProto.FLOAT, [6])
    graph = onnx.helper.make_graph([], "net", [], [value], [weights])
    onnx.save_model(
        onnx.helper.make_model(graph),
        path,
        save_as_external_data=True,
        location=f"{path.name}.data",
        size_threshold=0,
    )


def _golden(
    root: Path, pre: Preprocess, outputs: Sequence[Tensor], tensors: Sequence[Tensor],
    values: Sequence[np.ndarray],
) -> None:  # fmt: skip
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)) for _ in range(2)]
    arrays: dict[str, Any] = {"pixels": np.stack([images.pixels(p, pre) for p in photos])}
    for i, t in enumerate(outputs):
        shape = t.shape if len(t.shape) != 4 or t.layout != "NHWC" else (1, t.shape[3], *t.shape[1:3])
        y = values[i] if values else rng.normal(size=(2, *shape[1:])).astype(np.float32)
        arrays |= {f"output:{t.name}": y, f"reference:{t.name}": np.nan_to_num(y)}
    for t in tensors:
        arrays[f"input:{t.name}"] = rng.integers(0, 9, (2, *t.shape)).astype(t.dtype)
    folder = root / "golden"
    folder.mkdir()
    for i, photo in enumerate(photos):
        photo.save(folder / f"{i}.png")
    np.savez(folder / "golden.npz", **arrays)


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "PNG")
    return buffer.getvalue()
