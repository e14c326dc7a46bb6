"""The heat map over depth: a column for each layer, a row for each metric; SVG without script.

A column shows its layer's name in the head line while the pointer is over it, every cell has its value as
tooltip, and a click leads to the layer's row in the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from repedge.diagnosis.layers import Diagnosis, LayerDiagnosis
from repedge.diagnosis.metrics import DEEDS, METRICS, Metric, cost

WIDTH, LEFT, RIGHT = 1340, 236, 84
ROW, GAP, GROUP = 23, 2, 15
HEAD, CHART = 26, 150
STEPS = 12
"""Colours of the scale."""

PALETTES = {
    "light": ("#e9edf3", "#fbe3c0", "#f7b267", "#ec7a3c", "#cb3a2a", "#7f1020"),
    "dark": ("#28303c", "#4d4034", "#86562c", "#c8742a", "#f0873f", "#ff6f61"),
}
"""Anchors of the scale, calm to alarm; the further from the background, the worse."""


def colours() -> str:
    """Style rules ``.h0`` .. of the scale, for light and dark."""
    light, dark = (
        "".join(f".h{i}{{fill:{_mix(PALETTES[theme], i / (STEPS - 1))}}}" for i in range(STEPS))
        for theme in ("light", "dark")
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}"


def _mix(anchors: Sequence[str], at: float) -> str:
    place = at * (len(anchors) - 1)
    i = min(int(place), len(anchors) - 2)
    a, b = ([int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in anchors[i : i + 2])
    return "#" + "".join(f"{round(x + (y - x) * (place - i)):02x}" for x, y in zip(a, b, strict=True))


def step(metric: Metric, value: float) -> int:
    """Index of a value's colour."""
    return round(metric.heat(value) * (STEPS - 1))


def heatmap(d: Diagnosis) -> str:
    """The figure's SVG: single-layer costs as a skyline, the heat map, what is done, the stages."""
    return _Drawing(d).svg()


