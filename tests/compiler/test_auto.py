"""``--precision auto``: what is kept, by made-up latencies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from budget_nets import OPTIONS, classifier, photos

import repedge
import repedge.profile.measure as measure
from repedge import cli
from repedge.bundle.folder import Bundle
from repedge.compiler import fastest
from repedge.compiler.fastest import Timed, pick
from repedge.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("auto")
    classifier(found / "net.onnx", rough=1)
    photos(found / "photos", 48)
    return found


def row(precision: Any, p50: float, size: int = 100, ratio: float | None = None, verdict: str = "") -> Timed:
    interval = None if ratio is None else (ratio, ratio - 0.02, ratio + 0.02)
    return Timed(precision, size, p50, interval, verdict or None)


def made_up(monkeypatch: pytest.MonkeyPatch, **p50: float) -> None:
    """Let precisions take these times."""

    def time(found: Sequence[Any], report: Any) -> tuple[Timed, ...]:
        first = p50[found[0].precision]
        rows = []
        for b in found:
            ratio = p50[b.precision] / first
            verdict = "slower" if ratio > 1 else "faster" if ratio < 1 else "no difference shown"
            rows.append(row(b.precision, p50[b.precision], b.size_bytes, ratio, verdict))
        return tuple(rows)

    monkeypatch.setattr(fastest, "_time", time)


def build(folder: Path, out: Path, *targets: str, **options: Any) -> repedge.api.CompileReport:
    data = folder / "photos"
    asked = {"calib": data, "calib_count": 32, "recipe": "minmax", "images": data, **OPTIONS, **options}
    return repedge.compile(folder / "net.onnx", targets=targets, precisions=["auto"], out=out, **asked)


@pytest.mark.parametrize(
    ("rows", "kept", "why"),
    [
        (
            [row("w8a8", 5), row("fp16", 9, 50, 1.8, "slower"), row("fp32", 9, 99, 1.8, "slower")],
            "w8a8",
            "1.80",
        ),
        (
            [row("w8a8", 9), row("fp16", 8, 50, 0.9, "faster"), row("fp32", 9, 99, 1, "slower")],
            "fp16",
            "0.90",
        ),
        (
            [row("w8a8", 5), row("fp32", 5, 99, 1.01, "no difference shown")],
            "fp32",
            r"w8a8 is not shown to be faster than fp32 here, which takes 1.01 \(0.99..1.03\) of its time",
        ),
        (
            [row("w8a8", 9), row("fp16", 8.1, 50, 0.91, "faster"), row("fp32", 8, 99, 0.9, "faster")],
            "fp16",  # as fast, and smaller
            "0.91",
        ),
        ([row("fp16", 9), row("fp32", 8, 99, 0.9, "faster")], "fp32", "the fastest of the float precisions"),
        ([row("w8a8", 9)], "w8a8", "the only one left"),
    ],
)
def test_the_faster_is_kept(rows: list[Timed], kept: str, why: str) -> None:
    import re

    precision, sentence = pick(rows)
    assert precision == kept
    assert re.search(why, sentence)


@pytest.mark.slow
def test_one_bundle_is_left_of_each_target(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, w8a8=1.0, fp16=2.0, fp32=3.0)
    report = build(folder, tmp_path, "tflite", "openvino")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net-openvino-w8a8", "net-tflite-w8a8"]
    assert [(c.target, c.precision) for c in report.choices] == [("tflite", "w8a8"), ("openvino", "w8a8")]
    for choice, bundle in zip(report.choices, report.bundles, strict=True):
        assert [c.precision for c in choice.candidates] == ["w8a8", "fp16", "fp32"]
        assert repedge.verify(bundle.path).n == 16
        assert Bundle.open(bundle.path).manifest.notes[-1].startswith("precision auto: fp16 takes 2.00")
    with pytest.raises(UserError, match="pass --force"):
        build(folder, tmp_path, "openvino")
    made_up(monkeypatch, w8a8=3.0, fp16=2.0, fp32=1.0)
    report = build(folder, tmp_path, "openvino", force=True)
    assert report.bundles[0].path == tmp_path / "net-openvino-fp32"
    assert report.as_json()["auto"][0]["precision"] == "fp32"


@pytest.mark.slow
def test_floats_where_the_budget_is_not_met(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPEDGE_CACHE", str(tmp_path / "cache"))
    made_up(monkeypatch, w8a8=1.0, fp16=2.0, fp32=3.0)
    report = build(folder, tmp_path / "out", "openvino", max_kl=1e-9)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["net-openvino-fp16"]
    assert "1e-09 nats is not met" in report.choices[0].why


@pytest.mark.slow
def test_really_timed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "compare", partial(measure.compare, rounds=2, runs=10, warmup=2))
    words = ["compile", str(folder / "net.onnx"), "-t", "gpu", "-p", "auto", "--recipe", "minmax", "--json"]
    words += ["--calib", str(folder / "photos"), "--calib-count", "32", "-o", str(tmp_path)]
    words += [w for k, v in OPTIONS.items() for w in (f"--{k.replace('_', '-')}", v)]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--min-sqnr", "0"])
    assert stop.value.code == 0
    (choice,) = json.loads(capsys.readouterr().out)["auto"]
    rows = choice["candidates"]
    assert [r["precision"] for r in rows] == ["w8a8", "fp16", "fp32"]
    assert all(r["p50_ms"] > 0 for r in rows)
    assert all(r["verdict"] for r in rows[1:])
    kept_integers = all(r["verdict"] == "slower" for r in rows[1:])
    assert (choice["precision"] == "w8a8") == kept_integers
    assert [p.name for p in tmp_path.iterdir()] == [f"net-gpu-{choice['precision']}"]


@pytest.mark.parametrize(
    ("targets", "precisions", "message"),
    [
        (["coreml"], ["auto"], "tflite, openvino, gpu, not for coreml: name a precision"),
        (["tflite"], ["auto", "fp32"], "name it alone"),
        (["tflit"], ["auto"], "tflit"),
    ],
)
def test_wrong_uses(tmp_path: Path, targets: list[str], precisions: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        repedge.compile(targets=targets, precisions=precisions, calib=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
