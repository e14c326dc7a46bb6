r"""Networks with heads: repedge's integers beside the stock quantizers', same photos, artifacts really run.

    python bench/tasks.py agreement yolox_nano.onnx --images FOLDER --calib 200 --judge 400 \\
        --model resize=letterbox-corner color=BGR mean=0,0,0 std=0.00392157,0.00392157,0.00392157
    python bench/tasks.py map demo-detect --images bccd.zip --data bccd/data.yaml
    python bench/tasks.py segment best.pt --images camvid/train --data camvid/val
    python bench/tasks.py fewshot best.pt --images omniglot/train --data omniglot/sanskrit
    python bench/tasks.py latency yolox_nano.onnx --images FOLDER [--rounds 50]

``agreement`` takes a seeded choice of photos to calibrate on and others to judge, and holds every artifact
against what the float network finds from ``--score`` on; the others hold it against the truth of ``--data``
by the task's own metric. Every subject runs on the same photos; a difference from repedge's is paired, with
its standard error by bootstrap over the photos (for few-shot: over the episodes). ``latency`` runs repedge's
and the peers' artifacts in turn, so that what else the machine does meets all of them.

The peers get the float graph as repedge exported it (ai-edge-quantizer: as repedge wrote it for TensorFlow
Lite) and the same calibration photos. Finished rows are kept in ``--work``, and a second start goes on from
them. Needs the bench extra: pip install 'repedge[bench]'.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

Run = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]
"""(pixels uint8 [n, H, W, C], inputs float32 [n, C, H, W]) -> every output as the graph has it."""

TARGETS = ("tflite", "openvino", "coreml", "gpu")

PEERS: dict[str, tuple[str, ...]] = {
    "tflite": ("ai-edge-quantizer",),
    "openvino": ("nncf", "nncf, Sigmoid ignored"),
    "coreml": (),  # coremltools calibrates on a Mac only
    "gpu": ("onnxruntime", "onnxruntime, symmetric"),
}
"""Target -> who else quantizes for it."""

BATCH = 8


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("agreement", "map", "segment", "fewshot", "latency"))
    parser.add_argument("network", help="as for `repedge compile`")
    parser.add_argument("--images", type=Path, required=True, help="photos to calibrate on (and to judge)")
    parser.add_argument("--data", type=Path, help="a data set with the truth")
    parser.add_argument("--model", nargs="*", default=[], help="NAME=VALUE, as repedge.compile takes them")
    parser.add_argument("--calib", type=int, default=200)
    parser.add_argument("--judge", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score", type=float, default=0.3, help="of the float detections that are the truth")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--ways", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--work", type=Path, default=Path("build/bench-tasks"))
    given = parser.parse_args()
    if given.what not in ("agreement", "latency") and given.data is None:
        parser.error(f"{given.what} needs the truth: --data")
    bench = Bench(given)
    if given.what == "latency":
        bench.latency()
    else:
        bench.accuracy()


@dataclass(frozen=True)
class Subject:
    """One artifact.

    Attributes:
        who: ``repedge`` or the peer.
        target: The format's target.
        path: The file.
        run: Runs it.
    """

    who: str
    target: str
    path: Path
    run: Run


class Bench:
    """One network, its photos and the rows that are finished."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        name = f"{Path(given.network).stem}-{given.calib}-{given.recipe}-{given.seed}"
        self.work: Path = given.work / name
        self.work.mkdir(parents=True, exist_ok=True)
        self.rows_file = self.work / f"{given.what}.json"
        self.calib, self.judge = self._split()

    def _split(self) -> tuple[Path, Path]:
        """Folders with the photos to calibrate on and those to judge, copied once.

        Where the truth is a data set of its own, photos are taken as repedge takes them, from ``--images``.
        """
        given = self.given
        if given.data is not None or not given.images.is_dir():
            return given.images, given.data or given.images
        from repedge.photos.images import is_image_name

        files = sorted(p for p in given.images.rglob("*") if is_image_name(p.name))
        order = np.random.default_rng(given.seed).permutation(len(files))
        folders = self.work / "calib", self.work / f"judge-{given.judge}"
        chosen = order[: given.calib], order[given.calib : given.calib + given.judge]
        for folder, indices in zip(folders, chosen, strict=True):
            if not folder.is_dir():
                folder.mkdir()
                for i in indices:
                    shutil.copyfile(files[i], folder / f"{i:05d}{files[i].suffix}")
        return folders

    # --- artifacts -----------------------------------------------------------------------------------------

    def bundle(self, target: str, precision: str = "w8a8", kind: str = "uint8") -> Any:
        """repedge's bundle, compiled once; verified or not."""
        import repedge
        from repedge.bundle.folder import Bundle

        out = self.work / f"repedge-{kind}"
        known = [*out.glob(f"*-{target}-{precision}*")] if out.is_dir() else []
        if not known:
            report = repedge.compile(
                self.given.network, targets=[target], precisions=[precision], out=out, force=True,  # type: ignore[list-item]
                input_kind=kind, calib=str(self.calib), calib_count=self.given.calib,  # type: ignore[arg-type]
                recipe=self.given.recipe, **dict(_option(o) for o in self.given.model),
            )  # fmt: skip
            built = report.bundles[0]
            print(f"{target} {precision}: {built.path.name}, verified: {built.verify.passed}", flush=True)
            known = [built.path]
        return Bundle.open(known[0], allow_unverified=True)

    def subjects(self, target: str) -> Iterator[Subject]:
        """repedge's artifact, then the peers'."""
        bundle = self.bundle(target)
        yield self._repedge(bundle)
        for peer in () if self.given.no_peers else PEERS[target]:
            try:
                yield self._peer(peer, target, bundle)
            except Exception as error:  # a peer may fail in any way
                print(f"{peer} on {target}: {type(error).__name__}: {str(error)[:300]}", flush=True)

    def _repedge(self, bundle: Any) -> Subject:
        from repedge.judge.verification import open_bundle

        _, runner = open_bundle(bundle, 1)
        target = bundle.manifest.target
        return Subject("repedge", target, bundle.artifact, lambda pixels, x: runner.run(pixels))

    def _peer(self, peer: str, target: str, bundle: Any) -> Subject:
        import peers

        folder = self.work / "peers"
        folder.mkdir(exist_ok=True)
        name = peer.replace(", ", "-").replace(" ", "-")
        reference = str(bundle.reference)
        if target == "tflite":
            path = folder / f"{name}.tflite"
            floats = self.bundle("tflite", "fp32", "float32")
            if not path.is_file():
                peers.ai_edge_quantize(floats.artifact, self._inputs(bundle), path)
            return Subject(peer, target, path, _tflite(floats, path))
        if target == "openvino":
            import openvino as ov

            path = folder / f"{name}.xml"
            if not path.is_file():
                ov.save_model(ov.convert_model(reference), folder / "float.xml", compress_to_fp16=False)
                ignored = ("Sigmoid",) if "ignored" in peer else ()
                peers.nncf_quantize(folder / "float.xml", self._inputs(bundle), path, ignored=ignored)
            return Subject(peer, target, path, _openvino(path))
        path = folder / f"{name}.onnx"
        if not path.is_file():
            inputs, symmetric = self._inputs(bundle), "symmetric" in peer
            peers.onnxruntime_quantize(Path(reference), inputs, path, symmetric=symmetric)
        return Subject(peer, target, path, _onnx(path))

    def _inputs(self, bundle: Any) -> list[np.ndarray]:
        """The calibration photos as the float network takes them, float32 [1, C, H, W] each."""
        from repedge.photos import images
        from repedge.photos.choice import load

        pre = bundle.manifest.preprocess
        chosen = load(str(self.calib), pre, count=self.given.calib, seed=self.given.seed)
        feed = chosen.feed(True, None)
        pixels = (x.transpose(0, 2, 3, 1).astype(np.uint8) for x in feed.batches())
        return [one[None] for batch in pixels for one in images.normalise(batch, pre)]

    # --- accuracy ------------------------------------------------------------------------------------------

    def accuracy(self) -> None:
        """A row for each artifact; those of a target that was finished before are only printed."""
        rows = json.loads(self.rows_file.read_text()) if self.rows_file.is_file() else {}
        for target in self.given.targets:
            if target not in rows:
                rows[target] = list(self._judged(target))
                self.rows_file.write_text(json.dumps(rows, indent=1))
        print(table([row for target in self.given.targets for row in rows[target]]))

    def _judged(self, target: str) -> Iterator[dict[str, Any]]:
        from repedge.bundle.manifest import task_of
        from repedge.judge.verification import open_reference
        from repedge.tasks.comparison import Agreement
        from repedge.tasks.resampling import change

        bundle = self.bundle(target)
        subjects = list(self.subjects(target))
        task = task_of(bundle.manifest)
        if self.given.what == "fewshot":
            task = task.asked(ways=self.given.ways, shots=1, episodes=self.given.episodes)
        reference = open_reference(bundle, 1)
        exact, scorers = task.scorer(), [task.scorer() for _ in subjects]
        agreements = [Agreement(task) for _ in subjects]
        for pixels, x, truths in self._photos(task, bundle.manifest.preprocess):
            want = reference(x)
            if self.given.what == "agreement":
                truths = answers(task, want, self.given.score)
            for subject, scorer, agreement in zip(subjects, scorers, agreements, strict=True):
                got = subject.run(pixels, x)
                agreement.update(want, got)
                if scorer is not None:
                    scorer.update(got, truths)
            if exact is not None:
                exact.update(want, truths)
        for subject, scorer, agreement in zip(subjects, scorers, agreements, strict=True):
            row: dict[str, Any] = {"target": target, "who": subject.who, "n": agreement.n}
            row["mb"] = round(_size(subject.path) / 1e6, 2)
            row |= {k: v for k, v in agreement.figures().items() if v is not None}
            row["sqnr_db"] = agreement.sqnr_db
            if scorer is not None and exact is not None:
                row |= scorer.score()
                lost = change(exact, scorer)
                behind = None if scorer is scorers[0] or scorers[0] is None else change(scorers[0], scorer)
                row |= {} if lost is None else {"drop": 100 * lost.value, "drop_se": 100 * lost.error}
                row |= (
                    {} if behind is None else {"behind": 100 * behind.value, "behind_se": 100 * behind.error}
                )
            yield row

    def _photos(self, task: Any, pre: Any) -> Iterator[tuple[np.ndarray, np.ndarray, list[Any]]]:
        """Batches of the photos to judge: pixels, inputs, truths (None where they are not asked for)."""
        from repedge.judge.evaluation import placed, upright
        from repedge.photos import images
        from repedge.photos.photos import batches, open_photos, spread

        known = self.given.what != "agreement"
        photos = open_photos(self.judge, pre, option="eval", truth=task.annotated if known else None)
        truth_of = task.truths(photos) if known else None
        limit = None if known else self.given.judge
        for batch in batches(photos, spread(photos.total, limit), (pre,), BATCH, upright=upright(photos)):
            if not batch.names:
                continue
            truths = placed(task, batch, truth_of, pre)
            kept = [i for i, t in enumerate(truths) if t is not None or not known]
            pixels = batch.pixels[pre][kept]
            yield pixels, images.normalise(pixels, pre), [truths[i] for i in kept]

    # --- latency -------------------------------------------------------------------------------------------

    def latency(self) -> None:
        """Milliseconds of an image on one thread, all artifacts in turn."""
        rows = []
        for target in self.given.targets:
            subjects = list(self.subjects(target))
            pre = self.bundle(target).manifest.preprocess
            rng = np.random.default_rng(0)
            pixels = rng.integers(0, 256, (1, *pre.size, pre.channels), dtype=np.uint8)
            x = rng.standard_normal((1, pre.channels, *pre.size)).astype(np.float32)
            times = timed(subjects, pixels, x, self.given.rounds)
            for subject, found in zip(subjects, times, strict=True):
                row = {"target": target, "who": subject.who, "n": len(found), "ms_least": min(found)}
                row |= {"ms_median": statistics.median(found), "of_peer": min(times[0]) / min(found)}
                if target == "tflite":
                    row["partitions"] = _partitions(subject.path)
                rows.append(row)
        print(table(rows))


