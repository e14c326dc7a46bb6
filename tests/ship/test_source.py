"""The packages' sources: parsed by their grammars, texts read back, resizing compared with Pillow."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image
from ship_bundles import LABELS, fake
from ship_packages import GRAMMARS, cpp_program, faults, run, tree, walk

from repedge.bundle.manifest import Tensor
from repedge.config import Letterbox, Preprocess
from repedge.photos import images
from repedge.ship import names, ship

GRAY = Preprocess(size=(24, 40), resize=50, interpolation="nearest", color="GRAY", mean=(0.5,), std=(0.5,))
SQUASH = Preprocess(size=(28, 33), resize=None)
LETTER = Preprocess(size=(30, 44), resize=None, letterbox=Letterbox(value=7))
CORNER = Preprocess(size=(48, 33), resize=None, letterbox=Letterbox(corner=True), color="BGR")
PADDED = Preprocess(size=(48, 33), resize=30, interpolation="bicubic", color="BGR")
SHAPES = [(61, 40, 3), (7, 90, 3), (28, 33, 3), (20, 20, 3), (120, 31, 3), (31, 45)]
EXACT = int(PIL.__version__.split(".")[0]) >= 13  # the order of the passes that the packages follow


VARIETIES: list[dict[str, Any]] = [
    {},
    {"pre": GRAY, "input_kind": "float32"},
    {"pre": PADDED, "input_kind": "float32"},
    {"pre": SQUASH, "labels": ()},
    {"pre": LETTER},
    {"pre": CORNER, "input_kind": "float32"},
    {
        "labels": (),
        "outputs": [
            Tensor(name='odd "name" $x', dtype="float32", shape=(1, 3, 5, 2), layout="NCHW"),
            Tensor(name="second", dtype="float32", shape=(1, 4), layout="NC"),
        ],
    },
]


@pytest.mark.slow
@pytest.mark.parametrize(("platform", "target"), [("ios", "coreml"), ("android", "tflite")])
@pytest.mark.parametrize("variety", VARIETIES)
def test_sources_parse(tmp_path: Path, platform: str, target: str, variety: dict[str, Any]) -> None:
    a = fake(tmp_path / "a", target, precision="fp16", **variety)
    b = fake(tmp_path / "b", target, precision="w8a32", **variety)
    out = ship([a, b], platform, tmp_path / "app").path
    sources = [p for p in out.rglob("*") if p.suffix in GRAMMARS]
    assert len(sources) >= 8
    assert [fault for p in sources for fault in faults(p)] == []


def test_parsing_notices_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "a.kt").write_text('fun f() { val x = "unclosed }')
    (tmp_path / "a.swift").write_text("func f( { let = 3 }")
    assert faults(tmp_path / "a.kt")
    assert faults(tmp_path / "a.swift")


def unescape(literal: str, unicode: str) -> str:
    """The value of a Swift or Kotlin string literal, by their rules, not by ours."""
    simple = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
    pattern = re.compile(rf"\\(?:{unicode}|(.))", re.DOTALL)
    utf16 = pattern.sub(lambda m: chr(int(m[1], 16)) if m[1] else simple.get(m[2], m[2]), literal[1:-1])
    return utf16.encode("utf-16", "surrogatepass").decode("utf-16")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "target", "file", "unicode"),
    [
        ("ios", "coreml", "Sources/Net/NetModel.swift", r"u\{([0-9a-f]+)\}"),
        ("android", "tflite", "net/src/main/kotlin/repedge/net/Scores.kt", r"u([0-9a-f]{4})"),
    ],
)
def test_labels_survive(tmp_path: Path, platform: str, target: str, file: str, unicode: str) -> None:
    out = ship([fake(tmp_path / "b", target)], platform, tmp_path / "app").path
    found = [n for n in walk(tree(out / file)) if n.type in ("line_string_literal", "string_literal")]
    texts = [n.text.decode() for n in found]
    values = [unescape(t, unicode) for t in texts]
    start = values.index(LABELS[0])
    assert values[start : start + len(LABELS)] == list(LABELS)
    inner = {child.type for n in found[start : start + len(LABELS)] for child in n.children}
    assert not any("interpol" in kind for kind in inner), inner


def test_texts_in_python_and_toml_survive() -> None:
    tomllib = pytest.importorskip("tomllib")
    for label in LABELS:
        assert eval(names.python(label)) == label
        assert tomllib.loads(f"x = {names.toml(label)}")["x"] == label


def test_labels_survive_in_cpp(tmp_path: Path) -> None:
    out = ship([fake(tmp_path / "b", "openvino")], "cpp", tmp_path / "app", name="net").path
    literals = (out / "src" / "model.cpp").read_text().split("kLabels[kClasses] = {")[1].split("};")[0]
    main = f"""
    #include <cstdio>
    const char* const labels[] = {{{literals}}};
    int main() {{ for (const char* l : labels) {{ std::fputs(l, stdout); std::fputc(0, stdout); }} }}
    """
    program = cpp_program(tmp_path, main, includes=[], flags=["-trigraphs"])
    found = subprocess.run([program], capture_output=True, check=True).stdout
    assert found.decode().split("\0")[:-1] == list(LABELS)


def photos(folder: Path) -> list[Path]:
    """Image files of every kind that people have."""
    rng = np.random.default_rng(5)
    made = [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in SHAPES]
    rgb = made[0]
    smooth = rgb.resize((97, 64), Image.Resampling.BICUBIC)
    paths = []
    for i, (image, suffix, options) in enumerate(
        [
            *((image, "png", {}) for image in made),
            (rgb.convert("P"), "png", {}),
            (Image.merge("RGBA", (*rgb.split(), rgb.split()[0])), "png", {}),
            (Image.merge("LA", rgb.split()[:2]), "png", {}),
            (rgb.convert("1"), "png", {}),
            (smooth, "jpg", {"quality": 85}),
            (smooth, "jpg", {"quality": 60, "progressive": True}),
            (smooth, "jpg", {"quality": 90, "subsampling": 0}),
            (smooth.convert("L"), "jpg", {"quality": 80}),
        ]
    ):
        paths.append(folder / f"{i}.{suffix}")
        image.save(paths[-1], **options)  # type: ignore[arg-type]
    return paths


def installed(library: str) -> bool:
    compiler = shutil.which("c++") or "c++"
    header = {"png": "png.h", "jpeg": "jpeglib.h"}[library]
    code = f"#include <cstdio>\n#include <{header}>\n"
    done = subprocess.run(
        [compiler, "-xc++", "-E", "-"], input=code, capture_output=True, text=True, check=False
    )
    return done.returncode == 0


@pytest.mark.slow
def test_cpp_pixels_are_pillows_from_the_file_on(tmp_path: Path) -> None:
    if shutil.which("c++") is None or not (installed("png") and installed("jpeg")):
        pytest.skip("a C++ compiler, libpng or libjpeg is not installed")
    spaces = {"squash": SQUASH, "padded": PADDED, "gray": GRAY, "letter": LETTER, "corner": CORNER}
    sources, includes, calls = [], [], []
    for name, pre in spaces.items():
        out = ship([fake(tmp_path / f"b{name}", "openvino", pre=pre)], "cpp", tmp_path / name, name=name).path
        sources += [out / "src" / "image.cpp", out / "src" / "decode.cpp"]
        includes.append(out / "include")
        calls.append(
            f'if (space == "{name}") pixels = {name}::to_pixels({name}::read_image(argv[2]).view());'
        )
    main = (
        "".join(f'#include "{name}.hpp"\n' for name in spaces)
        + f"""
    #include <cstdio>
    #include <exception>
    int main(int, char** argv) try {{
      const std::string space = argv[1];
      std::vector<std::uint8_t> pixels;
      {" else ".join(calls)}
      std::fwrite(pixels.data(), 1, pixels.size(), stdout);
    }} catch (const std::exception& e) {{ std::fprintf(stderr, "%s", e.what()); return 1; }}
    """
    )
    flags = ["-DHAVE_PNG", "-DHAVE_JPEG", "-lpng", "-ljpeg"]
    program = cpp_program(tmp_path, main, *sources, includes=includes, flags=flags)
    for path in photos(tmp_path):
        for name, pre in spaces.items():
            done = subprocess.run([program, name, path], capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
            found = np.frombuffer(done.stdout, np.uint8).reshape(*pre.size, pre.channels)
            expected = images.pixels(images.decode(path), pre)
            np.testing.assert_allclose(
                found, expected, rtol=0, atol=0 if EXACT else 1, err_msg=f"{path} {name}"
            )
    for i, content in enumerate(
        [b"", b"GIF89a", (tmp_path / "0.png").read_bytes()[:400], (tmp_path / "10.jpg").read_bytes()[:700]]
    ):
        (tmp_path / f"bad{i}").write_bytes(content)
        done = subprocess.run([program, "squash", tmp_path / f"bad{i}"], capture_output=True, check=False)
        assert done.returncode == 1
        assert b"can't be read as an image" in done.stderr


KOTLIN_MAIN = """
import java.io.File
import repedge.net.Pixels
import repedge.net.Preprocess
import repedge.net.Scores