class _Drawing:
    def __init__(self, d: Diagnosis) -> None:
        self.layers = d.layers
        self.cell = (WIDTH - LEFT - RIGHT) / max(len(d.layers), 12)
        self.gap = 2.0 if self.cell > 14 else 1.0
        self.metrics = [m for m in METRICS if any(m.value(la) is not None for la in d.layers)]
        self.costs = any(la.cost is not None or la.cost_stock is not None for la in d.layers)
        self.deeds = [x for x in DEEDS if any(x.done(la) for la in d.layers)]
        self.parts: list[str] = []
        self.columns: list[list[str]] = [[] for _ in d.layers]
        self.y = float(HEAD)

    def svg(self) -> str:
        if self.costs:
            self._skyline()
        self._kinds()
        for group in dict.fromkeys(m.group for m in self.metrics):
            self._group(group)
            for metric in (m for m in self.metrics if m.group == group):
                self._row(metric)
        if self.deeds:
            self._group("what the recipe does")
            for deed in self.deeds:
                self._marks(deed.title, [deed.done(la) for la in self.layers], deed.title == "stays float32")
        bottom = self.y
        self._stages()
        hint = f"<text class='hint' x='{LEFT}' y='16'>point at a column; a click leads to its row</text>"
        body = "".join(
            f"<a class='col' href='#layer-{i}'>"
            f"<rect class='guide' {_box(self._x(i) - self.gap / 2, HEAD, self.cell, bottom - HEAD)}/>"
            f"{''.join(marks)}<g class='who'>{self._who(la)}</g></a>"
            for i, (la, marks) in enumerate(zip(self.layers, self.columns, strict=True))
        )
        label = f"Heat map of {len(self.layers)} layers in order by {len(self.metrics)} metrics"
        return (
            f"<svg class='heatmap' viewBox='0 0 {WIDTH} {self.y:.0f}' role='group' aria-label='{label}'>"
            f"{hint}{''.join(self.parts)}{body}</svg>"
        )

    def _label(self, text: str, down: float, tip: str = "") -> None:
        """A row's name at its left."""
        title = f"<title>{escape(tip)}</title>" if tip else ""
        at = f"x='{LEFT - 8}' y='{self.y + down:.0f}'"
        self.parts.append(f"<text class='name' {at} text-anchor='end'>{escape(text)}{title}</text>")

    def _line(self, y: float) -> None:
        """A faint line over all columns."""
        ends = f"x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'"
        self.parts.append(f"<line class='axis' {ends}/>")

    def _x(self, i: int) -> float:
        return LEFT + i * self.cell + self.gap / 2

    def _who(self, la: LayerDiagnosis) -> str:
        """The head line while the pointer is over the column; it covers the hint."""
        words = f"{la.index + 1}: {la.name} · {describe(la)}"
        cover = f"<rect class='cover' {_box(LEFT - 4, 0, WIDTH - LEFT, HEAD - 4)}/>"
        return f"{cover}<text class='name' x='{LEFT}' y='16'>{escape(words)}</text>"

    def _skyline(self) -> None:
        top, floor = self.y + 8, self.y + CHART - 16
        known = [c for la in self.layers for c in (la.cost, la.cost_stock) if c]
        low = math.floor(math.log10(max(min(known, default=1e-6), 1e-7)))
        high = max(low + 1, math.ceil(math.log10(max(known, default=1e-2))))

        def up(value: float) -> float:
            share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
            return floor - share * (floor - top)

        every = 1 if high - low <= 5 else 2
        for decade in range(low, high + 1):
            y = up(10.0**decade)
            self._line(y)
            if (decade - low) % every == 0:
                self.parts.append(f"<text x='{LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>1e{decade}</text>")
        self.parts.append(f"<text class='head' x='0' y='{top + 4:.0f}'>each layer alone,</text>")
        self.parts.append(f"<text class='head' x='0' y='{top + 20:.0f}'>lost at the output</text>")
        legend = (("stock", "stock calibration"), ("plan", "with the recipe"))
        for k, (kind, text) in enumerate(legend):
            y = top + 48 + 18 * k
            self.parts.append(f"<circle class='{kind}' cx='6' cy='{y - 4:.0f}' r='4'/>")
            self.parts.append(f"<text x='16' y='{y:.0f}'>{text}</text>")
        radius = min(4.5, max(2.2, self.cell / 4))
        for i, la in enumerate(self.layers):
            x = self._x(i) + (self.cell - self.gap) / 2
            ends = [(c, k) for c, k in ((la.cost_stock, "stock"), (la.cost, "plan")) if c is not None]
            if len(ends) == 2:
                a, b = up(ends[0][0]), up(ends[1][0])
                side = "gain" if b > a else "loss"
                self.columns[i].append(
                    f"<line class='{side}' x1='{x:.1f}' x2='{x:.1f}' y1='{a:.1f}' y2='{b:.1f}'/>"
                )
            for value, kind in ends:
                tip = f"<title>{escape(la.name)}: {kind} {cost(value)}</title>"
                at = f"cx='{x:.1f}' cy='{up(value):.1f}' r='{radius:.1f}'"
                self.columns[i].append(f"<circle class='{kind}' {at}>{tip}</circle>")
        self.y += CHART

    def _kinds(self) -> None:
        """One letter per layer."""
        self._label("kind of layer", 12)
        size = min(12.0, self.cell * 0.95)
        for i, la in enumerate(self.layers):
            middle = self._x(i) + (self.cell - self.gap) / 2
            tip = f"<title>{escape(la.name)}: {escape(describe(la))}</title>"
            self.columns[i].append(
                f"<text class='kind {LETTERS[la.kind]}' style='font-size:{size:.1f}px' x='{middle:.1f}' "
                f"y='{self.y + 12:.0f}' text-anchor='middle'>{LETTERS[la.kind]}{tip}</text>"
            )
        self.y += 18

    def _group(self, title: str) -> None:
        self.y += 5
        self.parts.append(f"<text class='head' x='0' y='{self.y + 11:.0f}'>{escape(title)}</text>")
        self._line(self.y + 7)
        self.y += GROUP + 2

    def _row(self, metric: Metric) -> None:
        y, height = self.y, ROW - GAP
        self._label(metric.title, 15, metric.what)
        self.parts += self._scale(metric, y)
        for i, la in enumerate(self.layers):
            value = metric.value(la)
            x, width = self._x(i), self.cell - self.gap
            if value is None:
                self.columns[i].append(f"<rect class='none' {_box(x, y + height / 2 - 0.5, width, 1)}/>")
                continue
            shade = step(metric, value)
            tip = f"<title>{escape(la.name)}: {escape(metric.title)} {escape(metric.text(value))}</title>"
            self.columns[i].append(
                f"<rect class='cell h{shade}' rx='2' {_box(x, y, width, height)}>{tip}</rect>"
            )
            text = metric.text(value).replace(" dB", "")
            if width >= 6.2 * len(text) + 3 and width >= 26:
                self.columns[i].append(
                    f"<text class='v{' strong' if shade >= STEPS * 0.6 else ''}' x='{x + width / 2:.1f}' "
                    f"y='{y + 15:.0f}' text-anchor='middle'>{escape(text)}</text>"
                )
        self.y += ROW

    def _scale(self, metric: Metric, y: float) -> Iterator[str]:
        """The row's own legend at its right end: the scale with the values of its two ends."""
        left, width = WIDTH - RIGHT + 8, RIGHT - 8
        for k in range(STEPS):
            box = _box(left + k * width / STEPS, y + 13, width / STEPS + 0.3, 6)
            yield f"<rect class='h{k}' {box}/>"
        ends = metric.text(metric.calm), metric.text(metric.alarm)
        for x, anchor, text in ((left, "start", ends[0]), (WIDTH, "end", ends[1])):
            yield f"<text class='end' x='{x}' y='{y + 10:.0f}' text-anchor='{anchor}'>{escape(text)}</text>"

    def _marks(self, title: str, done: Sequence[str | None], warn: bool) -> None:
        y = self.y
        self._label(title, 12)
        count = f"{sum(text is not None for text in done)} of {len(done)}"
        self.parts.append(f"<text class='end' x='{WIDTH - RIGHT + 8}' y='{y + 12:.0f}'>{count}</text>")
        for i, (la, text) in enumerate(zip(self.layers, done, strict=True)):
            x, width = self._x(i), self.cell - self.gap
            if text is None:
                self.columns[i].append(f"<rect class='none' {_box(x, y + 8, width, 1)}/>")
                continue
            tip = f"<title>{escape(la.name)}: {escape(text)}</title>"
            kind = "float" if warn else "deed"
            self.columns[i].append(f"<rect class='{kind}' rx='2' {_box(x, y + 3, width, 11)}>{tip}</rect>")
        self.y += 18

    def _stages(self) -> None:
        """Brackets with the names that neighbouring layers share, and the layers' own where there is room."""
        y = self.y + 8
        found = [
            (self._x(begin), self._x(end) + self.cell - self.gap, name)
            for begin, end, name in groups([la.name for la in self.layers])
        ]
        short = any((b - a) / 6.3 < len(name) for a, b, name in found)
        for a, b, name in found:
            self.parts.append(f"<path class='bracket' d='M{a:.1f} {y:.0f} v5 H{b:.1f} v-5'/>")
            if short:
                name = _tail(name, int((b - a) / 6.3))
            self.parts.append(
                f"<text x='{(a + b) / 2:.1f}' y='{y + 20:.0f}' text-anchor='middle'>{escape(name)}</text>"
            )
        self.y = y + 26


