"""Packages of detectors: the same boxes on every platform, bit for bit, in the photo's pixels."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detector_nets import CLASSES, PLAN, SIZE, YoloxMaps
from head_cases import CASES, SQUASHED, Case
from PIL import Image
from ship_bundles import LABELS, compile_net, fake
from ship_packages import GRAMMARS, build, cpp_decoders, faults, kotlin, run, script

from repedge.errors import UserError
from repedge.ship import ship
from repedge.tasks.heads.head import Level

ROW = 7
"""Numbers of a golden detection: photo, class, score, left, top, right, bottom."""


def packed(
    folder: Path, case: Case, platform: str, name: str, target: str = "tflite", **options: Any
) -> Path:
    bundle = fake(
        folder / f"bundle-{name}", target, labels=LABELS[: case.head.classes], outputs=case.tensors,
        pre=case.pre, task="detect", answer=case.head.settings(), values=case.values(),
    )  # fmt: skip
    return ship([bundle], platform, folder / name, name=name).path


def golden(package: Path) -> np.ndarray:
    """What repedge itself finds in the golden outputs, after the three thresholds."""
    found = np.fromfile(next(package.rglob("detections.f32")), "<f4")
    assert len(found) > 3 + 2 * ROW, "nothing to compare"
    return found


def boxes_of(package: Path) -> Any:
    """The module that finds boxes, without the one that runs the model."""
    parent = types.ModuleType(package.name)
    parent.__path__ = [str(package / package.name)]
    sys.modules[package.name] = parent
    return importlib.import_module(f"{package.name}.boxes")


def outputs_of(package: Path, case: Case, photo: int) -> list[np.ndarray]:
    folder = package / "golden" / "fp32"
    shapes = [t.shape for t in case.tensors]
    every = [
        np.fromfile(folder / f"expected_{i}.f32", "<f4").reshape(-1, *s[1:]) for i, s in enumerate(shapes)
    ]
    return [y[photo : photo + 1] for y in every]


@pytest.mark.parametrize("kind", CASES)
def test_python_finds_the_verified_boxes(tmp_path: Path, kind: str) -> None:
    case = CASES[kind]
    out = packed(tmp_path, case, "python", f"py_{kind}")
    boxes, verified = boxes_of(out), golden(out)
    score, iou, most = verified[:3]
    rows = []
    for n in range(2):
        corners, scores, classes = boxes.find(outputs_of(out, case, n), 60, 50, score, iou, int(most))
        rows.append(np.column_stack([np.full(len(scores), n), classes, scores, corners]))
    assert np.concatenate(rows).astype("<f4").tobytes() == verified[3:].tobytes()


CPP_CASE = """
void run_NAME(const std::string& folder) {
  using namespace NAME;
  const std::vector<float> all = read(folder + "detections.f32");
  std::vector<std::vector<float>> outputs;
  for (int i = 0; i < kOutputs; ++i)
    outputs.push_back(read(folder + "expected_" + std::to_string(i) + ".f32"));
  for (int n = 0; n < 2; ++n) {
    std::array<const float*, kOutputs> one;
    for (int i = 0; i < kOutputs; ++i) one[i] = outputs[i].data() + n * kOutputSizes[i];
    for (const Detection& d : find(one, 60, 50, {all[0], all[1], static_cast<int>(all[2])})) {
      const Box& b = d.box;
      const float row[] = {float(n), float(d.index), d.score, b.left, b.top, b.right, b.bottom};
      std::fwrite(row, 4, 7, stdout);
    }
    for (const Filter& bad : {Filter{2, 0.5f, 9}, Filter{0.5f, NAN, 9}, Filter{0.5f, 0.5f, 0}}) try {
      find(one, 60, 50, bad);
      std::fputs("taken", stderr);
    } catch (const std::runtime_error& e) {
      std::fprintf(stderr, "%s\\n", e.what());
    }
  }
}
"""


@pytest.mark.slow
def test_cpp_finds_the_verified_boxes(tmp_path: Path) -> None:
    packages = {kind: packed(tmp_path, case, "cpp", kind) for kind, case in CASES.items()}
    program = cpp_decoders(tmp_path, packages, "boxes.cpp", CPP_CASE, ["-O0", "-ffp-contract=off"])
    for kind, out in packages.items():
        folder = next(out.rglob("detections.f32")).parent
        done = subprocess.run([program, kind, f"{folder}/"], capture_output=True, check=True)
        assert done.stdout == golden(out)[3:].tobytes(), kind
        assert done.stderr.decode().splitlines()[:3] == [
            "score must be from 0 to 1, but got 2.000000",
            "iou must be from 0 to 1, but got nan",
            "most must be 1 or more, but got 0",
        ]


KOTLIN_MAIN = """
import java.io.ByteArrayOutputStream
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

