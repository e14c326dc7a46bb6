"""The project's own shape: wheel contents, file sizes, lean imports, names."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def sources(folder: str) -> list[Path]:
    return [p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts and not _linked(p)]


def _linked(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
    ]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_every_module_under_its_import_name(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"repedge/{p.relative_to(ROOT / 'repedge').as_posix()}" for p in sources("repedge")}
    for folder in ("targets", "calib"):
        expected |= {f"repedge/{folder}/{p.relative_to(ROOT / folder).as_posix()}" for p in sources(folder)}
    assert expected <= names
    assert "repedge/py.typed" in names
    assert "repedge/models/weights/demo_images.png" in names
    assert not {n.split("/")[0] for n in names} & {"targets", "calib", "tests", "bench"}


def test_bundled_weights_are_small_and_in_the_wheel(wheel: Path) -> None:
    infos = {i.filename: i.file_size for i in zipfile.ZipFile(wheel).infolist()}
    for name in ("repvit_demo", "repvgg_demo"):
        assert 0 < infos[f"repedge/models/weights/{name}.safetensors"] <= 6_000_000


@pytest.mark.parametrize("folder", ["repedge", "targets", "calib", "tests", "examples", "bench"])
def test_files_stay_readable(folder: str) -> None:
    long = {p.name: n for p in sources(folder) if (n := len(p.read_text().splitlines())) > 450}
    assert not long, f"more than one idea in a file? {long}"


def test_import_repedge_is_free() -> None:
    code = "import sys, repedge; print(sorted({'torch', 'numpy', 'rich', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_links_serve_checkers() -> None:
    assert (ROOT / "repedge" / "targets").resolve() == ROOT / "targets"
    assert (ROOT / "repedge" / "calib").resolve() == ROOT / "calib"
