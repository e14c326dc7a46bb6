"""``repedge diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from repedge.cli.app import app, precision_words, show, words
from repedge.cli.options import CALIBRATION, MODEL, Debug, Json, Model, takes
from repedge.errors import UserError
from repedge.targets import DEFAULT_INTEGERS, TARGETS
from repedge.version import __version__

ORDERS = ["worst", "depth"]

DIAGNOSED = {
    **CALIBRATION,
    "calib": (
        Annotated[
            str | None,
            typer.Option(
                help="Photos like the app's (a folder, .zip or .npz); without them, the weights alone.",
                show_default=False,
            ),
        ],
        None,
    ),
    "recipe": (
        Annotated[str, typer.Option(help="What would be done: fast, default, best or FILE.json.")],
        "default",
    ),
}


@app.command(
    epilog="Examples:  repedge diagnose --calib my_photos --html diagnosis.html   |   "
    "repedge diagnose repvgg_a0 --weights RepVGG-A0-train.pth   (the weights alone)"
)
@takes(calibration=DIAGNOSED, source=MODEL)
def diagnose(
    *,
    model: Model = None,
    calibration: dict[str, Any],
    target: Annotated[
        str, typer.Option("--target", "-t", help=f"Whose integer rules: {', '.join(TARGETS)}.")
    ] = DEFAULT_INTEGERS,
    precision: Annotated[str, typer.Option("--precision", "-p", help="w8a8, w8a16 or w8a32.")] = "w8a8",
    top: Annotated[int, typer.Option(help="Layers in the table; 0 for all.")] = 15,
    order: Annotated[
        str,
        typer.Option(help="worst: costliest first (without photos: most rounding noise); depth: in order."),
    ] = "worst",
    html: Annotated[
        Path | None, typer.Option(help="Write a page with a heat map over depth.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it exists.")] = False,
    source: dict[str, Any],
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """What int8 will do to each layer, and what will be done about it, before anything is built."""
    from repedge import api
    from repedge.cli.tables import console
    from repedge.html import check_new, write_whole

    if top < 0:
        raise UserError(f"--top is a number of layers, not {top}")
    by_depth = words("order", [order], ORDERS)[0] == "depth"
    if html is not None:
        check_new(html, force)
    with console.stages(quiet=as_json) as on_stage:
        result = api.diagnose(
            model,
            target=target,
            precision=precision_words([precision])[0],
            on_stage=on_stage,
            **calibration,
            **source,
        )
    if html is not None:
        from repedge.diagnosis.page import page

        write_whole(html, page(result), force)
    from repedge.cli.tables.diagnose import diagnosed

    show(
        as_json,
        {"repedge": __version__, **result.as_json()},
        lambda: diagnosed(result, top, by_depth, html),
    )
    return 0
