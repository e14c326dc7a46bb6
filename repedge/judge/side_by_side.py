"""Several bundles on the same photos: how far each is from float, and how far they are from each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from repedge import tasks
from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import REFERENCE, task_of
from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.judge import verification
from repedge.judge.beside import artifact_run, tensors_of
from repedge.judge.evaluation import BATCH, Duel, placed, upright
from repedge.photos import images
from repedge.photos.photos import Photos, batches, bundled_photos, open_photos, spread
from repedge.tasks.base import Scorer, Task
from repedge.tasks.comparison import Agreement
from repedge.tasks.figures import WithFigures
from repedge.tasks.resampling import Change, change

Run = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Member(WithFigures):
    """One line of the table: a bundle, or the float reference that bundles carry.

    Attributes:
        name: Unique within the table.
        path: The bundle's folder; None for a float reference.
        target, precision: Of the bundle; ``reference`` and ``fp32`` for a float reference.
        reference: Index of the member that is its float reference; None if there is none.
        metrics: The task's figures against the truth, by key; None where nobody knows it.
        labelled: Photos of which it is known.
        lost: What of the first metric is lost from its float reference; None where nobody knows.
    """

    name: str
    path: str | None
    target: str
    precision: str
    reference: int | None
    metrics: dict[str, float | None]
    labelled: int
    lost: Change | None = None

    def as_json(self) -> dict[str, Any]:
        """One element of ``members``."""
        rest = {key: value for key, value in vars(self).items() if key not in ("metrics", "lost")}
        intervals = tasks.intervals_json(self.metrics, self.labelled)
        drop = None if self.lost is None else 100 * self.lost.value
        if self.lost is not None:
            intervals["drop"] = [100 * self.lost.low, 100 * self.lost.high]
        return {**rest, **tasks.metrics_json(self.metrics), "drop": drop, "intervals": intervals}


@dataclass(frozen=True)
class Pair(WithFigures):
    """Two members on the same photos; ``a`` is the signal of the SQNR and the ``p`` of KL(p || q).

    Attributes:
        a, b: Indices of the members, a < b.
        figures: The task's figures of how near they are, by key.
        sqnr_db: Signal-to-quantization-noise ratio of the worst output, from -999 to 200 dB.
        max_abs_err: Largest difference of two outputs.
        n: Photos.
    """

    a: int
    b: int
    figures: dict[str, float | None]
    sqnr_db: float
    max_abs_err: float
    n: int

    def as_json(self) -> dict[str, Any]:
        """One element of ``pairs``."""
        rest = {key: value for key, value in vars(self).items() if key != "figures"}
        intervals = tasks.intervals_json(self.figures, self.n)
        return {**rest, **tasks.figures_json(self.figures), "intervals": intervals}


@dataclass(frozen=True)
class Parity:
    """What `compare` found.

    Attributes:
        n: Photos compared; each was decoded once.
        skipped: Files that could not be decoded.
        images: Where the photos came from.
        members: Float references first, then the bundles in the order given.
        pairs: Every two of them.
        task: What the outputs mean.
        warnings: Why some of them are not to be trusted.
    """

    n: int
    skipped: int
    images: str
    members: tuple[Member, ...]
    pairs: tuple[Pair, ...]
    task: Task
    warnings: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether the truth of some photos is known."""
        return any(m.labelled for m in self.members)

    def pair(self, a: int, b: int) -> Pair:
        """The comparison of two members."""
        return next(p for p in self.pairs if (p.a, p.b) == (min(a, b), max(a, b)))

    def as_json(self) -> dict[str, Any]:
        """The object that ``repedge eval --compare --json`` prints."""
        return {
            "n": self.n,
            "skipped": self.skipped,
            "images": self.images,
            "members": [m.as_json() for m in self.members],
            "pairs": [p.as_json() for p in self.pairs],
            "warnings": list(self.warnings),
        }