def _tail(name: str, room: int) -> str:
    """The last part of a dotted name, if it fits."""
    last = name.rpartition(".")[2]
    return last if len(last) <= room else ""


LETTERS = {
    "dense": "D", "grouped": "G", "depthwise": "d",
    "pointwise": "p", "transposed": "T", "fully connected": "F",
}  # fmt: skip
"""Kind of layer -> its letter in the heat map."""


def describe(la: LayerDiagnosis) -> str:
    """Kind, kernel and width in words."""
    k = la.weights.kernel
    size = f" {k[0]}x{k[1]}" if k != (1, 1) else ""
    return f"{la.kind}{size}, {la.channels} channels"


def groups(names: Sequence[str], most: int = 24) -> list[tuple[int, int, str]]:
    """Runs of layers below one module as (first, last, module), at the deepest level with few enough."""
    best = [(0, len(names) - 1, "")] if names else []
    for depth in range(1, 5):
        heads = [".".join(_modules(n)[:depth]) for n in names]
        runs: list[tuple[int, int, str]] = []
        for i, head in enumerate(heads):
            if runs and runs[-1][2] == head:
                runs[-1] = (runs[-1][0], i, head)
            else:
                runs.append((i, i, head))
        if len(runs) > max(most, 1) or (len(runs) == len(names) and len(names) > 1 and depth > 1):
            break
        best = runs
    return best


def _modules(name: str) -> list[str]:
    """The parts of ``stage1.0.conv`` or, in other exporters' files, ``/stage1/stage1.0/Conv``."""
    return name.strip("/").replace("/", ".").split(".")


def _box(x: float, y: float, width: float, height: float) -> str:
    return f"x='{x:.1f}' y='{y:.1f}' width='{max(0.5, width):.1f}' height='{height:.1f}'"
