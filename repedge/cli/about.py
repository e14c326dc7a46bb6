"""``repedge models``, ``repedge targets``, ``repedge doctor`` and ``--version``."""

from __future__ import annotations

from typing import Annotated

import typer

from repedge import __version__
from repedge.cli.app import Debug, Json, app, show


@app.command()
def models(as_json: Json = False, debug: Debug = False) -> int:
    """The network names that `compile` knows, and where their weights live."""
    from repedge import report
    from repedge.models.registry import MODELS

    rows = [report.model_row(spec) for spec in MODELS.values()]
    show(as_json, {"repedge": __version__, "models": rows}, lambda: report.models(rows))
    return 0


@app.command()
def targets(as_json: Json = False, debug: Debug = False) -> int:
    """The targets, their precisions and what verifies their artifacts."""
    from repedge import report
    from repedge import targets as registry

    rows = [report.target_row(registry.get(name)) for name in registry.names()]
    show(as_json, {"repedge": __version__, "targets": rows}, lambda: report.targets(rows))
    return 0


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> int:
    """What is installed here and what each target could do."""
    from repedge import api, report

    result = api.doctor()
    show(as_json, {"repedge": __version__, **result.as_json()}, lambda: report.doctor(result))
    return 0


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"repedge {__version__}")
        raise typer.Exit
