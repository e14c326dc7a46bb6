"""Latency without the device: a straight line through measured points of one family on one device.

Within a family the latency of a network on one device goes with its multiply-accumulates: ms = base +
slope x GMAC. Across families it does not (the same line errs by a third), so an estimate outside the
fit's family, input size, target or range is refused. Every estimate carries its fit's leave-one-out
error: each point predicted from the others, the largest relative miss.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from repedge import targets
from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import MANIFEST
from repedge.disk import regular
from repedge.errors import UserError
from repedge.html import write_whole

if TYPE_CHECKING:
    from repedge.profile.result import Profile

FITS = Path(__file__).parent / "fits"
TOO_FEW = "--save-as-device needs three networks of different size, for a line and its error"
REACH = 1.25
"""How far beyond the smallest and the largest point a network may lie, as a factor of its MACs."""


class Point(BaseModel):
    """One measured network.

    Attributes:
        model: Its name.
        gmacs: Multiply-accumulates of one image, fused, in thousand millions.
        ms: Median latency.
        source: Where the number is from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    gmacs: float = Field(gt=0)
    ms: float = Field(gt=0)
    source: str


class Fit(BaseModel):
    """A device's line for one family, as kept in a file.

    Attributes:
        device, title: Name for ``--predict``, and in words.
        family: ``repvit``, ``repvgg``, ``repvggplus``.
        target, precision: What was measured.
        input_size: Height and width.
        how: The protocol that the points were measured by.
        points: What it was fitted to.
        base_ms, ms_per_gmac: The line.
        loo_error: Largest relative error when each point is predicted from the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    title: str
    family: str
    target: str
    precision: str
    input_size: tuple[int, int]
    how: str
    points: tuple[Point, ...] = Field(min_length=3)
    base_ms: float
    ms_per_gmac: float
    loo_error: float


def line(points: Sequence[Point]) -> tuple[float, float]:
    """(base, slope) by least squares of the relative errors, so that small networks count as much."""
    x = np.array([[1.0, p.gmacs] for p in points])
    y = np.array([p.ms for p in points])
    (base, slope), *_ = np.linalg.lstsq(x / y[:, None], np.ones(len(y)), rcond=None)
    return float(base), float(slope)


def leave_one_out(points: Sequence[Point]) -> float:
    """Largest relative error when each point is predicted from the others."""
    errors = []
    for i, p in enumerate(points):
        base, slope = line([*points[:i], *points[i + 1 :]])
        errors.append(abs(base + slope * p.gmacs - p.ms) / p.ms)
    return max(errors)


@dataclass(frozen=True)
class Network:
    """What an estimate needs to know of a network."""

    name: str
    family: str | None
    target: str | None
    precision: str | None
    input_size: tuple[int, int]
    gmacs: float


@dataclass(frozen=True)
class Estimate:
    """An estimate, never a measurement.

    Attributes:
        name, device: What, where.
        gmacs: Multiply-accumulates of one image, fused.
        ms: The line's value.
        error: The fit's leave-one-out error, relative.
        low, high: ``ms`` less and more that error.
        basis: How many points of what it rests on.
    """

    name: str
    device: str
    gmacs: float
    ms: float
    error: float
    low: float
    high: float
    basis: str

    def as_json(self) -> dict[str, Any]:
        """One element of ``estimates`` in the JSON."""
        return {"kind": "estimate", **asdict(self)}


def predict(what: str | Path, device: str, allow_unverified: bool = False, **source_options: Any) -> Estimate:
    """Estimate the latency of a bundle or a named model on a device that is not there.

    Raises:
        UserError: No fit for the device, or the network is outside of what its fits hold for.
    """
    fits = [f for f in all_fits() if f.device == device]
    if not fits:
        known = sorted({f.device for f in all_fits()})
        close = [d for d in known if d.startswith(device.lower()[:6])]
        hint = f"did you mean {close[0]}?" if close else "repedge profile --save-as-device makes one"
        raise UserError(f"there is no fit for {device!r} (there are: {', '.join(known)}); {hint}")
    network = describe(what, allow_unverified=allow_unverified, **source_options)
    refusals = [refusal(network, f) for f in fits]
    for fit, reason in zip(fits, refusals, strict=True):
        if reason is None:
            ms = fit.base_ms + fit.ms_per_gmac * network.gmacs
            basis = f"{len(fit.points)} points of {fit.family} on {fit.title}, {fit.how}"
            e = fit.loo_error
            return Estimate(network.name, device, network.gmacs, ms, e, ms * (1 - e), ms * (1 + e), basis)
    raise UserError(f"{network.name} can't be estimated for {device}: {refusals[0]}")


def refusal(network: Network, fit: Fit) -> str | None:
    """Why a fit does not hold for a network; None: it does."""
    if network.family != fit.family:
        family = network.family or "of no known family"
        return f"the fit holds for {fit.family} networks only, and this is {family}"
    if network.target not in (None, fit.target):
        return f"the fit is for {fit.target} artifacts, and this is for {network.target}"
    if network.precision not in (None, fit.precision):
        return f"the fit is for {fit.precision}, and this is {network.precision}"
    if tuple(network.input_size) != tuple(fit.input_size):
        sizes = ["x".join(map(str, s)) for s in (fit.input_size, network.input_size)]
        return f"the fit is for inputs of {sizes[0]} pixels, and this takes {sizes[1]}"
    least, most = (f(p.gmacs for p in fit.points) for f in (min, max))
    if not least / REACH <= network.gmacs <= most * REACH:
        return f"the fit's points span {least:.2f} to {most:.2f} GMAC, and this has {network.gmacs:.2f}"
    return None


def describe(what: str | Path, allow_unverified: bool = False, **source_options: Any) -> Network:
    """Family, input size and MACs of a bundle or a named model.

    Raises:
        UserError: It is neither, or the bundle has no reference graph to count in.
    """
    from repedge import passes
    from repedge.graph.count import count
    from repedge.models.registry import DEMO, MODELS, spec
    from repedge.models.source import resolve

    if (Path(what) / MANIFEST).is_file():
        from repedge.graph.load import load_onnx

        bundle = Bundle.open(what, allow_unverified)
        m = bundle.manifest
        if bundle.reference is None:
            raise UserError(f"{what} was made with --no-reference: there is no graph to count in")
        graph = load_onnx(bundle.reference)
        passes.clean(graph)
        return Network(
            Path(what).resolve().name, _family(m.origin.model, m.name), m.target, m.precision,
            (m.preprocess.size[0], m.preprocess.size[1]), count(graph).macs / 1e9,
        )  # fmt: skip
    name = DEMO if str(what) == "demo" else str(what)
    if "/" in name or (targets.of_file(Path(name)) is not None and not name.endswith(".onnx")):
        raise UserError(f"an estimate needs a bundle or a named model, not {what}")
    if ":" not in name and not name.endswith(".onnx"):
        needs = spec(name).bundled is None and not source_options.get("weights")
        source_options = {"random_weights": needs, **source_options}
    source = resolve(name, **source_options)
    graph = source.graph()
    passes.clean(graph)
    family = MODELS[source.name].family if source.name in MODELS else None
    return Network(source.name, family, None, None, source.preprocess.size, count(graph).macs / 1e9)


def _family(*names: str) -> str | None:
    from repedge.models.registry import DEMO, MODELS

    for name in names:
        name = DEMO if name == "demo" else name
        if name in MODELS:
            return MODELS[name].family
    return None


def user_folder() -> Path:
    """Where fits of one's own are kept: ``$XDG_DATA_HOME/repedge/devices``."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "repedge" / "devices"


