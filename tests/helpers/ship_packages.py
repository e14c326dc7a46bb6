"""What the tests of ship do with packages: list them, run them, build them, parse them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from repedge.ship import PLATFORMS
from repedge.ship.package import fitting

FITS = [("ios", "coreml"), ("android", "tflite"), ("cpp", "openvino"), ("cpp", "tflite"), ("python", "gpu")]
QUICK = {"JAVA_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
"""kotlinc ends before a better compiler of bytecode pays: less than half the time."""
GRAMMARS = {".swift": "tree_sitter_swift", ".kt": "tree_sitter_kotlin", ".kts": "tree_sitter_kotlin"}


def target_for(platform: str) -> str:
    """The first target that ships there."""
    return fitting(PLATFORMS[platform])[0]


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def run(command: list[str | Path], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8", **QUICK}
    return subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def script(code: str, package: Path, *arguments: str) -> str:
    done = run([sys.executable, "-c", code, *arguments], cwd=package)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wheel(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def build(package: Path) -> Path:
    """CMake's build folder, built as the package's README says; without optimisation, to be quick."""
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("cmake or a C++ compiler is not installed")
    folder = package / "build"
    options = ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"]
    options += ["-G", "Ninja"] if shutil.which("ninja") else []
    openvino, litert = wheel("openvino"), wheel("ai_edge_litert")
    options += [f"-DOpenVINO_DIR={openvino / 'cmake'}", f"-DLITERT_LIBRARY={litert / 'libLiteRt.so'}"]
    commands: list[list[str | Path]] = [
        ["cmake", "-S", package, "-B", folder, *options],
        ["cmake", "--build", folder],
    ]
    for command in commands:
        done = run(command)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        if "Could NOT find PNG" in done.stdout + done.stderr:
            pytest.skip("libpng's headers are not installed: the golden test starts from image files")
    return folder


def cpp_program(folder: Path, main: str, *sources: Path, includes: list[Path], flags: list[str]) -> Path:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    (folder / "main.cpp").write_text(main)
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-o", folder / "program"]
    command += [folder / "main.cpp", *sources, *(f"-I{i}" for i in includes), *flags]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "program"


CPP_READ = """
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

std::vector<float> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  std::vector<float> values(bytes.size() / 4);
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}
"""


def cpp_decoders(
    folder: Path, packages: Mapping[str, Path], decoder: str, case: str, flags: list[str]
) -> Path:
    """A program of the decoders of several packages alone, without a runtime: `program NAME FOLDER/`.

    Args:
        packages: Name, which is the namespace -> the package's folder.
        decoder: File in ``src`` that holds it.
        case: C++ with ``void run_NAME(const std::string& folder)``, which may ``read`` files of float32.
    """
    sources = [out / "src" / file for out in packages.values() for file in ("image.cpp", decoder)]
    main = "".join(f'#include "{path}"\n' for path in sources) + CPP_READ
    main += "".join(case.replace("NAME", name) for name in packages)
    calls = "".join(f'  if (name == "{name}") run_{name}(argv[2]);\n' for name in packages)
    main += f"int main(int, char** argv) {{\n  const std::string name = argv[1];\n{calls}}}\n"
    includes = [out / "include" for out in packages.values()]
    return cpp_program(folder, main, includes=includes, flags=flags)


def kotlin(package: Path, main: str, folder: Path, more: Sequence[Path] = ()) -> Path:
    """A jar of ``main`` and all Kotlin of a package named net but its sample, against stubs of Android."""
    if not shutil.which("kotlinc") or not shutil.which("java"):
        pytest.skip("kotlinc is not installed (Debian's package kotlin has one that is new enough)")
    stubs = Path(__file__).with_name("android_sdk.kt").read_text(encoding="utf-8").split("// FILE\n")[1:]
    for name, text in {"Main": main, **{f"Stub{i}": text for i, text in enumerate(stubs)}}.items():
        (folder / f"{name}.kt").write_text(text, encoding="utf-8")
    sources = [*folder.glob("*.kt"), *(package / "net").rglob("*.kt"), *more]
    compiled = run(["kotlinc", *sources, "-include-runtime", "-d", folder / "net.jar"])
    assert compiled.returncode == 0, compiled.stderr
    return folder / "net.jar"


def tree(path: Path) -> Any:
    """The root node of a source file's syntax tree."""
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip(GRAMMARS[path.suffix])
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    return parser.parse(path.read_bytes()).root_node


def walk(node: Any) -> Iterator[Any]:
    yield node
    for child in node.children:
        yield from walk(child)


def faults(path: Path) -> list[str]:
    return [f"{path.name}:{n.start_point}" for n in walk(tree(path)) if n.type == "ERROR" or n.is_missing]
