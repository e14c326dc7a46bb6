"""Several bundles on the same photos."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from budget_nets import OPTIONS, classifier, label, photos

import repedge
from repedge import cli
from repedge.bundle.folder import Bundle
from repedge.judge.verification import open_bundle
from repedge.photos import images
from repedge.photos.photos import open_photos, stacked
from repedge.tasks.classify import Ranking


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    """40 labelled photos."""
    found = photos(folder / "photos", 40)
    label(found, classifier(folder / "net.onnx", rough=1))
    return found


@pytest.fixture(scope="module")
def bundles(folder: Path, data: Path) -> list[Path]:
    """TFLite and ONNX in integers, OpenVINO in float."""
    make: dict[str, Any] = {"out": folder / "build", "images": data, **OPTIONS}
    integers: dict[str, Any] = {"precisions": ["w8a8"], "calib": data, "calib_count": 32, "recipe": "minmax"}
    one = repedge.compile(folder / "net.onnx", targets=["tflite", "gpu"], min_sqnr=0, **integers, **make)
    two = repedge.compile(folder / "net.onnx", targets=["openvino"], precisions=["fp32"], **make)
    return [b.path for b in (*one.bundles, *two.bundles)]


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def logits(path: Path, data: Path) -> np.ndarray:
    bundle = Bundle.open(path)
    _, runner = open_bundle(bundle)
    pre = bundle.manifest.preprocess
    batch = stacked(open_photos(data), pre)
    return runner.run(batch if bundle.manifest.input_kind == "uint8" else images.normalise(batch, pre))[0]


@pytest.mark.slow
def test_integers_are_held_against_their_simulation_by_verify_alone(
    bundles: list[Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is not in the bundle, but what it gave on these images is."""
    path, made = bundles[0], Bundle.open(bundles[0]).manifest.verification
    assert made is not None
    found = repedge.verify(path, images=data, count=made.n)
    assert found.passed
    assert found.simulated_sqnr_db == made.simulated_sqnr_db is not None
    target, runner = open_bundle(Bundle.open(path))
    run = runner.run

    def rougher(batch: np.ndarray, *beside: Any) -> list[np.ndarray]:
        (y,) = run(batch, *beside)
        noise = np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype)
        return [y + noise * np.sqrt(np.square(y).mean(1, keepdims=True)) * 0.5]  # 6 dB, over the floor of 0

    monkeypatch.setattr(runner, "run", rougher)
    monkeypatch.setattr("repedge.judge.verification.open_bundle", lambda bundle: (target, runner))
    found = repedge.verify(path, images=data, count=made.n)
    assert any("a fault of the runtime" in why for why in found.failures), found
    found = repedge.verify(path, images=data, count=made.n - 1)  # other images: nobody knows
    assert found.simulated_sqnr_db is None
    assert not any("a fault of the runtime" in why for why in found.failures)


@pytest.mark.slow
def test_members_are_what_eval_says_of_each(bundles: list[Path], data: Path) -> None:
    found = repedge.compare_bundles(bundles, data)
    assert [m.name for m in found.members] == ["float", "tflite w8a8", "gpu w8a8", "openvino fp32"]
    assert [m.reference for m in found.members] == [None, 0, 0, 0]
    assert (found.n, found.skipped, len(found.pairs)) == (40, 0, 6)
    for i, path in enumerate(bundles, 1):
        alone, pair = repedge.evaluate(path, data), found.pair(0, i)
        assert (found.members[i].top1, found.members[i].top5) == (alone.top1, alone.top5)
        assert pair.agree_top1 == alone.agree_top1
        assert pair.sqnr_db == pytest.approx(alone.sqnr_db)
        assert pair.kl == pytest.approx(alone.kl)
    assert found.members[0].top1 == pytest.approx(26 / 40)
    assert found.pair(0, 3).sqnr_db > 100 > found.pair(0, 1).sqnr_db


