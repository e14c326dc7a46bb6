"""Packages of segmenters: label maps to the pixel the same on every platform, at the photo's size."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_nets import Segmenter
from ship_bundles import compile_net, fake
from ship_packages import GRAMMARS, build, cpp_decoders, faults, kotlin, run, script
from torch.nn.functional import interpolate

from repedge.bundle.manifest import Tensor
from repedge.config import Letterbox, Preprocess
from repedge.photos.images import placement
from repedge.ship import ship

WIDTH, HEIGHT = 60, 50
"""Of the golden photos."""

INPUT = (24, 40)


SQUASH = Preprocess(size=INPUT, resize=None)


@dataclass(frozen=True)
class Case:
    """A segmenter whose golden scores are noise.

    Attributes:
        classes: Of its label maps.
        shape: Of its output in the graph, [C, H, W].
        activation: What its settings say.
        layout: Of its output in the artifact.
        pre: How the photo comes into the input.
    """

    classes: int
    shape: tuple[int, ...]
    activation: str = "none"
    layout: str = "NCHW"
    pre: Preprocess = SQUASH

    @property
    def values(self) -> np.ndarray:
        """Golden outputs of the two photos, as the graph has them."""
        rng = np.random.default_rng(7)
        shape = (2, *self.shape)
        if self.activation == "argmax":
            return rng.integers(0, self.classes, shape).astype(np.float32)
        y = rng.normal(size=shape).astype(np.float32)
        return 1 / (1 + np.exp(-y)) if self.activation == "sigmoid" else y

    @property
    def whole(self) -> np.ndarray:
        """The classes of the input's pixels as torch finds them in float64, [2, H, W]."""
        y = torch.from_numpy(self.values.astype(np.float64))
        if self.activation == "argmax":
            return y.numpy().reshape(2, *INPUT).astype(int)
        large = interpolate(y, size=INPUT, mode="bilinear", align_corners=False).numpy()
        return large.argmax(1) if self.classes > 2 else (large[:, 0] > 0.5).astype(int)

    @property
    def tensor(self) -> Tensor:
        c, h, w = self.shape
        shape = (1, h, w, c) if self.layout == "NHWC" else (1, c, h, w)
        return Tensor(name="scores", dtype="float32", shape=shape, layout=self.layout)


CASES = {
    "plain": Case(5, (5, *INPUT)),
    "boxed": Case(
        5, (5, 6, 10), layout="NHWC", pre=Preprocess(size=INPUT, resize=None, letterbox=Letterbox())
    ),
    "veil": Case(2, (1, 12, 20), "sigmoid", pre=Preprocess(size=INPUT, resize=30)),
    "best": Case(7, (1, *INPUT), "argmax", pre=Preprocess(size=INPUT, resize=26)),
    "wide": Case(300, (300, 3, 5), "softmax", "NHWC"),
}


def packed(folder: Path, kind: str, platform: str, target: str = "tflite", name: str = "") -> Path:
    case = CASES[kind]
    labels = [f"class {c}" for c in range(case.classes)] if kind in ("plain", "boxed") else []
    bundle = fake(
        folder / f"bundle-{kind}-{platform}", target, labels=labels, outputs=[case.tensor], pre=case.pre,
        task="segment", values=[case.values],
        answer={"activation": case.activation, "classes": case.classes, "size": list(INPUT)},
    )  # fmt: skip
    named = name or (kind if platform in ("python", "cpp") else kind.capitalize())
    return ship([bundle], platform, folder / platform / kind, name=named).path


def golden(package: Path, kind: str) -> np.ndarray:
    """What repedge says of the golden photos, [2, height, width]."""
    folder = next(package.rglob("map_0.bin")).parent
    dtype = "<u1" if CASES[kind].classes < 256 else "<u2"
    maps = [np.fromfile(folder / f"map_{n}.bin", dtype).reshape(HEIGHT, WIDTH) for n in range(2)]
    return np.stack(maps)


