"""Coverage: timm's mobile networks on every target, fp32 and fp16, verified on photos.

    python bench/zoo.py --images FOLDER [--out build/zoo.jsonl] [--minutes 15] [--jobs 4] [NAME ...]
    python bench/zoo.py --operators [NAME ...]        # only: what would each target refuse?
    python bench/zoo.py --table build/zoo.jsonl       # the table of docs/coverage.md

Needs timm (``pip install timm``). timm imports torchvision for loading images, which nothing here does:
where it is missing, something stands in for it here (``pip install --no-deps timm`` is enough then).

Weights are random but sane, by one rule for all networks (`networks.sane`). Each network has a process of its
own with a time limit; a network that is in the output file already is left out, so that a run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
import enum
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import ModuleType
from typing import Any

from networks import sane

TARGETS = ("coreml", "tflite", "openvino", "gpu")
PRECISIONS = ("fp32", "fp16")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
FLOOR = {"fp32": 90.0, "fp16": 40.0}
"""Decibels that a network must have on every target."""

GROUPS: dict[str, str] = {
    "repvgg": "a0 a1 a2 b0 b1g4 d2se",
    "repvit": "m0_9 m1 m1_0 m1_1 m1_5 m2 m2_3 m3",
    "mobileone": "s0 s1 s2 s3 s4",
    "fastvit": "t8 t12 s12 sa12 sa24 mci0",
    "repghostnet": "050 058 080 100 130 150",
    "ghostnetv3": "050 100 130 160",
    "mobilenetv4": "conv_small_035 conv_small_050 conv_small conv_medium conv_blur_medium conv_aa_medium "
    "hybrid_medium_075 hybrid_medium",
    "efficientvit": "b0 b1 b2 m0 m1 m2 m3 m4 m5",
    "edgenext": "xx_small x_small small small_rw",
    "mobilevit": "xxs xs s",
    "mobilevitv2": "050 075 100",
    "poolformer": "s12 s24",
    "poolformerv2": "s12 s24",
    "pvt_v2": "b0 b1 b2_li",
    "levit": "128s 128 192 256 384",
    "levit_conv": "128s 128",
    "deit": "tiny_patch16_224 small_patch16_224 tiny_distilled_patch16_224",
    "deit3": "small_patch16_224",
    "convnext": "atto femto pico nano tiny zepto_rms",
    "convnextv2": "atto femto",
    "inception_next": "atto tiny",
    "swiftformer": "xs s l1",
    "shvit": "s1 s2 s3 s4",
    "tiny_vit": "5m_224 11m_224",
    "efficientformer": "l1 l3",
    "efficientformerv2": "s0 s1",
}
NETWORKS = tuple(f"{group}_{name}" for group, names in GROUPS.items() for name in names.split())

FIRST = tuple(f"{group}_{names.split()[-1]}" for group, names in GROUPS.items())
"""One of each group."""


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="timm's names; all by default")
    parser.add_argument("--images", type=Path, help="a folder of photos")
    parser.add_argument("--out", type=Path, default=Path("build/zoo.jsonl"))
    parser.add_argument("--minutes", type=float, default=15.0, help="limit of a network")
    parser.add_argument("--count", type=int, default=4, help="photos to verify on")
    parser.add_argument("--jobs", type=int, default=1, help="networks at once, a thread each")
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.table:
        print(table(read(given.table)))
    elif given.one:
        print(json.dumps(operators(given.one) if given.operators else network(given)))
    elif given.operators:
        refused(given)
    else:
        sweep(given)


# --- the sweep, in the parent ----------------------------------------------------------------------------


def sweep(given: argparse.Namespace) -> None:
    """Every network that the file does not have yet, each in its own process."""
    if given.images is None:
        sys.exit("give photos: --images FOLDER")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["network"] for row in read(given.out)}
    names = [name for name in given.names or NETWORKS if name not in done]
    options = ["--images", str(given.images.resolve()), "--count", str(given.count)]
    for row in children(names, options, given):
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(line(row), flush=True)


def refused(given: argparse.Namespace) -> None:
    """What each target refuses of each network, without compiling any."""
    total: Counter[str] = Counter()
    for row in children(given.names or FIRST, ["--operators"], given):
        print(json.dumps(row), flush=True)
        total.update({f"{t}: {op}" for t, ops in row.get("refused", {}).items() for op in ops})
    for what, count in total.most_common():
        print(count, what)


def children(
    names: Sequence[str], options: Sequence[str], given: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """What each network's process says, as they end; ``--jobs`` run at once."""
    with ThreadPoolExecutor(given.jobs) as pool:
        waiting = [pool.submit(child, name, options, given.minutes) for name in names]
        try:
            for future in as_completed(waiting):
                yield future.result()
        finally:  # an interrupt begins no more
            pool.shutdown(wait=False, cancel_futures=True)


