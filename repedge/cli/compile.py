"""``repedge compile``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repedge.cli.app import app, pairs, precision_words, several, show, words
from repedge.cli.options import BUDGET, CALIBRATION, MODEL, Debug, Json, Model, takes
from repedge.targets import TARGETS

if TYPE_CHECKING:
    from repedge.api import CompileReport


@app.command(
    epilog="Examples:  repedge compile -t tflite -t coreml   |   "
    "repedge compile repvgg_a0 --weights RepVGG-A0-train.pth -t openvino -p fp32   |   "
    "repedge compile my_app.nets:make --weights best.pth --input-size 192x256 -t tflite"
)
@takes(source=MODEL, calibration=CALIBRATION, budget=BUDGET)
def compile(
    *,
    model: Model = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help=f"{', '.join(TARGETS)}; repeatable, or with commas."),
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
    source: dict[str, Any],
    input_kind: Annotated[
        str,
        typer.Option("--input", help="uint8: the artifact takes RGB pixels; float32: the normalised input."),
    ] = "uint8",
    images: Annotated[
        Path | None,
        typer.Option(
            help="Photos to verify on; default: what --calib left over, else bundled ones.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="How many photos to verify on.")] = 16,
    min_sqnr: Annotated[
        float | None, typer.Option(help="Replace the precision's SQNR threshold, dB.")
    ] = None,
    calibration: dict[str, Any],
    budget: dict[str, Any],
    target_option: Annotated[
        list[str] | None,
        typer.Option(
            "--target-option",
            "-O",
            help="TARGET.NAME=VALUE, what only that target knows (`repedge targets`); repeatable.",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="GPU: images at once, fixed in the file; default: any number, where that can be."),
    ] = None,
    deployment_target: Annotated[
        str | None, typer.Option(help="Core ML: iOS16, iOS17 or iOS18.", show_default="iOS16")
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
    from repedge import api
    from repedge.cli.tables import accuracy, console
    from repedge.compiler.budget import NotMet

    try:
        with console.stages(quiet=as_json) as on_stage:
            result = api.compile(
                model,
                targets=several(target or []),
                precisions=precision_words(several(precision or []), "auto"),
                out=out,
                input_kind=words("input", [input_kind], ["uint8", "float32"])[0],  # type: ignore[arg-type]
                force=force,
                images=images,
                count=count,
                reference=not no_reference,
                min_sqnr=min_sqnr,
                options={
                    **pairs("target-option", target_option),
                    "deployment_target": deployment_target,
                    "batch": batch,
                },
                about={"description": description, "author": author, "license": license},
                command=["repedge", *sys.argv[1:]],
                dry_run=dry_run,
                on_stage=on_stage,
                **source,
                **calibration,
                **budget,
            )
    except NotMet as e:
        if not as_json:
            accuracy.trials(e.result, console.err)
        raise
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    show(as_json, result.as_json(), lambda: _table(result), _missing(result))
    if not all(b.verify.passed for b in result.bundles):
        return 3
    return 2 if result.refused else 0


def _missing(result: CompileReport) -> str:
    """A sentence of what was refused, and of the bundles that failed their checks; empty where none did."""
    said = [f"{r.target} {r.precision} was not built: {r.why}" for r in result.refused]
    bad = [b for b in result.bundles if not b.verify.passed]
    said += [f"{b.target} {b.precision} was rejected: {', '.join(b.verify.failures)}" for b in bad]
    return "; ".join(said)


def _table(result: CompileReport) -> None:
    from repedge.cli.tables import accuracy, compiled

    if result.plan is not None:
        compiled.planned(result.plan)
        return
    accuracy.choices(result.choices)
    for built in result.bundles:
        if built.budget is not None:
            accuracy.budget(built.budget)
    compiled.compiled(result)
