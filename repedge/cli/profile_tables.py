"""Tables of ``repedge profile`` and ``repedge devices``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from repedge.profile.gate import Regression
from repedge.profile.predict import Estimate
from repedge.profile.result import Profile
from repedge.report import err, out

SHOWN_OPS = 15


def profiles(rows: Sequence[Profile]) -> None:
    """One line per artifact; ratios where they were compared; operators where they were timed."""
    compared = any(p.verdict for p in rows)
    table = Table(box=None, pad_edge=False)
    several = len({p.device for p in rows}) > 1
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
    for head in [*heads, *(["ratio", "95 % of ratio", ""] if compared else [])]:
        table.add_column(head, overflow="fold")
    for p in rows:
        cells = [
            p.name,
            *([p.device] if several else []),
            _ms(p.p50_ms),
            f"{_ms(p.p50_low)}..{_ms(p.p50_high)}",
        ]
        cells += [_ms(p.min_ms), _ms(p.p90_ms), _ms(p.p99_ms), _ms(p.load_ms)]
        cells += ["-" if p.peak_rss_bytes is None else f"{p.peak_rss_bytes / 1e6:.0f}"]
        if p.ratio_p50 is not None and p.ratio_p50_interval is not None:
            low, high = p.ratio_p50_interval
            cells += [f"{p.ratio_p50:.3f}", f"{low:.3f}..{high:.3f}", _verdict(p.verdict)]
        table.add_row(*cells)
    out.print(table)
    for p in {r.name: r for r in rows}.values():
        details(p, many=len(rows) > 1)


def details(p: Profile, many: bool) -> None:
    """Where it ran, what is outside of the delegate, warnings, operators."""
    parts = [f"{p.runtime} {p.runtime_version}", p.unit, f"threads: {p.threads}" if p.threads else ""]
    parts += [
        f"computes in {p.precision_used}" if p.precision_used else "",
        f"{p.runs} runs after {p.warmup}",
    ]
    head = f"{p.name}: " if many else ""
    out.print(f"[dim]{head}{', '.join(x for x in parts if x)} on {p.host.cpu or p.device}[/]")
    if p.throughput_per_s is not None:
        out.print(f"  {p.throughput_per_s:.1f} runs per second")
    if p.partitions is not None:
        word = "partition" if p.partitions == 1 else "partitions"
        rest = f"; outside: {', '.join(p.outside[:6])}{', ...' if len(p.outside) > 6 else ''}"
        out.print(f"  {p.partitions} {word} in the delegate{rest if p.outside else ', nothing outside'}")
    if p.residency and p.runtime == "coreml":
        out.print("  " + ", ".join(f"{k} {v:.1%}" for k, v in p.residency.items()))
    for note in p.notes:
        out.print(f"  {note}")
    for warning in p.warnings:
        err.print(f"  [yellow]{warning}[/]")
    if p.ops:
        operators(p)


def operators(p: Profile) -> None:
    """The slowest operators; all of them are in the JSON."""
    timed = sorted((o for o in p.ops if o.ms is not None), key=lambda o: -(o.ms or 0))
    table = Table("operator", "type", "ms", "share", "where", box=None, pad_edge=False)
    total = sum(o.ms or 0 for o in timed)
    for o in timed[:SHOWN_OPS]:
        where = f"{o.where} {o.precision}" if o.precision and o.precision not in o.where else o.where
        table.add_row(_short(o.name), o.type, _ms(o.ms), f"{(o.ms or 0) / total:.1%}" if total else "", where)
    if len(timed) > SHOWN_OPS:
        rest = sum(o.ms or 0 for o in timed[SHOWN_OPS:])
        table.add_row(
            f"{len(timed) - SHOWN_OPS} others", "", _ms(rest), f"{rest / total:.1%}" if total else "", ""
        )
    out.print(table)
    out.print(f"[dim]  {len(p.ops)} operators, together {_ms(total)} ms: {p.ops_note}[/]")


def regression(r: Regression) -> None:
    """A profile against its baseline."""
    state = "[red]regression[/]" if r.failed else "[green]within the limit[/]"
    out.print(
        f"against the baseline: {r.ratio.value:.3f} times as long "
        f"({r.ratio.low:.3f}..{r.ratio.high:.3f}), limit {1 + r.limit:.3f}: {state}"
    )


def estimates(rows: Sequence[Estimate]) -> None:
    """The table of ``repedge profile --predict``."""
    table = Table("network", "device", "GMAC", "estimate ms", "error", "range", box=None, pad_edge=False)
    for r in rows:
        table.add_row(
            r.name, r.device, f"{r.gmacs:.3f}", f"{r.ms:.2f}", f"±{r.error:.1%}", f"{r.low:.2f}..{r.high:.2f}"
        )
    out.print(table)
    for basis in dict.fromkeys(r.basis for r in rows):
        out.print(f"[dim]estimates, not measurements: {basis}; error: leave-one-out[/]")


def devices(rows: Sequence[dict[str, Any]]) -> None:
    """The table of ``repedge devices``."""
    table = Table("device", "state", "what it is", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["uri"], row["state"], row["note"])
    out.print(table)


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
