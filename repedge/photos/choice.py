"""Calibration data: a seeded choice of usable photos, spooled once, and a record of what they were.

``load`` reads a folder, a .zip, a .npz, an array or an iterable through the model's own
preprocessing. What can't be read is left out up to a limit, what carries no information (one colour,
repeats) is left out too, and the next of the seeded order takes its place.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.photos import images
from repedge.photos.arrays import check_inputs
from repedge.photos.feed import Feed
from repedge.photos.photos import Photos, open_photos
from repedge.photos.sources import RANDOM, Item
from repedge.photos.tensors import Tensors

DEFAULT_COUNT = 64
FEWEST = 8
"""Fewer usable images than this are refused."""

WANTED = (16, 200)
"""How many are worth having: fewer give a warning; more no longer gain."""

UNREADABLE = 0.1
"""Share of unreadable files (more than 2 of them) that ends the reading."""

TRIES = 10
"""Items read for each image asked for, before giving up on a source full of repeats."""

LONGEST = 40
"""Greatest ratio of an image's sides; a longer one would take gigabytes to resize."""

WHOLE_HASHES = 256
"""Up to this many images, a manifest holds their whole hashes."""

NOISE = "calibrated on random noise: accuracy will be poor; give photos of the kind to expect"


@dataclass
class Record:
    """What a network was calibrated on, for the manifest.

    Attributes:
        kind, source, found: Of the `Photos`.
        available: Items that the source has; None for a stream.
        asked, seed: As the user gave them.
        files: Name -> sha256 of every image used, in the order of use.
        skipped: Name -> why it was left out.
        warnings: Sentences that users should see.
    """

    kind: str
    source: str
    found: str
    available: int | None
    asked: int
    seed: int
    files: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """sha256 over the hashes in the order of use: equal for equal data, whatever the names."""
        return hashlib.sha256("\n".join(self.files.values()).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The manifest's ``calibration`` object; beyond `WHOLE_HASHES` images with short hashes."""
        digits = 64 if len(self.files) <= WHOLE_HASHES else 16
        return {
            "kind": self.kind,
            "source": self.source,
            "found": self.found,
            "available": self.available,
            "asked": self.asked,
            "count": len(self.files),
            "seed": self.seed,
            "digest": self.digest,
            "sha256": {name: digest[:digits] for name, digest in self.files.items()},
            "skipped": dict(self.skipped),
            "warnings": list(self.warnings),
        }


class CalibrationImages:
    """Chosen images after preprocessing, in a temporary file: readable again and again.

    Attributes:
        record: What they are.
    """

    def __init__(self, record: Record, pre: Preprocess, spool: _Spool, order: Sequence[int]) -> None:
        self.record = record
        self._pre = pre
        self._spool = spool
        self._order = order
        self._feeds: dict[bool, Feed] = {}

    def __len__(self) -> int:
        return len(self._order)

    def batches(self, pixels: bool) -> Iterator[np.ndarray]:
        """Each image as float32 [1, C, H, W]: RGB pixels 0 to 255, or the network's own input."""
        for slot in self._order:
            array = self._spool.get(slot)[None]
            if array.dtype == np.uint8:
                yield (
                    array.transpose(0, 3, 1, 2).astype(np.float32)
                    if pixels
                    else images.normalise(array, self._pre)
                )
            else:
                yield np.clip(images.to_pixels(array, self._pre), 0, 255) if pixels else array

    def feed(self, pixels: bool, tensors: Tensors | None = None) -> Feed:
        """The same as a `Feed`, with what goes beside the images, made once for each form."""
        if pixels not in self._feeds:
            shape = (self._pre.channels, *self._pre.size)
            self._feeds[pixels] = Feed(self.batches(pixels), shape, tensors)
        return self._feeds[pixels]


def check_count(count: int, seed: int) -> None:
    """Refuse counts and seeds that can't be meant.

    Raises:
        UserError: Fewer images than a calibration needs, or a seed that is no natural number.
    """
    if count < FEWEST:
        raise UserError(
            f"calibration takes {FEWEST} images or more ({WANTED[0]} to {WANTED[1]} are good), not {count}"
        )
    if seed < 0:
        raise UserError(f"the seed of the choice of images must be 0 or more, not {seed}")


def load(given: Any, pre: Preprocess, *, count: int = DEFAULT_COUNT, seed: int = 0) -> CalibrationImages:
    """Choose, decode and preprocess calibration images.

    Args:
        given: See `repedge.photos.photos.open_photos`. Of a stream the first ``count`` usable images
            are taken; of anything else ``numpy.random.default_rng(seed)`` chooses over the sorted names.
        pre: The model's preprocessing. EXIF orientation is followed, as a camera app shows its photos.
        count: How many images.
        seed: Of the choice.

    Raises:
        UserError: Nothing there, too many unreadable files (the first are named), images all alike or
            of one colour, too few left, or network inputs that the model's preprocessing can't give.
    """
    check_count(count, seed)
    source = look(given, pre, seed)
    chooser = _Chooser(source, pre, count, seed)
    chooser.choose()
    return chooser.finish()


def look(given: Any, pre: Preprocess, seed: int = 0) -> Photos:
    """What `load` would read, as `open_photos`, with a first check that there is enough of it.

    Raises:
        UserError: As `open_photos`, or too few items.
    """
    source = open_photos(given, pre, seed=seed)
    if source.total is not None and source.total < FEWEST:
        raise UserError(_too_few(source, source.total, {}))
    return source


def left_over(photos: Photos, used: Set[str], seed: int, count: int) -> Iterator[Item] | None:
    """Items that `load` did not choose, in the order of its seed; what can't be read is among them.

    Args:
        photos: Opened by `look` or `open_photos`.
        used: sha256 of each that was chosen.
        seed: Of the choice.
        count: At most this many readable ones.

    Returns:
        None where there are none, or nobody can tell: of a stream, and of noise.
    """
    if photos.total is None or photos.total <= len(used):
        return None
    order = np.random.default_rng(seed).permutation(photos.total)[: count + 2 * len(used)]
    wanted = sorted(int(i) for i in order) if photos.ordered else [int(i) for i in order]

    def items() -> Iterator[Item]:
        given = 0
        for _, item in photos.read(wanted, upright=True):
            if item.content is not None and item.sha256 in used:
                continue
            yield item
            given += item.content is not None
            if given == count:
                return

    return items()


class _Spool:
    """Arrays of one shape and dtype in an anonymous temporary file."""

    def __init__(self) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the images
        self._like: np.ndarray | None = None
        self.count = 0

    def add(self, array: np.ndarray) -> int:
        self._like = np.empty_like(array, order="C") if self._like is None else self._like
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(array).tobytes())
        self.count += 1
        return self.count - 1

    def get(self, slot: int) -> np.ndarray:
        assert self._like is not None
        self._file.seek(slot * self._like.nbytes)
        return np.frombuffer(self._file.read(self._like.nbytes), self._like.dtype).reshape(self._like.shape)


