"""``repedge profile`` and ``repedge devices`` from the command line to JSON, files and exit codes."""

import json
import shutil
import subprocess

import pytest
from profile_helpers import module, profile, save_onnx

import repedge
from repedge.cli import main

FAST = ["--runs", "4", "--warmup", "1", "--threads", "1"]
KEYS = {
    "repedge", "device", "runtime", "target", "precision", "threads", "runs", "warmup", "load_ms", "first_ms",
    "min_ms", "p50_ms", "p90_ms", "p99_ms", "mean_ms", "std_ms", "peak_rss_bytes", "partitions", "ops",
}  # fmt: skip


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return save_onnx(tmp_path_factory.mktemp("nets") / "net.onnx")


@pytest.fixture(scope="module")
def tflite(tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles")
    return repedge.compile(module(), targets=["tflite"], out=out, input_size=32, count=2).bundles[0].path


@pytest.mark.slow
def test_json_has_the_promised_keys_and_the_raw_samples(cli, tflite):
    code, out, _ = cli("profile", tflite, *FAST, "--per-op", "--json")
    data = json.loads(out)
    assert code == 0
    assert set(data) >= KEYS
    assert (data["target"], data["precision"], data["runs"], data["warmup"]) == ("tflite", "fp32", 4, 1)
    assert len(data["samples_ms"]) == 4
    assert set(data["ops"][0]) >= {"name", "type", "ms", "where"}
    assert (data["partitions"], data["outside"]) == (1, [])


def test_the_table_names_what_ran_where(cli, tflite):
    code, out, _ = cli("profile", tflite, *FAST, "--per-op")
    assert code == 0
    assert "1 partition in the delegate, nothing outside" in out
    assert "CONV_2D" in out
    assert "XNNPACK" in out


@pytest.mark.slow
def test_comparing_prints_ratio_and_verdict(cli, net):
    code, out, _ = cli("profile", net, net, *FAST, "--json")
    data = json.loads(out)
    assert code == 0
    first, second = data["profiles"]
    assert first["ratio_p50"] is None
    low, high = second["ratio_p50_interval"]
    assert low <= second["ratio_p50"] <= high
    assert second["verdict"] in ("faster", "slower", "no difference shown")


@pytest.mark.slow
def test_residency_gate(cli, tflite):
    assert cli("profile", tflite, *FAST, "--require", "partitions<=1", "--require", "outside==0")[0] == 0
    code, _, err = cli("profile", tflite, *FAST, "--require", "partitions<=0")
    assert code == 3
    assert "partitions<=0 is missed: it is 1" in err
    code, _, err = cli("profile", tflite, *FAST, "--require", "ane>=0.95")
    assert code == 3
    assert "ane>=0.95 is missed: it is 0" in err


def scaled(cli, net, tmp_path, factor):
    """The JSON of a measurement, as if the machine had taken ``factor`` times as long."""
    data = json.loads(cli("profile", net, "--runs", 20, "--threads", 1, "--json")[1])
    data["samples_ms"] = [x * factor for x in data["samples_ms"]]
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(data))
    return file


@pytest.mark.slow
def test_a_regression_fails_and_an_improvement_passes(cli, net, tmp_path):
    slow = scaled(cli, net, tmp_path, 1e4)
    code, out, _ = cli("profile", net, *FAST, "--baseline", slow, "--json")
    data = json.loads(out)
    assert code == 0
    assert (data["regression"], data["max_regression"]) == (False, 0.05)
    assert data["ratio_p50"] < 0.1
    fast = scaled(cli, net, tmp_path, 1e-4)
    code, out, err = cli("profile", net, *FAST, "--baseline", fast, "--max-regression", "20%")
    assert code == 3
    assert "1.200 is allowed, in each of 3 measurements" in err
    assert "regression" in out