def module(path: Path, name: str) -> Any:
    """A package, imported."""
    spec = importlib.util.spec_from_file_location(
        name, path / "__init__.py", submodule_search_locations=[str(path)]
    )
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("kind", CASES)
def test_golden_maps_are_the_best_classes_where_the_photo_came_to_lie(tmp_path: Path, kind: str) -> None:
    """Pixel by pixel, by the geometry of the preprocessing and torch's interpolation."""
    case = CASES[kind]
    found = golden(packed(tmp_path, kind, "python"), kind)
    place = placement(WIDTH, HEIGHT, case.pre)
    none = 255 if case.classes < 256 else 65535
    for y, x in [(0, 0), (0, 59), (49, 0), (49, 59), (25, 30), (13, 47), (31, 8), (44, 22)]:
        row = int((y + 0.5) * place.height / HEIGHT) + place.top
        column = int((x + 0.5) * place.width / WIDTH) + place.left
        inside = 0 <= row < INPUT[0] and 0 <= column < INPUT[1]
        want = case.whole[:, row, column] if inside else [none, none]
        assert found[:, y, x].tolist() == list(want), (y, x)
    assert (found == none).any() == (kind in ("best", "veil"))  # those that are cropped


@pytest.mark.parametrize("kind", CASES)
def test_python_finds_the_verified_maps(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = packed(tmp_path, kind, "python")
    monkeypatch.syspath_prepend(str(out))
    (out / kind / "runtime.py").write_text("class Runtime:\n    pass\n")
    net = module(out / kind, kind)
    case = CASES[kind]
    y = case.values.transpose(0, 2, 3, 1) if case.layout == "NHWC" else case.values
    for n, want in enumerate(golden(out, kind)):
        found = net.maps.find([y[n : n + 1]], WIDTH, HEIGHT)
        assert (found.dtype, found.tolist()) == (want.dtype, want.tolist())
    shown = net.LabelMap(want)
    assert sum(shown.shares().values()) == pytest.approx((want != net.NONE).mean())
    assert shown.colours()[0, 0].tolist() == (
        [0, 0, 0] if want[0, 0] == net.NONE else list(net.COLOURS[want[0, 0]])
    )


CPP_CASE = """
void run_NAME(const std::string& folder) {
  const std::vector<float> y = read(folder + "expected_0.f32");
  for (int n = 0; n < 2; ++n) {
    const NAME::LabelMap found = NAME::find({y.data() + n * y.size() / 2}, 60, 50);
    std::fwrite(found.ids.data(), sizeof found.ids[0], found.ids.size(), stdout);
    const NAME::Bitmap shown = found.colours();
    if (shown.data.size() != 3 * found.ids.size()) std::fputs("?", stderr);
    if (found.shares().size() != NAME::kClasses) std::fputs("?", stderr);
  }
  std::fprintf(stderr, "%s\\n", NAME::label(1).c_str());
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["-O0"], ["-O2", "-march=native", "-ffp-contract=fast"]])
def test_cpp_finds_the_verified_maps(tmp_path: Path, flags: list[str]) -> None:
    """Whether or not the compiler fuses products and sums."""
    packages = {kind: packed(tmp_path, kind, "cpp") for kind in CASES}
    program = cpp_decoders(tmp_path, packages, "maps.cpp", CPP_CASE, flags)
    for kind, out in packages.items():
        folder = next(out.rglob("map_0.bin")).parent
        done = subprocess.run([program, kind, f"{folder}/"], capture_output=True, check=True)
        assert done.stdout == golden(out, kind).tobytes(), kind
        assert done.stderr.decode() == ("class 1\n" if kind in ("plain", "boxed") else "1\n")


KOTLIN_MAIN = """
import java.io.ByteArrayOutputStream
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

fun floats(file: File): FloatArray {
    val buffer = ByteBuffer.wrap(file.readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
    return FloatArray(buffer.remaining()).also { buffer.get(it) }
}
"""
KOTLIN_CASE = """
fun run_NAME(folder: File, to: File) {
    val y = floats(File(folder, "expected_0.f32"))
    val bytes = ByteArrayOutputStream()
    for (n in 0 until 2) {
        val half = y.size / 2
        val found = repedge.NAME.Maps.find(listOf(y.copyOfRange(n * half, (n + 1) * half)), 60, 50)
        for (row in 0 until 50) for (x in 0 until 60) {
            bytes.write(found[x, row])
            if (repedge.NAME.LabelMap.NONE > 255) bytes.write(found[x, row] shr 8)
        }
        check(found.colours().size == 3000 && found.shares().size == repedge.NAME.LabelMap.CLASSES)
    }
    to.writeBytes(bytes.toByteArray())
    println(repedge.NAME.LabelMap.label(1))
}
"""


@pytest.mark.slow
def test_kotlin_finds_the_verified_maps(tmp_path: Path) -> None:
    """One package is compiled whole, of the others what needs no Android."""
    names = {"net" if kind == "plain" else kind: kind for kind in CASES}
    made = {n: packed(tmp_path, kind, "android", name=n.capitalize()) for n, kind in names.items()}
    sources = [
        made[n] / n / "src/main/kotlin/repedge" / n / file
        for n in names
        for file in ("LabelMap.kt", "Preprocess.kt")
        if n != "net"
    ]
    main, calls = KOTLIN_MAIN, ""
    for n in names:
        main += KOTLIN_CASE.replace("NAME", n)
        folder = next(made[n].rglob("map_0.bin")).parent
        calls += f'    run_{n}(File("{folder}"), File("{tmp_path / n}.bin"))\n'
    jar = kotlin(made["net"], f"{main}\nfun main() {{\n{calls}}}\n", tmp_path, sources)
    said = subprocess.run(["java", "-cp", jar, "MainKt"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["class 1", "class 1", "1", "1", "1"]
    for n, kind in names.items():
        assert (tmp_path / f"{n}.bin").read_bytes() == golden(made[n], kind).tobytes(), kind


@pytest.mark.parametrize(("platform", "target"), [("ios", "coreml"), ("android", "tflite")])
@pytest.mark.parametrize("kind", CASES)
def test_sources_parse(tmp_path: Path, platform: str, target: str, kind: str) -> None:
    out = packed(tmp_path, kind, platform, target, "Net")
    sources = [p for p in out.rglob("*") if p.suffix in GRAMMARS]
    assert {"Maps.swift", "LabelMap.kt"} & {p.name for p in sources}
    assert [fault for p in sources for fault in faults(p)] == []


# --- for real ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return compile_net(
        tmp_path_factory.mktemp("segmenter"), ["tflite", "openvino"], Segmenter(5, "quarter").eval(),
        labels=("sky", "road", "car", "tree", "none"), precisions=["fp32"],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "openvino"])
def test_python_segments(bundles: dict[str, Path], tmp_path: Path, target: str) -> None:
    out = ship([bundles[target]], "python", tmp_path / "app", name="net").path
    done = run([sys.executable, "test_golden.py"], cwd=out)
    assert done.returncode == 0, done.stderr
    code = """if True:
        import net
        model = net.Model(threads=1)
        found = model.segment("golden/fp32/0.png")
        print(found.ids.shape == net.read("golden/fp32/0.png").shape[:2], sum(model.times) > 0)
    """
    assert script(code, out) == "True True\n"
    said = run([sys.executable, "-m", "net", "golden/fp32/0.png", "--draw", "drawn"], cwd=out)
    assert "%  " in said.stdout, said.stderr
    assert (out / "drawn" / "0.png").is_file()
    file = next((out / "golden").rglob("map_1.bin"))
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    done = run([sys.executable, "test_golden.py"], cwd=out)
    assert done.returncode == 1
    assert "1.png has another label map" in done.stderr


@pytest.mark.slow
def test_cpp_segments(bundles: dict[str, Path], tmp_path: Path) -> None:
    out = ship([bundles["openvino"]], "cpp", tmp_path / "app", name="net").path
    built = build(out)
    tested = run([built / "net_golden"])
    assert tested.returncode == 0, tested.stdout
    photo = out / "golden" / "fp32" / "0.png"
    said = run([built / "net_sample", photo]).stdout
    assert "%  " in said
    assert photo.with_name("0.png.ppm").read_bytes().startswith(b"P6\n")