def answers(task: Any, outputs: Sequence[np.ndarray], score: float) -> list[Any]:
    """What the float network finds, as if it were the truth: detections from a score on."""
    if task.name != "detect":
        return list(task.as_truths(outputs))
    from repedge.tasks.boxes import Objects

    found = task.decode(outputs, score=score)
    return [Objects(d.boxes, d.classes, np.zeros(len(d), bool)) for d in found]


def timed(subjects: Sequence[Subject], pixels: np.ndarray, x: np.ndarray, rounds: int) -> list[list[float]]:
    """Milliseconds of each round of each subject; a few rounds ahead warm up."""
    found: list[list[float]] = [[] for _ in subjects]
    for round_ in range(-3, rounds):
        for subject, times in zip(subjects, found, strict=True):
            began = time.perf_counter()
            subject.run(pixels, x)
            if round_ >= 0:
                times.append(1e3 * (time.perf_counter() - began))
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown, a column for each key."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(keys)} |", f"|{' --- |' * len(keys)}"]
    for row in rows:
        cells = (row.get(key, "") for key in keys)
        lines.append(f"| {' | '.join(f'{c:.4g}' if isinstance(c, float) else str(c) for c in cells)} |")
    return "\n".join(lines)


def _option(text: str) -> tuple[str, Any]:
    """``mean=0,0,0`` -> ("mean", (0.0, 0.0, 0.0)); what is no row of numbers stays text."""
    name, _, value = text.partition("=")
    if "," in value:
        return name, tuple(float(v) for v in value.split(","))
    return name, value


