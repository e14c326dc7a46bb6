"""The Python and C++ packages for real: built, run, and held against the golden vectors."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ship_bundles import LABELS, compile_net, fake
from ship_packages import build, run, script

from repedge.ship import ship


@pytest.fixture(scope="module")
def uint8(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return compile_net(tmp_path_factory.mktemp("uint8"), ["tflite", "openvino", "gpu"])


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("float32")
    return compile_net(out, ["tflite", "openvino"], input_kind="float32", color="BGR", precisions=["fp32"])


def packed(bundles: dict[str, Path], target: str, platform: str, out: Path) -> Path:
    return ship([bundles[target]], platform, out, name="net").path


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "openvino", "gpu"])
def test_python_package_passes_its_own_golden_test(
    uint8: dict[str, Path], tmp_path: Path, target: str
) -> None:
    out = packed(uint8, target, "python", tmp_path / "app")
    done = run([sys.executable, "test_golden.py"], cwd=out)
    assert done.returncode == 0, done.stderr
    assert "2 images as verified" in done.stdout


@pytest.mark.slow
def test_python_packages_of_integer_artifacts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (30, 46, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    bundles = compile_net(
        tmp_path / "b", ["tflite", "openvino"], precisions=["w8a8"], calib=tmp_path / "photos",
        calib_count=8, recipe="fast", min_sqnr=5.0,
    )  # fmt: skip
    for target in bundles:
        out = packed(bundles, target, "python", tmp_path / target)
        done = run([sys.executable, "test_golden.py"], cwd=out)
        assert done.returncode == 0, done.stderr
        assert "w8a8: 2 images as verified" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "openvino"])
def test_python_package_of_a_float32_artifact(float32: dict[str, Path], tmp_path: Path, target: str) -> None:
    out = packed(float32, target, "python", tmp_path / "app")
    assert run([sys.executable, "test_golden.py"], cwd=out).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [("pixels.u8", "gives other pixels"), ("expected_0.f32", "is off by"), ("0.png", "gives other pixels")],
)
def test_golden_test_notices_what_is_wrong(
    uint8: dict[str, Path], tmp_path: Path, damage: str, complaint: str
) -> None:
    out = packed(uint8, "tflite", "python", tmp_path / "app")
    folder = out / "golden" / "fp32"
    if damage == "0.png":
        shutil.copyfile(folder / "1.png", folder / "0.png")
    elif damage == "pixels.u8":
        data = bytearray((folder / damage).read_bytes())
        data[5] ^= 2
        (folder / damage).write_bytes(data)
    else:
        y = np.fromfile(folder / damage, "<f4")
        y[0] += 0.01 * np.abs(y).max()
        y.tofile(folder / damage)
    done = run([sys.executable, "test_golden.py"], cwd=out)
    assert done.returncode == 1
    assert complaint in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "openvino", "gpu"])
def test_python_takes_images_of_the_input_size_and_outputs_stay(
    uint8: dict[str, Path], tmp_path: Path, target: str
) -> None:
    """Decoded files are read-only memory when nothing resizes them; runtimes reuse theirs for outputs."""
    out = packed(uint8, target, "python", tmp_path / "app")
    code = """if True:
        import net, numpy as np
        from PIL import Image
        rng = np.random.default_rng(0)
        model = net.Model(threads=1)
        first, second = (rng.integers(0, 256, (24, 40, 3), dtype=np.uint8) for _ in range(2))
        Image.fromarray(first).save("exact.png")
        first.setflags(write=False)
        a = model.run_pixels(first)[0]
        kept = a.copy()
        b = model.run_pixels(second)[0]
        assert (a == kept).all() and (a != b).any()
        assert model.run("exact.png")[net.OUTPUTS[0]].shape == (1, 7)
    """
    script(code, out)


@pytest.mark.slow
def test_python_labels_and_scores(uint8: dict[str, Path], tmp_path: Path) -> None:
    out = packed(uint8, "tflite", "python", tmp_path / "app")
    code = """if True:
        import json, net
        model = net.Model(threads=1)
        guesses = model.classify("golden/fp32/0.png", top=99)
        logits = model.run("golden/fp32/0.png")[net.OUTPUTS[0]]
        print(json.dumps([net.LABELS, guesses, logits[0].tolist()]))
    """
    labels, guesses, logits = json.loads(script(code, out))
    assert labels == list(LABELS)
    softmax = np.exp(logits) / np.exp(logits).sum()
    assert [g[0] for g in guesses] == list(np.argsort(-softmax))
    assert [g[1] for g in guesses] == [LABELS[g[0]] for g in guesses]
    np.testing.assert_allclose([g[2] for g in guesses], np.sort(softmax)[::-1], rtol=1e-5)


@pytest.mark.slow
def test_python_without_pillow_resizes_to_the_same_bits(tmp_path: Path) -> None:
    from repedge.config import Letterbox, Preprocess
    from repedge.photos import images

    rng = np.random.default_rng(3)
    half = (0.5,)
    for i, pre in enumerate(
        [
            Preprocess(size=(28, 33), resize=None),
            Preprocess(size=(28, 33), resize=30, interpolation="bicubic"),
            Preprocess(size=(28, 33), resize=26, interpolation="nearest"),
            Preprocess(size=(28, 33), resize=50, color="GRAY", mean=half, std=half),
            Preprocess(size=(28, 33), resize=None, letterbox=Letterbox()),
            Preprocess(size=(28, 33), resize=None, letterbox=Letterbox(value=0, corner=True)),
        ]
    ):
        out = ship([fake(tmp_path / f"b{i}", pre=pre)], "python", tmp_path / f"app{i}", name="net").path
        module = load(out / "net" / "image.py", f"image{i}")
        for shape in [(61, 40, 3), (7, 90, 3), (28, 33, 3), (20, 20, 3), (31, 45)]:
            photo = rng.integers(0, 256, shape, dtype=np.uint8)
            expected = images.pixels(module.Image.fromarray(photo), pre)
            np.testing.assert_array_equal(module.to_pixels(photo), expected)
            pillow, module.Image = module.Image, None
            np.testing.assert_array_equal(module.to_pixels(photo), expected)
            module.Image = pillow


def load(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_python_says_what_is_wrong(uint8: dict[str, Path], tmp_path: Path) -> None:
    out = packed(uint8, "tflite", "python", tmp_path / "app")
    code = """if True:
        import numpy as np, net
        model = net.Model()
        for shape, dtype in (((4, 4, 3), np.float32), ((4, 4, 2), np.uint8), ((0, 4, 3), np.uint8)):
            try:
                model.run(np.zeros(shape, dtype))
            except ValueError as e:
                print(e)
        try:
            net.Model("fp8")
        except ValueError as e:
            print(e)
    """
    lines = script(code, out).splitlines()
    assert lines[0] == "an image is uint8 [H, W, 3] or [H, W], but got float32 [4, 4, 3]"
    assert lines[1] == "an image has 1 or 3 channels, but got 2"
    assert lines[2] == "an image is uint8 [H, W, 3] or [H, W], but got uint8 [0, 4, 3]"
    assert lines[3] == "variant must be one of fp32, but got 'fp8'"


@pytest.mark.slow
@pytest.mark.parametrize(("target", "kind"), [("openvino", "uint8"), ("tflite", "float32")])
def test_cpp_package_is_built_and_passes_its_golden_test(
    request: pytest.FixtureRequest, tmp_path: Path, target: str, kind: str
) -> None:
    bundles = request.getfixturevalue(kind)
    out = packed(bundles, target, "cpp", tmp_path / "app")
    built = build(out)
    tested = run(["ctest", "--test-dir", built, "--output-on-failure"])
    assert tested.returncode == 0, tested.stdout
    variant = next(p.name for p in (out / "golden").iterdir())
    photo = out / "golden" / variant / "0.png"
    sample = run([built / "net_sample", "--threads", "1", "--repeat", "3", photo])
    assert sample.returncode == 0, sample.stderr
    assert sum(label in sample.stdout for label in LABELS) == 5
    assert "median" in sample.stdout
    expected = out / "golden" / variant / "expected_0.f32"
    y = np.fromfile(expected, "<f4")
    (y + 0.05 * np.abs(y).max()).astype("<f4").tofile(expected)
    assert run([built / "net_golden"]).returncode == 1
    missing = run([built / "net_sample", tmp_path / "none.png"])
    assert missing.returncode == 1
    assert missing.stderr.splitlines()[-1].startswith("error: ")


class LabelMap(torch.nn.Module):
    """Which class each pixel is, the mean of each, and whether it is high anywhere: int64, float, bool."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Conv2d(3, 5, 3, 1, 1)

    def forward(self, x):
        y = self.head(x)
        return y.argmax(1), y.mean((2, 3)), (y.amax((2, 3)) > 0.5)


