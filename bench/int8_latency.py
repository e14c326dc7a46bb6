"""Latency and memory of bench/int8.py: integer artifacts in turns, and what calibrating takes."""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import peers
from latency import Invoke, interleave, interval
from support.int8_methods import planar

import repedge
from repedge.bundle.folder import Bundle
from repedge.precision import Precision

RANDOM_PHOTOS = 8
"""Calibration photos of the latency part: random weights know no photos, and times hang on none."""


def litert(path: Path, threads: int) -> Invoke:
    """A .tflite in LiteRT, input filled once with what its type can hold."""
    from repedge.targets.tflite.runner import open_interpreter

    interpreter = open_interpreter(path, threads)
    detail = interpreter.get_input_details()[0]
    interpreter.set_tensor(detail["index"], _fill(detail["shape"], detail["dtype"]))
    return interpreter.invoke


def openvino(path: Path, threads: int, hint: str | None = None) -> Invoke:
    """An IR in OpenVINO; without ``hint`` what is left in floating point runs as OpenVINO chooses."""
    import openvino as ov

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if hint is not None:
        config["INFERENCE_PRECISION_HINT"] = hint
    compiled = ov.Core().compile_model(str(path), "CPU", config)
    request, port = compiled.create_infer_request(), compiled.input(0)
    dtype = port.element_type.to_dtype()
    request.set_input_tensor(ov.Tensor(_fill(port.shape, dtype)))
    return request.infer


def onnxruntime(path: Path, threads: int) -> Invoke:
    """An ONNX file in ONNX Runtime, in its default settings but for the threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.get_inputs()[0]
    dtype = np.uint8 if "uint8" in found.type else np.float32
    feeds = {found.name: _fill([d if isinstance(d, int) else 1 for d in found.shape], dtype)}
    return lambda: session.run(None, feeds)


def _fill(shape: Any, dtype: Any) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = tuple(int(d) for d in shape)
    if np.dtype(dtype).kind in "ui":
        return rng.integers(0, 127, shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def artifacts(model: str, folder: Path, targets: Collection[str]) -> dict[str, Path]:
    """Name -> artifact of one model with seeded weights; ours take pixels, the peers' normalised input."""
    photos = folder / "photos"
    if not photos.exists():
        _noise(photos)
    weights = folder / f"{model}.safetensors"
    if not weights.exists():
        _weights(model, weights)
    found = {}
    options = {"gpu": {"form": "ort"}}
    builds: tuple[tuple[str, Precision, Any], ...] = (
        ("tflite", "w8a8", "uint8"), ("tflite", "fp32", "uint8"), ("openvino", "w8a8", "uint8"),
        ("openvino", "fp32", "uint8"), ("tflite", "fp32", "float32"), ("openvino", "fp32", "float32"),
        ("gpu", "w8a8", "uint8"), ("gpu", "fp32", "uint8"), ("gpu", "fp32", "float32"),
    )  # fmt: skip
    for target, precision, kind in (build for build in builds if build[0] in targets):
        out = folder / f"{model}-{target}-{precision}-{kind}"
        if not out.exists():
            integers: dict[str, Any] = (
                {"calib": photos, "recipe": "fast", "options": options.get(target, {})}
                if precision == "w8a8"
                else {}
            )
            repedge.compile(
                model, weights=weights, targets=[target], precisions=[precision], out=out,
                min_sqnr=-200.0, input_kind=kind, **integers,
            )  # fmt: skip
        found[f"{target}-{precision}-{kind}"] = Bundle.open(next(out.iterdir())).artifact
    inputs = [_normal(i) for i in range(RANDOM_PHOTOS)]
    for name, make in _peers(model, found, inputs, targets).items():
        suffix = {"nncf": ".xml", "onnxruntime": ".onnx"}.get(name, ".tflite")
        found[name] = folder / f"{model}-{name}{suffix}"
        if not found[name].exists():
            make(found[name])
    return found


