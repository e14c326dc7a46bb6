"""Estimates: the bundled fits are what their points say, and nothing outside of them is answered."""

import json

import pytest
from profile_helpers import profile

import repedge.profile.predict as predict
from repedge.errors import UserError
from repedge.profile.predict import FITS, Fit, Network, Point, leave_one_out, line, read, refusal


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.mark.parametrize("file", sorted(FITS.glob("*.json")), ids=lambda f: f.stem)
def test_a_bundled_fit_follows_from_its_points(file):
    fit = read(file)
    assert line(fit.points) == pytest.approx((fit.base_ms, fit.ms_per_gmac), abs=1e-6)
    assert leave_one_out(fit.points) == pytest.approx(fit.loo_error, abs=1e-6)
    assert all(p.source for p in fit.points)


def test_points_on_a_line_are_fitted_exactly():
    points = [Point(model=str(g), gmacs=g, ms=0.5 + 2 * g, source="made up") for g in (1, 2, 4)]
    assert line(points) == pytest.approx((0.5, 2), rel=1e-9)
    assert leave_one_out(points) == pytest.approx(0, abs=1e-9)


def test_leave_one_out_sees_the_odd_point():
    points = [Point(model=str(g), gmacs=g, ms=ms, source="x") for g, ms in ((1, 1), (2, 2), (4, 6))]
    base, slope = line(points[:2])
    assert leave_one_out(points) >= abs(base + slope * 4 - 6) / 6


@pytest.mark.slow
def test_an_estimate_is_labelled_with_its_error():
    e = predict.predict("repvit_m1_0", "iphone12")
    assert e.gmacs == pytest.approx(1.106, abs=0.001)
    assert e.ms == pytest.approx(1.0, rel=0.095)  # published, and among the points
    assert e.low < e.ms < e.high
    assert e.as_json()["kind"] == "estimate"


def network(**more) -> Network:
    given = {"name": "n", "family": "repvit", "target": "coreml", "precision": "fp16", "gmacs": 1.1}
    return Network(**{**given, "input_size": (224, 224), **more})


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"family": "repvgg"}, "repvit networks only, and this is repvgg"),
        ({"family": None}, "of no known family"),
        ({"target": "tflite"}, "for coreml artifacts, and this is for tflite"),
        ({"precision": "w8a8"}, "for fp16, and this is w8a8"),
        ({"input_size": (64, 64)}, "inputs of 224x224 pixels, and this takes 64x64"),
        ({"gmacs": 0.3}, "span 0.82 to 4.52 GMAC, and this has 0.30"),
        ({"gmacs": 9.0}, "and this has 9.00"),
    ],
)
def test_what_a_fit_does_not_hold_for_is_refused(more, reason):
    fit = read(FITS / "iphone12-repvit.json")
    assert refusal(network(), fit) is None
    assert reason in (refusal(network(**more), fit) or "")


def test_an_unknown_device_names_the_known_ones():
    with pytest.raises(UserError, match="there are: iphone12, iphone13"):
        predict.predict("repvit_m1_0", "pixel9")


def test_a_damaged_fit_says_so(tmp_path):
    folder = predict.user_folder()
    folder.mkdir(parents=True)
    (folder / "x.json").write_text(json.dumps({"device": "x"}))
    with pytest.raises(UserError, match=r"the fit .*x\.json is damaged"):
        predict.all_fits()


def measured(ms):
    return profile([ms] * 5).model_copy(update={"target": "torch", "precision": "fp32"})


def test_ones_own_measurements_become_a_device(monkeypatch):
    sizes = {"a": 0.5, "b": 1.0, "c": 2.0}
    monkeypatch.setattr(
        predict, "describe", lambda w, **o: network(name=w, gmacs=sizes[w], target=None, precision=None)
    )
    file = predict.save_device("bench-box", [measured(1 + 3 * g) for g in sizes.values()], list(sizes), {})
    fit = Fit.model_validate_json(file.read_text())
    assert (fit.base_ms, fit.ms_per_gmac) == pytest.approx((1, 3), rel=1e-9)
    assert fit.loo_error == pytest.approx(0, abs=1e-9)
    assert predict.predict("b", "bench-box").ms == pytest.approx(4, rel=1e-9)
    again = [measured(2 + 3 * g) for g in sizes.values()]
    with pytest.raises(UserError, match=r"'bench-box' exists .*--force"):
        predict.save_device("bench-box", again, list(sizes), {})
    predict.save_device("bench-box", again, list(sizes), {}, force=True)
    assert predict.predict("b", "bench-box").ms == pytest.approx(5, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "sizes", "families", "message"),
    [
        ("Box", (1, 2, 3), ("repvit",) * 3, "use small letters"),
        ("iphone12", (1, 2, 3), ("repvit",) * 3, "name of a bundled fit"),
        ("box", (1, 2), ("repvit",) * 2, "three networks of different size"),
        ("box", (1, 1, 2), ("repvit",) * 3, "three networks of different size"),
        ("box", (1, 2, 3), ("repvit", "repvgg", "repvit"), "one known family"),
        ("box", (1, 2, 3), (None,) * 3, "one known family"),
    ],
)
def test_measurements_that_make_no_device(monkeypatch, name, sizes, families, message):
    names = [f"n{i}" for i in range(len(sizes))]
    rows = {n: network(name=n, gmacs=g, family=f) for n, g, f in zip(names, sizes, families, strict=True)}
    monkeypatch.setattr(predict, "describe", lambda w, **o: rows[w])
    with pytest.raises(UserError, match=message):
        predict.save_device(name, [measured(float(g)) for g in sizes], names, {})
    assert not predict.user_folder().exists()
