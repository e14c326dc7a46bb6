"""The program object, the options that several verbs share, and how answers are shown."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from repedge.cli.streams import answer
from repedge.errors import UserError

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


PRECISIONS = ["fp32", "fp16", "w8a32", "w8a16", "w8a8", "palette8", "palette6", "palette4"]


SYNONYMS = {
    "int8": "w8a8", "i8": "w8a8", "int16": "w8a16", "float16": "fp16", "half": "fp16", "f16": "fp16",
    "float32": "fp32", "f32": "fp32", "float": "fp32",
}  # fmt: skip
"""What others call our precision words; meant for `words`, which says ours."""


def words(option: str, given: list[str], known: list[str]) -> Any:
    """Check option words against the known ones, with a did-you-mean."""
    for word in given:
        if word not in known:
            meant = SYNONYMS.get(word.lower())
            close = [meant] if meant in known else difflib.get_close_matches(word.lower(), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            raise UserError(f"--{option} {word!r} is unknown; {hint}")
    return given


def show(as_json: bool, data: dict[str, Any], table: Callable[[], None]) -> None:
    if as_json:
        answer(json.dumps(data, allow_nan=False))
    else:
        table()
