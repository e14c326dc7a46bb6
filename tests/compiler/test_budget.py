"""Mixed plans and the accuracy budget, judged on artifacts that really run."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from budget_nets import OPTIONS, classifier, label, photos

import repedge
from repedge import cli
from repedge.bundle.folder import Bundle
from repedge.cache import DAYS, Store, cache_folder
from repedge.errors import UserError
from repedge.targets.openvino.target import OpenVINO


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its layer ``point`` reads a tensor that 8 bits are far too coarse for."""
    return classifier(tmp_path_factory.mktemp("net") / "net.onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "photos", 64)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(net: Path, data: Path, out: Path, *targets: str, **options: Any) -> list[Bundle]:
    asked = {"precisions": ["w8a8"], "calib": data, "calib_count": 32, "recipe": "minmax", "images": data}
    report = repedge.compile(net, targets=targets, out=out, min_sqnr=-50, **{**asked, **OPTIONS, **options})
    assert report.passed
    return [Bundle.open(b.path) for b in report.bundles]


def quantization(bundle: Bundle) -> dict[str, Any]:
    assert bundle.manifest.quantization is not None
    return bundle.manifest.quantization


class Builds:
    """Counts what OpenVINO compiles; may be told to be interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> None:
        self.count = 0
        real = OpenVINO.compile

        def compile(target, model, job, out):
            self.count += 1
            if self.count == stop_at:
                raise KeyboardInterrupt
            return real(target, model, job, out)

        monkeypatch.setattr(OpenVINO, "compile", compile)


# --- layers kept in float by name ------------------------------------------------------------------------


@pytest.mark.slow
def test_layers_kept_in_float_on_every_target(net: Path, data: Path, tmp_path: Path) -> None:
    targets = ("tflite", "openvino", "gpu", "coreml")
    plain = build(net, data, tmp_path / "plain", *targets)
    mixed = build(net, data, tmp_path / "mixed", *targets, keep_float=["poin*,head"])
    for before, after in zip(plain, mixed, strict=True):
        assert quantization(before)["float_nodes"] == {}
        why = quantization(after)["float_nodes"]
        assert why["point/Conv"] == why["head/Gemm"] == "kept in float by name"
        assert before.manifest.verification is not None
        assert after.manifest.verification is not None
        assert after.manifest.verification.sqnr_db > before.manifest.verification.sqnr_db + 15
    # Its operators give integers only there, so that what writes the layer's input is float, too.
    assert quantization(mixed[0])["float_nodes"]["wide/Conv"] == (
        "beside point/Conv, which is kept in float by name"
    )
    assert "wide/Conv" not in quantization(mixed[1])["float_nodes"]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["pount"], "no layer is called 'pount'; did you mean point"),
        (["stem", "x*z"], r"no layer is called 'x\*z'; its layers are stem/Conv, deep/Conv"),
        (["*"], "no layer that openvino-w8a8 could quantize"),
    ],
)
def test_wrong_names_of_layers(net: Path, data: Path, tmp_path: Path, keep: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(net, data, tmp_path / "out", "openvino", keep_float=keep)
    assert not list((tmp_path / "out").iterdir())


# --- the budget ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_budget_holds_for_the_artifact(net: Path, data: Path, tmp_path: Path) -> None:
    judged = photos(tmp_path / "judged", 40, seed=7)
    bundles = build(net, data, tmp_path / "out", "tflite", "openvino", max_kl=0.01, eval_data=judged)
    for bundle in bundles:
        found = quantization(bundle)["budget"]
        assert (found["measure"], found["limit"], found["met"]) == ("kl", 0.01, True)
        assert found["raised"] == ["point/Conv"]
        assert found["float_weights"] == []
        assert set(found["raised"]) <= set(quantization(bundle)["float_nodes"])
        assert 0 < found["float_macs"] < 1
        trials = found["trials"]
        assert trials[0]["raised"] == []
        assert trials[0]["value"] > 0.01
        assert found["value"] == min(t["value"] for t in trials) <= 0.01
        again = repedge.evaluate(bundle.path, judged)
        assert again.kl == pytest.approx(found["value"], rel=1e-6)
        assert again.n == found["score"]["n"] == 40


@pytest.mark.slow
def test_points_of_top1_where_there_are_labels(net: Path, data: Path, tmp_path: Path) -> None:
    judged = photos(tmp_path / "judged", 40, seed=7)
    label(judged, net)
    (bundle,) = build(net, data, tmp_path / "out", "openvino", max_drop=2.5, eval_data=judged)
    found = quantization(bundle)["budget"]
    assert found["measure"] == "top1_drop"
    assert found["score"]["float_top1"] == pytest.approx(26 / 40)
    top1 = repedge.evaluate(bundle.path, judged).top1
    assert top1 is not None
    assert found["value"] == pytest.approx(100 * (26 / 40 - top1))
    assert found["value"] <= 2.5 < found["trials"][0]["value"]


@pytest.mark.slow
def test_without_labels_disagreement_on_photos_left_over(net: Path, data: Path, tmp_path: Path) -> None:
    (bundle,) = build(net, data, tmp_path / "out", "openvino", max_drop=7)
    found = quantization(bundle)["budget"]
    assert (found["measure"], found["score"]["n"]) == ("disagreement", 64 - 32)
    assert found["value"] <= 7 < found["trials"][0]["value"]
    with pytest.raises(UserError, match="photos has 4 left; lower --calib-count"):
        build(net, data, tmp_path / "none", "openvino", max_drop=7, calib_count=60)


@pytest.mark.slow
def test_a_budget_that_cannot_be_met(
    net: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["compile", str(net), "-t", "openvino", "-p", "w8a8", "--calib", str(data), "--calib-count", "32"]
    words += ["--recipe", "minmax", "--max-kl", "1e-9", "-o", str(out)]
    words += [w for k, v in OPTIONS.items() for w in (f"--{k.replace('_', '-')}", v)]
    codes, outputs = [], []
    for extra in ([], ["--json"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*words, *extra])
        codes.append(stop.value.code)
        outputs.append(capsys.readouterr())
    assert codes == [3, 3]
    assert list(out.iterdir()) == []
    plain = outputs[0].err
    assert "openvino w8a8: a KL divergence from float of 1e-09 nats is not met with up to 2 of 5" in plain
    rows = [line.split() for line in plain.splitlines() if " of 5 " in line and "%" in line]
    # A layer reads float32 at first, with its 8-bit weights; then these are raised, too.
    assert [row[0] for row in rows] == ["0", "1", "1", "2"]
    assert [row[4] for row in rows][:3] == ["0", "0", "1"]
    answer = json.loads(outputs[1].out)
    assert answer["exit_code"] == 3
    assert answer["budget"]["met"] is False
    assert [len(t["raised"]) for t in answer["budget"]["trials"]] == [0, 1, 1, 2]


@pytest.mark.slow
def test_an_interrupted_search_goes_on_where_it_was(net: Path, data: Path, tmp_path: Path) -> None:
    options = {"max_kl": 0.01}
    with pytest.MonkeyPatch.context() as patch:
        whole = Builds(patch)
        (bundle,) = build(net, data, tmp_path / "whole", "openvino", **options)
    trials = len(quantization(bundle)["budget"]["trials"])
    assert whole.count == trials + 1  # and the artifact itself
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPEDGE_CACHE", str(tmp_path / "other"))
        Builds(patch, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            build(net, data, tmp_path / "part", "openvino", **options)
        assert list((tmp_path / "part").iterdir()) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPEDGE_CACHE", str(tmp_path / "other"))
        rest = Builds(patch)
        (again,) = build(net, data, tmp_path / "part", "openvino", **options)
    assert rest.count == whole.count - 1
    assert quantization(again)["budget"] == quantization(bundle)["budget"]
    # Another photo is another question.
    with pytest.MonkeyPatch.context() as patch:
        fresh = Builds(patch)
        build(net, data, tmp_path / "fresh", "openvino", **options, eval_count=31)
    assert fresh.count == whole.count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 1, "max_kl": 1}, "one of --max-drop POINTS and --max-kl NATS"),
        ({"max_drop": math.nan}, "a number from 0 up, not nan"),
        ({"max_kl": -1}, "a number from 0 up, not -1"),
        ({"max_drop": 1, "eval_count": 0}, "--eval-count must be 1 or more"),
        ({"eval_data": "photos"}, "give --max-drop or --max-kl"),
        ({"max_drop": 1, "eval_data": "nowhere"}, "there is nothing at nowhere; --eval-data takes a folder"),
        ({"max_drop": 1, "precisions": ["fp32"]}, "is for w8a8 or w8a16"),
        ({"keep_float": ["head"], "precisions": ["fp32"]}, "is for w8a8 or w8a16"),
        ({"max_drop": 1, "eval_count": 9}, "needs 16 photos or more that can be read"),
    ],
)
def test_budgets_that_make_no_sense(
    net: Path, data: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(net, data, tmp_path / "out", "openvino", **options)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_labels_that_are_no_classes(net: Path, data: Path, tmp_path: Path) -> None:
    judged = photos(tmp_path / "judged", 20, seed=7)
    (judged / "labels.json").write_text(json.dumps({f"{i:03}.png": i for i in range(20)}))
    with pytest.raises(UserError, match="a label is 15, but the model has 10 classes"):
        build(net, data, tmp_path / "out", "openvino", max_drop=1, eval_data=judged)


# --- the cache -------------------------------------------------------------------------------------------


def test_the_store_forgives(tmp_path: Path) -> None:
    store = Store("kind", tmp_path)
    assert store.get("a") is None
    store.put("a", {"value": 1.5})
    assert store.get("a") == {"value": 1.5}
    assert [p.name for p in (tmp_path / "kind").iterdir()] == ["a.json"]
    (tmp_path / "kind" / "a.json").write_bytes(b'{"key": "a", "val')
    assert store.get("a") is None
    (tmp_path / "kind" / "b.json").write_text(json.dumps({"key": "a", "value": 1}))
    assert store.get("b") is None
    (tmp_path / "file").touch()
    broken = Store("kind", tmp_path / "file")
    broken.put("a", 1)
    assert broken.get("a") is None


def test_the_store_forgets(tmp_path: Path) -> None:
    store = Store("kind", tmp_path)
    store.put("old", 1)
    store.put("new", 2)
    os.utime(tmp_path / "kind" / "old.json", (0, (DAYS - 1) * 86400))
    assert Store("kind", tmp_path).get("old") is None
    assert store.get("new") == 2


def test_the_cache_folder_is_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("REPEDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    for platform, path in (
        ("linux", tmp_path / "repedge"),
        ("darwin", Path.home() / "Library" / "Caches" / "repedge"),
        ("win32", tmp_path / "local" / "repedge" / "cache"),
    ):
        monkeypatch.setattr("sys.platform", platform)
        assert cache_folder() == path


def test_a_scheme_has_one_json() -> None:
    """What the cache is keyed by, and what a saved plan holds, is the same in every process."""
    from calib_nets import schemes

    from repedge.scheme import QuantScheme

    for scheme in schemes().values():
        text = scheme.model_dump_json()
        data = json.loads(text)
        assert all(data[name] == sorted(data[name]) for name in ("integer_ops", "fused", "tied"))
        assert QuantScheme.model_validate_json(text) == scheme
