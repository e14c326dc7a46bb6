"""``repedge verify``, ``repedge eval`` and ``repedge inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repedge import __version__
from repedge.cli.app import (
    Color,
    Debug,
    InputSize,
    Interpolation,
    Json,
    Labels,
    Mean,
    Pretrained,
    RandomWeights,
    Resize,
    Std,
    Weights,
    app,
    show,
    source_options,
)


@app.command(epilog="Example:  repedge verify build/repvit_demo-tflite-fp32 --images my_photos")
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder made by `repedge compile`.")],
    images: Annotated[Path | None, typer.Option(help="Photos to compare on; default: bundled ones.")] = None,
    count: Annotated[int, typer.Option(help="How many photos.")] = 16,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Compare a bundle's artifact with the float reference in it, from the bundle alone."""
    from repedge import api, report

    with report.stages(quiet=as_json) as on_stage:
        on_stage("verify")
        result = api.verify(bundle, images=images, count=count)
    show(as_json, {"repedge": __version__, **result.model_dump()}, lambda: report.verified(bundle, result))
    return 0 if result.passed else 3


@app.command("eval", epilog="Example:  repedge eval build/repvit_demo-tflite-fp32 photos/val")
def evaluate(
    what: Annotated[str, typer.Argument(help="A bundle folder or a model; 'demo' for the bundled model.")],
    data: Annotated[Path, typer.Argument(help="Class sub-folders, or images with a labels.json.")],
    limit: Annotated[int | None, typer.Option(help="Evaluate this many, spread over the folder.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the artifact's runtime.")] = None,
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
    """Top-1, top-5 and agreement with the float reference on a folder of images."""
    from repedge import api, report

    with report.progress("evaluate", quiet=as_json) as progress:
        result = api.evaluate(
            None if what == "demo" else what,
            data,
            limit=limit,
            threads=threads,
            progress=progress,
            **source_options(
                weights=weights, pretrained=pretrained, random_weights=random_weights, input_size=input_size,
                labels=labels, mean=mean, std=std, resize=resize, interpolation=interpolation, color=color,
            ),
        )  # fmt: skip
    show(as_json, {"repedge": __version__, **result.as_json()}, lambda: report.evaluated(what, result))
    return 0


@app.command(
    epilog="Examples:  repedge inspect best.pth  |  repedge inspect repvgg_a0  |  repedge inspect net.onnx"
)
def inspect(
    what: Annotated[
        str | None,
        typer.Argument(help="A bundle, a checkpoint, an ONNX file or a model.", show_default=False),
    ] = None,
    weights: Weights = None,
    input_size: InputSize = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """What is in a checkpoint, model or bundle, and what fusing makes of it."""
    from repedge import api, report

    with report.stages(quiet=as_json) as on_stage:
        on_stage("inspect")
        result = api.inspect(what, **source_options(weights=weights, input_size=input_size))
    show(as_json, {"repedge": __version__, **result.as_json()}, lambda: report.inspected(result))
    return 0
