"""What a kind of MODEL yields, and where weights come from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from repedge.config import Preprocess
from repedge.models import hub
from repedge.models.files import Checkpoint, load_checkpoint
from repedge.models.provenance import ASSUMED

if TYPE_CHECKING:
    from torch import nn

    from repedge.graph.inputs import Form

Kind = Literal["named", "onnx", "module", "timm", "demo"]


@dataclass(frozen=True)
class Loaded:
    """What a kind of MODEL yields before the user's options are applied.

    Attributes:
        said, rest: Where values of the preprocessing are from; see `repedge.models.provenance.origins`.
    """

    name: str
    kind: Kind
    preprocess: Preprocess
    description: str
    module: nn.Module | None = None
    onnx: Path | None = None
    channels: int | None = 3  # None: running the module tells
    num_classes: int | None = None
    labels: tuple[str, ...] = ()
    checkpoint_sha256: str | None = None
    license: str = ""
    form: Form | None = None
    said: dict[str, str] = field(default_factory=dict)
    rest: str = ASSUMED
    rounded: int = 0  # QuantizeLinear nodes of an ONNX file


@dataclass(frozen=True)
class WeightsFrom:
    """The options that say where the weights come from."""

    weights: str | None = None
    pretrained: bool = False
    random_weights: bool = False
    num_classes: int | None = None


@dataclass(frozen=True)
class Origin:
    """Where weights came from: a phrase for people, the file, and the hub's config.json."""

    phrase: str
    path: Path
    config: dict[str, Any] | None = None


def read_weights(weights: str) -> tuple[Checkpoint, Origin]:
    """The tensors of a file or a hub address, and where they came from.

    Raises:
        UserError: See `repedge.models.files.load_checkpoint` and `repedge.models.hub.fetch`.
    """
    if weights.startswith(hub.SCHEME):
        fetched = hub.fetch(hub.Address.parse(weights))
        commit = f" at {fetched.commit[:12]}" if fetched.commit else ""
        origin = Origin(f"{fetched.address}{commit}", fetched.path, fetched.config)
    else:
        origin = Origin(Path(weights).name, Path(weights))
    return load_checkpoint(origin.path), origin


def safe(name: str) -> str:
    """A name that every file system and every target takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "model"
