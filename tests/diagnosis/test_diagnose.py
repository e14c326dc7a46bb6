"""``repedge diagnose``: the numbers against ones worked out by hand, the table, the JSON and the page."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from calib_nets import clean, images, mixed, mobile
from graph_helpers import parse
from PIL import Image
from torch import nn

import repedge
from repedge import passes
from repedge.calib.simulation.observe import observe
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.structure import layers
from repedge.calib.weights.equalize import equalize, replay
from repedge.diagnosis.findings import findings
from repedge.diagnosis.heatmap import groups
from repedge.diagnosis.layers import diagnose_graph
from repedge.diagnosis.merging import branch_growth
from repedge.diagnosis.page import page
from repedge.diagnosis.weights import weight_facts
from repedge.errors import UserError
from repedge.photos.feed import Feed
from repedge.scheme import W8A32
from repedge.targets.openvino.scheme import OPENVINO_W8A8
from repedge.targets.tflite.scheme import TFLITE_W8A8

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def feed(count: int = 16) -> Feed:
    return Feed(images(count), (3, 12, 12))


class Block(nn.Module):
    """RepVGG's block: 3x3, 1x1 and identity, each with BatchNorm."""

    def __init__(self, width: int, peak: float) -> None:
        super().__init__()
        self.dense = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.point = nn.Conv2d(width, width, 1, bias=False)
        norms = [nn.BatchNorm2d(width) for _ in range(3)]
        self.norms = nn.ModuleList(norms)
        norms[2].running_var.fill_(1 / peak**2)  # a quiet input channel: its identity becomes large

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = self.norms
        return torch.relu(a(self.dense(x)) + b(self.point(x)) + c(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.stage1 = nn.Sequential(Block(8, 1.0), Block(8, 30.0))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage1(torch.relu(self.stem(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(12):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 40)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def report(photos):
    """A network in training form, diagnosed on photos."""
    return repedge.diagnose(Net(), calib=photos, calib_count=12, recipe="fast", input_size=24)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("nets") / "mobile.onnx"
    ir.save(mobile(), file)
    return file


# --- the numbers -------------------------------------------------------------------------------


def test_range_growth_of_each_branch_is_worked_out_per_output_channel():
    w3 = np.full((2, 2, 3, 3), 0.1, np.float32)
    w3[1] = 0.5
    w1 = np.zeros((2, 2, 1, 1), np.float32)
    w1[0, 1] = 0.3
    text = """net (float[1,2,6,6] x) => (float[1,2,6,6] y) {
      a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w3)
      b = Conv <kernel_shape=[1,1]> (x, w1)
      s = Add(a, b)
      y = Add(s, x)
    }"""
    model = parse(text, {"w3": w3, "w1": w1})
    passes.prepare(model)
    passes.canonicalize(model)
    (branches,) = branch_growth(model).values()
    dense, point, identity = branches
    # Channel 0: taps 0.1 + 1 (identity) and 0.1 + 0.3; channel 1: 0.5 + 1.
    assert [b.kind for b in branches] == ["3x3", "1x1", "identity"]
    assert (dense.growth, dense.growth_worst) == pytest.approx(((1.1 / 0.1 + 1.5 / 0.5) / 2, 11.0), rel=1e-6)
    assert point.growth == pytest.approx(1.1 / 0.3, rel=1e-6)  # channel 1 has no 1x1 weights
    assert identity.growth_worst == pytest.approx(1.5, rel=1e-6)
    assert [b.widest for b in branches] == [True, False, False]


def test_a_graph_without_branches_has_no_growth():
    assert branch_growth(mobile()) == {}


def test_kernel_peaks_and_channels_that_differ():
    w = np.full((4, 1, 3, 3), 0.1, np.float32)
    w[:, :, 1, 1] = [[1.0], [2.0], [3.0], [40.0]]
    text = """net (float[1,4,6,6] x) => (float[1,4,6,6] y) {
      y = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=4> (x, w)
    }"""
    facts = weight_facts(layers(clean(text, {"w": w}))[0])
    assert facts.centre_to_ring == pytest.approx(25)  # of 10, 20, 30, 400
    assert facts.centre_to_ring_worst == pytest.approx(400)
    assert facts.channel_spread == pytest.approx(40 / 2.5)
    assert facts.taps[1][1] == 1
    assert facts.taps[0][0] < 0.02
    assert facts.sqnr_per_tensor_db < facts.sqnr_db  # one scale for 1 and 40 loses the small channels


@pytest.mark.slow
def test_outlier_images_and_dead_channels_are_found():
    model = mobile()
    stem = layers(model)[0]
    bias = stem.bias.const_value.numpy().copy()
    bias[3] = -1000  # behind the ReLU this channel is always 0
    stem.bias.const_value = ir.tensor(bias, name=stem.bias.name)
    x = images(16)
    x[5] *= 20
    d = diagnose_graph(model, TFLITE_W8A8, Feed(x, (3, 12, 12)), "fast")
    assert d.layers[0].dead == 1
    assert d.layers[0].reads.outlier > 5
    assert diagnose_graph(model, TFLITE_W8A8, feed(), "fast").layers[0].reads.outlier < 3


@pytest.mark.slow
def test_every_layer_has_a_cost_and_the_recipe_beats_the_stock_calibration():
    d = diagnose_graph(mobile(spread=1.2), TFLITE_W8A8, feed(24), "default")
    assert len(d.layers) == 6
    assert all(la.cost is not None and la.cost_stock is not None for la in d.layers)
    assert d.planned.sqnr_db > d.stock.sqnr_db
    assert d.planned.recipe == "default"
    assert all(la.treatment.rounding in ("gptq", "enumeration") for la in d.layers)
    assert all(la.treatment.bias for la in d.layers)
    assert any(la.treatment.equalized for la in d.layers)
    assert findings(d)


@pytest.mark.slow
def test_layers_kept_in_float_say_why_and_have_no_cost_with_the_recipe():
    model = mobile()
    name = layers(model)[2].name
    d = diagnose_graph(model, OPENVINO_W8A8, feed(), "fast", float_nodes={name: "because I say so"})
    kept = d.layers[2]
    assert kept.treatment.float_why == "because I say so"
    assert kept.cost is None
    assert kept.cost_stock is not None


def test_weights_alone_without_images():
    d = diagnose_graph(mobile(), TFLITE_W8A8)
    assert d.images == 0
    assert all(la.reads is None and la.cost is None and la.treatment is None for la in d.layers)
    assert any("not looked at" in text for text in findings(d))


@pytest.mark.slow
def test_weight_only_schemes_have_no_ranges_but_costs():
    d = diagnose_graph(mobile(), W8A32, feed(), "fast")
    assert all(la.treatment.range is None for la in d.layers)
    assert all(la.cost is not None for la in d.layers)


def test_an_equalization_is_replayed_from_its_factors():
    model = mobile()
    equalized, factors = equalize(model, observe(model, [images(8)]))
    again = replay(model, {name: list(f) for name, f in factors.items()})
    for a, b in zip(layers(equalized), layers(again), strict=True):
        np.testing.assert_array_equal(a.array, b.array)
    np.testing.assert_allclose(
        Simulator(again).answers([images(4)])[0],
        Simulator(model).answers([images(4)])[0],
        rtol=2e-4,
        atol=2e-4,
    )


def test_weights_that_are_not_finite_are_named():
    model = mobile()
    layer = layers(model)[1]
    array = layer.array.copy()
    array[0] = np.nan
    layer.weight.const_value = ir.tensor(array, name=layer.weight.name)
    with pytest.raises(UserError, match=rf"{layer.name}.*NaN"):
        diagnose_graph(model, TFLITE_W8A8)


def test_operators_without_integers_are_counted():
    assert diagnose_graph(mixed(), OPENVINO_W8A8).float_ops == {"Mul": 2}
    assert diagnose_graph(mobile(), TFLITE_W8A8).float_ops == {}


# --- from a model to a report ------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_form_network_shows_what_merging_did(report):
    by_name = {la.name: la for la in report.diagnosis.layers}
    calm, peaked = by_name["stage1.0"], by_name["stage1.1"]
    assert [b.kind for b in peaked.branches] == ["3x3", "1x1", "identity"]
    assert peaked.growth > 10 > calm.growth
    assert peaked.weights.centre_to_ring > 10
    assert by_name["stem"].branches == ()
    assert report.findings[0].startswith("The whole network")
    assert "stage1.1" in report.findings[1]


@pytest.mark.slow
def test_the_cli_prints_one_json_object_and_writes_the_page(cli, onnx_file, photos, tmp_path):
    html = tmp_path / "page.html"
    options = ["--calib", photos, "--calib-count", 8, "--recipe", "fast", "--html", html]
    code, out, _ = cli("diagnose", onnx_file, *options, "--json")
    data = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert code == 0
    assert (data["model"], data["images"], data["recipe"]) == ("mobile", 8, "fast")
    first = data["layers"][0]
    assert set(first) >= {"name", "kind", "weights", "reads", "dead", "cost", "cost_stock", "treatment"}
    assert [la["index"] for la in data["layers"]] == list(range(6))
    assert html.read_text().startswith("<!doctype html>")
    code, _, err = cli("diagnose", onnx_file, *options)
    assert code == 2
    assert "--force" in err


def test_the_table_is_worst_first_and_limited(cli, onnx_file):
    code, out, _ = cli("diagnose", onnx_file, "--top", 2)
    assert code == 0
    assert "4 layers" in out
    rows = [line for line in out.splitlines() if " dB " in line and line.lstrip()[0].isdigit()]
    assert len(rows) == 2
    _, out, _ = cli("diagnose", onnx_file, "--top", 0, "--order", "depth")
    numbers = [line.split()[0] for line in out.splitlines() if " dB " in line and line.lstrip()[0].isdigit()]
    assert numbers == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--calib", "no_such_folder"], "no_such_folder"),
        (["-t", "coreml", "-p", "w8a16"], "coreml has no integer rules for w8a16; it has w8a32, w8a8"),
        (["-p", "w8a7"], "did you mean w8a"),
        (["--top", "-1"], "--top"),
        (["--order", "deep"], "did you mean depth"),
        (["--recipe", "slow"], "no recipe 'slow'"),
        (["--keep-float", "nothing_like_it"], "nothing_like_it"),
        (["--html", "no_such_folder/page.html"], "there is no folder"),
    ],
)
def test_wrong_options_end_in_one_line(cli, onnx_file, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("diagnose", onnx_file, *options)
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert (code, out, len(errors)) == (2, "", 1)
    assert words in errors[0]
    assert not list(tmp_path.iterdir())


# --- the page ----------------------------------------------------------------------------------


def deep(report, count):
    """The report with as many layers, by repeating those it has."""
    rows = report.diagnosis.layers
    many = [replace(rows[i % len(rows)], index=i, name=f"stage{i // 12}.block{i}.conv") for i in range(count)]
    return replace(report, diagnosis=replace(report.diagnosis, layers=tuple(many)))


@pytest.mark.slow
def test_the_page_loads_nothing_and_names_cannot_inject_markup(report):
    evil = replace(report.diagnosis.layers[0], name="<img src=x onerror=alert(1)>")
    rows = (evil, *report.diagnosis.layers[1:])
    text = page(replace(report, name="<b>x", diagnosis=replace(report.diagnosis, layers=rows)))
    assert "<img" not in text
    assert "<b>x" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert "default-src 'none'" in text


def test_the_page_has_a_column_a_row_and_a_tooltip_for_each_layer(report):
    text = page(deep(report, 120))
    assert text.count("class='col'") == text.count('<tr id="layer-') == 120
    cost = report.diagnosis.layers[0].cost_stock
    assert cost is not None
    assert "stage0.block0.conv: stock calibration" in text
    assert "Activations were not looked at" not in text


def test_without_photos_the_page_leaves_out_what_is_not_known(report):
    layers_only = [replace(la, reads=None, cost=None, cost_stock=None, treatment=None)
                   for la in report.diagnosis.layers]  # fmt: skip
    bare = replace(report.diagnosis, images=0, stock=None, planned=None, notes=(), layers=tuple(layers_only))
    text = page(replace(report, photos="", diagnosis=bare))
    assert "weights only" in text
    assert "outlier images" not in text
    assert "what will be done" not in text


def test_brackets_are_the_modules_that_neighbours_share():
    names = ["stem.conv", "stage1.0.a", "stage1.0.b", "stage1.1.a", "head"]
    assert groups(names, most=3) == [(0, 0, "stem"), (1, 3, "stage1"), (4, 4, "head")]
    assert groups(names)[1] == (1, 2, "stage1.0")
    assert groups(["/stem/Conv", "/body/a/Conv", "/body/b/Conv"], most=2)[-1] == (1, 2, "body")
    assert len(groups([f"stage{i // 12}.b{i}.conv" for i in range(120)])) == 10


def _browse(text, tmp_path, *flags):
    file = tmp_path / "page.html"
    file.write_text(text)
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1440,1500"]
    common += [f"--user-data-dir={tmp_path / 'profile'}", "--force-prefers-color-scheme=light"]
    return subprocess.run(
        [CHROMIUM, *common, *flags, file.as_uri()],
        check=True, capture_output=True, timeout=120, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    ).stdout.decode()  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("count", [20, 120])
def test_a_real_browser_draws_the_heat_map(report, tmp_path, count):
    from repedge.diagnosis.heatmap import PALETTES

    shot = tmp_path / "page.png"
    _browse(page(deep(report, count)), tmp_path, f"--screenshot={shot}")
    image = Image.open(shot).convert("RGB")
    colours = {c: n for n, c in image.getcolors(1 << 24)}
    alarm = tuple(int(PALETTES["light"][-1][i : i + 2], 16) for i in (1, 3, 5))
    calm = tuple(int(PALETTES["light"][0][i : i + 2], 16) for i in (1, 3, 5))
    assert colours.get(alarm, 0) > 3000  # the peaked block's range growth
    assert colours.get(calm, 0) > 10000
    assert colours.get((0x3B, 0x6F, 0xD4), 0) > 1000  # what the recipe does


@pytest.mark.slow
@pytest.mark.parametrize("network", ["repvgg_demo", "repvit_demo"])
def test_each_name_that_is_shown_can_be_kept_in_float(network: str) -> None:
    from repedge.calib.mixed.choose import named
    from repedge.models.source import resolve

    shown = repedge.diagnose(network).diagnosis.layers
    graph = resolve(network).graph()
    passes.clean(graph)
    for layer in shown:
        assert named(graph, [layer.name]) == [layer.node]
    with pytest.raises(UserError, match=f"did you mean {shown[3].name}"):
        named(graph, [shown[3].name + "x"])
