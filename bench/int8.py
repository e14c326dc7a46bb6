r"""int8: repedge beside the stock quantizers, same photos, same evaluation, artifacts really run.

    python bench/int8.py accuracy --model mobileone --weights mobileone_s0_in1k.safetensors \\
        --data imagenet-sample
    python bench/int8.py accuracy --model repvit_demo --data cifar10.zip [--limit 200] [--only repedge-tflite]
    python bench/int8.py latency [--models repvgg_a0 repvit_m0_9] [--threads 1] [--runtime LiteRT]
    python bench/int8.py memory --model mobileone --weights mobileone_s0_in1k.safetensors \\
        --data imagenet-sample

``accuracy`` takes a seeded choice of ``--calib`` photos to calibrate on (at most 200; no label is read)
and evaluates on all others; with a train/ and a test/ part it calibrates on train and evaluates on test.
With several seeds, a row pools as many such splits.
Each method runs in a fresh process on one thread; finished rows are kept in the ``--work`` folder, and a
second start goes on from them. repedge's artifacts take pixels (its default), the peers' the normalised
float input, made from the same 8-bit pixels. Needs the bench extra: pip install 'repedge[bench]'.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BARS = "bars: drop <= 0.3 points; MobileOne-S0 also agreement >= 97 %, SQNR >= 19 dB, KL <= 0.011, " \
    "TensorRT-symmetric >= 15 dB; default recipe <= 60 s of one core; size <= 0.27 of fp32"  # fmt: skip
PHOTO_COUNTS = (64, 200, 600)


def accuracy(args: argparse.Namespace) -> None:
    """One row per method, over all seeds; those that were measured before are only printed."""
    import peers
    from support import int8_data, int8_methods

    works = [_work(args, seed) for seed in args.seed]
    print("  ".join(f"{k} {v}" for k, v in peers.versions().items()))
    right = [(w.logits().argmax(1) == w.evaluation[1]).mean() for w in works]
    print(
        f"{args.model}, float top-1 {sum(right) / len(right):.2%}; calibrated on {args.calib}, "
        f"judged on other photos (seeds {', '.join(map(str, args.seed))})\n{BARS}\n"
    )
    print("| method | runtime | n | top-1 | drop, points | agree | SQNR dB | KL | calib CPU s | size |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for key in args.only or list(int8_methods.METHODS):
        rows = []
        for work in works:
            row = work.rows().get(key)
            if row is None:
                row = child("row", str(work.folder), key, str(args.slow_limit))
                if row is None:
                    continue
                # Read again: another start may have finished other rows meanwhile.
                int8_data.write_json(work.folder / "rows.json", {**work.rows(), key: row})
            rows.append(row)
        if rows:
            print(line(pooled(rows)), flush=True)


def _work(args: argparse.Namespace, seed: int) -> Any:
    from support import int8_data

    name = f"{Path(args.model).name}-{args.calib}-{args.limit or 'all'}-{seed}"
    folder = (args.work or Path("build/bench-int8")) / name
    return int8_data.prepare(folder, args.model, args.weights, args.data, args.calib, args.limit, seed)


def pooled(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Several splits as one: means over all photos judged, the noise's power averaged.

    The standard error takes the splits as independent; they share photos, but not calibrations.
    """
    n = sum(r["n"] for r in rows)
    share = [r["n"] / n for r in rows]
    mean = {
        k: sum(w * r[k] for w, r in zip(share, rows, strict=True)) for k in ("top1", "drop", "agree", "kl")
    }
    noise = sum(w * 10 ** (-r["sqnr"] / 10) for w, r in zip(share, rows, strict=True))
    se = math.sqrt(sum((w * r["se"]) ** 2 for w, r in zip(share, rows, strict=True)))
    worst = {k: max(r[k] for r in rows) for k in ("cpu_s", "size")}
    return {"key": rows[0]["key"], "n": n, **mean, "se": se, "sqnr": -10 * math.log10(noise), **worst}


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    from support import int8_methods

    m = int8_methods.METHODS[row["key"]]
    return (
        f"| {m.who}, {m.how} | {m.runtime} | {row['n']} | {row['top1']:.2%} "
        f"| {row['drop'] * 100:+.2f} ± {row['se'] * 100:.2f} | {row['agree']:.2%} ± {_spread(row):.2%} "
        f"| {row['sqnr']:.2f} | {row['kl']:.4f} | {row['cpu_s']:.0f} | {row['size']:.3f} |"
    )