def all_fits() -> list[Fit]:
    """The bundled fits and one's own.

    Raises:
        UserError: A file is damaged.
    """
    own = sorted(user_folder().glob("*.json")) if user_folder().is_dir() else []
    return [read(file) for file in [*sorted(FITS.glob("*.json")), *own]]


def read(file: Path) -> Fit:
    """Read one fit.

    Raises:
        UserError: It is damaged.
    """
    try:
        return Fit.model_validate_json(regular.read_text(file))
    except (OSError, ValueError, ValidationError) as e:
        raise UserError(f"the fit {file} is damaged ({str(e).splitlines()[0]}); remove it") from e


def check_new_device(name: str, what: Sequence[str], devices: int, force: bool) -> None:
    """Fail before anything is measured where `save_device` would refuse.

    Args:
        name: Small letters, digits, dots, dashes and underscores.
        what: What is to be measured.
        devices: On how many devices.
        force: Replace a device of one's own that has this name.

    Raises:
        UserError: A bad or taken name, fewer than three networks, several devices.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,40}", name):
        raise UserError(f"--save-as-device {name!r}: use small letters, digits, dots, dashes, underscores")
    if any(f.device == name for f in (read(p) for p in FITS.glob("*.json"))):
        raise UserError(f"--save-as-device {name!r} is the name of a bundled fit; choose another")
    file = user_folder() / f"{name}.json"
    if file.exists() and not force:
        raise UserError(f"--save-as-device {name!r} exists ({file}); pass --force to replace it")
    if devices != 1:
        raise UserError("--save-as-device fits one device; pass one --device")
    if len(what) < 3:
        raise UserError(TOO_FEW)


def save_device(
    name: str,
    rows: Sequence[Profile],
    what: Sequence[str],
    source_options: Mapping[str, Any],
    force: bool = False,
) -> Path:
    """Fit a device from one's own measurements and keep it for ``--predict``.

    Args:
        name, force: As for `check_new_device`.
        rows, what: The profiles and what each was measured from, in the same order.
        source_options: For models, as for `describe`.

    Raises:
        UserError: As `check_new_device`, or networks that make no line.
    """
    check_new_device(name, what, len(rows) // max(1, len(what)), force)
    networks = [describe(w, **source_options) for w in what]
    points = tuple(
        Point(model=n.name, gmacs=round(n.gmacs, 6), ms=r.p50_ms, source=f"measured on {r.device} by repedge")
        for n, r in zip(networks, rows, strict=True)
    )
    _check_points(networks, points)
    base, slope = line(points)
    first, row = networks[0], rows[0]
    fit = Fit(
        device=name, title=row.host.model or row.host.cpu or row.device, family=str(first.family),
        target=row.target, precision=row.precision, input_size=first.input_size,
        how=f"median of {row.runs} runs, {row.runtime} {row.runtime_version}, {row.threads} threads",
        points=points, base_ms=base, ms_per_gmac=slope, loo_error=leave_one_out(points),
    )  # fmt: skip
    file = user_folder() / f"{name}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{file} can't be written: {e.strerror}") from e
    write_whole(file, json.dumps(fit.model_dump(mode="json"), indent=2) + "\n", force, ours=True)
    return file


def _check_points(networks: Sequence[Network], points: Sequence[Point]) -> None:
    if len({p.gmacs for p in points}) < 3:
        raise UserError(TOO_FEW)
    for what, values in (
        ("family", {n.family for n in networks}),
        ("target", {n.target for n in networks}),
        ("precision", {n.precision for n in networks}),
        ("input size", {n.input_size for n in networks}),
    ):
        if len(values) > 1 or (what == "family" and None in values):
            seen = ", ".join(sorted(map(str, values)))
            raise UserError(f"--save-as-device needs networks of one known {what}; these have: {seen}")