def child(name: str, options: Sequence[str], minutes: float) -> dict[str, Any]:
    """What a process of its own says of one network."""
    began = time.monotonic()
    command = [sys.executable, __file__, "--one", name, *options]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60 * minutes, env=os.environ | ONE_THREAD
        )
    except subprocess.TimeoutExpired:
        return {"network": name, "error": f"not done in {minutes:g} minutes"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return {"network": name, "error": f"exit code {done.returncode}: {last[:300]}"}
    return {**json.loads(lines[-1]), "seconds": round(time.monotonic() - began, 1)}


# --- one network, in the child ---------------------------------------------------------------------------


def network(given: argparse.Namespace) -> dict[str, Any]:
    """One network on every target: ``{target: {precision: {db, seconds} or {error}}}``."""
    import tempfile

    module, size = build(given.one, given.images)
    row: dict[str, Any] = {"network": given.one, "size": size}
    row["parameters"] = sum(p.numel() for p in module.parameters())
    with tempfile.TemporaryDirectory() as folder:
        together = compiled(module, size, TARGETS, given, folder)
        if isinstance(together, dict):
            return {**row, "targets": together}
        found: dict[str, Any] = {}
        for target in TARGETS:
            alone = compiled(module, size, (target,), given, folder)
            found |= alone if isinstance(alone, dict) else {target: {"error": alone}}
    return {**row, "targets": found}


def compiled(
    module: Any, size: tuple[int, int], targets: Sequence[str], given: argparse.Namespace, folder: str
) -> dict[str, Any] | str:
    """Figures of each target and precision, or why there are none."""
    import copy

    import repedge
    from repedge.errors import RepedgeError

    try:
        report = repedge.compile(
            copy.deepcopy(module),
            input_size=size,
            targets=targets,
            precisions=PRECISIONS,
            out=folder,
            force=True,
            images=given.images,
            count=given.count,
        )
    except RepedgeError as error:
        return str(error)[:600]
    found: dict[str, Any] = {target: {} for target in targets}
    for b in report.bundles:
        own = sum(s for stage, s in b.seconds.items() if stage in ("compile", "verify"))
        found[b.target][b.precision] = {
            "db": round(min(b.verify.sqnr_db, 999.0), 1),
            "passed": b.verify.passed,
            "seconds": round(own, 2),
            "mb": round(b.size_bytes / 1e6, 2),
        }
    return found


def operators(name: str) -> dict[str, Any]:
    """``{target: {operator: why, of its first node}}``, of the targets that refuse anything."""
    from repedge import passes, targets
    from repedge.errors import RepedgeError
    from repedge.graph.export import export
    from repedge.passes.batch import dynamic_batch

    module, size = build(name, None)
    exported = export(module, (1, 3, *size))
    passes.clean(exported.model)
    found: dict[str, Any] = {}
    for target in TARGETS:
        for u in targets.get(target).unsupported(exported.model):
            found.setdefault(target, {}).setdefault(u.op, f"{u.node}: {u.why}")
    try:
        dynamic_batch(exported.model)
    except RepedgeError as error:
        found.setdefault("batch", {})["dynamic"] = str(error)[:300]
    return {"network": name, "refused": found}


def build(name: str, images: Path | None) -> tuple[Any, tuple[int, int]]:
    """The network in eval mode with sane weights, and its input's height and width."""
    import timm
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = timm.create_model(name, pretrained=False)
    size = tuple(module.pretrained_cfg["input_size"][1:])
    sane.spread_scales(module)
    if images is not None:
        sane.settle(module, sane.batch(images, size))
    return module.eval(), size  # type: ignore[return-value]


# --- the table -------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text.strip()]


def passes(row: dict[str, Any]) -> bool:
    """Whether a network keeps to `FLOOR` on every target."""
    cells = [(p, row.get("targets", {}).get(t, {}).get(p)) for t in TARGETS for p in PRECISIONS]
    return all(c is not None and c["passed"] and c["db"] > FLOOR[p] for p, c in cells)


def cell(row: dict[str, Any], target: str, precision: str) -> str:
    """One figure: decibels and seconds."""
    found = row.get("targets", {}).get(target, {}).get(precision)
    if found is None:
        return "-"
    mark = "" if found["passed"] and found["db"] > FLOOR[precision] else " **!**"
    return f"{found['db']:.0f} dB, {found['seconds']:.0f} s{mark}"


def line(row: dict[str, Any]) -> str:
    """A network in one line for a terminal."""
    if "error" in row:
        return f"{row['network']}: {row['error']}"
    cells = [f"{t} {' '.join(cell(row, t, p) for p in PRECISIONS)}" for t in TARGETS]
    errors = [f"{t}: {v['error']}" for t, v in row["targets"].items() if "error" in v]
    return f"{'ok ' if passes(row) else 'NOT'} {row['network']}: {'; '.join(cells + errors)}"


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The Markdown table, and how many networks pass."""
    rows = sorted(rows, key=lambda row: row["network"])
    return "\n".join(_lines(rows))


def _lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"{sum(map(passes, rows))} of {len(rows)} networks pass on all targets."
    yield ""
    heads = [f"{t} {p}" for t in TARGETS for p in PRECISIONS]
    yield f"| network | params | {' | '.join(heads)} |"
    yield "| --- " * (len(heads) + 2) + "|"
    for row in rows:
        count = row.get("parameters")
        size = "" if count is None else f"{count / 1e6:.1f} M"
        cells = [cell(row, t, p) for t in TARGETS for p in PRECISIONS]
        yield f"| {row['network']} | {size} | {' | '.join(cells)} |"


# --- where torchvision is missing ------------------------------------------------------------------------


class InterpolationMode(enum.Enum):
    """The names that timm looks up."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class _Module(ModuleType):
    """Any attribute is a class of its own that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return InterpolationMode if name == "InterpolationMode" else type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.split(".")[0] != "torchvision" or fullname.endswith("feature_extraction"):
            return None  # timm does without the latter
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        module = _Module(spec.name)
        module.__version__ = "0"  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def stand_in() -> bool:
    """Put the stand-in in place if torchvision is missing; whether it was."""
    if importlib.util.find_spec("torchvision") is not None:
        return False
    sys.meta_path.append(_Finder())
    return True


if __name__ == "__main__":
    stand_in()
    main()