def _spread(row: dict[str, Any]) -> float:
    return math.sqrt(row["agree"] * (1 - row["agree"]) / row["n"])


def child(*arguments: str) -> dict[str, Any] | None:
    """A part in a fresh process on one thread; its last line of output is JSON. None if it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, __file__, "child", *arguments],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        print(f"{' '.join(arguments)} failed:\n{done.stderr[-1500:]}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def run_child(arguments: list[str]) -> None:
    """What `child` starts."""
    import torch

    torch.set_num_threads(1)
    part, *rest = arguments
    result: dict[str, Any]
    if part == "row":
        from support.int8_data import Work
        from support.int8_methods import measure

        result = measure(Work(Path(rest[0])), rest[1], int(rest[2]))
    elif part == "pair":
        from int8_latency import pair

        result = pair(rest[0], rest[1], rest[2], *map(int, rest[3:]))
    else:
        from int8_latency import calibrate

        result = calibrate(rest[0], rest[1] or None, Path(rest[2]), int(rest[3]))
    print("\n" + json.dumps(result))


def memory(args: argparse.Namespace) -> None:
    """Peak memory of calibrating, which must not grow with the photos."""
    print("| photos | peak MB | in step | before calibrating MB | CPU s |")
    print("| --- | --- | --- | --- | --- |")
    for count in PHOTO_COUNTS:
        row = child("memory", args.model, str(args.weights or ""), str(args.data), str(count))
        if row is not None:
            print(
                f"| {count} | {row['peak_mb']:.0f} | {row['peak_in']} | {row['before_mb']:.0f} "
                f"| {row['cpu_s']:.0f} |",
                flush=True,
            )


def latency(args: argparse.Namespace) -> None:
    """repedge's integer artifacts and the peers' in turns."""
    import int8_latency
    import peers

    print("  ".join(f"{k} {v}" for k, v in peers.versions().items()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.work or Path(scratch)
        int8_latency.latency(args.models, folder, args.runs, args.threads, args.rounds, child, args.runtime)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = top.add_subparsers(dest="part", required=True)
    one = parts.add_parser("accuracy")
    two = parts.add_parser("memory")
    for sub in (one, two):
        sub.add_argument("--model", required=True, help="mobileone, repvit_demo, or as for repedge compile")
        sub.add_argument("--weights", type=Path)
        sub.add_argument(
            "--data", type=Path, required=True, help="folder with labels.json, or train/ and test/"
        )
    one.add_argument("--calib", type=int, default=200, help="photos to calibrate on")
    one.add_argument("--limit", type=int, help="evaluate on this many")
    one.add_argument("--seed", type=int, nargs="+", default=[2026], help="of the split; several are pooled")
    one.add_argument("--only", nargs="+", metavar="METHOD")
    one.add_argument("--slow-limit", type=int, default=500, help="photos for the MIL interpreter")
    one.add_argument("--work", type=Path, help="default: build/bench-int8")
    three = parts.add_parser("latency")
    three.add_argument("--models", nargs="+", default=["repvgg_a0", "repvit_m0_9"])
    three.add_argument("--runs", type=int, default=60, help="of each artifact in a process")
    three.add_argument("--rounds", type=int, default=10, help="processes")
    three.add_argument("--threads", type=int, default=1)
    three.add_argument("--runtime", nargs="+", default=[], help="such as 'ONNX Runtime'; default: all")
    three.add_argument("--work", type=Path, help="keeps the artifacts")
    return top


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        run_child(sys.argv[2:])
        return
    args = parser().parse_args()
    {"accuracy": accuracy, "latency": latency, "memory": memory}[args.part](args)


if __name__ == "__main__":
    main()
