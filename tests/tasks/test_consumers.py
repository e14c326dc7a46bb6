"""Artifacts in the consumers that they are made for; without those, what these would read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from detector_nets import CLASSES, SIZE, SSD, Yolo8, Yolox
from PIL import Image
from segment_nets import Segmenter

import repedge
from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import task_of
from repedge.judge import verification
from repedge.photos import images
from repedge.tasks.boxes import iou, to_photo
from repedge.tasks.detect import Detect
from repedge.tasks.segment import Segment

LABELS = tuple("abcde")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the input's size, so that no consumer's resizing has a say."""
    few = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(few).resize((64, 64), Image.Resampling.BICUBIC).save(file)
    return file


def compiled(out: Path, target: str, end: str, classes: int = 5) -> Bundle:
    report = repedge.compile(
        Segmenter(classes, end), targets=[target], input_size=64, out=out, resize="squash",
        labels=LABELS[:classes] if classes > 1 else None,
    )  # fmt: skip
    return Bundle.open(report.bundles[0].path)


def answer(bundle: Bundle, photo: Path) -> tuple[np.ndarray, np.ndarray]:
    """What repedge makes of a photo: scores [C, h, w], and the label map."""
    task = task_of(bundle.manifest)
    assert isinstance(task, Segment)
    _, runner = verification.open_bundle(bundle)
    outputs = runner.run(images.pixels(Image.open(photo), bundle.manifest.preprocess)[None])
    return outputs[0][0], task.decode(outputs)[0]


def custom(file: Path) -> tuple[bytes, int] | None:
    """Identifier and activation of the segmenter's metadata in a .tflite, by the flatbuffer's own layout."""
    data = file.read_bytes()
    at = data.find(b"V001")
    if b"SEGMENTER_METADATA" not in data or at < 0:
        return None
    options = data[at - 4 :]
    table = struct.unpack_from("<I", options)[0]
    fields = table - struct.unpack_from("<i", options, table)[0]
    offset = struct.unpack_from("<H", options, fields + 4)[0]
    return options[4:8], options[table + offset] if offset else 0


@pytest.mark.parametrize(
    ("end", "classes", "activation"),
    [("whole", 5, 2), ("softmax", 5, 0), ("sigmoid", 1, 0), ("argmax", 5, None)],
)
def test_what_mediapipe_reads_of_a_segmenter(
    tmp_path: Path, end: str, classes: int, activation: int | None
) -> None:
    found = custom(compiled(tmp_path, "tflite", end, classes).artifact)
    assert found == (None if activation is None else (b"V001", activation))


@pytest.mark.parametrize(
    ("end", "classes", "kind"), [("whole", 5, "Segmentation"), ("sigmoid", 1, ""), ("argmax", 5, "")]
)
def test_what_model_api_reads_of_a_segmenter(tmp_path: Path, end: str, classes: int, kind: str) -> None:
    import openvino

    model = openvino.Core().read_model(compiled(tmp_path, "openvino", end, classes).artifact)
    info = model.rt_info["model_info"]
    assert ("model_type" in info) == bool(kind)
    if kind:
        assert info["model_type"].astype(str) == kind
        assert info["labels"].astype(str) == "a b c d e"


def test_mediapipe_segments_as_we_do(tmp_path: Path, photo: Path) -> None:
    mp = pytest.importorskip("mediapipe")
    from mediapipe.tasks.python import BaseOptions, vision

    for end, classes in (("whole", 5), ("softmax", 5), ("sigmoid", 1)):
        bundle = compiled(tmp_path / end, "tflite", end, classes)
        options = vision.ImageSegmenterOptions(
            base_options=BaseOptions(model_asset_path=str(bundle.artifact)), output_category_mask=True
        )
        with vision.ImageSegmenter.create_from_options(options) as segmenter:
            found = segmenter.segment(mp.Image.create_from_file(str(photo)))
            labels = segmenter.labels
        scores, ids = answer(bundle, photo)
        confidence = np.stack([np.squeeze(m.numpy_view()) for m in found.confidence_masks])
        if classes > 1:
            assert labels == list(LABELS)
            np.testing.assert_array_equal(np.squeeze(found.category_mask.numpy_view()), ids)
            want = np.exp(scores) / np.exp(scores).sum(0) if end == "whole" else scores
        else:
            want = scores
        np.testing.assert_allclose(confidence, want, atol=1e-4)


def test_model_api_segments_as_we_do(tmp_path: Path, photo: Path) -> None:
    models = pytest.importorskip("model_api.models")
    bundle = compiled(tmp_path, "openvino", "whole")
    model = models.Model.create_model(str(bundle.artifact))
    found = model(np.asarray(Image.open(photo)))
    assert type(model).__name__ == "SegmentationModel"
    assert list(model.params.labels) == list(LABELS)
    assert (found.resultImage == answer(bundle, photo)[1]).mean() > 0.99


def detector(out: Path, network: type) -> Bundle:
    report = repedge.compile(
        network(0.02), targets=["openvino"], precisions=["fp32"], input_size=SIZE, out=out,
        resize="letterbox", labels=[f"class {name}" for name in LABELS[:CLASSES]], task="detect",
    )  # fmt: skip
    return Bundle.open(report.bundles[0].path)


@pytest.mark.slow
@pytest.mark.parametrize("network", [Yolo8, Yolox, SSD])
def test_what_model_api_reads_of_a_detector(tmp_path: Path, network: type) -> None:
    """It knows no scores apart from boxes, and can't prepare photos for YOLOX."""
    import openvino

    info = openvino.Core().read_model(detector(tmp_path, network).artifact).rt_info["model_info"]
    assert ("model_type" in info) == (network is Yolo8)
    assert info["resize_type"].astype(str) == "fit_to_window_letterbox"
    if network is Yolo8:
        assert info["model_type"].astype(str) == "YOLOv8"
        assert info["labels"].astype(str).split() == [f"class_{name}" for name in LABELS[:CLASSES]]


def test_model_api_detects_as_we_do(tmp_path: Path) -> None:
    models = pytest.importorskip("model_api.models")
    bundle = detector(tmp_path, Yolo8)
    pixels = np.random.default_rng(1).integers(0, 256, (4, 8, 3), np.uint8)
    photo = Image.fromarray(pixels).resize((2 * SIZE, SIZE), Image.Resampling.BICUBIC)
    theirs = models.Model.create_model(str(bundle.artifact))(np.asarray(photo))

    task, pre = task_of(bundle.manifest), bundle.manifest.preprocess
    assert isinstance(task, Detect)
    _, runner = verification.open_bundle(bundle)
    found = task.decode(runner.run(images.pixels(photo, pre)[None]))[0]
    ours = to_photo(found, images.view(photo.size, pre))
    assert len(ours) == 3
    order = np.argsort(-theirs.scores)
    assert theirs.labels[order].tolist() == ours.classes.tolist()
    assert [theirs.label_names[i] for i in order] == [f"class_{LABELS[c]}" for c in ours.classes]
    np.testing.assert_allclose(theirs.scores[order], ours.scores, atol=0.01)
    assert iou(np.asarray(theirs.bboxes, np.float32)[order], ours.boxes).diagonal().min() > 0.9
