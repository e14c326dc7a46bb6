"""A detector that is known to find three objects, against data sets of photos with or without them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import data_sets
import detector_nets as nets
import pytest

import repedge

pytestmark = pytest.mark.slow

NAMES = tuple("abcde")
SIDE = 2 * nets.SIZE
"""Photos are squares of twice the input's size."""

Box = tuple[int, tuple[float, float, float, float]]
PLAN: list[Box] = [(t.label, tuple(2 * v for v in t.box)) for t in nets.PLAN]  # type: ignore[misc]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("detector")
    report = repedge.compile(
        nets.Yolox(vary=0.005), targets=["tflite"], precisions=["fp16"], input_size=nets.SIZE,
        resize="letterbox", labels=NAMES, out=out,
    )  # fmt: skip
    return report.bundles[0].path


def labelled(root: Path, photos: Sequence[Sequence[Box]], names: Sequence[str] = NAMES) -> Path:
    """A YOLO data set with these objects, in pixels of the photos."""
    for i, objects in enumerate(photos):
        data_sets.photo(root / "images" / f"{i}.png", (SIDE, SIDE))
        (root / "labels").mkdir(exist_ok=True)
        rows = [
            f"{c} {(x0 + x1) / 2 / SIDE} {(y0 + y1) / 2 / SIDE} {(x1 - x0) / SIDE} {(y1 - y0) / SIDE}"
            for c, (x0, y0, x1, y1) in objects
        ]
        (root / "labels" / f"{i}.txt").write_text("\n".join(rows))
    file = root / "data.yaml"
    file.write_text(f"val: images\nnames: [{', '.join(names)}]\n")
    return file


def test_map_of_what_it_finds_and_misses(detector: Path, tmp_path: Path, cli: Any) -> None:
    """What is not in a photo, and found there, costs a half of its class, or nothing if ranked behind."""
    file = labelled(tmp_path / "all", [PLAN, PLAN])
    code, out, _ = cli("eval", detector, "--eval-data", file, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["map50"] == pytest.approx(1)
    assert found["map50_95"] == pytest.approx(1)
    assert (found["map50_95_float"], found["drop"]) == (pytest.approx(1), pytest.approx(0))
    assert (found["n"], found["labelled"]) == (2, 2)
    file = labelled(tmp_path / "less", [PLAN, PLAN[1:]])
    found = json.loads(cli("eval", detector, file, "--json")[1])
    assert any(found["map50"] == pytest.approx(v) for v in (1, 2.5 / 3))
    # an object of another class beside them is missed
    file = labelled(tmp_path / "more", [[*PLAN, (4, (8, 8, 40, 56))], PLAN])
    assert json.loads(cli("eval", detector, file, "--json")[1])["map50"] == pytest.approx(3 / 4)


def test_without_labels_floats_boxes_are_the_truth(detector: Path, tmp_path: Path, cli: Any) -> None:
    for i in range(3):
        data_sets.photo(tmp_path / f"{i}.png", (SIDE, SIDE))
    found = json.loads(cli("eval", detector, tmp_path, "--json")[1])
    assert found["agree_map50"] == pytest.approx(1)
    assert found["agree_map50_95"] == pytest.approx(1)
    assert found["map50"] is None


def test_names_decide_and_strange_ones_are_refused(detector: Path, tmp_path: Path, cli: Any) -> None:
    turned = [(len(NAMES) - 1 - c, box) for c, box in PLAN]
    file = labelled(tmp_path / "turned", [turned], NAMES[::-1])
    assert json.loads(cli("eval", detector, file, "--json")[1])["map50"] == pytest.approx(1)
    file = labelled(tmp_path / "strange", [PLAN], ["zebra", *NAMES[1:]])
    code, _, err = cli("eval", detector, file)
    assert (code, "class 'zebra' of" in err) == (2, True)
    (tmp_path / "turned/labels/0.txt").write_text("9 .5 .5 .1 .1")
    code, _, err = cli("eval", detector, tmp_path / "turned/data.yaml", "--json")
    assert code == 2
    assert "has the class 9, but there are 5" in json.loads(_)["error"]


def test_compile_and_verify_say_map_where_their_photos_have_boxes(
    detector: Path, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = labelled(tmp_path / "set", [PLAN] * 3)
    code, out, _ = cli("verify", detector, "--images", file, "--json")
    assert code == 0
    truth = json.loads(out)["truth"]
    assert truth == {"map50_95": pytest.approx(1), "float_map50_95": pytest.approx(1), "labelled": 3}
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # which verifying does without
    code, out, _ = cli("verify", detector, "--images", file, "--json")
    assert (code, json.loads(out)["truth"]) == (0, {})
    code, _, err = cli("eval", detector, file)
    assert (code, "pip install 'repedge[eval]'" in err) == (2, True)


def test_a_page_shows_the_boxes_and_a_comparison_the_drops(detector: Path, tmp_path: Path, cli: Any) -> None:
    file, page = labelled(tmp_path / "set", [PLAN]), tmp_path / "page.html"
    code, _, _ = cli("eval", detector, file, "--html", page)
    assert code == 0
    text = page.read_text()
    assert text.count("b 0.90") == 2  # float and artifact; the truth has no score
    assert ">b</text>" in text
    twin = shutil.copytree(detector, tmp_path / "twin")
    found = json.loads(cli("eval", "--compare", detector, twin, "--data", file, "--json")[1])
    assert [m["drop"] for m in found["members"]] == [None, pytest.approx(0), pytest.approx(0)]
    assert [m["map50"] for m in found["members"]] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("limit", "known"), [({"max_drop": 1.0}, True), ({"max_drop": 1.0}, False), ({"max_kl": 0.5}, True)]
)
def test_a_budget_is_kept(tmp_path: Path, limit: dict[str, Any], known: bool) -> None:
    file = labelled(tmp_path / "set", [PLAN] * 16)
    report = repedge.compile(
        nets.Yolox(vary=0.05), targets=["tflite"], precisions=["w8a8"], input_size=nets.SIZE,
        resize="letterbox", labels=NAMES, calib=tmp_path / "set/images", calib_count=8, recipe="fast",
        min_sqnr=0, eval_data=file if known else tmp_path / "set/images", out=tmp_path / "out", **limit,
    )  # fmt: skip
    manifest = json.loads((report.bundles[0].path / "manifest.json").read_text())
    budget = manifest["quantization"]["budget"]
    assert budget["met"]
    drop = "map50_95_drop" if known else "map50_95_disagreement"
    assert budget["measure"] == ("kl" if "max_kl" in limit else drop)
    assert budget["score"]["map50_95_disagreement"] is None or not known
    assert budget["value"] <= next(iter(limit.values()))
    if known and "max_drop" in limit:
        score = budget["score"]
        lost = 100 * (score["float_map50_95"] - score["map50_95"])
        assert budget["value"] == pytest.approx(lost)