fun main(args: Array<String>) {
    for (line in File(args[0]).readLines()) {
        val (from, w, h, c, to) = line.split(" ")
        val image = Pixels(w.toInt(), h.toInt(), c.toInt(), File(from).readBytes())
        File(to).writeBytes(Preprocess.pixels(image))
    }
    File(args[1]).writeText((0 until 7).map { Scores.label(it) }.joinToString("\\u0000"))
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("pre", [PADDED, LETTER])
def test_kotlin_core_compiles_and_its_pixels_are_pillows(tmp_path: Path, pre: Preprocess) -> None:
    if not shutil.which("kotlinc") or not shutil.which("java"):
        pytest.skip("kotlinc is not installed (Debian's package kotlin has one that is new enough)")
    out = ship([fake(tmp_path / "b", pre=pre)], "android", tmp_path / "app").path
    core = out / "net/src/main/kotlin/repedge/net"
    (tmp_path / "Main.kt").write_text(KOTLIN_MAIN)
    command: list[str | Path] = [
        "kotlinc",
        core / "Preprocess.kt",
        core / "Scores.kt",
        tmp_path / "Main.kt",
        "-include-runtime",
    ]
    jar = tmp_path / "core.jar"
    compiled = run([*command, "-d", jar])
    assert compiled.returncode == 0, compiled.stderr
    rng = np.random.default_rng(5)
    made = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in SHAPES]
    lines = []
    for i, a in enumerate(made):
        a.tofile(tmp_path / f"{i}.in")
        channels = a.shape[2] if a.ndim == 3 else 1
        lines.append(f"{tmp_path / f'{i}.in'} {a.shape[1]} {a.shape[0]} {channels} {tmp_path / f'{i}.out'}")
    (tmp_path / "list").write_text("\n".join(lines))
    subprocess.run(["java", "-cp", jar, "MainKt", tmp_path / "list", tmp_path / "labels"], check=True)
    for i, a in enumerate(made):
        found = np.fromfile(tmp_path / f"{i}.out", np.uint8).reshape(*pre.size, 3)
        expected = images.pixels(Image.fromarray(a), pre)
        np.testing.assert_allclose(found, expected, rtol=0, atol=0 if EXACT else 1)
    assert (tmp_path / "labels").read_text("utf-8").split("\0") == list(LABELS)