@dataclass
class _Player:
    """A member while it is being run."""

    name: str
    bundle: Bundle
    takes: str
    run: Run
    reference: int | None = None
    is_float: bool = False
    scorer: Scorer | None = None
    labelled: int = 0

    @property
    def pre(self) -> Preprocess:
        return self.bundle.manifest.preprocess

    def score(self, answers: Sequence[np.ndarray], truths: Sequence[Any]) -> None:
        """Hold a batch of its answers against what is known of the photos."""
        known = [i for i, t in enumerate(truths) if t is not None]
        if known and self.scorer is not None:
            self.scorer.update([y[known] for y in answers], [truths[i] for i in known])
            self.labelled += len(known)


def compare(
    bundles: Sequence[Path | str],
    folder: Any = None,
    *,
    limit: int | None = None,
    split: str | None = None,
    threads: int | None = None,
    allow_unverified: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Run bundles side by side on the same photos, in constant memory.

    A photo is decoded once for all of them, and brought to the input of each preprocessing once.

    Args:
        bundles: Two or more bundle folders.
        folder: Photos, labelled or not, as for `repedge.judge.evaluation.evaluate`; None: the bundled ones.
        limit: Take this many, spread evenly over the folder.
        split: Which part of a data set.
        threads: CPU threads of each runtime.
        allow_unverified: Take bundles that failed their verification, too.
        progress: Called with (done, total) photos.

    Raises:
        UserError: Fewer than two bundles, one given twice, different tasks or classes, or no usable photos.
    """
    paths = [Path(p) for p in bundles]
    if len(paths) < 2:
        raise UserError("a comparison needs at least two bundles")
    twice = [str(p) for p in paths if [q.resolve() for q in paths].count(p.resolve()) > 1]
    if twice:
        raise UserError(f"{twice[0]} is named twice")
    opened = [Bundle.open(p, allow_unverified) for p in paths]
    task = _task(opened)
    photos, source = _photos(folder, {b.manifest.preprocess for b in opened}, task, split)
    indices = spread(photos.total, limit)
    truth_of = task.truths(photos)
    with _players(opened, threads) as players:
        for player in players:
            player.scorer = task.scorer()
        duels = {
            pair: (Agreement(task), Duel(task, truth_of is not None))
            for pair in combinations(range(len(players)), 2)
        }
        done = n = 0
        for batch in batches(photos, indices, [p.pre for p in players], BATCH, upright=upright(photos)):
            done += batch.tried
            progress(done, len(indices))
            if not batch.names:
                continue
            n += len(batch.names)
            outputs = _run(players, batch.pixels)
            for (a, b), (agreement, duel) in duels.items():
                agreement.update(outputs[a], outputs[b])
                if duel.answered:
                    duel.update(outputs[b], outputs[a], [None] * len(batch.names))
            for player, answers in zip(players, outputs, strict=True):
                player.score(answers, placed(task, batch, truth_of, player.pre))
        if n == 0:
            raise UserError(f"none of the {done} files in {source} could be decoded")
        members = tuple(_member(p, task, players) for p in players)
        pairs = tuple(_pair(a, b, *found) for (a, b), found in duels.items())
    warnings = tuple(w for b in opened for w in b.warnings)
    return Parity(n, done - n, source, members, pairs, task, warnings)


def _task(bundles: Sequence[Bundle]) -> Task:
    """What the outputs of all of them mean; labels are those of the first that has some."""
    named = [b for b in bundles if b.manifest.labels]
    for b in named[1:]:
        if b.manifest.labels != named[0].manifest.labels:
            raise UserError(
                f"{named[0].path} and {b.path} name different classes: their outputs can't be compared"
            )
    found = [task_of(b.manifest) for b in (*named, *bundles)]
    for other, b in zip(found, (*named, *bundles), strict=True):
        if other.name != found[0].name:
            raise UserError(
                f"{bundles[0].path} gives {found[0].describe()} and {b.path} {other.describe()}: they can't "
                "be compared"
            )
    return found[0]


def _photos(given: Any, pres: set[Preprocess], task: Task, split: str | None) -> tuple[Photos, str]:
    """The photos and where they came from; network inputs only where they are the input of every member."""
    if given is None:
        largest = max(pres, key=lambda pre: max(pre.size))
        photos = bundled_photos(largest, task.labels)
        return photos, f"{photos.total} {photos.name}"
    pre = next(iter(pres)) if len(pres) == 1 else None
    photos = open_photos(given, pre, option="eval", truth=task.annotated, split=split)
    return photos, photos.name


@contextlib.contextmanager
def _players(bundles: Sequence[Bundle], threads: int | None) -> Iterator[list[_Player]]:
    """Everyone who takes part, open; float references that are the same file once."""
    floats: dict[tuple[str, Preprocess], _Player] = {}
    for b in bundles:
        if b.reference is not None and _reference(b) not in floats:
            run = tensors_of(b).along(verification.open_reference(b, threads))
            floats[_reference(b)] = _Player(f"{b.manifest.name} float", b, "float32", run, is_float=True)
    order = list(floats)
    players = list(floats.values())
    with contextlib.ExitStack() as stack:
        for b in bundles:
            m = b.manifest
            _, runner = verification.open_bundle(b, threads)
            stack.callback(runner.close)
            reference = None if b.reference is None else order.index(_reference(b))
            run = artifact_run(b, tensors_of(b), runner.run)
            players.append(_Player(f"{m.target} {m.precision}", b, m.input_kind, run, reference))
        _rename(players)
        yield players


def _reference(b: Bundle) -> tuple[str, Preprocess]:
    """What tells one float reference from another: the file's sha256 and what is fed to it."""
    entry = next(f for f in b.manifest.files if f.path == REFERENCE)
    return entry.sha256, b.manifest.preprocess


def _rename(players: list[_Player]) -> None:
    """Names that tell the members apart: the folder's name, or its path, where the short one is shared."""
    for longer in (lambda p: p.bundle.path.name, lambda p: str(p.bundle.path)):
        names = [p.name for p in players]
        for player, name in zip(players, names, strict=True):
            if names.count(name) > 1:
                player.name = longer(player) + (" float" if player.is_float else "")
    if sum(p.is_float for p in players) == 1:
        players[0].name = "float"


def _run(players: Sequence[_Player], pixels: dict[Preprocess, np.ndarray]) -> list[list[np.ndarray]]:
    inputs: dict[Preprocess, np.ndarray] = {}
    outputs: list[list[np.ndarray]] = []
    for p in players:
        if p.takes != "uint8" and p.pre not in inputs:
            inputs[p.pre] = images.normalise(pixels[p.pre], p.pre)
        outputs.append(p.run(pixels[p.pre] if p.takes == "uint8" else inputs[p.pre]))
        shapes = [[list(y.shape[1:]) for y in one] for one in (outputs[0], outputs[-1])]
        if shapes[0] != shapes[1]:
            first, other = (", ".join(map(str, side)) for side in shapes)
            raise UserError(
                f"the outputs of {players[0].name!r} have shape {first} and those of {p.name!r} {other}: "
                "they can't be compared"
            )
    return outputs


def _member(p: _Player, task: Task, players: Sequence[_Player]) -> Member:
    m = p.bundle.manifest
    scores = {} if p.scorer is None else p.scorer.score()
    exact = None if p.reference is None else players[p.reference].scorer
    return Member(
        name=p.name,
        path=None if p.is_float else str(p.bundle.path),
        target="reference" if p.is_float else m.target,
        precision="fp32" if p.is_float else m.precision,
        reference=p.reference,
        metrics={f.key: scores.get(f.key) for f in task.metrics},
        labelled=p.labelled,
        lost=None if p.scorer is None or exact is None or not scores else change(exact, p.scorer),
    )


def _pair(a: int, b: int, c: Agreement, duel: Duel) -> Pair:
    found = {**c.figures(), **duel.agreed()}
    figures = {key: v if v is None or np.isfinite(v) else None for key, v in found.items()}
    worst = c.max_abs_err if np.isfinite(c.max_abs_err) else np.finfo(np.float32).max
    return Pair(a, b, figures, c.sqnr_db, float(worst), c.n)