def _tflite(floats: Any, path: Path) -> Run:
    """A peer's file that was made of repedge's float one: the same signature, but integers in and out."""
    import peers

    from repedge.targets.tflite.runner import open_interpreter

    runner = open_interpreter(path, 1).get_signature_runner("serving_default")
    ((name, takes),) = runner.get_input_details().items()
    gives = runner.get_output_details()
    order = [(t.name, t.layout == "NHWC" and len(t.shape) == 4) for t in floats.manifest.outputs]
    last = int(takes["shape"][-1]) == floats.manifest.preprocess.channels

    def one(x: np.ndarray) -> list[np.ndarray]:
        given = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x
        got = runner(**{name: peers.as_integers(given, takes)})
        real = [(peers.as_reals(got[n], gives[n]), turned) for n, turned in order]
        return [y.transpose(0, 3, 1, 2) if turned else y for y, turned in real]

    return lambda pixels, x: _rows(one(x[i : i + 1]) for i in range(len(x)))


def _openvino(path: Path) -> Run:
    import openvino as ov

    options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    model = ov.Core().compile_model(str(path), "CPU", options)
    return lambda pixels, x: _rows(list(model(x[i : i + 1]).to_tuple()) for i in range(len(x)))


def _onnx(path: Path) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels, x: _rows(session.run(None, {name: x[i : i + 1]}) for i in range(len(x)))


def _rows(images: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Outputs of single images as one array each."""
    return [np.concatenate(column) for column in zip(*images, strict=True)]


def _size(path: Path) -> int:
    files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return sum(f.stat().st_size for p in files for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file())


def _partitions(path: Path) -> str:
    from repedge.targets.tflite.runner import partitions

    found = partitions(path)
    return "1" if found.whole else str(found)


if __name__ == "__main__":
    main()
