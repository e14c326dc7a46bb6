"""How often is a difference claimed between two identical artifacts?

    python bench/profile_false_alarms.py

An artifact is compared with a copy of itself again and again; each comparison is what
``repedge profile A B`` does. As a control, a slower artifact (another precision or target, if given with
--other) must be told apart.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import repedge
from repedge.profile.measure import ROUNDS, compare


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "bundle", nargs="?", type=Path, help="default: the demo model as TFLite, compiled now"
    )
    parser.add_argument("--other", type=Path, help="a bundle that is known to be slower or faster")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = options.bundle or repedge.compile(targets=["tflite"], out=Path(folder)).bundles[0].path
        copy = Path(folder) / "copy"
        shutil.copytree(first, copy)
        rows = [series("a copy of itself", first, copy, options)]
        if options.other:
            rows.append(series(options.other.name, first, options.other, options))
    print(f"\n{first.name}: {options.runs} runs in {ROUNDS} rounds, {options.threads} threads\n")
    print(
        "| compared with | comparisons | faster | slower | no difference shown | ratio, smallest to largest |"
    )
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


def series(label: str, first: Path, second: Path, options: argparse.Namespace) -> str:
    """Verdicts of repeated comparisons."""
    verdicts: Counter[str] = Counter()
    ratios = []
    for i in range(options.times):
        result = compare([first, second], threads=options.threads, runs=options.runs).profiles[1]
        verdicts[str(result.verdict)] += 1
        ratios.append(float(result.ratio_p50 or 0))
        print(json.dumps({"n": i, "ratio": ratios[-1], "verdict": result.verdict}), file=sys.stderr)
    counts = " | ".join(str(verdicts[v]) for v in ("faster", "slower", "no difference shown"))
    return f"| {label} | {options.times} | {counts} | {min(ratios):.3f} to {max(ratios):.3f} |"


if __name__ == "__main__":
    main()
