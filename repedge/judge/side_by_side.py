"""Several bundles on the same photos: how far each is from float, and how far they are from each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import REFERENCE
from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.judge import verification
from repedge.judge.evaluation import BATCH, hits
from repedge.photos import images
from repedge.photos.photos import Photos, batches, demo_photos, open_photos, spread
from repedge.tasks.comparison import Comparison
from repedge.tasks.labels import class_indices

Run = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Member:
    """One line of the table: a bundle, or the float reference that bundles carry.

    Attributes:
        name: Unique within the table.
        path: The bundle's folder; None for a float reference.
        target, precision: Of the bundle; ``reference`` and ``fp32`` for a float reference.
        reference: Index of the member that is its float reference; None if there is none.
        top1, top5: Shares from 0 to 1; None without labels.
    """

    name: str
    path: str | None
    target: str
    precision: str
    reference: int | None
    top1: float | None
    top5: float | None


@dataclass(frozen=True)
class Pair:
    """Two members on the same photos; ``a`` is the signal of the SQNR and the ``p`` of KL(p || q).

    Attributes:
        a, b: Indices of the members, a < b.
        agree_top1: Share of photos with the same best class, 0 to 1; None where the output is no logits.
        sqnr_db: Signal-to-quantization-noise ratio of the first output, from -999 to 200 dB.
        kl: Mean KL divergence of the softmaxes, nats; None as above.
        max_abs_err: Largest difference of two outputs.
    """

    a: int
    b: int
    agree_top1: float | None
    sqnr_db: float
    kl: float | None
    max_abs_err: float


@dataclass(frozen=True)
class Parity:
    """What `compare` found.

    Attributes:
        n: Photos compared; each was decoded once.
        skipped: Files that could not be decoded.
        images: Where the photos came from.
        members: Float references first, then the bundles in the order given.
        pairs: Every two of them.
    """

    n: int
    skipped: int
    images: str
    members: tuple[Member, ...]
    pairs: tuple[Pair, ...]

    def pair(self, a: int, b: int) -> Pair:
        """The comparison of two members."""
        return next(p for p in self.pairs if (p.a, p.b) == (min(a, b), max(a, b)))

    def as_json(self) -> dict[str, Any]:
        """The object that ``repedge eval --compare --json`` prints."""
        return {
            "n": self.n,
            "skipped": self.skipped,
            "images": self.images,
            "members": [dict(m.__dict__) for m in self.members],
            "pairs": [dict(p.__dict__) for p in self.pairs],
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
    seen: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def pre(self) -> Preprocess:
        return self.bundle.manifest.preprocess


def compare(
    bundles: Sequence[Path | str],
    folder: Any = None,
    *,
    limit: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Run bundles side by side on the same photos, in constant memory.

    A photo is decoded once for all of them, and brought to the input of each preprocessing once. The
    first output is compared.

    Args:
        bundles: Two or more bundle folders.
        folder: Photos, labelled or not, as for `repedge.judge.evaluation.evaluate`; None: the bundled ones.
        limit: Take this many, spread evenly over the folder.
        threads: CPU threads of each runtime.
        progress: Called with (done, total) photos.

    Raises:
        UserError: Fewer than two bundles, one given twice, different classes, or no usable photos.
    """
    paths = [Path(p) for p in bundles]
    if len(paths) < 2:
        raise UserError("a comparison needs at least two bundles")
    twice = [str(p) for p in paths if [q.resolve() for q in paths].count(p.resolve()) > 1]
    if twice:
        raise UserError(f"{twice[0]} is named twice")
    opened = [Bundle.open(p) for p in paths]
    labels = _labels(opened)
    photos, source = _photos(folder, {b.manifest.preprocess for b in opened})
    indices = spread(photos.total, limit)
    class_of = class_indices(photos, labels)
    with _players(opened, threads) as players:
        duels = {pair: Comparison() for pair in combinations(range(len(players)), 2)}
        done = counted = n = 0
        for batch in batches(photos, indices, [p.pre for p in players], BATCH):
            done += batch.tried
            progress(done, len(indices))
            if not batch.names:
                continue
            n += len(batch.names)
            outputs = _run(players, batch.pixels)
            for (a, b), duel in duels.items():
                duel.update(outputs[a], outputs[b])
            counted += _count(players, outputs, batch.truths(class_of))
        if n == 0:
            raise UserError(f"none of the {done} files in {source} could be decoded")
        members = tuple(_member(p, counted) for p in players)
        pairs = tuple(_pair(a, b, c) for (a, b), c in duels.items())
    return Parity(n, done - n, source, members, pairs)