@pytest.fixture(scope="module")
def label_maps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("labels")
    return compile_net(out, ["tflite", "openvino", "gpu", "coreml"], LabelMap(), (), precisions=["fp32"])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "openvino", "gpu"])
def test_whole_numbers_in_python(label_maps: dict[str, Path], tmp_path: Path, target: str) -> None:
    out = packed(label_maps, target, "python", tmp_path / "app")
    done = run([sys.executable, "test_golden.py"], cwd=out)
    assert done.returncode == 0, done.stderr
    code = "import net; y = net.Model().run('golden/fp32/0.png'); print([v.dtype.kind for v in y.values()])"
    assert script(code, out).strip() in ("['i', 'f', 'i']", "['i', 'f', 'b']")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "tflite"])
def test_whole_numbers_in_cpp(label_maps: dict[str, Path], tmp_path: Path, target: str) -> None:
    """Read as floats bit by bit they would be nearly 0."""
    out = packed(label_maps, target, "cpp", tmp_path / "app")
    done = run([build(out) / "net_golden"])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "platform", "words"),
    [("tflite", "android", "buffer.asIntBuffer()"), ("coreml", "ios", "converting: array")],
)
def test_whole_numbers_on_phones(
    label_maps: dict[str, Path], tmp_path: Path, target: str, platform: str, words: str
) -> None:
    out = packed(label_maps, target, platform, tmp_path / "app")
    assert any(words in path.read_text() for path in out.rglob("*.*") if path.suffix in (".kt", ".swift"))
