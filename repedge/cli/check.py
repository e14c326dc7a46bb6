"""``repedge verify``, ``repedge eval`` and ``repedge inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from repedge.cli.app import app, show
from repedge.cli.options import INSPECTED_MODEL, MODEL, AllowUnverified, Debug, Json, takes
from repedge.errors import UserError
from repedge.version import __version__

_FEW = "Few-shot episodes, of photos in class sub-folders"


@app.command(epilog="Example:  repedge verify build/repvit_demo-tflite-fp32 --images my_photos")
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder made by `repedge compile`.")],
    images: Annotated[Path | None, typer.Option(help="Photos to compare on; default: bundled ones.")] = None,
    count: Annotated[int, typer.Option(help="How many photos.")] = 16,
    inputs: Annotated[
        Path | None,
        typer.Option(help="Samples of the inputs beside the image, a .npz; default: the golden ones."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Compare a bundle's artifact with the float reference in it, from the bundle alone."""
    from repedge import api
    from repedge.cli.tables import checked, console

    with console.stages(quiet=as_json) as on_stage:
        on_stage("verify")
        result = api.verify(bundle, images=images, count=count, inputs=inputs)
    failed = "" if result.passed else f"{bundle} differs from its reference: {'; '.join(result.failures)}"
    answer = {"repedge": __version__, **result.model_dump()}
    show(as_json, answer, lambda: checked.verified(bundle, result), failed)
    return 0 if result.passed else 3


@app.command(
    "eval",
    epilog="Examples:  repedge eval build/repvit_demo-tflite-fp32 photos/val   |   "
    "repedge eval --compare build/net-tflite-w8a8 build/net-openvino-w8a8 --data photos/val",
)
@takes(source=MODEL)
def evaluate(
    *,
    what: Annotated[
        list[str],
        typer.Argument(
            help="A bundle folder or a model ('demo' for the bundled one), then the images; without them "
            "bundled ones are taken; "
            "with --compare, two or more bundles.",
            metavar="WHAT... [DATA]",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "--eval-data",
            "--images",
            help="Photos: a folder or .zip with class sub-folders or a labels.json, or a .npz; with boxes a "
            "data.yaml, a COCO .json or a VOC folder or .zip, with masks a folder or .zip of PNGs; instead "
            "of naming them last.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Part of a data set with boxes or masks: train, val or test; default: val, else test.",
            show_default=False,
        ),
    ] = None,
    ways: Annotated[
        int | None,
        typer.Option(
            help="Classes of a few-shot episode, for embeddings; default: 5, or as many as there are.",
            show_default=False,
            rich_help_panel=_FEW,
        ),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Examples of each; default: 1.", show_default=False, rich_help_panel=_FEW),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(help="How many; default: 1000.", show_default=False, rich_help_panel=_FEW),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Hold several bundles against each other and against float.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Evaluate this many, spread over the folder.")] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write a page with the photos on which artifact and float differ most, drawn.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it exists.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the artifact's runtime.")] = None,
    allow_unverified: AllowUnverified = False,
    source: dict[str, Any],
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Accuracy (top-1, mAP, mIoU, few-shot) and agreement with the float reference on photos."""
    from repedge import api
    from repedge.cli.tables import checked, console
    from repedge.html import check_new, write_whole
    from repedge.judge import gallery

    names, folder = _what_and_data(what, data, compare)
    common: dict[str, Any] = {
        "limit": limit,
        "split": split,
        "threads": threads,
        "allow_unverified": allow_unverified,
    }
    asked: dict[str, Any] = {"ways": ways, "shots": shots, "episodes": episodes}
    if html is not None:
        check_new(html, force)
    if compare:
        if html is not None:
            raise UserError("--html draws one bundle beside float; leave --compare out")
        told = {name: value for name, value in asked.items() if value is not None}
        return _compare(names, folder, common, {**source, **told}, as_json)
    with console.progress("evaluate", quiet=as_json) as progress:
        result = api.evaluate(
            None if names[0] == "demo" else names[0],
            folder,
            progress=progress,
            show=0 if html is None else gallery.MOST,
            **common,
            **asked,
            **source,
        )
    if html is not None:
        photos = "bundled photos" if folder is None else folder.name
        write_whole(html, gallery.page(Path(names[0]).name, result, photos), force)
    answer = {"repedge": __version__, **result.as_json()}
    show(as_json, answer, lambda: checked.evaluated(names[0], result, html))
    return 0


def _what_and_data(what: list[str], data: Path | None, compare: bool) -> tuple[list[str], Path | None]:
    """What to evaluate, and on which photos; they may be the last argument."""
    from repedge.bundle.manifest import MANIFEST

    last = Path(what[-1])
    is_data = last.is_file() or (last.is_dir() and not (last / MANIFEST).is_file())
    if data is None and len(what) > 1 and (is_data or not compare):
        what, data = what[:-1], last
    if not compare and len(what) != 1:
        raise UserError(
            "eval takes one bundle or model and a folder of images, as in `repedge eval BUNDLE PHOTOS`; "
            "--compare takes several bundles"
        )
    return what, data


def _compare(
    names: list[str],
    folder: Path | None,
    common: dict[str, Any],
    options: dict[str, Any],
    as_json: bool,
) -> int:
    from repedge import api
    from repedge.cli.tables import accuracy as tables
    from repedge.cli.tables import console

    if options:
        raise UserError(f"--compare is for bundles, which take no {', '.join(sorted(options))}")
    with console.progress("compare", quiet=as_json) as progress:
        result = api.compare_bundles(names, folder, progress=progress, **common)
    show(as_json, {"repedge": __version__, **result.as_json()}, lambda: tables.parity(result))
    return 0


@app.command(
    epilog="Examples:  repedge inspect best.pth  |  repedge inspect repvgg_a0  |  repedge inspect net.onnx"
)
@takes(source=INSPECTED_MODEL)
def inspect(
    *,
    what: Annotated[
        str | None,
        typer.Argument(help="A bundle, a checkpoint, an ONNX file or a model.", show_default=False),
    ] = None,
    source: dict[str, Any],
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """What is in a checkpoint, model or bundle, and what fusing makes of it."""
    from repedge import api
    from repedge.cli.tables import about, console

    with console.stages(quiet=as_json) as on_stage:
        on_stage("inspect")
        result = api.inspect(what, **source)
    show(as_json, {"repedge": __version__, **result.as_json()}, lambda: about.inspected(result))
    return 0
