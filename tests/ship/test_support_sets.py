"""Support sets in packages: one file for every platform, and the same classes from it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ship_bundles import fake
from ship_packages import GRAMMARS, cpp_program, faults, run

from repedge.bundle.manifest import Tensor
from repedge.ship import ship
from repedge.tasks.few_shot.examples import Examples

FEATURES = 6
VECTOR = Tensor(name="pooled", dtype="float32", shape=(1, FEATURES), layout="NC")
LABELS = ("cat", 'a "dog"\\\n', "Ameise 🐜 蟻")
QUERY = [0.5, -1.25, 3.0, 0.1, -0.7, 1e-6]


@pytest.fixture(scope="module")
def known() -> Examples:
    """As the SDK makes them: three classes by two examples."""
    rng = np.random.default_rng(0)
    found = Examples("net", FEATURES)
    for label in LABELS:
        found.add(label, rng.normal(size=(2, FEATURES)) * np.array([1, 1, 1, 1, 1, 1e-7]))
    return found


@pytest.fixture
def file(known: Examples, tmp_path: Path) -> Path:
    known.save(tmp_path / "set.json")
    return tmp_path / "set.json"


def packed(folder: Path, platform: str, target: str = "tflite") -> Path:
    bundle = fake(folder / "bundle", target, labels=(), outputs=[VECTOR], task="embed")
    return ship(
        [bundle], platform, folder / "app", name="Net" if platform in ("ios", "android") else "net"
    ).path


def same(known: Examples, file: Path, said: list[str]) -> None:
    """Whether a package classified as the SDK does, and saved what it had loaded."""
    want = known.ranked(np.array(QUERY))
    found = [(json.loads(a), float(b)) for a, b in (line.rsplit("\t", 1) for line in said)]
    assert [label for label, _ in found] == [label for label, _ in want]
    np.testing.assert_allclose([p for _, p in found], [p for _, p in want], rtol=1e-7)
    again = Examples("net", FEATURES)
    again.load(file)
    for label in LABELS:
        np.testing.assert_allclose(again._classes[label], known._classes[label], rtol=3e-7)
    assert list(again.counts.items()) == [(label, 2) for label in LABELS]


def test_python_reads_and_writes_support_sets(known: Examples, file: Path, tmp_path: Path) -> None:
    out = packed(tmp_path, "python")
    spec = importlib.util.spec_from_file_location("support", out / "net" / "support.py")
    assert spec is not None
    assert spec.loader is not None
    support: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(support)
    mine = support.SupportSet()
    mine.load(file)
    mine.save(tmp_path / "again.json")
    said = [f"{json.dumps(m.label)}\t{m.probability!r}" for m in mine.classify(np.array(QUERY, np.float32))]
    same(known, tmp_path / "again.json", said)
    mine.remove("cat")
    mine.add("cat", np.ones((1, FEATURES)))
    with pytest.raises(ValueError, match="'cat' has 1 examples and .* 2: a class with more would win"):
        mine.classify(np.array(QUERY))
    with pytest.raises(ValueError, match="tells classes apart and has 0"):
        support.SupportSet().classify(np.array(QUERY))
    file.write_text(file.read_text().replace('"net"', '"other"'))
    with pytest.raises(ValueError, match="has examples of 'other' with 6 features; this is 'net' with 6"):
        mine.load(file)
    file.write_text('{"support_set": 1}')
    with pytest.raises(ValueError, match="is no support set"):
        mine.load(file)
    assert mine.counts["cat"] == 1


CPP = """
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include "net.hpp"

std::string json(const std::string& text) {
  std::string out = "\\"";
  for (unsigned char c : text) {
    char code[8];
    std::snprintf(code, sizeof code, c < 32 || c == '"' || c == '\\\\' ? "\\\\u%04x" : "%c", c);
    out += code;
  }
  return out + "\\"";
}

