"""``repedge ship``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from repedge.cli.app import app, show, words
from repedge.cli.options import AllowUnverified, Debug, Json
from repedge.version import __version__


@app.command(
    epilog="Example:  repedge ship build/repvit_demo-tflite-fp32 --to android --out App --name Repvit"
)
def ship(
    bundle: Annotated[
        list[Path], typer.Argument(help="A bundle, or two precisions of one model (the default one first).")
    ],
    to: Annotated[str, typer.Option("--to", help="ios, android, cpp or python.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The package's folder; must not exist.")],
    name: Annotated[
        str | None,
        typer.Option(help="Of the type or module in the package; default: the model's.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier package.")] = False,
    allow_unverified: AllowUnverified = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Pack a verified bundle for app developers: a Swift, Gradle, CMake or Python package with its proof."""
    from repedge.ship import PLATFORMS
    from repedge.ship import ship as make

    platform = words("to", [to], list(PLATFORMS))[0]
    made = make(bundle, platform, out, name=name, force=force, allow_unverified=allow_unverified)
    show(as_json, {"repedge": __version__, **made.as_json()}, lambda: _table(made))
    return 0


def _table(made: object) -> None:
    from repedge.cli.tables import console
    from repedge.ship import PLATFORMS, Shipped

    assert isinstance(made, Shipped)
    console.out.print(
        f"[bold]{made.path}[/]: {PLATFORMS[made.platform].title} {made.name} ({', '.join(made.variants)}), "
        f"{made.files} files, {made.size_bytes / 1e6:.2f} MB"
    )
    for variant, why in made.unverified.items():
        console.say(f"[yellow]warning: {variant} is not verified: {escape(why)}[/]", console.err)
    console.out.print(f"[dim]next: {made.next_step}[/]", soft_wrap=True)
