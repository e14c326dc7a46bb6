"""``repedge compile``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

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

_BUDGET = "Accuracy budget of w8a8 and w8a16 (exit code 3 where it can't be met)"


@app.command(
    epilog="Examples:  repedge compile -t tflite -t coreml   |   "
    "repedge compile repvgg_a0 --weights RepVGG-A0-train.pth -t openvino -p fp32   |   "
    "repedge compile my_app.nets:make --weights best.pth --input-size 192x256 -t tflite"
)
def compile(
    model: Model = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="coreml, tflite, openvino, gpu; repeatable.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            "-p",
            help="fp32, fp16, w8a8, ... (`repedge targets`); auto: the fastest here; default: the target's.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that receives the bundles.")] = Path(
        "build"
    ),
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
    input_kind: Annotated[
        str,
        typer.Option("--input", help="uint8: the artifact takes RGB pixels; float32: the normalised input."),
    ] = "uint8",
    images: Annotated[
        Path | None, typer.Option(help="Photos to verify on; default: 64 bundled ones.", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(help="How many photos to verify on.")] = 4,
    min_sqnr: Annotated[
        float | None, typer.Option(help="Replace the precision's SQNR threshold, dB.")
    ] = None,
    calib: Annotated[
        str | None,
        typer.Option(
            help="Photos to calibrate w8a8 and w8a16 on, no labels needed: a folder, .zip or .npz.",
            show_default=False,
        ),
    ] = None,
    calib_count: Annotated[int, typer.Option(help="How many of them.")] = 64,
    calib_seed: Annotated[int, typer.Option(help="Of their random choice.")] = 0,
    recipe: Annotated[str, typer.Option(help="Calibration: fast, default, best or FILE.json.")] = "default",
    keep_float: Annotated[
        list[str] | None,
        typer.Option(help="Layers that stay float: NAME or 'PATTERN*', commas between; repeatable."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Accuracy budget: points of top-1 (labelled --eval-data), else of disagreement with float; "
            "raises layers to float to keep to it.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(help="The same as mean KL divergence from float, nats.", rich_help_panel=_BUDGET),
    ] = None,
    eval_data: Annotated[
        Path | None,
        typer.Option(
            help="Photos to judge on: class sub-folders, or a labels.json, or no labels.",
            show_default="--calib photos left over",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    eval_count: Annotated[
        int, typer.Option(help="At most this many of them.", rich_help_panel=_BUDGET)
    ] = 2000,
    deployment_target: Annotated[
        str | None, typer.Option(help="coreml: iOS16, iOS17 or iOS18.", show_default="iOS16")
    ] = None,
    no_reference: Annotated[
        bool, typer.Option("--no-reference", help="Leave the float reference out of the bundles.")
    ] = False,
    description: Annotated[str, typer.Option(help="For the artifact's metadata.")] = "",
    author: Annotated[str, typer.Option(help="For the artifact's metadata.")] = "",
    license: Annotated[str, typer.Option(help="For the artifact's metadata.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace bundles that exist.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Fuse a model, compile it for one or more targets, and prove each artifact equal to it."""
    from repedge import api, report
    from repedge.budget import NotMet
    from repedge.cli import accuracy_tables as tables

    source = source_options(
        weights=weights, pretrained=pretrained, random_weights=random_weights, input_size=input_size,
        labels=labels, mean=mean, std=std, resize=resize, interpolation=interpolation, color=color,
    )  # fmt: skip
    try:
        with report.stages(quiet=as_json) as on_stage:
            result = api.compile(
                model,
                targets=target or [],
                precisions=words("precision", precision or [], [*PRECISIONS, "auto"]),
                out=out,
                input_kind=words("input", [input_kind], ["uint8", "float32"])[0],
                force=force,
                images=images,
                count=count,
                reference=not no_reference,
                min_sqnr=min_sqnr,
                calib=calib,
                calib_count=calib_count,
                calib_seed=calib_seed,
                recipe=recipe,
                keep_float=keep_float or [],
                max_drop=max_drop,
                max_kl=max_kl,
                eval_data=eval_data,
                eval_count=eval_count,
                options={"deployment_target": deployment_target} if deployment_target else {},
                about={"description": description, "author": author, "license": license},
                command=["repedge", *sys.argv[1:]],
                dry_run=dry_run,
                on_stage=on_stage,
                **source,
            )
    except NotMet as e:
        if not as_json:
            tables.trials(e.result, report.err)
        raise
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    plan = result.plan

    def table() -> None:
        if plan:
            report.planned(plan)
            return
        tables.choices(result.choices)
        for built in result.bundles:
            if built.budget is not None:
                tables.budget(built.budget)
        report.compiled(result)

    show(as_json, result.as_json(), table)
    return 0 if result.passed else 3