fun floats(file: File): FloatArray {
    val buffer = ByteBuffer.wrap(file.readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
    return FloatArray(buffer.remaining()).also { buffer.get(it) }
}

fun bytes(numbers: List<Float>): ByteArray {
    val buffer = ByteBuffer.allocate(4 * numbers.size).order(ByteOrder.LITTLE_ENDIAN)
    numbers.forEach { buffer.putFloat(it) }
    return buffer.array()
}
"""
KOTLIN_CASE = """
fun run_NAME(folder: File, to: File) {
    val all = floats(File(folder, "detections.f32"))
    val rows = ArrayList<Float>()
    for (n in 0 until 2) {
        val outputs = (0 until OUTPUTS).map {
            val y = floats(File(folder, "expected_$it.f32"))
            y.copyOfRange(n * y.size / 2, (n + 1) * y.size / 2)
        }
        for (d in repedge.NAME.Boxes.find(outputs, 60, 50, all[0], all[1], all[2].toInt())) {
            val (left, top, right, bottom) = d.box
            rows += listOf(n.toFloat(), d.index.toFloat(), d.score, left, top, right, bottom)
        }
        for ((score, iou) in listOf(0.5f to 2f, Float.NaN to 0f)) {
            try {
                repedge.NAME.Boxes.find(outputs, 60, 50, score, iou, 9)
                println("taken")
            } catch (e: IllegalArgumentException) {
                println(e.message)
            }
        }
    }
    to.writeBytes(bytes(rows))
}
"""


@pytest.mark.slow
def test_kotlin_finds_the_verified_boxes(tmp_path: Path) -> None:
    """One package is compiled whole, of the others what needs no Android."""
    packages = {"net": CASES["anchored"], **{kind: CASES[kind] for kind in ("binned", "prior", "chosen")}}
    made = {n: packed(tmp_path, case, "android", n.capitalize()) for n, case in packages.items()}
    sources = [
        made[n] / n / "src/main/kotlin/repedge" / n / file
        for n in packages
        for file in ("Boxes.kt", "Preprocess.kt")
        if n != "net"
    ]
    main, calls = KOTLIN_MAIN, ""
    for n, case in packages.items():
        main += KOTLIN_CASE.replace("NAME", n).replace("OUTPUTS", str(len(case.outputs)))
        folder = next(made[n].rglob("detections.f32")).parent
        calls += f'    run_{n}(File("{folder}"), File("{tmp_path / n}.f32"))\n'
    jar = kotlin(made["net"], f"{main}\nfun main() {{\n{calls}}}\n", tmp_path, sources)
    said = subprocess.run(["java", "-cp", jar, "MainKt"], capture_output=True, text=True, check=True).stdout
    assert set(said.splitlines()) == {
        "iou must be from 0 to 1, but got 2.0",
        "score must be from 0 to 1, but got NaN",
    }
    for n in packages:
        assert (tmp_path / f"{n}.f32").read_bytes() == golden(made[n])[3:].tobytes(), n


@pytest.mark.parametrize(("platform", "target"), [("ios", "coreml"), ("android", "tflite")])
@pytest.mark.parametrize("kind", CASES)
def test_sources_parse(tmp_path: Path, platform: str, target: str, kind: str) -> None:
    out = packed(tmp_path, CASES[kind], platform, "Net", target)
    sources = [p for p in out.rglob("*") if p.suffix in GRAMMARS]
    assert {"Boxes.swift", "Boxes.kt"} & {p.name for p in sources}
    assert [fault for p in sources for fault in faults(p)] == []


FEW = 12


def hand_made(folder: Path, name: str, rows: int = FEW) -> Any:
    """The boxes of a package whose candidates are corners in pixels of a 40 x 24 photo, and 5 classes."""
    head = replace(CASES["columns"].head, coding="corners", levels=(Level(rows),))
    return boxes_of(packed(folder, Case(head, (((9, rows), ""),), SQUASHED), "python", name))


def candidates(rows: list[tuple[float, ...]]) -> list[np.ndarray]:
    """(left, top, right, bottom, class, score) of each -> an output [1, 9, candidates]."""
    y = np.zeros((1, 9, FEW), np.float32)
    for i, (*box, label, score) in enumerate(rows):
        y[0, :4, i] = box
        y[0, 4 + int(label), i] = score
    return [y]


def test_suppression_is_within_a_class_and_ties_go_to_the_first(tmp_path: Path) -> None:
    boxes = hand_made(tmp_path, "few")
    outputs = candidates(
        [
            (0, 0, 10, 10, 1, 0.5),
            (0, 0, 10, 11, 1, 0.9),  # the best of class 1: overlaps the first by 10/11
            (0, 0, 10, 10, 2, 0.5),  # of another class
            (20, 0, 30, 10, 1, 0.5),  # elsewhere; as good as the next, and before it
            (20, 0, 30, 10, 1, 0.5),
            (np.nan, 0, 9, 9, 1, 1.0),
        ]
    )
    found, scores, classes = boxes.find(outputs, 40, 24, 0.25, 0.5, 300)
    assert list(zip(classes.tolist(), scores.tolist(), found[:, 0].tolist(), strict=True)) == [
        (1, np.float32(0.9), 0.0), (2, 0.5, 0.0), (1, 0.5, 20.0)
    ]  # fmt: skip
    assert len(boxes.find(outputs, 40, 24, 0.25, 1.0, 300)[0]) == 5  # nothing is over an overlap of 1
    assert len(boxes.find(outputs, 40, 24, 0.25, 0.5, 2)[0]) == 2
    assert boxes.find(outputs, 40, 24, 1.0, 0.5, 300)[0].shape == (0, 4)


def test_a_hundred_thousand_candidates_are_thinned_out(tmp_path: Path) -> None:
    boxes = hand_made(tmp_path, "many", 100_000)
    x = np.arange(100_000) % 30
    y = np.stack([x, 0 * x, x + 9, 0 * x + 9, *([0 * x] * 4), 0.5 + x / 100]).astype(np.float32)[None]
    found, _, classes = boxes.find([y], 40, 24, 0.25, 0.5, 300)
    assert found[:, 0].tolist() == [29, 26, 23, 20]  # of the 30,000 best; 3 apart they overlap by 6/12
    assert set(classes.tolist()) == {4}


@pytest.mark.parametrize("bad", [{"score": -0.1}, {"score": np.nan}, {"iou": 1.5}, {"most": 0}])
def test_python_refuses_thresholds_that_are_none(tmp_path: Path, bad: dict[str, float]) -> None:
    boxes = hand_made(tmp_path, "thresholds")
    given: dict[str, Any] = {"score": 0.25, "iou": 0.5, "most": 300, **bad}
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be .*, but got {next(iter(bad.values()))}"):
        boxes.find(candidates([(0, 0, 9, 9, 1, 0.5)] * 6), 40, 24, **given)


def test_what_is_said_of_the_head_must_fit_the_outputs(tmp_path: Path) -> None:
    case = CASES["grid"]
    wrong = replace(case, head=replace(case.head, classes=4))
    with pytest.raises(UserError, match="contradicts itself|3 scores for 4 classes"):
        packed(tmp_path, wrong, "python", "net")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that finds `PLAN` in every photo, give or take what the photo adds."""
    bundles = compile_net(
        tmp_path_factory.mktemp("detector"), ["tflite"], YoloxMaps(0.002), LABELS[:CLASSES],
        precisions=["fp32"], input_size=str(SIZE), resize="letterbox", task="detect",
    )  # fmt: skip
    return bundles["tflite"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Four times as wide as the network's input, and twice as high: bars above and below."""
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 100, (2 * SIZE, 4 * SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def planned() -> list[tuple[int, float, list[float]]]:
    """Class, score and box of `PLAN` in `photo`, which stands in the input at a quarter of its size."""
    found = []
    for thing in PLAN:
        x0, y0, x1, y1 = (4 * v for v in thing.box)
        bar = SIZE  # a quarter of the input, times 4
        found.append((thing.label, thing.score, [x0, max(y0 - bar, 0), x1, min(y1 - bar, 2 * SIZE)]))
    return found


def near_left_side(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """Colours halfway down where the left side of the second box is drawn."""
    left = int(planned()[1][2][0])
    return [tuple(c) for c in pixels[60, left - 3 : left + 4].tolist()]


@pytest.mark.slow
def test_python_detects(detector: Path, photo: Path, tmp_path: Path) -> None:
    out = ship([detector], "python", tmp_path / "app", name="net").path
    done = run([sys.executable, "test_golden.py"], cwd=out)
    assert done.returncode == 0, done.stderr
    code = f"""if True:
        import json, net
        model = net.Model(threads=1)
        found, times = model.detect({str(photo)!r}), model.times
        print(json.dumps([found, times, model.detect({str(photo)!r}, 0.7, most=1)]))
    """
    found, times, best = json.loads(script(code, out))
    assert [f[3] for f in found] == [label for label, _, _ in planned()]
    assert [f[1] for f in found] == [LABELS[label] for label, _, _ in planned()]
    for (box, _, score, _), (_, wanted, corners) in zip(found, planned(), strict=True):
        assert score == pytest.approx(wanted, abs=0.01)
        assert box == pytest.approx(corners, abs=2)
    assert len(times) == 3
    assert min(times) > 0
    assert best == found[:1]

    said = run([sys.executable, "-m", "net", photo, "--draw", tmp_path / "drawn"], cwd=out)
    assert said.returncode == 0, said.stderr
    with Image.open(tmp_path / "drawn" / "photo.png") as drawn:
        assert drawn.size == (4 * SIZE, 2 * SIZE)
        assert (255, 0, 0) in near_left_side(np.asarray(drawn))

    file = out / "golden" / "fp32" / "detections.f32"
    verified = np.fromfile(file, "<f4")
    assert len(verified) >= 3 + 2 * ROW * len(PLAN)
    verified[5] = np.nextafter(verified[5], np.float32(1))  # a score, by its last bit
    verified.tofile(file)
    done = run([sys.executable, "test_golden.py"], cwd=out)
    assert done.returncode == 1
    assert "has other boxes" in done.stderr


@pytest.mark.slow
def test_cpp_detects(detector: Path, photo: Path, tmp_path: Path) -> None:
    out = ship([detector], "cpp", tmp_path / "app", name="net").path
    built = build(out)
    tested = run([built / "net_golden"])
    assert tested.returncode == 0, tested.stdout + tested.stderr
    said = run([built / "net_sample", "--threads", "1", photo], cwd=tmp_path / "app")
    assert said.returncode == 0, said.stderr
    found = [re.findall(r"[\d.]+(?=%)|-?\d+(?=[,)])", line) for line in said.stdout.splitlines()[1:]]
    for (score, *box), (_, wanted, corners) in zip(found, planned(), strict=False):
        assert float(score) == pytest.approx(100 * wanted, abs=1)
        assert [float(x) for x in box] == pytest.approx(corners, abs=3)
    assert re.search(r"pixels [\d.]+ ms, model [\d.]+ ms, boxes [\d.]+ ms", said.stdout)
    with Image.open(tmp_path / "app" / "photo.png.bmp") as drawn, Image.open(photo) as plain:
        pixels, before = np.asarray(drawn), np.asarray(plain)
    red = (pixels == (255, 45, 85)).all(-1)
    assert (255, 45, 85) in near_left_side(pixels)
    np.testing.assert_array_equal(pixels[~red], before[~red])

    file = out / "golden" / "fp32" / "detections.f32"
    verified = np.fromfile(file, "<f4")
    verified[4] += 1  # a class
    verified.tofile(file)
    failed = run([built / "net_golden"])
    assert failed.returncode == 1
    assert "0.png has other boxes" in failed.stdout