@pytest.mark.slow
def test_a_baseline_of_another_runtime_is_wrong_input(cli, net, tflite, tmp_path):
    file = scaled(cli, net, tmp_path, 1)
    code, _, err = cli("profile", tflite, *FAST, "--baseline", file)
    assert (code, "another runtime" in err) == (2, True)
    code, _, err = cli("profile", net, net, *FAST, "--baseline", file)
    assert (code, "compares one artifact" in err) == (2, True)


def test_trace_is_what_perfetto_reads(cli, tflite, tmp_path):
    file = tmp_path / "trace.json"
    assert cli("profile", tflite, *FAST, "--per-op", "--trace", file)[0] == 0
    events = json.loads(file.read_text())["traceEvents"]
    complete = [e for e in events if e["ph"] == "X"]
    assert all({"name", "ts", "dur", "pid", "tid"} <= set(e) and e["dur"] >= 0 for e in complete)
    assert [e["name"] for e in complete if e["cat"] == "phase"] == [
        "load",
        "first run",
        "warm-up",
        "timed runs",
    ]
    runs = [e for e in complete if e["cat"] == "run"]
    assert len(runs) == 4
    timed = next(e for e in complete if e["name"] == "timed runs")
    assert runs[0]["ts"] == pytest.approx(timed["ts"], abs=0.01)
    assert sum(r["dur"] for r in runs) == pytest.approx(timed["dur"], abs=0.01)
    assert any(e["cat"] == "op" and e["args"]["type"] == "CONV_2D" for e in complete)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "loca"], "there is no device 'loca'; did you mean local?"),
        (["--device", "local://x"], "takes nothing after it"),
        (["--device", ":// "], "is no device: write one of local"),
        (["--device-option", "speed"], "write NAME=VALUE"),
        (["--device-option", "speed=3"], "local devices have no option 'speed'"),
        (["--runs", "0"], "--runs 0"),
        (["--threads", "0"], "--threads 0"),
        (["--warmup", "-1"], "--warmup -1"),
        (["--hint", "speed"], "--hint 'speed' is unknown"),
        (["--require", "fast"], "write it as 'partitions<=1'"),
        (["--max-regression", "x"], "write a share such as 5%"),
        (["--baseline", "none.json"], "can't be read"),
        (["--trace", "no/such/folder/t.json"], "there is no folder"),
        (["--html", __file__], "exists; pass --force"),
        (["--save-as-device", "x/y"], "use small letters"),
        (["--save-as-device", "box"], "needs three networks"),
        (["--save-as-device", "iphone12"], "name of a bundled fit"),
        (["--predict", "pixel9"], "there is no fit for 'pixel9'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(cli, net, arguments, message):
    code, out, err = cli("profile", net, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert out == ""


def test_nothing_named(cli):
    code, _, err = cli("profile")
    assert (code, "say what to profile" in err) == (2, True)


@pytest.mark.slow
def test_an_estimate_says_that_it_is_one(cli):
    code, out, _ = cli("profile", "repvit_m0_9", "--predict", "iphone12", "--json")
    (estimate,) = json.loads(out)["estimates"]
    assert code == 0
    assert estimate["kind"] == "estimate"
    assert estimate["ms"] == pytest.approx(0.87, rel=0.05)  # the published figure, among the points
    assert 0.03 < estimate["error"] < 0.2
    code, _, err = cli("profile", "repvgg_demo", "--predict", "iphone12")
    assert (code, "holds for repvit networks only, and this is repvgg" in err) == (2, True)


def test_devices_lists_this_machine_and_how_to_name_others(cli):
    code, out, _ = cli("devices", "--json")
    rows = json.loads(out)["devices"]
    assert code == 0
    assert rows[0]["uri"] == "local"
    assert rows[0]["state"] == "ready"
    assert "cores" in rows[0]["note"]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page(net, tflite, tmp_path_factory):
    file = tmp_path_factory.mktemp("html") / "page.html"
    with pytest.raises(SystemExit) as done:
        main(
            [
                "profile",
                str(tflite),
                str(net),
                "--runs",
                "12",
                "--warmup",
                "0",
                "--per-op",
                "--html",
                str(file),
            ]
        )
    assert done.value.code == 0
    return file


@pytest.mark.slow
def test_the_page_loads_nothing_from_outside(page):
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert "default-src 'none'" in text


@pytest.mark.slow
def test_names_cannot_inject_markup(page):
    from repedge.profile.html import page as render

    text = render([profile().model_copy(update={"name": "<img src=x onerror=alert(1)>"})])
    assert "<img" not in text


@pytest.mark.slow
def test_the_page_tells_devices_apart_and_leaves_what_is_left_over_without_a_bar():
    from repedge.devices.protocol import Op
    from repedge.profile.html import page as render

    ops = tuple(Op(name=f"op{i}", type="Conv", ms=1.0, where="CPU") for i in range(40))
    here = profile().model_copy(update={"ops": ops})
    there = here.model_copy(update={"device": "ssh://board"})
    text = render([here, there])
    assert "<td class='device'>ssh://board</td>" in text
    assert "<h1>Latency of net on 2 devices</h1>" in text
    assert "<h2>net on ssh://board</h2>" in text
    assert "10 others" in text
    assert text.count("<title>op") == 60  # 30 bars each
    assert "class='device'" not in render([here])


def test_names_with_brackets_are_printed_as_they_are(capsys):
    from repedge.cli.tables import profile as tables
    from repedge.devices.protocol import Op

    named = Op(name="[/red]x[bold]", type="[T]", ms=1.0, where="[/]cpu")
    p = profile().model_copy(
        update={"name": "net[1]", "ops": (named,), "warnings": ("[w]",), "notes": ("[/n]",)}
    )
    tables.profiles([p, p.model_copy(update={"device": "ssh://[::1]"})])
    out, err = capsys.readouterr()
    for text in ("net[1]", "[/red]x[bold]", "[T]", "[/]cpu", "[/n]", "ssh://[::1]"):
        assert text in out
    assert "  net[1] on local: [w]\n" in err
    assert "  net[1] on ssh://[::1]: [w]\n" in err


def test_a_narrow_terminal_goes_without_columns_but_cuts_no_number(monkeypatch, capsys):
    from rich.console import Console

    from repedge.cli.tables import console
    from repedge.cli.tables import profile as tables

    narrow = Console(force_terminal=True, width=60, highlight=False, color_system=None)
    monkeypatch.setattr(console, "out", narrow)
    monkeypatch.setattr(tables, "out", narrow)
    tables.profiles([profile()])
    head, row = capsys.readouterr().out.splitlines()[:2]
    assert "load" not in head
    assert "p50 ms" in head
    assert max(len(head), len(row)) <= 60


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_real_browser_draws_the_charts(page, tmp_path):
    from PIL import Image

    shot = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,1500"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--force-prefers-color-scheme=light"]
    subprocess.run(
        [CHROMIUM, *flags, f"--screenshot={shot}", page.as_uri()],
        check=True, capture_output=True, timeout=120, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    image = Image.open(shot).convert("RGB")
    colours = {c: n for n, c in image.getcolors(1 << 24)}
    bars, median = colours.get((0x3B, 0x6F, 0xD4), 0), colours.get((0xD9, 0x7A, 0x1E), 0)
    assert image.size == (1100, 1500)
    assert bars > 3000  # the histogram's and the operators' bars
    assert median > 200  # the median lines
    assert colours.get((255, 255, 255), 0) > 0.3 * 1100 * 1500


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_real_browser_lays_out_every_chart(page, tmp_path):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", page.as_uri()],
        check=True, capture_output=True, text=True, timeout=120,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    ).stdout  # fmt: skip
    assert dom.count('<figure class="histogram">') == 2
    assert dom.count('<figure class="runs">') == 2
    assert dom.count('<figure class="operators">') == 2
    assert dom.count("<circle") == 24
