"""The methods of bench/int8.py: each makes an integer artifact of the same float network and runs it.

A method is a row of `METHODS`; `measure` does one of them in the current process.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers

import repedge
from repedge import targets
from repedge.bundle.folder import Bundle
from repedge.photos.images import normalise
from repedge.precision import Precision
from repedge.scheme import QuantScheme
from repedge.targets.openvino.scheme import OPENVINO_W8A8
from support.int8_data import Work, source_of

Run = Callable[[np.ndarray], np.ndarray]
"""Pixels uint8 [n, H, W, 3] -> logits float32 [n, classes]."""


@dataclass(frozen=True)
class Made:
    """An artifact, ready to run.

    Attributes:
        run: The artifact in its runtime.
        cpu_s: Processor seconds that calibrating took, photos decoded already or not.
        size: Bytes of the artifact over bytes of the float32 artifact.
    """

    run: Run
    cpu_s: float
    size: float


MAX_KL = 0.005
"""The accuracy budget of the rows that have one, nats."""


def bundle(work: Work, target: str, precision: Precision, input_kind: Any = "uint8", **more: Any) -> Bundle:
    """Compiled by repedge, or found from an earlier run; the bundle is kept where it fails its own check."""
    folder = bundle_folder(work, target, precision, input_kind, variant_of(more))
    if not folder.exists():
        model, options = source_of(work.task["model"], work.task["weights"])
        repedge.compile(
            model, targets=[target], precisions=[precision], out=folder, input_kind=input_kind,
            min_sqnr=0.0, images=work.folder / "calib", **more, **options,
        )  # fmt: skip
    return Bundle.open(next(folder.iterdir()))


def bundle_folder(work: Work, target: str, precision: str, input_kind: str, variant: str = "") -> Path:
    """Where a bundle is kept."""
    return work.folder / f"{target}-{precision}-{input_kind}{variant}"


def variant_of(options: dict[str, Any]) -> str:
    """What a folder's name says of options that are not the default."""
    form = options.get("options", {}).get("form", "")
    return (
        ("-budget" if "max_kl" in options else "")
        + ("-best" if options.get("recipe") == "best" else "")
        + (f"-{form}" if form else "")
    )


def float_artifact(work: Work, target: str) -> Path:
    """repedge's own float32 artifact with float input, which the peers start from."""
    return bundle(work, target, "fp32", "float32").artifact


