"""The command line: options in, API calls, tables or JSON out. No work is done here."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from repedge import __version__
from repedge.errors import RepedgeError, UserError

app = typer.Typer(
    name="repedge",
    help="Put re-parameterizable CNNs on phones, edge boxes and GPU servers: fused, compiled, verified.",
    epilog="Start with:  repedge compile --target tflite   (the bundled demo model, no download)",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, progress on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Model = Annotated[
    str | None,
    typer.Argument(
        help="A name from `repedge models`, file.onnx, package.module:factory or timm:NAME; "
        "without it, the bundled demo model.",
        show_default=False,
    ),
]
_MODEL = "Model"
_PRE = "Preprocessing (default: the model's own)"
Weights = Annotated[
    str | None,
    typer.Option(help="Checkpoint: .pth, .pt, .safetensors or hf://ORG/NAME.", rich_help_panel=_MODEL),
]
Pretrained = Annotated[
    bool,
    typer.Option("--pretrained", help="Fetch the published weights from their hub.", rich_help_panel=_MODEL),
]
RandomWeights = Annotated[
    bool,
    typer.Option("--random-weights", help="Seeded random weights: for latency only.", rich_help_panel=_MODEL),
]
InputSize = Annotated[
    str | None, typer.Option(help="Network input in pixels: 224 or HxW.", rich_help_panel=_MODEL)
]
Labels = Annotated[
    Path | None, typer.Option(help="Text file, one class name per line.", rich_help_panel=_MODEL)
]
Mean = Annotated[
    str | None,
    typer.Option(help="Per channel on the 0..1 scale, such as 0.485,0.456,0.406.", rich_help_panel=_PRE),
]
Std = Annotated[str | None, typer.Option(help="Per channel on the 0..1 scale.", rich_help_panel=_PRE)]
Resize = Annotated[
    str | None,
    typer.Option(help="Short side in pixels before the centre crop, or 'squash'.", rich_help_panel=_PRE),
]
Interpolation = Annotated[
    str | None, typer.Option(help="nearest, bilinear or bicubic.", rich_help_panel=_PRE)
]
Color = Annotated[
    str | None, typer.Option(help="Channel order of training: RGB, BGR or GRAY.", rich_help_panel=_PRE)
]


def source_options(**given: Any) -> dict[str, Any]:
    """The options that say which network is meant, without those that were not given."""
    return {k: v for k, v in given.items() if v not in (None, False)}


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
            "--precision", "-p", help="fp32, fp16, w8a32, palette4..8; repeatable; default: the target's."
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
    count: Annotated[int, typer.Option(help="How many photos to verify on.")] = 8,
    min_sqnr: Annotated[
        float | None, typer.Option(help="Replace the precision's SQNR threshold, dB.")
    ] = None,
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
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Fuse a model, compile it for one or more targets, and prove each artifact equal to it."""
    from repedge import api, report

    with report.stages(quiet=as_json) as on_stage:
        result = api.compile(
            model,
            targets=target or [],
            precisions=_words("precision", precision or [], _PRECISIONS),
            out=out,
            input_kind=_words("input", [input_kind], ["uint8", "float32"])[0],
            force=force,
            images=images,
            count=count,
            reference=not no_reference,
            min_sqnr=min_sqnr,
            options={"deployment_target": deployment_target} if deployment_target else {},
            about={"description": description, "author": author, "license": license},
            command=["repedge", *sys.argv[1:]],
            on_stage=on_stage,
            **source_options(
                weights=weights, pretrained=pretrained, random_weights=random_weights, input_size=input_size,
                labels=labels, mean=mean, std=std, resize=resize, interpolation=interpolation, color=color,
            ),
        )  # fmt: skip
    _show(as_json, result.as_json(), lambda: report.compiled(result))
    return 0 if result.passed else 3


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
    _show(as_json, {"repedge": __version__, **result.model_dump()}, lambda: report.verified(bundle, result))
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
    _show(as_json, {"repedge": __version__, **result.as_json()}, lambda: report.evaluated(what, result))
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
    _show(as_json, {"repedge": __version__, **result.as_json()}, lambda: report.inspected(result))
    return 0


@app.command()
def models(as_json: Json = False, debug: Debug = False) -> int:
    """The network names that `compile` knows, and where their weights live."""
    from repedge import report
    from repedge.models.registry import MODELS

    rows = [report.model_row(spec) for spec in MODELS.values()]
    _show(as_json, {"repedge": __version__, "models": rows}, lambda: report.models(rows))
    return 0


@app.command()
def targets(as_json: Json = False, debug: Debug = False) -> int:
    """The targets, their precisions and what verifies their artifacts."""
    from repedge import report
    from repedge import targets as registry

    rows = [report.target_row(registry.get(name)) for name in registry.names()]
    _show(as_json, {"repedge": __version__, "targets": rows}, lambda: report.targets(rows))
    return 0


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> int:
    """What is installed here and what each target could do."""
    from repedge import api, report

    result = api.doctor()
    _show(as_json, {"repedge": __version__, **result.as_json()}, lambda: report.doctor(result))
    return 0


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"repedge {__version__}")
        raise typer.Exit


_PRECISIONS = ["fp32", "fp16", "w8a32", "w8a16", "w8a8", "palette8", "palette6", "palette4"]


def _words(option: str, given: list[str], known: list[str]) -> Any:
    """Check option words against the known ones, with a did-you-mean."""
    for word in given:
        if word not in known:
            close = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            raise UserError(f"--{option} {word!r} is unknown; {hint}")
    return given


def _show(as_json: bool, data: dict[str, Any], table: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(data, allow_nan=False))
    else:
        table()


@contextlib.contextmanager
def _one_line(arguments: list[str]) -> Iterator[None]:
    """Every failure ends in one line on stderr (and in JSON, if asked for) and its exit code."""
    try:
        yield
    except RepedgeError as e:
        _fail(arguments, str(e), e.exit_code, e)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; nothing half-written is left", file=sys.stderr)
        sys.exit(130)
    except Exception as e:
        if hasattr(e, "format_message"):  # wrong usage; click's class or the one typer carries
            _fail(arguments, e.format_message(), 2, e)
        text = f"internal error: {type(e).__name__}: {e}; run again with --debug and report it"
        _fail(arguments, text, 1, e)


def _fail(arguments: list[str], message: str, code: int, error: BaseException) -> None:
    if "--debug" in arguments:
        import traceback

        traceback.print_exception(error)
    if "--json" in arguments:
        print(json.dumps({"repedge": __version__, "error": message, "exit_code": code}))
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the ``repedge`` program."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with _one_line(arguments):
        code = app(arguments, standalone_mode=False, prog_name="repedge")
        sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
