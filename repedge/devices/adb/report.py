"""The text report of TFLite's ``benchmark_model``, read.

Source: ``OnBenchmarkEnd`` of benchmark_model.cc, the delegate messages of benchmark_tflite_model.cc and
the tables of stats_calculator.cc (TensorFlow and LiteRT). Lines may begin with ``INFO: ``; older
releases have no percentiles in the ``count=`` lines and a ``[start]`` column in the tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NUMBER = r"[-+0-9.eE]+"
MB = 1 << 20
TIMINGS = re.compile(
    rf"Inference timings in us: Init: ({NUMBER}), First inference: ({NUMBER}), "
    rf"Warmup \(avg\): ({NUMBER}), Inference \(avg\): ({NUMBER})"
)
MEMORY = re.compile(rf"(?:Peak memory|Memory) footprint.*\(MB\): init=({NUMBER}) overall=({NUMBER})")
PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: ({NUMBER})")
FIELD = re.compile(rf"(\w+)=({NUMBER})")
COUNT = re.compile(r"^(?:INFO: )?count=\d")
APPLIED = re.compile(r"Explicitly applied (\S+) delegate, and the model graph will be (completely|partially)")
KERNELS = re.compile(r"executed by the delegate w/ (\d+) delegate kernels")
UNUSED = re.compile(r"Though (\S+) delegate is explicitly applied, the model graph will not be executed")
REPLACED = re.compile(r"Replacing (\d+) out of (\d+) node\(s\) with delegate \((\w+)\)")
TABLE = "Operator-wise Profiling Info for Regular Benchmark Runs"


@dataclass(frozen=True)
class Stats:
    """One ``count=`` line, in milliseconds; with one run alone the tool prints its time only."""

    count: int
    first: float
    min: float
    max: float
    avg: float
    median: float | None
    p95: float | None


@dataclass(frozen=True)
class OpRow:
    """One row of the run-order table: mean time of one run in milliseconds."""

    name: str
    type: str
    ms: float


@dataclass(frozen=True)
class Report:
    """What ``benchmark_model`` said.

    Attributes:
        init_ms, first_ms: Loading and the first run.
        warmup, runs: The two ``count=`` lines.
        overall_bytes: Growth of the process from the tool's start.
        peak_bytes: Most memory held, where it was asked for.
        delegates: Names of the delegates in use.
        partitions: Parts that a delegate runs; None where the report does not say.
        inside, nodes: Operators that a delegate took, of how many.
        ops: Rows of the run-order table, if it was asked for.
    """

    init_ms: float
    first_ms: float
    warmup: Stats
    runs: Stats
    overall_bytes: int | None
    peak_bytes: int | None
    delegates: tuple[str, ...]
    partitions: int | None
    inside: int | None
    nodes: int | None
    ops: tuple[OpRow, ...]


class Unreadable(ValueError):
    """The text is not such a report; the message is what the tool said instead."""


def parse(text: str) -> Report:
    """Read a report.

    Raises:
        Unreadable: A part that every report has is missing or damaged.
    """
    lines = [line.rstrip("\r") for line in text.split("\n")]
    timings = TIMINGS.search(text)
    counts = [line for line in lines if COUNT.match(line.strip())]
    if timings is None or len(counts) < 2:
        raise Unreadable(complaint(lines))
    try:
        memory, peak = MEMORY.search(text), PEAK.search(text)
        inside, nodes = _replaced(text)
        return Report(
            init_ms=float(timings[1]) / 1000,
            first_ms=float(timings[2]) / 1000,
            warmup=_stats(counts[0]),
            runs=_stats(counts[1]),
            overall_bytes=int(float(memory[2]) * MB) if memory else None,
            peak_bytes=int(float(peak[1]) * MB) if peak else None,
            delegates=_delegates(text),
            partitions=_partitions(text, inside, nodes),
            inside=inside,
            nodes=nodes,
            ops=_operators(lines),
        )
    except (KeyError, ValueError, IndexError) as e:
        raise Unreadable(f"a damaged report: {e}") from e


def complaint(lines: list[str]) -> str:
    """The line that says most about why there is no report."""
    said = [line.strip() for line in lines if line.strip()]
    for word in (
        "ERROR",
        "error:",
        "CANNOT LINK",
        "not executable",
        "denied",
        "Failed",
        "Aborted",
        "Segmentation",
    ):
        for line in said:
            if word in line:
                return line[:300]
    return said[-1][:300] if said else "it printed nothing"


def _stats(line: str) -> Stats:
    """``count=50 first=106022 curr=105780 min=.. max=.. avg=.. std=.. p5=.. median=.. p95=..`` in us.

    Where all runs took the same time the line is ``count=5 curr=105929(all same)``.
    """
    fields = {key: float(value) for key, value in FIELD.findall(line)}
    count = int(fields.pop("count"))
    ms = {key: value / 1000 for key, value in fields.items()}
    only = ms["curr"]
    return Stats(
        count=count,
        first=ms.get("first", only),
        min=ms.get("min", only),
        max=ms.get("max", only),
        avg=ms.get("avg", only),
        median=ms.get("median", None if "avg" in ms else only),
        p95=ms.get("p95"),
    )


def _delegates(text: str) -> tuple[str, ...]:
    names = [m[1] for m in APPLIED.finditer(text)]
    names += [
        m[3].removeprefix("TfLite").removesuffix("V2").removesuffix("Delegate")
        for m in REPLACED.finditer(text)
    ]
    if not names and "Created TensorFlow Lite XNNPACK delegate" in text:
        names.append("XNNPACK")
    return tuple(dict.fromkeys(name.upper() for name in names))


def _partitions(text: str, inside: int | None, nodes: int | None) -> int | None:
    if kernels := KERNELS.search(text):
        return int(kernels[1])
    if (applied := APPLIED.search(text)) and applied[2] == "completely":
        return 1
    if UNUSED.search(text):
        return 0
    return 1 if inside is not None and inside == nodes and nodes else None


def _replaced(text: str) -> tuple[int | None, int | None]:
    """Operators taken by all delegates, of those in the model (the first delegate sees them all)."""
    found = list(REPLACED.finditer(text))
    return (sum(int(m[1]) for m in found), int(found[0][2])) if found else (None, None)


def _operators(lines: list[str]) -> tuple[OpRow, ...]:
    """The run-order table after `TABLE`; its columns are those that its header names."""
    start = next((i for i, line in enumerate(lines) if TABLE in line), None)
    if start is None:
        return ()
    head = next((i for i in range(start, len(lines)) if "[node type]" in lines[i]), None)
    if head is None:
        return ()
    columns = [cell.strip() for cell in lines[head].strip("\t ").split("\t")]
    rows = []
    for line in lines[head + 1 :]:
        cells = [cell.strip() for cell in line.strip("\t ").split("\t")]
        if len(cells) != len(columns):
            break  # the empty line after the table
        row = dict(zip(columns, cells, strict=True))
        calls = max(1, int(row["[times called]"]))  # 0 in old releases: fewer than one a run
        rows.append(OpRow(row["[Name]"], row["[node type]"], float(row["[avg ms]"]) * calls))
    return tuple(rows)
