"""Tables of ``repedge profile`` and ``repedge devices``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.markup import escape
from rich.text import Text

from repedge.cli.tables.console import columns, err, out, say
from repedge.profile.gate import Regression
from repedge.profile.predict import Estimate
from repedge.profile.result import Profile

SHOWN_OPS = 15
DISPENSABLE = ("load", "MB", "min", "p99")
"""Columns that a narrow terminal goes without, first to last; JSON and the page have them all."""


def profiles(rows: Sequence[Profile]) -> None:
    """One line per artifact; ratios where they were compared; operators where they were timed."""
    several = len({p.device for p in rows}) > 1
    compared = any(p.verdict for p in rows)
    heads = [
        "artifact",
        *(["device"] if several else []),
        "p50 ms",
        "95 %",
        "min",
        "p90",
        "p99",
        "load",
        "MB",
    ]
    heads += ["ratio", "95 % of ratio", "verdict"] if compared else []
    lines = [_line(p) for p in rows]
    if out.is_terminal:  # elsewhere all of them: a file has no width
        for head in DISPENSABLE:
            if _width(heads, lines) > out.width:
                heads.remove(head)
    right = [h for h in heads if h not in ("artifact", "device", "verdict")]
    columns(heads, [[line[h] for h in heads] for line in lines], right)
    for p in {r.name: r for r in rows}.values():
        details(p, many=len(rows) > 1)
    for p in rows:
        label = "" if len(rows) == 1 else f"{p.name} on {p.device}: " if several else f"{p.name}: "
        for warning in p.warnings:
            say(f"  [yellow]{escape(label + warning)}[/]", err)


def _line(p: Profile) -> dict[str, str]:
    cells = {
        "artifact": escape(p.name),
        "device": escape(p.device),
        "p50 ms": _ms(p.p50_ms),
        "95 %": f"{_ms(p.p50_low)}..{_ms(p.p50_high)}",
        "min": _ms(p.min_ms),
        "p90": _ms(p.p90_ms),
        "p99": _ms(p.p99_ms),
        "load": _ms(p.load_ms),
        "MB": "-" if p.peak_rss_bytes is None else f"{p.peak_rss_bytes / 1e6:.0f}",
        "ratio": "1",
        "95 % of ratio": "",
        "verdict": "[dim]reference[/]",
    }
    if p.ratio_p50 is not None and p.ratio_p50_interval is not None:
        low, high = p.ratio_p50_interval
        cells |= {"ratio": f"{p.ratio_p50:.3f}", "95 % of ratio": f"{low:.3f}..{high:.3f}"}
        cells["verdict"] = _verdict(p.verdict)
    return cells


def _width(heads: Sequence[str], lines: Sequence[dict[str, str]]) -> int:
    """Cells that a table with these columns takes."""
    cells = [[h, *(Text.from_markup(line[h]).plain for line in lines)] for h in heads]
    return sum(max(map(cell_len, column)) + 2 for column in cells) - 2


def details(p: Profile, many: bool) -> None:
    """Where it ran, what is outside of the delegate, operators."""
    parts = [f"{p.runtime} {p.runtime_version}", p.unit, f"threads: {p.threads}" if p.threads else ""]
    parts += [
        f"computes in {p.precision_used}" if p.precision_used else "",
        f"{p.runs} runs after {p.warmup}",
    ]
    head = f"{p.name}: " if many else ""
    say(f"[dim]{escape(head + ', '.join(x for x in parts if x))} on {escape(p.host.cpu or p.device)}[/]")
    if p.throughput_per_s is not None:
        out.print(f"  {p.throughput_per_s:.1f} runs per second")
    if p.partitions is not None:
        word = "partition" if p.partitions == 1 else "partitions"
        rest = f"; outside: {', '.join(p.outside[:6])}{', ...' if len(p.outside) > 6 else ''}"
        say(f"  {p.partitions} {word} in the delegate{escape(rest) if p.outside else ', nothing outside'}")
    if p.residency and p.partitions is None:
        out.print("  " + ", ".join(f"{k} {v:.1%}" for k, v in p.residency.items()))
    for note in p.notes:
        say(f"  {escape(note)}")
    if p.ops:
        operators(p)


def operators(p: Profile) -> None:
    """The slowest operators; all of them are in the JSON."""
    timed = sorted((o for o in p.ops if o.ms is not None), key=lambda o: -(o.ms or 0))
    total = sum(o.ms or 0 for o in timed)
    rows = []
    for o in timed[:SHOWN_OPS]:
        where = f"{o.where} {o.precision}" if o.precision and o.precision not in o.where else o.where
        share = f"{(o.ms or 0) / total:.1%}" if total else ""
        rows.append([escape(_short(o.name)), escape(o.type), _ms(o.ms), share, escape(where)])
    if len(timed) > SHOWN_OPS:
        rest = sum(o.ms or 0 for o in timed[SHOWN_OPS:])
        share = f"{rest / total:.1%}" if total else ""
        rows.append([f"{len(timed) - SHOWN_OPS} others", "", _ms(rest), share, ""])
    columns(("operator", "type", "ms", "share", "where"), rows, right=("ms", "share"))
    say(f"[dim]  {len(p.ops)} operators, together {_ms(total)} ms: {escape(p.ops_note)}[/]")


def regression(r: Regression) -> None:
    """A profile against its baseline."""
    state = "[red]regression[/]" if r.failed else "[green]within the limit[/]"
    out.print(
        f"against the baseline: {r.ratio.value:.3f} times as long "
        f"({r.ratio.low:.3f}..{r.ratio.high:.3f}), limit {1 + r.limit:.3f}: {state}"
    )


def estimates(rows: Sequence[Estimate]) -> None:
    """The table of ``repedge profile --predict``."""
    heads = ("network", "device", "GMAC", "estimate ms", "error", "range")
    cells = [
        [escape(r.name), escape(r.device), f"{r.gmacs:.3f}", f"{r.ms:.2f}", f"±{r.error:.1%}",
         f"{r.low:.2f}..{r.high:.2f}"]
        for r in rows
    ]  # fmt: skip
    columns(heads, cells, right=heads[2:])
    for basis in dict.fromkeys(r.basis for r in rows):
        say(f"[dim]estimates, not measurements: {escape(basis)}; error: leave-one-out[/]")


def devices(rows: Sequence[dict[str, Any]]) -> None:
    """The table of ``repedge devices``, and what ``--device-option`` takes for each kind."""
    columns(
        ("device", "state", "what it is"),
        [[escape(row["uri"]), escape(row["state"]), escape(row["note"])] for row in rows],
    )
    kinds = {row["scheme"]: row["options"] for row in rows if row["options"]}
    for scheme, options in kinds.items():
        say(f"\n[bold]{scheme}[/]: --device-option NAME=VALUE")
        width = max(map(len, options))
        for name, text in options.items():
            say(f"  {name:<{width}}  [dim]{escape(text)}[/]")


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _short(name: str) -> str:
    name = name if len(name) <= 40 else name.partition("/")[0]
    return name if len(name) <= 40 else "..." + name[-37:]


def _verdict(word: str | None) -> str:
    colour = {"faster": "green", "slower": "red"}.get(word or "", "default")
    return f"[{colour}]{word or ''}[/]"
