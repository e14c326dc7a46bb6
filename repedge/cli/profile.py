"""``repedge profile`` and ``repedge devices``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repedge.cli.app import app, pairs, show, words
from repedge.cli.options import MEASURED_MODEL, AllowUnverified, Debug, Json, takes
from repedge.errors import CheckFailed, UserError
from repedge.version import __version__

if TYPE_CHECKING:
    from repedge.profile.result import Profile

_DEVICE, _GATE, _OUT, _PREDICT = "Device", "Gates (exit code 3)", "Reports", "Without a device"


@app.command(
    epilog="Examples:  repedge profile build/net-tflite-fp32 --threads 1 --per-op   |   "
    "repedge profile build/net-tflite-fp32 build/net-tflite-w8a8   |   "
    "repedge profile build/net-tflite-w8a8 --require 'partitions<=1' --baseline last.json"
)
@takes(options=MEASURED_MODEL)
def profile(
    *,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="Bundles, artifact files (.tflite .xml .onnx .mlpackage) or models (torch eager); "
            "several are compared with the first.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device", "-d", help="Where; see `repedge devices`; repeatable.", rich_help_panel=_DEVICE
        ),
    ] = None,
    device_option: Annotated[
        list[str] | None,
        typer.Option(
            "--device-option",
            help="NAME=VALUE; `repedge devices` lists them; repeatable.",
            rich_help_panel=_DEVICE,
        ),
    ] = None,
    accept_host_key: Annotated[
        str | None, typer.Option(help="ssh: fingerprint of a new host's key.", rich_help_panel=_DEVICE)
    ] = None,
    on: Annotated[
        str | None,
        typer.Option("--on", help="ssh: a device at the host, such as iphone.", rich_help_panel=_DEVICE),
    ] = None,
    runs: Annotated[int, typer.Option(help="Timed runs.")] = 100,
    warmup: Annotated[
        int | None, typer.Option(help="Untimed runs before them.", show_default="until stable")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads.", show_default="the usable cores, at most 4")
    ] = None,
    hint: Annotated[str, typer.Option(help="OpenVINO: latency or throughput.")] = "latency",
    infer_precision: Annotated[
        str,
        typer.Option(
            help="OpenVINO on a CPU: f32 (as verified and shipped), bf16, f16, or auto (the plugin's choice)."
        ),
    ] = "f32",
    unit: Annotated[
        str,
        typer.Option(
            help="OpenVINO device, ONNX Runtime provider or Core ML units.", show_default="the runtime's"
        ),
    ] = "",
    timeout: Annotated[float, typer.Option(help="Give a device up after this silence, seconds.")] = 120,
    per_op: Annotated[bool, typer.Option("--per-op", help="Time the operators as well.")] = False,
    require: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as 'partitions<=1', 'ane>=0.95', 'p50_ms<5'; repeatable.", rich_help_panel=_GATE
        ),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="JSON of an earlier profile to compare with.", rich_help_panel=_GATE)
    ] = None,
    max_regression: Annotated[
        str, typer.Option(help="Allowed rise of the median.", rich_help_panel=_GATE)
    ] = "5%",
    trace: Annotated[
        Path | None, typer.Option(help="Write a Chrome/Perfetto trace.", rich_help_panel=_OUT)
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts.", rich_help_panel=_OUT)] = None,
    predict: Annotated[
        str | None,
        typer.Option(help="Estimate for a device from its fit, such as iphone12.", rich_help_panel=_PREDICT),
    ] = None,
    save_as_device: Annotated[
        str | None,
        typer.Option(help="Fit a new device from these measurements.", rich_help_panel=_PREDICT),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files and a device that exist.", rich_help_panel=_OUT)
    ] = False,
    allow_unverified: AllowUnverified = False,
    options: dict[str, Any],
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Latency of artifacts on a device, compared run by run where there are several."""
    if not what:
        raise UserError(
            "say what to profile: a bundle, an artifact file or a model; `repedge profile --help`"
        )
    if predict is not None:
        return _predict(what, predict, {**options, "allow_unverified": allow_unverified}, as_json)
    from repedge.profile import gate

    gates = gate.Gates(
        tuple(gate.parse(r) for r in require or []),
        gate.read_baseline(baseline) if baseline else None,
        gate.parse_limit(max_regression),
    )
    if gates.baseline is not None and len(what) * len(device or [1]) > 1:
        raise UserError("--baseline compares one artifact on one device with an earlier measurement of it")
    _check_new(trace, html, force, save_as_device, what, device or ["local"])
    asked = {
        "allow_unverified": allow_unverified,
        "runs": runs, "warmup": warmup, "threads": threads, "per_op": per_op, "unit": unit,
        "timeout_s": timeout, "hint": words("hint", [hint], ["latency", "throughput"])[0],
        "infer_precision": words("infer-precision", [infer_precision], ["f32", "bf16", "f16", "auto"])[0],
    }  # fmt: skip
    given = _device_options(device_option, accept_host_key, on)
    rows, data, held = gate.measured(
        lambda: _measure(what, device or ["local"], given, asked, options, quiet=as_json), gates
    )
    if held.verdict is not None:
        data = {**data, **_verdict_json(held.verdict)}
    _write(rows, trace, html, force)
    saved = _save(save_as_device, rows, what, {**options, "allow_unverified": allow_unverified}, force)
    from repedge.cli.tables import profile as tables

    def table() -> None:
        tables.profiles(rows)
        if held.verdict is not None:
            tables.regression(held.verdict)
        _hint(rows, saved, html, trace)

    show(as_json, data, table)
    if held.failures:
        raise CheckFailed("; ".join(held.failures))
    return 0


