"""``timm:NAME``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from repedge.config import Preprocess
from repedge.errors import MissingExtra, UserError
from repedge.hashing import sha256
from repedge.models import hub
from repedge.models.checkpoints import load_strictly
from repedge.models.files import Checkpoint
from repedge.models.foreign import guard
from repedge.models.loaded import Loaded, WeightsFrom, read_weights, safe
from repedge.models.provenance import configured

if TYPE_CHECKING:
    from torch import nn

PREFIX = "timm:"


def load(name: str, chosen: WeightsFrom) -> Loaded:
    """The network that timm calls ``name``.

    Raises:
        UserError: There is none, no weights are asked for, or they do not fit.
        MissingExtra: timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("timm", "timm", f"{PREFIX}{name}") from error
    if not (chosen.weights or chosen.pretrained or chosen.random_weights):
        raise UserError(
            f"{PREFIX}{name} has no weights yet: pass --weights FILE, --pretrained or --random-weights"
        )
    state, origin, options = None, None, {}
    if chosen.weights is not None:
        state, origin = read_weights(chosen.weights)
    elif chosen.num_classes is not None:
        options["num_classes"] = chosen.num_classes

    def build(**more: Any) -> nn.Module:
        return timm.create_model(name, pretrained=chosen.pretrained, **more)

    module = guard(lambda: build(**options), f"timm could not make {name!r}")
    cfg = dict(getattr(module, "pretrained_cfg", None) or {})
    if state is not None:
        classes = _classifier_rows(state, cfg.get("classifier"))
        if classes and classes != getattr(module, "num_classes", classes):
            module = guard(lambda: build(num_classes=classes), f"timm could not make {name!r}")
        load_strictly(module, state)
    weights = "pretrained" if chosen.pretrained else "random weights"
    return Loaded(
        safe(name),
        "timm",
        hub.preprocess_of((origin.config if origin else None) or cfg, Preprocess()),
        f"timm's {name} with {f'weights from {origin.phrase}' if origin else weights}",
        module,
        channels=None,
        num_classes=getattr(module, "num_classes", None),
        checkpoint_sha256=sha256(origin.path) if origin else None,
        license=str(cfg.get("license") or "") if chosen.pretrained else "",
        said=dict.fromkeys(configured((origin.config if origin else None) or cfg), "its pretrained_cfg"),
    )


def _classifier_rows(state: Checkpoint, classifier: Any) -> int:
    """Classes of a timm checkpoint: rows of what ``pretrained_cfg`` calls the classifier."""
    first = classifier[0] if isinstance(classifier, (list, tuple)) and classifier else classifier
    weight = state.get(f"{first}.weight")
    return 0 if weight is None else int(weight.shape[0])
