"""Names -> networks. A new model is one row in ``MODELS``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Family = Literal["repvgg", "repvggplus", "repvit"]


@dataclass(frozen=True)
class ModelSpec:
    """One row of the model table.

    Attributes:
        name: What the user types.
        family: Which class builds it.
        config: Keyword arguments of that class (training form).
        num_classes: Classes of the published (or bundled) weights.
        input_size: Height and width the weights were made for, in pixels.
        distillation: Whether the published RepViT weights have the second head.
    """

    name: str
    family: Family
    config: dict[str, Any]
    num_classes: int = 1000
    input_size: tuple[int, int] = (224, 224)
    distillation: bool = False


def _repvgg(name: str, depths: tuple[int, ...], widths: tuple[float, ...], **more: Any) -> ModelSpec:
    size = more.pop("size", 224)
    num_classes = more.pop("num_classes", 1000)
    config = {"depths": depths, "widths": widths, **more}
    return ModelSpec(name, "repvgg", config, num_classes, (size, size))


def _repvit(name: str, widths: tuple[int, ...], depths: tuple[int, ...], **more: Any) -> ModelSpec:
    return ModelSpec(name, "repvit", {"widths": widths, "depths": depths}, distillation=True, **more)


_A, _B, _D = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)

_ROWS = (
    _repvgg("repvgg_a0", _A, (0.75, 0.75, 0.75, 2.5)),
    _repvgg("repvgg_a1", _A, (1, 1, 1, 2.5)),
    _repvgg("repvgg_a2", _A, (1.5, 1.5, 1.5, 2.75)),
    _repvgg("repvgg_b0", _B, (1, 1, 1, 2.5)),
    _repvgg("repvgg_b1", _B, (2, 2, 2, 4)),
    _repvgg("repvgg_b1g2", _B, (2, 2, 2, 4), groups=2),
    _repvgg("repvgg_b1g4", _B, (2, 2, 2, 4), groups=4),
    _repvgg("repvgg_b2", _B, (2.5, 2.5, 2.5, 5)),
    _repvgg("repvgg_b2g2", _B, (2.5, 2.5, 2.5, 5), groups=2),
    _repvgg("repvgg_b2g4", _B, (2.5, 2.5, 2.5, 5), groups=4),
    _repvgg("repvgg_b3", _B, (3, 3, 3, 5)),
    _repvgg("repvgg_b3g2", _B, (3, 3, 3, 5), groups=2),
    _repvgg("repvgg_b3g4", _B, (3, 3, 3, 5), groups=4),
    _repvgg("repvgg_d2se", _D, (2.5, 2.5, 2.5, 5), se=16, size=320),
    ModelSpec(
        "repvggplus_l2pse",
        "repvggplus",
        {"depths": _D, "widths": (2.5, 2.5, 2.5, 5)},
        input_size=(320, 320),
    ),
    _repvit("repvit_m0_6", (40, 80, 160, 320), (2, 2, 9, 1)),
    _repvit("repvit_m0_9", (48, 96, 192, 384), (3, 3, 15, 2)),
    _repvit("repvit_m1_0", (56, 112, 224, 448), (3, 3, 15, 2)),
    _repvit("repvit_m1_1", (64, 128, 256, 512), (3, 3, 13, 2)),
    _repvit("repvit_m1_5", (64, 128, 256, 512), (5, 5, 25, 4)),
    _repvit("repvit_m2_3", (80, 160, 320, 640), (7, 7, 35, 2)),
    # The bundled networks, trained on CIFAR-10 by examples/train_cifar10.py.
    ModelSpec(
        "repvit_demo",
        "repvit",
        {"widths": (40, 80, 160, 320), "depths": (2, 2, 9, 1)},
        num_classes=10,
        input_size=(64, 64),
    ),
    _repvgg("repvgg_demo", _A, (0.5, 0.5, 0.5, 0.75), num_classes=10, size=64),
)

MODELS: dict[str, ModelSpec] = {row.name: row for row in _ROWS}


def create(
    name: str, *, num_classes: int | None = None, distillation: bool | None = None, deploy: bool = False
) -> nn.Module:
    """Build a named network with fresh weights, in training form unless ``deploy``.

    Raises:
        KeyError: The name is not in ``MODELS``.
    """
    from repedge.models.repvgg import RepVGG, RepVGGplus
    from repedge.models.repvit import RepViT

    spec = MODELS[name]
    classes = spec.num_classes if num_classes is None else num_classes
    if spec.family == "repvit":
        dist = spec.distillation if distillation is None else distillation
        return RepViT(**spec.config, num_classes=classes, distillation=dist)
    cls = RepVGG if spec.family == "repvgg" else RepVGGplus
    return cls(**spec.config, num_classes=classes, deploy=deploy)