def _labels(bundles: Sequence[Bundle]) -> tuple[str, ...]:
    named = [b for b in bundles if b.manifest.labels]
    for b in named[1:]:
        if b.manifest.labels != named[0].manifest.labels:
            raise UserError(
                f"{named[0].path} and {b.path} name different classes: their outputs can't be compared"
            )
    return named[0].manifest.labels if named else ()


def _photos(given: Any, pres: set[Preprocess]) -> tuple[Photos, str]:
    """The photos and where they came from; network inputs only where they are the input of every member."""
    if given is None:
        photos = demo_photos()
        return photos, f"{photos.total} {photos.name}"
    photos = open_photos(given, next(iter(pres)) if len(pres) == 1 else None, option="eval")
    return photos, photos.name


@contextlib.contextmanager
def _players(bundles: Sequence[Bundle], threads: int | None) -> Iterator[list[_Player]]:
    """Everyone who takes part, open; float references that are the same file once."""
    from repedge.graph.run import Session

    floats: dict[tuple[str, Preprocess], _Player] = {}
    for b in bundles:
        if b.reference is not None and _reference(b) not in floats:
            run = Session(b.reference, threads).run
            floats[_reference(b)] = _Player(f"{b.manifest.name} float", b, "float32", run, is_float=True)
    order = list(floats)
    players = list(floats.values())
    with contextlib.ExitStack() as stack:
        for b in bundles:
            m = b.manifest
            _, runner = verification.open_bundle(b, threads)
            stack.callback(runner.close)
            reference = None if b.reference is None else order.index(_reference(b))
            players.append(_Player(f"{m.target} {m.precision}", b, m.input_kind, runner.run, reference))
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


def _run(players: Sequence[_Player], pixels: dict[Preprocess, np.ndarray]) -> list[np.ndarray]:
    inputs: dict[Preprocess, np.ndarray] = {}
    outputs: list[np.ndarray] = []
    for p in players:
        if p.takes != "uint8" and p.pre not in inputs:
            inputs[p.pre] = images.normalise(pixels[p.pre], p.pre)
        outputs.append(p.run(pixels[p.pre] if p.takes == "uint8" else inputs[p.pre])[0])
        if outputs[-1].shape != outputs[0].shape:
            first, other = list(outputs[0].shape[1:]), list(outputs[-1].shape[1:])
            raise UserError(
                f"the outputs of {players[0].name!r} have shape {first} and those of {p.name!r} {other}: "
                "they can't be compared"
            )
    return outputs


def _count(players: Sequence[_Player], outputs: Sequence[np.ndarray], truths: Sequence[int | None]) -> int:
    """Count each member's hits; returns how many photos had a label."""
    known = [i for i, t in enumerate(truths) if t is not None]
    if not known or outputs[0].ndim != 2:
        return 0
    labels = np.array([truths[i] for i in known], dtype=np.int64)
    for player, logits in zip(players, outputs, strict=True):
        one, five = hits(logits[known], labels)
        player.seen[0] += one
        player.seen[1] += five
    return len(known)


def _member(p: _Player, counted: int) -> Member:
    m = p.bundle.manifest
    return Member(
        name=p.name,
        path=None if p.is_float else str(p.bundle.path),
        target="reference" if p.is_float else m.target,
        precision="fp32" if p.is_float else m.precision,
        reference=p.reference,
        top1=p.seen[0] / counted if counted else None,
        top5=p.seen[1] / counted if counted else None,
    )


def _pair(a: int, b: int, c: Comparison) -> Pair:
    kl = c.kl if c.kl is None or np.isfinite(c.kl) else None
    worst = c.max_abs_err if np.isfinite(c.max_abs_err) else np.finfo(np.float32).max
    return Pair(a, b, c.agree_top1, max(-999.0, c.sqnr_db), kl, float(worst))
