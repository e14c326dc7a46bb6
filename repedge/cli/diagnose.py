"""``repedge diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repedge import __version__
from repedge.cli.app import (
    PRECISIONS,
    Color,
    Debug,
    InputSize,
    Interpolation,
    Json,
    Labels,
    Mean,
    Model,
    Pretrained,
    RandomWeights,
    Resize,
    Std,
    Weights,
    app,
    show,
    source_options,
    words,
)
from repedge.errors import UserError

ORDERS = ["worst", "depth"]


@app.command(
    epilog="Examples:  repedge diagnose --calib my_photos --html diagnosis.html   |   "
    "repedge diagnose repvgg_a0 --weights RepVGG-A0-train.pth   (the weights alone)"
)
def diagnose(
    model: Model = None,
    calib: Annotated[
        str | None,
        typer.Option(
            help="Photos like the app's (a folder, .zip or .npz); without them, the weights alone.",
            show_default=False,
        ),
    ] = None,
    calib_count: Annotated[int, typer.Option(help="How many of them.")] = 64,
    calib_seed: Annotated[int, typer.Option(help="Of their choice.")] = 0,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(help="A layer that is to stay float: its name or a pattern; repeatable."),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="What would be done: fast, default, best or FILE.json.")
    ] = "default",
    target: Annotated[
        str, typer.Option("--target", "-t", help="Whose integer rules: coreml, tflite, openvino, gpu.")
    ] = "tflite",
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
    weights: Weights = None,
    pretrained: Pretrained = False,
    random_weights: RandomWeights = False,
    input_size: InputSize = None,
    labels: Labels = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    interpolation: Interpolation = None,
    color: Color = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """What int8 will do to each layer, and what will be done about it, before anything is built."""
    from repedge import api, pages, report

    if top < 0:
        raise UserError(f"--top is a number of layers, not {top}")
    by_depth = words("order", [order], ORDERS)[0] == "depth"
    if html is not None:
        pages.check_new(html, force)
    with report.stages(quiet=as_json) as on_stage:
        result = api.diagnose(
            model,
            calib=calib,
            calib_count=calib_count,
            calib_seed=calib_seed,
            keep_float=keep_float or [],
            recipe=recipe,
            target=target,
            precision=words("precision", [precision], PRECISIONS)[0],
            on_stage=on_stage,
            **source_options(
                weights=weights, pretrained=pretrained, random_weights=random_weights, input_size=input_size,
                labels=labels, mean=mean, std=std, resize=resize, interpolation=interpolation, color=color,
            ),
        )  # fmt: skip
    if html is not None:
        from repedge.diagnosis.page import page

        pages.write_whole(html, page(result), force)
    from repedge.cli.diagnose_tables import diagnosed

    show(
        as_json,
        {"repedge": __version__, **result.as_json()},
        lambda: diagnosed(result, model, top, by_depth, html),
    )
    return 0
