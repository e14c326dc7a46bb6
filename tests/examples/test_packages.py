"""The packages in examples/: installed, found by their entry points, used by the real commands."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"

NETWORKS = """
import torch
from torch import nn


def front():
    torch.manual_seed(0)
    return [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]


def classes():
    return nn.Sequential(*front(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class Maps(nn.Sequential):
    def forward(self, x):
        return {"heatmaps": super().forward(x)}


def maps():
    return Maps(*front(), nn.Conv2d(16, 5, 1))
"""


class Workshop:
    """A folder with photos, networks, and an installed package; commands run there."""

    def __init__(self, folder: Path, package: str) -> None:
        self.folder = folder
        self.compiled: dict = {}
        source, self.site = folder / "source", folder / "site"
        shutil.copytree(EXAMPLES / package, source)  # building writes beside the source
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--target", self.site, source], check=True, capture_output=True)
        (folder / "networks.py").write_text(textwrap.dedent(NETWORKS))
        photos, draws = folder / "photos", np.random.default_rng(0)
        photos.mkdir()
        for i in range(40):
            coarse = Image.fromarray(draws.integers(0, 256, (6, 6, 3), np.uint8))
            coarse.resize((32, 32), Image.Resampling.BICUBIC).save(photos / f"{i}.png")

    def python(self, *words: object, code: int = 0) -> tuple[str, str]:
        """Standard output and standard error."""
        env = {**os.environ, "PYTHONPATH": f"{self.site}{os.pathsep}{self.folder}", "COLUMNS": "160"}
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    def repedge(self, *words: object, code: int = 0) -> tuple[str, str]:
        return self.python("-m", "repedge", *words, code=code)

    def json(self, *words: object, code: int = 0) -> dict:
        return json.loads(self.repedge(*words, "--json", code=code)[0])


@pytest.fixture(scope="module")
def carray(tmp_path_factory):
    """The package, and the network as floats and as integers."""
    shop = Workshop(tmp_path_factory.mktemp("carray"), "carray")
    words = ["networks:classes", "-t", "carray", "-p", "fp32", "-p", "w8a8", "--calib", "photos"]
    shop.compiled = shop.json("compile", *words, "--input-size", 32)
    return shop


def test_the_target_is_listed_and_compiles_verified_integers(carray):
    assert "C99" in carray.repedge("targets")[0]
    found = {b["precision"]: b for b in carray.compiled["bundles"]}
    assert found["fp32"]["verify"]["sqnr_db"] > 120
    assert 30 < found["w8a8"]["verify"]["sqnr_db"] < 100
    assert found["w8a8"]["verify"]["agree_top1"] == 1
    assert "static const int8_t" in Path(carray.folder, found["w8a8"]["path"], "classes.c").read_text()


def test_a_changed_weight_is_not_verified(carray, tmp_path):
    """The C file is what is run: verification sees what is wrong with it, not what was meant."""
    bundle = shutil.copytree(carray.folder / "build/classes-carray-fp32", tmp_path / "bundle")
    source = bundle / "classes.c"
    text = source.read_text()
    start = text.index("k0[] = {") + len("k0[] = {")
    source.write_text(f"{text[:start]}9{text[text.index(',', start) :]}")
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert "classes.c" in carray.repedge("verify", bundle, code=2)[1]  # its hash differs
    from repedge.bundle.manifest import digest_of
    from repedge.hashing import sha256

    entry = next(f for f in manifest["files"] if f["path"] == "classes.c")
    entry.update(sha256=sha256(source), size=source.stat().st_size)
    manifest["digest"] = digest_of(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert carray.json("verify", bundle, code=3)["passed"] is False


def test_its_option_is_read_checked_and_suggested(carray):
    def compile_with(option: str, code: int, *more: str) -> str:
        words = ["networks:classes", "-t", "carray", "-p", "fp32", "--input-size", 32, "-O", option, *more]
        return carray.repedge("compile", *words, "-o", "named", "--force", code=code)[1]

    compile_with("carray.function=mine", 0)
    assert "void mine(" in (carray.folder / "named/classes-carray-fp32/classes.c").read_text()
    assert "did you mean carray.function?" in compile_with("carray.functoin=mine", 2)
    assert "'my-net' is no name of a C function" in compile_with("carray.function=my-net", 2)
    compile_with("function=mine", 0, "-t", "openvino")  # goes to the target that knows it


def test_it_is_profiled_by_its_own_engine(carray):
    found = carray.json("profile", "build/classes-carray-w8a8", "--runs", 20)
    assert found["runtime"] == "carray"
    assert found["p50_ms"] > 0


def test_its_package_gives_what_was_verified(carray):
    carray.repedge("ship", "build/classes-carray-w8a8", "--to", "python", "-o", "shipped")
    assert "4 images as verified" in carray.python("shipped/test_golden.py")[0]
    refused = carray.repedge("ship", "build/classes-carray-w8a8", "--to", "ios", "-o", "app", code=2)[1]
    assert "carray artifact, which ios apps can't run" in refused


def test_operators_without_a_row_are_named(carray):
    refused = carray.repedge("compile", "repvit_demo", "-t", "carray", code=2)[1]
    assert "Gelu" in refused
    assert "there is no loop for this operator" in refused


@pytest.fixture(scope="module")
def keypoints(tmp_path_factory):
    """The package, and the network as integers."""
    shop = Workshop(tmp_path_factory.mktemp("keypoints"), "keypoints")
    words = ["networks:maps", "-t", "tflite", "-p", "w8a8", "--calib", "photos", "--input-size", 48]
    shop.compiled = shop.json("compile", *words)
    return shop


def test_the_task_is_recognized_and_its_figure_reported(keypoints):
    (bundle,) = keypoints.compiled["bundles"]
    assert keypoints.compiled["task"] == "keypoints"
    assert 0.5 < bundle["verify"]["points_kept"] <= 1
    assert keypoints.json("verify", "build/maps-tflite-w8a8")["points_kept"] > 0.5


def test_it_is_evaluated_against_its_own_truth(keypoints):
    bundle, photos = "build/maps-tflite-w8a8", keypoints.folder / "photos"
    assert keypoints.json("eval", bundle, "photos")["pck"] is None
    import onnxruntime

    from repedge.bundle.folder import Bundle
    from repedge.photos import images

    opened = Bundle.open(keypoints.folder / bundle)
    pre = opened.manifest.preprocess
    session = onnxruntime.InferenceSession(str(opened.reference))
    truth = {}
    for i in range(40):
        pixels = images.pixels(Image.open(photos / f"{i}.png"), pre)
        maps = session.run(None, {session.get_inputs()[0].name: images.normalise(pixels[None], pre)})[0][0]
        cells = [np.unravel_index(m.argmax(), m.shape) for m in maps]
        truth[f"{i}.png"] = [[(x + 0.5) / maps.shape[2], (y + 0.5) / maps.shape[1]] for y, x in cells]
    (photos / "points.json").write_text(json.dumps(truth))
    assert keypoints.json("eval", bundle, "photos")["pck"] > 0.8
    (photos / "points.json").write_text(json.dumps({"0.png": [[0.5, 0.5]]}))
    assert "0.png wants 5 pairs" in keypoints.repedge("eval", bundle, "photos", code=2)[1]
    (photos / "points.json").unlink()


def test_a_budget_bounds_it_and_what_it_can_not_be_is_refused(keypoints):
    words = ["networks:maps", "-t", "tflite", "-p", "w8a8", "--calib", "photos", "--input-size", 48]
    refused = keypoints.repedge(
        "compile", *words, "--calib-count", 20, "--max-kl", 0.01, "-o", "budget", code=2
    )[1]
    assert "bounds nothing for the task 'keypoints'" in refused
    words = ["networks:classes", "-t", "tflite", "--task", "keypoints", "--input-size", 48]
    refused = keypoints.repedge("compile", *words, code=2)[1]
    assert "it wants one output [N, points, H, W]" in refused


def test_its_package_gives_points(keypoints):
    keypoints.repedge("ship", "build/maps-tflite-w8a8", "--to", "python", "-o", "shipped")
    assert "4 images as verified" in keypoints.python("shipped/test_golden.py")[0]
    use = "import maps; print(maps.Model().points('photos/0.png').tolist())"
    use = f"import sys; sys.path[:0] = ['shipped']; {use}"
    points = np.array(json.loads(keypoints.python("-c", use)[0].splitlines()[-1]))
    assert points.shape == (5, 2)
    assert ((points > 0) & (points < 1)).all()