def _weights(model: str, path: Path) -> None:
    """Seeded weights whose normalisation has statistics, as every trained network's has.

    Fresh ones are 0 and 1 and merge into biases of zero. OpenVINO drops those where a peer left them so, but
    not ours, which are corrected: the comparison would be of networks with and without biases.
    """
    import torch
    from safetensors.torch import save_file

    from repedge.models.registry import create

    torch.manual_seed(0)
    network = create(model).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.bias, std=0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)


def _peers(
    model: str, found: dict[str, Path], inputs: list[np.ndarray], targets: Collection[str]
) -> dict[str, Callable[[Path], None]]:
    def on_litert_torch(path: Path) -> None:
        floats = path.with_suffix(".float.tflite")
        peers.litert_torch_convert(peers.fused_module(model), peers.example_input(model), floats)
        peers.ai_edge_quantize(floats, inputs, path)

    made: dict[str, dict[str, Callable[[Path], None]]] = {
        "tflite": {
            "ai-edge": on_litert_torch,
            "ai-edge-ours": lambda p: peers.ai_edge_quantize(found["tflite-fp32-float32"], inputs, p),
        },
        "openvino": {"nncf": lambda p: peers.nncf_quantize(found["openvino-fp32-float32"], inputs, p)},
        "gpu": {
            "onnxruntime": lambda p: peers.onnxruntime_quantize(found["gpu-fp32-float32"], inputs, p),
        },
    }
    return {name: make for target in made if target in targets for name, make in made[target].items()}


def _normal(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 3, 224, 224)).astype(np.float32)