int main(int, char** argv) {
  net::SupportSet known;
  known.load(argv[1]);
  known.save(argv[2]);
  const std::vector<float> query = {0.5f, -1.25f, 3.0f, 0.1f, -0.7f, 1e-6f};
  for (const net::Match& m : known.classify(query))
    std::printf("%s\\t%.17g\\n", json(m.label).c_str(), m.probability);
  for (int i = 3; argv[i]; ++i) try {
    known.load(argv[i]);
    std::fputs("taken\\n", stderr);
  } catch (const std::runtime_error& e) {
    std::fprintf(stderr, "%s\\n", e.what());
  }
  known.remove("cat");
  known.add("cat", {query});
  try {
    known.classify(query);
  } catch (const std::runtime_error& e) {
    std::fprintf(stderr, "%s\\n", e.what());
  }
}
"""


def refused(text: str, bad: int) -> None:
    """Whether each of the files was refused in a line, and then a set of unequal classes."""
    said = text.splitlines()
    assert "taken" not in said
    assert sum("is no support set of this model: " in line for line in said) == bad
    assert "it has examples of other, and this is net" in said[1]
    assert "a class with more would win by their number" in said[-1]


def broken(file: Path, folder: Path) -> list[Path]:
    """Files that are no support set of this model."""
    text = file.read_text()
    content = json.loads(text)
    texts = [
        text[:-20], text.replace('"net"', '"other"'), "[" * 99, text.replace('"cat"', '" "'),
        '{"support_set": 1}', text.replace("[[", "[[1,", 1),
        json.dumps({**content, "classes": content["classes"][:1] * 2}),
    ]  # fmt: skip
    for i, bad in enumerate(texts):
        (folder / f"bad{i}.json").write_text(bad)
    return [folder / f"bad{i}.json" for i in range(len(texts))]


@pytest.mark.slow
def test_cpp_reads_and_writes_support_sets(known: Examples, file: Path, tmp_path: Path) -> None:
    out = packed(tmp_path, "cpp")
    program = cpp_program(
        tmp_path,
        CPP,
        out / "src" / "support.cpp",
        includes=[out / "include"],
        flags=["-fsanitize=address,undefined"],
    )
    bad = broken(file, tmp_path)
    done = run([program, file, tmp_path / "again.json", *bad])
    assert done.returncode == 0, done.stderr
    same(known, tmp_path / "again.json", done.stdout.splitlines())
    refused(done.stderr, len(bad))


KOTLIN = """
package repedge.net

import java.io.File

fun json(text: String) = text.asIterable().joinToString("", "\\"", "\\"") {
    val plain = it >= ' ' && it <= '~' && it != '"' && it != '\\\\'
    if (plain) it.toString() else "\\\\u%04x".format(it - ' ' + 32)
}

fun main(args: Array<String>) {
    val known = SupportSet()
    known.load(File(args[0]))
    known.save(File(args[1]))
    val query = floatArrayOf(0.5f, -1.25f, 3.0f, 0.1f, -0.7f, 1e-6f)
    for (m in known.classify(query)) println(json(m.label) + "\\t" + m.probability)
    for (bad in args.drop(2)) {
        try {
            known.load(File(bad))
            System.err.println("taken")
        } catch (e: IllegalArgumentException) {
            System.err.println(e.message)
        }
    }
    known.remove("cat")
    known.add("cat", listOf(query))
    try {
        known.classify(query)
    } catch (e: IllegalArgumentException) {
        System.err.println(e.message)
    }
}
"""


@pytest.mark.slow
def test_kotlin_reads_and_writes_support_sets(known: Examples, file: Path, tmp_path: Path) -> None:
    if not shutil.which("kotlinc") or not shutil.which("java"):
        pytest.skip("kotlinc is not installed (Debian's package kotlin has one that is new enough)")
    sources = packed(tmp_path, "android") / "net/src/main/kotlin/repedge/net"
    (tmp_path / "Main.kt").write_text(KOTLIN)
    jar = tmp_path / "set.jar"
    compiled = run(
        [
            "kotlinc",
            sources / "SupportSet.kt",
            sources / "Embedding.kt",
            tmp_path / "Main.kt",
            "-include-runtime",
            "-d",
            jar,
        ]
    )
    assert compiled.returncode == 0, compiled.stderr
    bad = broken(file, tmp_path)
    done = subprocess.run(
        ["java", "-cp", jar, "repedge.net.MainKt", file, tmp_path / "again.json", *bad],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    same(known, tmp_path / "again.json", done.stdout.splitlines())
    refused(done.stderr, len(bad))


@pytest.mark.parametrize(("platform", "target"), [("ios", "coreml"), ("android", "tflite")])
def test_sources_parse(tmp_path: Path, platform: str, target: str) -> None:
    sources = [p for p in packed(tmp_path, platform, target).rglob("*") if p.suffix in GRAMMARS]
    assert {"SupportSet.swift", "SupportSet.kt"} & {p.name for p in sources}
    assert [fault for p in sources for fault in faults(p)] == []
