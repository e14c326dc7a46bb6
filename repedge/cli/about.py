"""``repedge models``, ``repedge targets``, ``repedge doctor`` and ``--version``."""

from __future__ import annotations

from typing import Annotated

import typer

from repedge.cli.app import app, show
from repedge.cli.options import Debug, Json
from repedge.version import __version__


@app.command()
def models(as_json: Json = False, debug: Debug = False) -> int:
    """The network names that `compile` knows, and where their weights live."""
    from repedge.cli.tables import about as tables
    from repedge.models.registry import MODELS

    rows = [tables.model_row(spec) for spec in MODELS.values()]
    show(as_json, {"repedge": __version__, "models": rows}, lambda: tables.models(rows))
    return 0


@app.command()
def targets(as_json: Json = False, debug: Debug = False) -> int:
    """The targets, their precisions and what verifies their artifacts."""
    from repedge import targets as registry
    from repedge.cli.tables import about as tables

    rows = [tables.target_row(registry.get(name)) for name in registry.names()]
    show(as_json, {"repedge": __version__, "targets": rows}, lambda: tables.targets(rows))
    return 0


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> int:
    """What is installed here and what each target could do."""
    from repedge import api
    from repedge.cli.tables import about as tables

    result = api.doctor()
    show(as_json, {"repedge": __version__, **result.as_json()}, lambda: tables.doctor(result))
    return 0


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"repedge {__version__}")
        raise typer.Exit
