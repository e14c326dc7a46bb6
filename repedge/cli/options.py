"""Options that several verbs share, in groups: a verb takes a group and gets it as one dictionary.

    @app.command()
    @takes(source=MODEL)
    def verb(*, what: str, source: dict[str, Any]) -> int: ...

The command line shows every option of the group in its place; the verb is given those that the user gave.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from repedge.tasks import TASKS

_MODEL = "Model"
_PRE = "Preprocessing (default: the model's own)"
_BUDGET = "Accuracy budget of w8a8 and w8a16 (exit code 3 where it can't be met)"

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, progress on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Model = Annotated[
    str | None,
    typer.Argument(
        help="A name from `repedge models`, file.onnx, best.pth, package.module:factory or timm:NAME; "
        "without it, the bundled demo model.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="Checkpoint: .pth, .pt, .safetensors or hf://ORG/NAME.", rich_help_panel=_MODEL),
]
RandomWeights = Annotated[
    bool,
    typer.Option("--random-weights", help="Seeded random weights: for latency only.", rich_help_panel=_MODEL),
]
InputSize = Annotated[
    str | None, typer.Option(help="Network input in pixels: 224 or HxW.", rich_help_panel=_MODEL)
]

AllowUnverified = Annotated[
    bool,
    typer.Option("--allow-unverified", help="Take bundles that failed their verification, too, and say so."),
]

TASK: tuple[Any, Any] = (
    Annotated[
        str | None,
        typer.Option(
            help=f"What the outputs mean: {', '.join(TASKS)}; detect:FILE.json says what "
            "a detector's graph does not.",
            show_default="as the graph says",
            rich_help_panel=_MODEL,
        ),
    ],
    None,
)
MODEL: Mapping[str, tuple[Any, Any]] = {
    "weights": (Weights, None),
    "pretrained": (
        Annotated[
            bool,
            typer.Option(
                "--pretrained", help="Fetch the published weights from their hub.", rich_help_panel=_MODEL
            ),
        ],
        False,
    ),
    "random_weights": (RandomWeights, False),
    "input_size": (InputSize, None),
    "image_input": (
        Annotated[
            str | None,
            typer.Option(help="Which of several inputs is the image.", rich_help_panel=_MODEL),
        ],
        None,
    ),
    "inputs": (
        Annotated[
            Path | None,
            typer.Option(
                help="Samples of the inputs beside the image: a .npz of arrays by name, a row a sample.",
                rich_help_panel=_MODEL,
            ),
        ],
        None,
    ),
    "input_value": (
        Annotated[
            list[str] | None,
            typer.Option(
                help="NAME=VALUE: what an input beside the image always holds (numbers with commas, or a "
                ".npy file); it becomes part of the network; repeatable.",
                rich_help_panel=_MODEL,
            ),
        ],
        None,
    ),
    "labels": (
        Annotated[
            Path | None, typer.Option(help="Text file, one class name per line.", rich_help_panel=_MODEL)
        ],
        None,
    ),
    "task": TASK,
    "mean": (
        Annotated[
            str | None,
            typer.Option(
                help="Per channel on the 0..1 scale, such as 0.485,0.456,0.406.", rich_help_panel=_PRE
            ),
        ],
        None,
    ),
    "std": (
        Annotated[str | None, typer.Option(help="Per channel on the 0..1 scale.", rich_help_panel=_PRE)],
        None,
    ),
    "resize": (
        Annotated[
            str | None,
            typer.Option(
                help="Short side in pixels before the centre crop; squash, letterbox or letterbox-corner "
                "(image at the top left), both with bars of 114 or letterbox:VALUE.",
                rich_help_panel=_PRE,
            ),
        ],
        None,
    ),
    "interpolation": (
        Annotated[str | None, typer.Option(help="nearest, bilinear or bicubic.", rich_help_panel=_PRE)],
        None,
    ),
    "color": (
        Annotated[
            str | None,
            typer.Option(help="Channel order of training: RGB, BGR or GRAY.", rich_help_panel=_PRE),
        ],
        None,
    ),
}
"""Which network is meant: parameter -> (its type for typer, its default)."""

MEASURED_MODEL = {name: MODEL[name] for name in ("weights", "random_weights", "input_size")}
INSPECTED_MODEL = {name: MODEL[name] for name in ("weights", "input_size")}

CALIBRATION: Mapping[str, tuple[Any, Any]] = {
    "calib": (
        Annotated[
            str | None,
            typer.Option(
                help="Photos to calibrate w8a8 and w8a16 on, no labels needed: a folder, .zip or .npz.",
                show_default=False,
            ),
        ],
        None,
    ),
    "calib_count": (Annotated[int, typer.Option(help="How many of them.")], 64),
    "calib_seed": (Annotated[int, typer.Option(help="What their random choice starts from.")], 0),
    "recipe": (
        Annotated[str, typer.Option(help="Calibration: fast, default, best or FILE.json.")],
        "default",
    ),
    "keep_float": (
        Annotated[
            list[str] | None,
            typer.Option(help="Layers that stay float: NAME or 'PATTERN*', commas between; repeatable."),
        ],
        None,
    ),
}
"""Photos to calibrate on, and what is done with them."""

BUDGET: Mapping[str, tuple[Any, Any]] = {
    "max_drop": (
        Annotated[
            float | None,
            typer.Option(
                help="Accuracy budget: points of top-1, mAP or mIoU (labelled --eval-data), else of "
                "disagreement with float; raises layers to float to keep to it.",
                rich_help_panel=_BUDGET,
            ),
        ],
        None,
    ),
    "max_kl": (
        Annotated[
            float | None,
            typer.Option(help="The same as mean KL divergence from float, nats.", rich_help_panel=_BUDGET),
        ],
        None,
    ),
    "eval_data": (
        Annotated[
            Path | None,
            typer.Option(
                help="Photos to judge on: a folder, .zip or .npz, labelled or not; or a data set with boxes "
                "or masks, as for `repedge eval`.",
                show_default="--calib photos left over",
                rich_help_panel=_BUDGET,
            ),
        ],
        None,
    ),
    "eval_count": (
        Annotated[int, typer.Option(help="At most this many of them.", rich_help_panel=_BUDGET)],
        2000,
    ),
}
"""How much accuracy integers may cost."""


def takes(**groups: Mapping[str, tuple[Any, Any]]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a verb's keyword parameters named as ``groups`` the options of these groups, as dictionaries.

    An option that was not given (None, or a flag that is off) is left out of its dictionary.
    """

    def wrap(verb: Callable[..., int]) -> Callable[..., int]:
        own = inspect.signature(verb)
        hints = get_type_hints(verb, include_extras=True)
        parameters, annotations = [], {}
        for name, parameter in own.parameters.items():
            shown = groups[name] if name in groups else {name: (hints[name], parameter.default)}
            for option, (kind, default) in shown.items():
                parameters.append(parameter.replace(name=option, annotation=kind, default=default))
                annotations[option] = kind

        @functools.wraps(verb)
        def run(**given: Any) -> int:
            for group, options in groups.items():
                values = {option: given.pop(option) for option in options}
                given[group] = {k: v for k, v in values.items() if v is not None and v is not False}
            return verb(**given)

        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {**annotations, "return": int}
        return run

    return wrap