def _measure(
    what: list[str],
    on: list[str],
    given: dict[str, str],
    asked: dict[str, Any],
    options: dict[str, Any],
    quiet: bool,
) -> tuple[list[Profile], dict[str, Any]]:
    from repedge.cli.tables import console
    from repedge.profile.measure import compare, measure

    with console.stages(quiet=quiet) as on_stage:
        if len(what) * len(on) == 1:
            one = measure(
                what[0],
                device=on[0],
                device_options=given,
                on_stage=on_stage,
                source_options=options,
                **asked,
            )
            return [one], one.model_dump(mode="json")
        several = compare(
            what, devices_=on, device_options=given, on_stage=on_stage, source_options=options, **asked
        )
        return list(several.profiles), several.as_json()


def _verdict_json(verdict: Any) -> dict[str, Any]:
    r = verdict.ratio
    return {
        "ratio_p50": r.value,
        "ratio_p50_interval": [r.low, r.high],
        "verdict": r.verdict,
        "max_regression": verdict.limit,
        "regression": verdict.failed,
    }


def _device_options(given: list[str] | None, accept_host_key: str | None, on: str | None) -> dict[str, str]:
    found = pairs("device-option", given)
    if accept_host_key is not None:
        found["accept-host-key"] = accept_host_key
    if on is not None:
        found["on"] = on
    return found


def _check_new(
    trace: Path | None, html: Path | None, force: bool, name: str | None, what: list[str], on: list[str]
) -> None:
    """What can't be written is said before anything is measured."""
    from repedge.html import check_new

    for file in (trace, html):
        if file is not None:
            check_new(file, force)
    if name is not None:
        from repedge.profile.predict import check_new_device

        check_new_device(name, what, len(on), force)


def _write(rows: list[Profile], trace: Path | None, html: Path | None, force: bool) -> None:
    if trace is not None:
        from repedge.profile.trace import write

        write(rows, trace, force)
    if html is not None:
        from repedge.profile.html import write as write_page

        write_page(rows, html, force)


def _save(
    name: str | None, rows: list[Profile], what: list[str], options: dict[str, Any], force: bool
) -> Path | None:
    if name is None:
        return None
    from repedge.profile.predict import save_device

    return save_device(name, rows, what, options, force)


def _hint(rows: list[Profile], saved: Path | None, html: Path | None, trace: Path | None) -> None:
    from rich.markup import escape

    from repedge.cli.commands import command
    from repedge.cli.tables.console import say

    for file in (html, trace, saved):
        if file is not None:
            say(f"[dim]written: {escape(str(file))}[/]")
    if len(rows) == 1 and not rows[0].ops:
        once = ("trace", "html", "save_as_device", "baseline", "require", "max_regression")
        say(f"[dim]next:  {escape(command('profile', drop=once, per_op=True))}   (the operators)[/]")


def _predict(what: list[str], device: str, options: dict[str, Any], as_json: bool) -> int:
    from repedge.cli.tables import profile as tables
    from repedge.profile.predict import predict

    rows = [predict(w, device, **options) for w in what]
    data = {"repedge": __version__, "estimates": [r.as_json() for r in rows]}
    show(as_json, data, lambda: tables.estimates(rows))
    return 0


@app.command()
def devices(as_json: Json = False, debug: Debug = False) -> int:
    """The devices that can be seen from here, and how to name the others."""
    from repedge.cli.tables import profile as tables
    from repedge.devices import load_class, schemes

    rows: list[dict[str, Any]] = []
    for scheme in schemes():
        cls = load_class(scheme)
        kind = {"scheme": scheme, "options": dict(cls.options)}
        found = [{"uri": f.uri, "state": f.state, "note": f.note, **kind} for f in cls.found()]
        rows += found or [{"uri": cls.example, "state": "example", "note": cls.title, **kind}]
    show(as_json, {"repedge": __version__, "devices": rows}, lambda: tables.devices(rows))
    return 0