def of_repedge(
    work: Work, target: str, recipe: str = "default", budget: bool = False, form: str = ""
) -> Made:
    """``repedge compile --precision w8a8``, with ``-O gpu.form=FORM`` where one is given.

    With a budget, two thirds of the calibration photos calibrate, and the others judge it.
    """
    from repedge.judge.verification import open_bundle

    marks: dict[str, float] = {}
    count = work.task["calib"]
    more: dict[str, Any] = {"recipe": recipe, **({"options": {"form": form}} if form else {})}
    more |= {"calib_count": count * 2 // 3, "max_kl": MAX_KL} if budget else {"calib_count": count}
    # Of a run that was cut off:
    shutil.rmtree(bundle_folder(work, target, "w8a8", "uint8", variant_of(more)), ignore_errors=True)
    built = bundle(
        work, target, "w8a8", calib=work.folder / "calib", **more,
        on_stage=lambda stage: marks.setdefault(stage.split(": ")[-1], time.process_time()),
    )  # fmt: skip
    cpu = marks["compile"] - marks["calibrate"] if "calibrate" in marks else float("nan")
    _, runner = open_bundle(built, threads=1)
    size = targets.size_of(target, built.artifact) / targets.size_of(target, float_artifact(work, target))
    return Made(lambda pixels: runner.run(pixels)[0], cpu, size)


def of_calib(work: Work, rules: QuantScheme, recipe: str, per_channel: bool = True) -> Made:
    """`repedge.calib` alone: the QDQ graph, run by ONNX Runtime as it is."""
    from repedge import passes
    from repedge.calib.qdq import to_qdq
    from repedge.calib.recipe import calibrate
    from repedge.graph.serde import save_onnx
    from repedge.passes.preprocess import fold_preprocess
    from repedge.photos.photos import batches, open_photos, spread

    graph = work.source.graph()
    passes.clean(graph)
    graph = fold_preprocess(graph, work.pre, border=not rules.symmetric)
    if not per_channel:  # the stock baseline: all 8 bits
        rules = rules.model_copy(update={"per_channel": False, "first_layer_bits": 8})
    photos, pre = open_photos(work.folder / "calib"), work.pre
    feed = (b.pixels[pre] for b in batches(photos, spread(photos.total), (pre,), 1))
    began = time.process_time()
    model, plan = calibrate(graph, (planar(x) for x in feed), rules, recipe)
    cpu = time.process_time() - began
    path = work.folder / f"{rules.name}-{recipe}-{'channel' if per_channel else 'tensor'}.onnx"
    save_onnx(to_qdq(model, plan), path)
    session = onnx_session(path)
    size = path.stat().st_size / targets.size_of("gpu", float_artifact(work, "gpu"))
    return Made(lambda pixels: session(planar(pixels)), cpu, size)


def planar(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, 3] -> float32 [n, 3, H, W], 0 to 255."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)


def of_ai_edge(work: Work) -> Made:
    """ai-edge-quantizer, static w8a8, on repedge's float .tflite."""
    path, floats = work.folder / "ai-edge.tflite", float_artifact(work, "tflite")
    photos = work.calibration()
    began = time.process_time()
    peers.ai_edge_quantize(floats, photos, path)
    cpu = time.process_time() - began
    return _made(work, litert(path), cpu, path.stat().st_size / floats.stat().st_size)


def of_nncf(work: Work, fast: bool) -> Made:
    """NNCF's post-training quantization on repedge's float IR."""
    path, floats = (
        work.folder / f"nncf-{'fast' if fast else 'accurate'}.xml",
        float_artifact(work, "openvino"),
    )
    photos = work.calibration()
    began = time.process_time()
    peers.nncf_quantize(floats, photos, path, fast)
    cpu = time.process_time() - began
    return _made(
        work, openvino(path), cpu, targets.size_of("openvino", path) / targets.size_of("openvino", floats)
    )


def of_onnxruntime(work: Work, per_channel: bool = True, symmetric: bool = False) -> Made:
    """onnxruntime's static quantizer on repedge's float ONNX."""
    kind = ("channel" if per_channel else "tensor") + ("-symmetric" if symmetric else "")
    path, floats = work.folder / f"onnxruntime-{kind}.onnx", float_artifact(work, "gpu")
    photos = work.calibration()
    began = time.process_time()
    peers.onnxruntime_quantize(floats, photos, path, per_channel, symmetric)
    cpu = time.process_time() - began
    return _made(work, onnx_session(path), cpu, path.stat().st_size / floats.stat().st_size)


def _made(work: Work, run: Run, cpu: float, size: float) -> Made:
    """For artifacts that take the normalised input."""
    return Made(lambda pixels: run(normalise(pixels, work.pre)), cpu, size)


def litert(path: Path) -> Run:
    """A .tflite in LiteRT, one image at a time; input float32 [n, C, H, W], rounded where it takes int8."""
    from repedge.targets.tflite.runner import open_interpreter

    interpreter = open_interpreter(path, 1)
    given, got = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    channels_last = given["shape"][-1] == 3

    def one(x: np.ndarray) -> np.ndarray:
        x = x.transpose(0, 2, 3, 1) if channels_last else x
        if given["dtype"] != np.float32:
            scale, zero = given["quantization"]
            limits = np.iinfo(given["dtype"])
            x = np.clip(np.rint(x / scale) + zero, limits.min, limits.max).astype(given["dtype"])
        interpreter.set_tensor(given["index"], np.ascontiguousarray(x))
        interpreter.invoke()
        y = interpreter.get_tensor(got["index"])
        scale, zero = got["quantization"]
        return y if got["dtype"] == np.float32 else ((y.astype(np.float32) - zero) * scale)

    return lambda batch: np.concatenate([one(batch[i : i + 1]) for i in range(len(batch))])


def openvino(path: Path) -> Run:
    """An IR in OpenVINO, what is left in floating point in float32."""
    import openvino as ov

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = ov.Core().compile_model(str(path), "CPU", config)
    return lambda batch: np.concatenate([compiled(batch[i : i + 1])[0] for i in range(len(batch))])


def onnx_session(path: Path) -> Run:
    """An ONNX file in ONNX Runtime, one image at a time."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: np.concatenate(
        [session.run(None, {name: batch[i : i + 1]})[0] for i in range(len(batch))]
    )


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        who, how: Tool and mode.
        runtime: What runs the artifact.
        make: Calibrates and compiles.
        slow: Whether the runtime is an interpreter in Python, which sees fewer photos.
    """

    who: str
    how: str
    runtime: str
    make: Callable[[Work], Made]
    slow: bool = False


METHODS: dict[str, Method] = {
    "repedge-tflite": Method("repedge", "default", "LiteRT", partial(of_repedge, target="tflite")),
    "repedge-openvino": Method("repedge", "default", "OpenVINO", partial(of_repedge, target="openvino")),
    "repedge-onnx": Method(
        "repedge", "default, gpu.form=ort", "ONNX Runtime", partial(of_repedge, target="gpu", form="ort")
    ),
    "repedge-gpu": Method(
        "repedge", "default, TensorRT-symmetric", "ONNX Runtime", partial(of_repedge, target="gpu")
    ),
    "repedge-coreml": Method(
        "repedge", "default", "MIL interpreter", partial(of_repedge, target="coreml"), slow=True
    ),
    "repedge-tflite-budget": Method(
        "repedge", f"default, --max-kl {MAX_KL}", "LiteRT", partial(of_repedge, target="tflite", budget=True)
    ),
    "repedge-openvino-budget": Method(
        "repedge", f"default, --max-kl {MAX_KL}", "OpenVINO",
        partial(of_repedge, target="openvino", budget=True),
    ),
    "repedge-tflite-best": Method(
        "repedge", "--recipe best", "LiteRT", partial(of_repedge, target="tflite", recipe="best")
    ),
    "ai-edge": Method("ai-edge-quantizer", "static w8a8", "LiteRT", of_ai_edge),
    "nncf": Method("NNCF", "default", "OpenVINO", partial(of_nncf, fast=True)),
    "nncf-accurate": Method("NNCF", "accurate bias correction", "OpenVINO", partial(of_nncf, fast=False)),
    "onnxruntime": Method("onnxruntime", "static QDQ, per channel", "ONNX Runtime", of_onnxruntime),
    "onnxruntime-symmetric": Method(
        "onnxruntime", "static QDQ, symmetric", "ONNX Runtime", partial(of_onnxruntime, symmetric=True)
    ),
    "onnxruntime-tensor": Method(
        "onnxruntime", "static QDQ, per-tensor weights", "ONNX Runtime",
        partial(of_onnxruntime, per_channel=False),
    ),
    "minmax-tensor": Method(
        "baseline", "min-max, per-tensor weights", "ONNX Runtime",
        partial(of_calib, rules=OPENVINO_W8A8, recipe="minmax", per_channel=False),
    ),
}  # fmt: skip


def measure(work: Work, key: str, slow_limit: int) -> dict[str, Any]:
    """Make one artifact, run it on the evaluation photos, and hold it against the float network."""
    method = METHODS[key]
    made = method.make(work)
    pixels, labels = work.evaluation
    n = min(slow_limit, len(pixels)) if method.slow else len(pixels)
    chosen = np.arange(n) * len(pixels) // n  # the photos are in the order of their classes
    chunks = [made.run(pixels[part]) for part in np.array_split(chosen, -(-n // 16))]
    row = score(np.concatenate(chunks).astype(np.float64), work.logits()[chosen], labels[chosen])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"key": key, **row, "cpu_s": made.cpu_s, "size": made.size, "peak_mb": peak}


def score(actual: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Everything in fractions; ``se`` is the paired standard error of the drop, sqrt(lost + won) / n."""
    from repedge.tasks.classify import Ranking

    comparison = Ranking()
    comparison.update(reference, actual)
    right, was = actual.argmax(1) == labels, reference.argmax(1) == labels
    lost, won = int((was & ~right).sum()), int((right & ~was).sum())
    n = len(labels)
    return {
        "n": n,
        "top1": float(right.mean()),
        "drop": (lost - won) / n,
        "se": float(np.sqrt(lost + won)) / n,
        "agree": comparison.figures()["agree_top1"],
        "sqnr": comparison.sqnr_db,
        "kl": comparison.figures()["kl"],
    }
