"""One self-contained page: a table, and for each artifact its histogram, its runs and its operators.

The charts are SVG written here; the page has no script and loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from repedge import targets
from repedge.devices.protocol import Op
from repedge.html import style, write_whole
from repedge.profile.result import Profile
from repedge.profile.subject import TORCH
from repedge.targets.base import Engine

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 34
BINS = 40
SHOWN_OPS = 30


def write(profiles: Sequence[Profile], file: Path, force: bool = False) -> None:
    """Write the page of one or more profiles.

    Raises:
        UserError: The file exists (without ``force``), or can't be written.
    """
    write_whole(file, page(profiles), force)


def page(profiles: Sequence[Profile]) -> str:
    """The page's HTML."""
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    first = profiles[0]
    names, places = len({p.name for p in profiles}), len({p.device for p in profiles})
    title = f"Latency of {first.name if names == 1 else f'{names} artifacts'}"
    title += f" on {places} devices" if places > 1 else ""
    where = ", ".join(dict.fromkeys(f"{p.device} ({p.host.cpu or 'unknown CPU'})" for p in profiles))
    return template.substitute(
        style=style(),
        title=escape(title),
        subtitle=escape(f"repedge {first.repedge}, measured on {where}"),
        summary=_table(profiles),
        sections="\n".join(_section(p, len({q.device for q in profiles}) > 1) for p in profiles),
    )


def _table(profiles: Sequence[Profile]) -> str:
    compared = any(p.verdict for p in profiles)
    several = len({p.device for p in profiles}) > 1
    heads = ["artifact", *(["device"] if several else []), "p50 ms", "95 % of p50"]
    heads += ["ratio", "95 % of ratio", "verdict"] if compared else []
    heads += ["min", "p90", "p99", "load ms", "MB"]
    rows = []
    for p in profiles:
        row = _cells(p.name) + (f"<td class='device'>{escape(p.device)}</td>" if several else "")
        row += _cells(_ms(p.p50_ms), f"{_ms(p.p50_low)} to {_ms(p.p50_high)}")
        if compared and p.ratio_p50 is not None and p.ratio_p50_interval is not None:
            low, high = p.ratio_p50_interval
            word = escape(p.verdict or "")
            row += _cells(f"{p.ratio_p50:.3f}", f"{low:.3f} to {high:.3f}")
            row += f"<td class='{word}'>{word}</td>"
        elif compared:
            row += "<td>1</td><td></td><td class='soft'>reference</td>"
        memory = "" if p.peak_rss_bytes is None else f"{p.peak_rss_bytes / 1e6:.0f}"
        row += _cells(_ms(p.min_ms), _ms(p.p90_ms), _ms(p.p99_ms), _ms(p.load_ms), memory)
        rows.append(f"<tr>{row}</tr>")
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return f"<div class='scroll'><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _cells(*texts: str) -> str:
    return "".join(f"<td>{escape(t)}</td>" for t in texts)


def _section(p: Profile, several_devices: bool) -> str:
    facts = [f"{p.runtime} {p.runtime_version}", p.unit, f"threads: {p.threads}" if p.threads else ""]
    facts += [
        f"computes in {p.precision_used}" if p.precision_used else "",
        f"hint {p.hint}" if _engine(p).throughput else "",
    ]
    facts += [
        f"mean {_ms(p.mean_ms)} ms, standard deviation {_ms(p.std_ms)}",
        f"first run {_ms(p.first_ms)} ms",
    ]
    facts += [
        f"{p.runs} runs after {p.warmup} of warm-up",
        f"governor {p.host.governor}" if p.host.governor else "",
    ]
    temperature = p.host.temperature_before, p.host.temperature_after
    if temperature[0] is not None and temperature[1] is not None:
        facts.append(f"{temperature[0]:.0f} to {temperature[1]:.0f} degrees Celsius")
    if p.partitions is not None:
        facts.append(f"partitions: {p.partitions}")
    title = f"{p.name} on {p.device}" if several_devices else p.name
    parts = [f"<h2>{escape(title)}</h2>", f"<p class='soft'>{escape(', '.join(f for f in facts if f))}</p>"]
    if p.outside:
        parts.append(f"<p>Outside of the delegate: {escape(', '.join(p.outside[:20]))}</p>")
    parts += [f"<p class='warn'>{escape(w)}</p>" for w in p.warnings]
    parts.append(f"<div class='charts'>{_histogram(p)}{_runs(p)}</div>")
    if any(o.ms for o in p.ops):
        parts.append(_operators(p))
    return "\n".join(parts)