def _noise(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    for i in range(RANDOM_PHOTOS):
        array = np.random.default_rng(i).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{i}.png")


PAIRS: tuple[tuple[str, str, str, dict[str, float]], ...] = (
    # runtime, ours, theirs, bar of the ratio per model
    ("LiteRT", "tflite-w8a8-uint8", "ai-edge", {"repvgg_a0": 1.0, "repvit_m0_9": 0.85}),
    ("LiteRT", "tflite-w8a8-uint8", "ai-edge-ours", {}),
    ("LiteRT", "tflite-w8a8-uint8", "tflite-fp32-uint8", {}),
    ("OpenVINO", "openvino-w8a8-uint8", "nncf", {"repvgg_a0": 1.0, "repvit_m0_9": 1.0}),
    ("OpenVINO", "openvino-w8a8-uint8", "openvino-fp32-uint8", {}),
    ("ONNX Runtime", "gpu-w8a8-uint8", "onnxruntime", {"repvgg_a0": 1.0, "repvit_m0_9": 1.0}),
    ("ONNX Runtime", "gpu-w8a8-uint8", "gpu-fp32-uint8", {}),
)
STARTS: dict[str, Callable[[Path, int], Invoke]] = {
    "LiteRT": litert, "OpenVINO": openvino, "ONNX Runtime": onnxruntime,
}  # fmt: skip
TITLES = {
    "ai-edge": "ai-edge-quantizer on litert-torch's",
    "ai-edge-ours": "ai-edge-quantizer on repedge's fp32",
    "tflite-fp32-uint8": "repedge fp32",
    "openvino-fp32-uint8": "repedge fp32, run in bf16 where the CPU has it",
    "nncf": "NNCF default",
    "onnxruntime": "onnxruntime's static quantizer on repedge's fp32",
    "gpu-fp32-uint8": "repedge fp32",
}


def latency(
    models: list[str],
    folder: Path,
    runs: int,
    threads: int,
    rounds: int,
    child: Callable[..., Any],
    runtimes: Collection[str] = (),
) -> None:
    """Print the table.

    ``child`` runs `pair` in a fresh process, once a round: where the memory of two networks lies sways
    their ratio by more than the runs of one process show.
    """
    from repedge.targets.tflite.runner import partitions

    _claim(folder)
    pairs = [p for p in PAIRS if not runtimes or p[0] in runtimes]
    targets = {ours.partition("-")[0] for _, ours, _, _ in pairs}
    print("| model | runtime | repedge w8a8 ms | against | ms | ratio | 95 % interval | bar |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    lines = []
    for model in models:
        found = artifacts(model, folder, targets)
        for name in sorted({"tflite-w8a8-uint8", "ai-edge", "ai-edge-ours"} & set(found)):
            parts = partitions(found[name])
            outside = ", ".join(f"{parts.outside.count(n)} {n}" for n in dict.fromkeys(parts.outside))
            lines.append(f"{model} {name}: {parts.count} XNNPACK partition(s), outside: {outside or 'none'}")
        for runtime, ours, theirs, bars in pairs:
            paths = (str(found[ours]), str(found[theirs]))
            times = [child("pair", runtime, *paths, str(threads), str(runs), str(i)) for i in range(rounds)]
            ratios = np.array([t["ratio"] for t in times])
            low, high = interval(ratios)
            print(
                f"| {model} | {runtime} | {np.median([t['ours'] for t in times]):.2f} | {TITLES[theirs]} "
                f"| {np.median([t['theirs'] for t in times]):.2f} | {np.median(ratios):.3f} "
                f"| {low:.3f}..{high:.3f} | {bars.get(model, '')} |",
                flush=True,
            )
    print("\n" + "\n".join(lines))


def pair(runtime: str, ours: str, theirs: str, threads: int, runs: int, index: int) -> dict[str, float]:
    """Median milliseconds of two artifacts, run by run in turn, and of the ratios; loaded in turn, too."""
    start = STARTS[runtime]
    paths = (Path(ours), Path(theirs))
    loaded = {i: start(paths[i], threads) for i in ((0, 1) if index % 2 else (1, 0))}
    a, b = interleave(loaded[0], loaded[1], runs)
    return {"ours": np.median(a), "theirs": np.median(b), "ratio": np.median(a / b)}


def _claim(folder: Path) -> None:
    """Stop if the folder's artifacts are of other versions or another bench than this."""
    here = [Path(__file__), Path(peers.__file__)]
    mine = {**peers.versions(), "bench": hashlib.sha256(b"".join(p.read_bytes() for p in here)).hexdigest()}
    mark = folder / "made-by.json"
    if mark.exists() and json.loads(mark.read_text()) != mine:
        raise SystemExit(f"{folder} holds artifacts of other versions or another bench; give another --work")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(mine))


def calibrate(model: str, weights: str | None, photos: Path, count: int) -> dict[str, Any]:
    """Calibrate on ``count`` photos of a folder, again and again if there are fewer.

    ``peak_in`` is the step that the peak was reached in.
    """
    from support.int8_data import source_of

    from repedge import passes
    from repedge.calib.recipe import calibrate as run
    from repedge.models.source import resolve
    from repedge.passes.preprocess import fold_preprocess
    from repedge.photos.photos import batches, open_photos, spread
    from repedge.targets.tflite.scheme import TFLITE_W8A8

    name, options = source_of(model, weights)
    source = resolve(name, **options)
    graph = source.graph()
    passes.clean(graph)
    source.module = None
    graph = fold_preprocess(graph, source.preprocess, border=True)
    pre, found = source.preprocess, open_photos(photos)
    again = spread(found.total)
    indices = [again[i % len(again)] for i in range(count)]
    feed = (planar(b.pixels[pre]) for b in batches(found, indices, (pre,), 1))
    before, began = _peak_mb(), time.process_time()
    seen: list[tuple[str, float]] = []  # a step as it begins, and the peak until then
    run(graph, feed, TFLITE_W8A8, "default", progress=lambda s: seen.append((s, _peak_mb())))
    peak, cpu = _peak_mb(), time.process_time() - began
    step = [s for s, until in seen if until < peak][-1].partition("(")[0]
    return {"photos": count, "before_mb": before, "peak_mb": peak, "peak_in": step, "cpu_s": cpu}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