@pytest.mark.slow
def test_pairs_are_artifact_against_artifact(bundles: list[Path], data: Path) -> None:
    found = repedge.compare_bundles(bundles[:2], data).pair(1, 2)
    want = Ranking()
    want.update(logits(bundles[0], data), logits(bundles[1], data))
    assert found.agree_top1 == want.figures()["agree_top1"]
    assert found.sqnr_db == pytest.approx(want.sqnr_db)
    assert found.kl == pytest.approx(want.figures()["kl"])
    assert found.max_abs_err == pytest.approx(want.max_abs_err)
    assert 0 < found.sqnr_db < 100


@pytest.mark.slow
def test_each_photo_is_decoded_once(bundles: list[Path], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    real = images.decode

    def decode(file: BinaryIO, *args: Any, **kwargs: Any) -> Any:
        seen.append(file.read())
        file.seek(0)
        return real(file, *args, **kwargs)

    monkeypatch.setattr(images, "decode", decode)
    assert repedge.compare_bundles(bundles, data, limit=20).n == 20
    assert len(seen) == len(set(seen)) == 20


@pytest.mark.slow
def test_bundles_of_two_networks(bundles: list[Path], data: Path, tmp_path: Path) -> None:
    """Each against its own float reference; other input sizes read the same photo."""
    other = classifier(tmp_path / "other.onnx", seed=1)
    options = {**OPTIONS, "mean": "0.4,0.4,0.4"}
    made = repedge.compile(
        other, targets=["openvino"], precisions=["fp32"], input_kind="float32", out=tmp_path, images=data,
        **options,
    )  # fmt: skip
    found = repedge.compare_bundles([bundles[2], made.bundles[0].path], data)
    assert [m.name for m in found.members] == [
        "net float",
        "other float",
        "net-openvino-fp32",
        "other-openvino-fp32",
    ]
    assert [m.reference for m in found.members] == [None, None, 0, 1]
    assert found.pair(0, 2).sqnr_db > 80
    assert found.pair(1, 3).sqnr_db > 80
    assert found.pair(2, 3).sqnr_db < 40


@pytest.mark.slow
def test_the_table_and_its_json(bundles: list[Path], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "broken.png").write_bytes(b"no image")
    try:
        names = [str(b) for b in bundles]
        code, out, _ = call(capsys, "eval", "--compare", *names, "--data", str(data))
        assert code == 0
        assert "40 photos (photos, 1 could not be decoded)" in out
        lines = out.splitlines()
        assert any(line.split()[:3] == ["2", "tflite", "w8a8"] for line in lines)
        code, text, _ = call(capsys, "eval", "--compare", *names, str(data), "--limit", "41", "--json")
    finally:
        (data / "broken.png").unlink()
    assert code == 0
    answer = json.loads(text)
    assert (answer["n"], answer["skipped"]) == (40, 1)
    assert [m["path"] for m in answer["members"]] == [None, *names]
    assert [(p["a"], p["b"]) for p in answer["pairs"]] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


@pytest.mark.slow
def test_bundled_photos_have_no_labels_of_other_classes(bundles: list[Path]) -> None:
    found = repedge.compare_bundles(bundles[1:])
    assert (found.n, found.images) == (64, "64 bundled CIFAR-10 test photos")
    assert found.members[1].top1 is None


@pytest.mark.slow
def test_wrong_comparisons(
    bundles: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, photo_folder = str(bundles[0]), str(data)
    small = classifier(tmp_path / "small.onnx", classes=7)
    made = repedge.compile(
        small, targets=["openvino"], precisions=["fp32"], out=tmp_path, images=data, **OPTIONS
    )
    for words, message in (
        ([first, "--data", photo_folder, "--compare"], "at least two bundles"),
        ([first, first, photo_folder, "--compare"], "is named twice"),
        ([first, str(bundles[1]), "--compare", "--limit", "0"], "limit must be 1 or more"),
        ([first, str(bundles[1]), "--compare", "--weights", "x.pth"], "which take no weights"),
        ([first, str(tmp_path / "none"), "--compare"], "is not a bundle"),
        (
            [first, str(made.bundles[0].path), "--compare", photo_folder],
            r"shape \[10\] and those of .* \[7\]",
        ),
        ([first, str(bundles[1]), photo_folder], "--compare takes several bundles"),
        ([first, first, first], "takes one bundle or model and a folder"),
    ):
        code, _, err = call(capsys, "eval", *words)
        assert code == 2
        assert re.search(message, err), err