def _histogram(p: Profile) -> str:
    x = np.asarray(p.samples_ms)
    least, most = float(x.min()), float(np.percentile(x, 99)) if len(x) >= 20 else float(x.max())
    most = max(most, least * 1.001)
    counts, edges = np.histogram(
        np.minimum(x, most), bins=min(BINS, max(5, len(x) // 3)), range=(least, most)
    )
    beyond = int((x > most).sum())

    def across(ms: float) -> float:
        return LEFT + (min(max(ms, least), most) - least) / (most - least) * (WIDTH - LEFT - RIGHT)

    tallest, floor = int(counts.max()), HEIGHT - BOTTOM
    marks = [f"<rect class='band' {_box(across(p.p50_low), TOP, across(p.p50_high), floor, 1)}/>"]
    for count, a, b in zip(counts, edges[:-1], edges[1:], strict=True):
        top = floor - count / tallest * (floor - TOP)
        tip = f"<title>{_ms(a)} to {_ms(b)} ms: {count} runs</title>"
        marks.append(f"<rect class='bar' {_box(across(a), top, across(b) - 1, floor)}>{tip}</rect>")
    middle = across(p.p50_ms)
    marks.append(f"<line class='median' x1='{middle:.1f}' x2='{middle:.1f}' y1='{TOP}' y2='{floor}'/>")
    marks += _axis_x(least, most, across, "ms")
    marks.append(f"<text x='{LEFT - 6}' y='{TOP + 10}' text-anchor='end'>{tallest}</text>")
    marks.append(f"<text x='{LEFT - 6}' y='{floor}' text-anchor='end'>0</text>")
    slower = "1 slower run is" if beyond == 1 else f"{beyond} slower runs are"
    tail = f"; {slower} in the last bar" if beyond else ""
    caption = f"Histogram of {len(x)} runs; the line is the median, the band its 95 % interval{tail}"
    return _figure("histogram", caption, marks, HEIGHT)


def _runs(p: Profile) -> str:
    x = np.asarray(p.samples_ms)
    least, most = float(x.min()), float(x.max())
    most = max(most, least * 1.001)
    floor = HEIGHT - BOTTOM

    def across(i: float) -> float:
        return LEFT + i / max(1, len(x) - 1) * (WIDTH - LEFT - RIGHT)

    def up(ms: float) -> float:
        return floor - (ms - least) / (most - least) * (floor - TOP)

    step = max(1, len(x) // 1000)
    marks = [f"<circle class='dot' cx='{across(i):.1f}' cy='{up(float(x[i])):.1f}' r='2.2'/>"
             for i in range(0, len(x), step)]  # fmt: skip
    y = up(p.p50_ms)
    marks.append(f"<line class='median' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
    marks += _axis_x(0, len(x) - 1, across, "run", whole=True)
    marks.append(f"<text x='{LEFT - 6}' y='{TOP + 4}' text-anchor='end'>{_ms(most)}</text>")
    marks.append(f"<text x='{LEFT - 6}' y='{floor}' text-anchor='end'>{_ms(least)}</text>")
    return _figure("runs", "The runs in order (ms): drift and throttling show here", marks, HEIGHT)


def _operators(p: Profile) -> str:
    timed = sorted((o for o in p.ops if o.ms), key=lambda o: -(o.ms or 0))
    total = sum(o.ms or 0 for o in timed)
    rows: list[tuple[str, float, str, str]] = [
        (_label(o), o.ms or 0, _where(o), "outside" if _is_outside(p, o) else "bar")
        for o in timed[:SHOWN_OPS]
    ]
    row, width, names = 19, 1000, 340
    longest = rows[0][1]
    rest = timed[SHOWN_OPS:]
    if rest:  # without a bar: all of them together would dwarf the others
        rows.append((f"{len(rest)} others", sum(o.ms or 0 for o in rest), "together", ""))
    marks = []
    for i, (name, ms, where, kind) in enumerate(rows):
        y = i * row + 4
        length = ms / longest * (width - names - 330)
        tip = f"<title>{escape(name)}: {_ms(ms)} ms</title>"
        marks.append(
            f"<text class='name' x='{names - 8}' y='{y + 11}' text-anchor='end'>{escape(name)}</text>"
        )
        if kind:
            marks.append(
                f"<rect class='{kind}' {_box(names, y, names + length, y + row - 5, 1)}>{tip}</rect>"
            )
        length *= bool(kind)
        text = f"{_ms(ms)} ms, {ms / total:.1%} {where}"
        marks.append(f"<text x='{names + length + 6:.1f}' y='{y + 11}'>{escape(text)}</text>")
    caption = f"The slowest of {len(p.ops)} operators, together {_ms(total)} ms: {p.ops_note}"
    return f"<h3>Operators</h3>{_figure('operators', caption, marks, len(rows) * row + 8, width)}"


def _label(o: Op) -> str:
    name = o.name if len(o.name) <= 36 else o.name.partition("/")[0]
    name = name if len(name) <= 36 else "..." + name[-33:]
    return f"{name} ({o.type})" if o.type and o.type != o.name else name


def _where(o: Op) -> str:
    return f"{o.where} {o.precision}" if o.precision and o.precision not in o.where else o.where


def _is_outside(p: Profile, o: Op) -> bool:
    return o.where in _engine(p).outside and p.partitions != 0


def _engine(p: Profile) -> Engine:
    """What measured it."""
    found = targets.get(p.target).engine if p.target in targets.names() else None
    return TORCH if found is None else found


def _axis_x(least: float, most: float, across, unit: str, whole: bool = False) -> list[str]:  # type: ignore[no-untyped-def]
    floor = HEIGHT - BOTTOM
    marks = [f"<line class='axis' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{floor}' y2='{floor}'/>"]
    for i, value in enumerate(np.linspace(least, most, 5)):
        anchor = "start" if i == 0 else "end" if i == 4 else "middle"
        text = f"{value:.0f}" if whole else _ms(float(value))
        text += f" {unit}" if i == 4 else ""
        marks.append(
            f"<text x='{across(float(value)):.1f}' y='{floor + 18}' text-anchor='{anchor}'>{text}</text>"
        )
    return marks


def _figure(kind: str, caption: str, marks: Sequence[str], height: int, width: int = WIDTH) -> str:
    head = f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{escape(caption)}'>"
    svg = f"{head}{''.join(marks)}</svg>"
    return f"<figure class='{kind}'><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def _box(x0: float, y0: float, x1: float, y1: float, least: float = 0.5) -> str:
    return f"x='{x0:.1f}' y='{y0:.1f}' width='{max(least, x1 - x0):.1f}' height='{max(0.0, y1 - y0):.1f}'"


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
