"""Packages of networks that take tensors beside the image: by name, checked and verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ship_bundles import compile_net, fake
from ship_packages import GRAMMARS, build, faults, kotlin, run

from repedge.bundle.manifest import Tensor
from repedge.ship import names, ship

RNG = np.random.default_rng(4)
SCALES = RNG.uniform(0.5, 2, (2, 8)).astype(np.float32)
ROWS = np.array([[2], [0]])


class Prompted(torch.nn.Module):
    """Scores of a photo, scaled by a vector; and of a row of a table that an index names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU())
        self.table = torch.nn.Parameter(torch.randn(3, 8))

    def forward(self, photo: Any, scale: Any, row: Any = None) -> Any:
        y = self.stem(photo).mean((2, 3)) * scale
        return y if row is None else y * self.table[row]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "given", "task"),
    [("openvino", {"scale": SCALES, "row": ROWS}, "raw"), ("tflite", {"scale": SCALES}, "classify")],
)
def test_cpp_takes_them_and_gives_what_was_verified(
    tmp_path: Path, target: str, given: dict[str, np.ndarray], task: str
) -> None:
    bundles = compile_net(
        tmp_path / "b", [target], Prompted(), (), precisions=["fp32"], inputs=given, task=task
    )
    out = ship([bundles[target]], "cpp", tmp_path / "app", name="net").path
    folder = out / "golden" / "fp32"
    assert np.fromfile(folder / "input_0.bin", "<f4").tolist() == SCALES.ravel().tolist()
    built = build(out)
    tested = run([built / "net_golden"])
    assert tested.returncode == 0, tested.stdout + tested.stderr
    files = [f"{name}={folder / f'input_{i}.bin'}" for i, name in enumerate(given)]
    options = [word for file in files for word in ("--input", file)]
    said = run([built / "net_sample", *options, folder / "0.png"]).stdout
    y = np.fromfile(folder / "expected_0.f32", "<f4")[:8].astype(float)
    found = said.split("first ")[1] if task == "raw" else said.splitlines()[1].split("%")[0]
    want = y[0] if task == "raw" else 100 * np.exp(y.max()) / np.exp(y).sum()
    assert float(found) == pytest.approx(want, rel=1e-3)

    lacking = run([built / "net_sample", folder / "0.png"])
    assert lacking.returncode == 1
    assert lacking.stderr.splitlines()[-1] == "error: scale has 0 values, but the model takes 8"
    wrong = run([built / "net_sample", "--input", f"gain={folder / '0.png'}", folder / "0.png"])
    assert wrong.stderr.splitlines()[-1].startswith("error: --input NAME=FILE names one of: scale")
    (folder / "input_0.bin").write_bytes(SCALES[::-1].tobytes())  # each photo with the other's sample
    assert run([built / "net_golden"]).returncode == 1


KOTLIN_MAIN = """
package repedge.net

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

fun main(args: Array<String>) {
    val given = ByteBuffer.wrap(File(args[0]).readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
    val tensors = Tensors(FloatArray(6).also { given.get(it) }, longArrayOf(-2, 1L shl 40), intArrayOf(7))
    for ((name, memory) in tensors.buffers()) {
        println(name + " " + ByteArray(memory.capacity()).also { memory.get(it) }.toList())
    }
    println(Tensors.zeros().in2.size)
    try {
        Tensors(FloatArray(5), LongArray(2), IntArray(1))
    } catch (e: IllegalArgumentException) {
        println(e.message)
    }
}
"""
BESIDE = [
    Tensor(name='the "odd" $x', dtype="float32", shape=(2, 3)),
    Tensor(name="in", dtype="int64", shape=(2,)),
    Tensor(name="犬", dtype="int32", shape=()),
]


@pytest.mark.slow
def test_kotlin_hands_their_bytes_on(tmp_path: Path) -> None:
    out = ship([fake(tmp_path / "b", tensors=BESIDE)], "android", tmp_path / "app").path
    jar = kotlin(out, KOTLIN_MAIN, tmp_path)
    golden = out / "net/src/androidTest/assets/golden/fp32"
    first, second, third, size, complaint = run(
        ["java", "-cp", jar, "repedge.net.MainKt", golden / "input_0.bin"]
    ).stdout.splitlines()
    signed = np.frombuffer((golden / "input_0.bin").read_bytes()[:24], np.int8).tolist()
    assert first == f'the "odd" $x {signed}'
    assert second == f"in {np.frombuffer(np.array([-2, 1 << 40], '<i8').tobytes(), np.int8).tolist()}"
    assert third == "犬 [7, 0, 0, 0]"
    assert size == "2"
    assert complaint == 'the "odd" $x has 5 values, but the model takes 6'


@pytest.mark.slow
@pytest.mark.parametrize(("platform", "target"), [("ios", "coreml"), ("android", "tflite")])
@pytest.mark.parametrize("task", ["", "embed", "raw"])
def test_sources_parse(tmp_path: Path, platform: str, target: str, task: str) -> None:
    known = [t for t in BESIDE if platform == "android" or t.dtype != "int64"]
    options: dict[str, Any] = {"task": task, "labels": ()} if task else {}
    out = ship([fake(tmp_path / "b", target, tensors=known, **options)], platform, tmp_path / "app").path
    sources = [p for p in out.rglob("*") if p.suffix in GRAMMARS]
    assert [fault for p in sources for fault in faults(p)] == []
    assert sum(p.name in ("Tensors.swift", "Tensors.kt") for p in sources) == 1
    assert sum("Tensors.zeros" in p.read_text() or "tensors: .zeros" in p.read_text() for p in sources) >= 2
    readme = (out / "README.md").read_text()
    assert ("tensors: tensors" if platform == "ios" else ", tensors") in readme
    assert "theOddX" in readme


@pytest.mark.parametrize("platform", ["ios", "android"])
def test_packages_of_an_image_alone_have_no_word_of_them(tmp_path: Path, platform: str) -> None:
    bundle = fake(tmp_path / "b", "coreml" if platform == "ios" else "tflite")
    out = ship([bundle], platform, tmp_path / "app").path
    assert not any(
        "tensors:" in p.read_text().lower() or p.stem == "Tensors"
        for p in out.rglob("*")
        if p.suffix in GRAMMARS
    )


def test_fields_are_names_of_the_language() -> None:
    texts = ["pos-embed", "pos embed", "2", "犬", "for", "x" * 90]
    swift = names.fields(texts, "Swift")
    assert swift[:5] == ["posEmbed", "posEmbed2", "tensor2", "tensor", "for2"]
    assert len(swift[5]) <= names.MAX_LENGTH
    assert names.fields(["image", "scaleFactor", "std"], "C++") == ["image2", "scale_factor", "std2"]