class _Kept(NamedTuple):
    """What is left of a usable image in memory."""

    slot: int
    name: str
    sha256: str


class _Chooser:
    """Reads items in the seeded order until enough are usable."""

    def __init__(self, source: Photos, pre: Preprocess, count: int, seed: int) -> None:
        self._source = source
        self._pre = pre
        self._count = count
        self._record = Record(source.kind, source.name, source.found, source.total, count, seed)
        self._spool = _Spool()
        self._kept: dict[int, _Kept] = {}  # by rank in the seeded order
        self._seen: dict[str, str] = {}
        self._unreadable: list[str] = []
        self._constant = 0
        self._limit = max(2, int(UNREADABLE * min(count, source.total or count)))

    def choose(self) -> None:
        """Read as many rounds as it takes; a round asks for as many items as are still wanted."""
        total = self._source.total
        order = None if total is None else np.random.default_rng(self._record.seed).permutation(total)
        at, end = 0, TRIES * self._count if total is None else min(total, TRIES * self._count)
        while len(self._kept) < self._count and at < end:
            ranks = range(at, min(end, at + self._count - len(self._kept)))
            at = ranks.stop
            rank_of = {int(r if order is None else order[r]): r for r in ranks}
            wanted = sorted(rank_of) if self._source.ordered else list(rank_of)
            read = 0
            for index, item in self._source.read(wanted, upright=True):
                read += 1
                self._consider(rank_of[index], item)
            if read < len(wanted):
                return

    def _consider(self, rank: int, item: Item) -> None:
        array = None
        why = item.why
        if item.content is not None:
            why = _unfit(item.content)
            if not why:
                array = _preprocessed(item.content, self._pre)
        if array is None:
            self._unreadable.append(item.name)
            self._record.skipped[item.name] = why
            self._check_limit()
            return
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        if array.size and _one_colour(array):
            self._constant += 1
            self._record.skipped[item.name] = "it is of one colour"
        elif digest in self._seen:
            self._record.skipped[item.name] = f"it is the same as {self._seen[digest]}"
        else:
            self._kept[rank] = _Kept(self._spool.add(array), item.name, item.sha256)
            self._seen[digest] = item.name

    def _check_limit(self) -> None:
        bad = self._unreadable
        if len(bad) > self._limit:
            first = ", ".join(f"{n!r} ({self._record.skipped[n]})" for n in bad[:3])
            tried = len(self._kept) + len(self._record.skipped)
            raise UserError(
                f"{len(bad)} of the first {tried} images of {self._source.name} can't be used: {first}; "
                "replace or remove them"
            )

    def finish(self) -> CalibrationImages:
        """Judge what was kept as a whole."""
        record, ranks = self._record, sorted(self._kept)
        found, tried = len(ranks), len(ranks) + len(self._record.skipped)
        if not found and self._constant:
            raise UserError(
                f"every image of {self._source.name} that can be read is of one colour; "
                "give photos of the kind to expect"
            )
        if found == 1 and tried - len(self._unreadable) > 1 and not self._constant:
            raise UserError(
                f"all {tried - len(self._unreadable)} images read from {self._source.name} are identical; "
                f"give {WANTED[0]} to {WANTED[1]} different photos of the kind to expect"
            )
        if found < FEWEST:
            raise UserError(_too_few(self._source, found, record.skipped))
        record.files = {self._kept[r].name: self._kept[r].sha256 for r in ranks}
        if self._source.kind == RANDOM:
            record.warnings.append(NOISE)
        elif found < WANTED[0]:
            record.warnings.append(
                f"calibrated on {found} images only; {WANTED[0]} to {WANTED[1]} are better"
            )
        if self._unreadable:
            some = [repr(n) for n in self._unreadable[:3]] + ["..."] * (len(self._unreadable) > 3)
            record.warnings.append(f"unreadable images left out: {len(self._unreadable)} ({', '.join(some)})")
        return CalibrationImages(record, self._pre, self._spool, [self._kept[r].slot for r in ranks])


def _too_few(source: Photos, found: int, skipped: dict[str, str]) -> str:
    left_out = f" ({len(skipped)} left out; of the first {next(iter(skipped.values()))})" if skipped else ""
    return (
        f"{source.name} has {found} usable image{'' if found == 1 else 's'}{left_out}; calibration wants "
        f"{WANTED[0]} to {WANTED[1]}, and {FEWEST} at the least"
    )


def _unfit(content: Image.Image | np.ndarray) -> str:
    if isinstance(content, Image.Image) and max(content.size) > LONGEST * min(content.size):
        return f"{content.width} x {content.height} pixels are no photo"
    return ""


def _preprocessed(content: Image.Image | np.ndarray, pre: Preprocess) -> np.ndarray:
    """uint8 [H, W, C] of an image; a network input float32 [C, H, W] as it is, if pixels could give it."""
    if isinstance(content, Image.Image):
        return images.pixels(content, pre)
    check_inputs(content, pre)
    return content


def _one_colour(array: np.ndarray) -> bool:
    axes = (0, 1) if array.dtype == np.uint8 else (1, 2)
    return bool((array.min(axes) == array.max(axes)).all())
