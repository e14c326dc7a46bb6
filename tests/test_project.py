"""The project's own shape: wheel contents, file sizes, lean imports, links, names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT

LINKED = ("targets", "calib")
"""Rooms of repedge that have a link at the top of the checkout."""


def sources(folder: str) -> list[Path]:
    return [p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts]


def tracked() -> set[str]:
    """Every file of the package as git lists it; no name is followed through a link."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "repedge"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()}


def build(checkout: Path, out: Path) -> Path:
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
    subprocess.run([*command, str(checkout)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module", params=["with links", "without links"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout; one without links is what Windows makes of it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in [*tracked(), "pyproject.toml", "README.md", "LICENSE"]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    for name in LINKED:
        if request.param == "with links":
            (copy / name).symlink_to(f"repedge/{name}")
        else:
            (copy / name).write_text(f"repedge/{name}")
    return build(copy, tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == tracked()


@pytest.mark.slow
def test_every_module_of_a_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
for file in sorted((root / "repedge").rglob("*.py")):
    parts = file.relative_to(root).with_suffix("").parts
    if parts[-1] not in ("__main__",) and "weights" not in parts:
        module = importlib.import_module(".".join(parts if parts[-1] != "__init__" else parts[:-1]))
        assert pathlib.Path(module.__file__).is_relative_to(root), module.__file__
"""
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_bundled_weights_are_small() -> None:
    for name in ("repvit_demo", "repvgg_demo", "demo_detect"):
        file = ROOT / "repedge" / "models" / "weights" / f"{name}.safetensors"
        assert 0 < file.stat().st_size <= 6_000_000


@pytest.mark.parametrize("folder", ["repedge", "tests", "examples", "bench"])
def test_files_stay_readable(folder: str) -> None:
    long = {p.name: n for p in sources(folder) if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"more than one idea in a file? {long}"


@pytest.mark.parametrize("folder", ["repedge", "tests", "examples", "bench"])
def test_folders_stay_readable(folder: str) -> None:
    found = [p.parent.relative_to(ROOT).as_posix() for p in sources(folder)]
    full = {name: found.count(name) for name in set(found) if found.count(name) > 16}
    assert not full, f"more than one room in a folder? {full}"


def test_import_repedge_is_free() -> None:
    code = "import sys, repedge; print(sorted({'torch', 'numpy', 'rich', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, repedge.cli; print(sorted({'torch', 'numpy', 'pydantic', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", LINKED)
def test_links_lead_to_the_rooms(name: str) -> None:
    """Every tool that reads the package sees one tree; the links are for people."""
    if (ROOT / name).is_symlink():
        assert (ROOT / name).resolve() == ROOT / "repedge" / name
    else:  # a checkout without links
        assert (ROOT / name).read_text() == f"repedge/{name}"
    assert not any(p.is_symlink() for p in (ROOT / "repedge").rglob("*"))
