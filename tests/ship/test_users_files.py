"""What an app's developer puts into a package, or changes in it, is never removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ship_bundles import fake
from ship_packages import files

from repedge.errors import UserError
from repedge.ship import ship


@pytest.mark.slow
def test_force_replaces_only_what_ship_wrote(tmp_path: Path) -> None:
    bundle, app = fake(tmp_path / "b"), tmp_path / "app"
    ship([bundle], "python", app)
    ship([bundle], "python", app, force=True)
    whole = files(app)
    module = next(path for path in whole if path.endswith(".py"))
    (app / "__pycache__").mkdir()
    (app / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"compiled")
    ship([bundle], "python", app, force=True)
    assert files(app) == whole
    for path, content in (("notes.txt", b"mine"), (module, whole[module] + b"# mine\n")):
        (app / path).write_bytes(content)
        with pytest.raises(UserError, match=rf"holds '{path}', which repedge did not write"):
            ship([bundle], "python", app, force=True)
        assert files(app) == {**whole, path: content}
        (app / path).unlink()
        if path in whole:
            (app / path).write_bytes(whole[path])
    ship([bundle], "python", app, force=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "marker", ["{}", '{"files": 5}', '{"files": [{"path": "../b", "sha256": "0"}]}', "["]
)
def test_force_never_replaces_what_only_looks_like_a_package(tmp_path: Path, marker: str) -> None:
    bundle, app = fake(tmp_path / "b"), tmp_path / "app"
    app.mkdir()
    (app / "repedge-package.json").write_text(marker)
    (app / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"is no package that repedge wrote|holds 'thesis.txt'"):
        ship([bundle], "python", app, force=True)
    assert (app / "thesis.txt").read_text() == "precious"


@pytest.mark.slow
def test_the_marker_lists_every_other_file(tmp_path: Path) -> None:
    ship([fake(tmp_path / "b")], "android", tmp_path / "app")
    found = files(tmp_path / "app")
    listed = {e["path"] for e in json.loads(found.pop("repedge-package.json"))["files"]}
    assert listed == set(found)
