"""Names -> networks and where their weights live. A new model is one row in ``MODELS``."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from repedge.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from repedge.config import Preprocess

Family = Literal[
    "repvgg", "repvggplus", "qarepvgg", "repoptvgg", "repvit",
    "yolov5", "ssd300", "ssdlite", "dilated_vgg16", "lraspp", "matching",
]  # fmt: skip

DEMO = "repvit_demo"
"""What ``repedge compile`` takes when no model is named."""

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the bundled weights, ``NAME.safetensors``."""

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BUNDLED = ("repvit_demo", "repvgg_demo", "demo_detect")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

REPVIT_RELEASE = "https://github.com/THU-MIG/RepViT/releases/download/v1.0/"
REPVGG_DRIVE = "https://drive.google.com/drive/folders/1Avome4KvNp0Lqh2QwhXO6L5URQjzCjUq"
REPVGGPLUS_DRIVE = "https://drive.google.com/file/d/1x8VNLpfuLzg0xXDVIZv9yIIgqnSMoK-W"
REPOPT_DRIVE = "https://drive.google.com/file/d/"


@dataclass(frozen=True)
class ModelSpec:
    """One row of the model table.

    Attributes:
        name: What the user types.
        family: Which class builds it.
        config: Keyword arguments of that class (training form).
        num_classes: Classes of the published (or bundled) weights; 0 of a network that has none.
        input_size: Height and width the weights were made for, in pixels.
        distillation: Whether the published RepViT weights have the second head.
        interpolation, crop: Resize filter and crop share of the published evaluation; a ``crop`` of
            None squashes the whole image to ``input_size``, or fits it in between bars if ``letterbox``.
        mean, std: Normalization on the [0, 1] scale, in the order of ``color``.
        color: Channel order.
        labels: Class names in output order, where they come with the model.
        hub: Hugging Face hub repository with timm-layout weights; empty if there is none.
        release: The authors' own weights file, as a URL or ``FILE at URL``; empty if there is none.
        license: Of the published weights.
    """

    name: str
    family: Family
    config: dict[str, Any]
    num_classes: int = 1000
    input_size: tuple[int, int] = (224, 224)
    distillation: bool = False
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop: float | None = 0.875
    letterbox: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    color: Literal["RGB", "BGR"] = "RGB"
    labels: tuple[str, ...] = ()
    hub: str = ""
    release: str = ""
    license: str = ""

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing that the published weights were evaluated with."""
        from repedge.config import Letterbox, Preprocess

        return Preprocess(
            size=self.input_size,
            resize=None if self.crop is None else resized_side(self.input_size, self.crop),
            letterbox=Letterbox() if self.letterbox else None,
            interpolation=self.interpolation,
            color=self.color,
            mean=self.mean,
            std=self.std,
        )

    @property
    def headed(self) -> bool:
        """Whether it is a network with a head of its own, which there is in training form only."""
        return self.family in _HEADED

    @property
    def bundled(self) -> Path | None:
        """The weights file that comes with repedge (fp16, training form); None if there is none."""
        path = WEIGHTS / f"{self.name}.safetensors"
        return path if self.name in BUNDLED else None


def resized_side(size: tuple[int, int], crop: float) -> int:
    """Short side before a centre crop to ``size``: its longer side / crop, rounded down as timm does."""
    return math.floor(max(size) / crop)


def _repvgg(name: str, depths: tuple[int, ...], widths: tuple[float, ...], **more: Any) -> ModelSpec:
    config = {"depths": depths, "widths": widths}
    config |= {key: more.pop(key) for key in ("groups", "se") if key in more}
    title = "RepVGG-" + name.removeprefix("repvgg_").capitalize()
    epochs = more.pop("epochs", "")
    row: dict[str, Any] = {
        "release": f"{title}{epochs}-train.pth at {REPVGG_DRIVE}",
        "hub": f"timm/{name}.rvgg_in1k",
        "license": "MIT",
        **more,
    }
    return ModelSpec(name, "repvgg", config, **row)


def _qarepvgg(size: str, depths: tuple[int, ...], widths: tuple[float, ...], groups: int = 1) -> ModelSpec:
    config = {"depths": depths, "widths": widths, "groups": groups}
    return ModelSpec(f"qarepvgg_{size}", "qarepvgg", config)


def _repopt(size: str, depths: tuple[int, ...], widths: tuple[float, ...], release: str) -> ModelSpec:
    # crop: the authors evaluate on the centre of a photo whose short side is the input's.
    config = {"depths": depths, "widths": widths}
    return ModelSpec(
        f"repopt_vgg_{size}", "repoptvgg", config, crop=1.0, release=REPOPT_DRIVE + release, license="MIT"
    )


def _repvit(name: str, widths: tuple[int, ...], depths: tuple[int, ...], **more: Any) -> ModelSpec:
    row: dict[str, Any] = {
        "distillation": True,
        "interpolation": "bicubic",
        "crop": 0.95,
        "hub": f"timm/{name}.dist_450e_in1k",
        "release": f"{REPVIT_RELEASE}{name}_distill_450e.pth",
        "license": "Apache-2.0",
        **more,
    }
    return ModelSpec(name, "repvit", {"widths": widths, "depths": depths}, **row)


_CAFFE: dict[str, Any] = {"mean": (123 / 255, 117 / 255, 104 / 255), "std": (1 / 255,) * 3}
_CAFFE_BGR: dict[str, Any] = {**_CAFFE, "mean": _CAFFE["mean"][::-1], "color": "BGR"}
_UNIT: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # pixels as 0..1
_REPVIT_BODIES: dict[str, dict[str, Any]] = {
    "m0_6": {"widths": (40, 80, 160, 320), "depths": (2, 2, 9, 1)},
    "m0_9": {"widths": (48, 96, 192, 384), "depths": (3, 3, 15, 2)},
}


def _headed(name: str, family: Family, body: str = "", **more: Any) -> ModelSpec:
    """A network with a head of its own; nobody has published weights."""
    config = {**_REPVIT_BODIES.get(body, {}), **more.pop("config", {})}
    return ModelSpec(name, family, config, **{"crop": None, **more})


def _yolov5(size: str, width: float, body: str) -> ModelSpec:
    return _headed(
        f"yolov5{size}_repvit_{body}", "yolov5", body, config={"width": width},
        num_classes=80, input_size=(640, 640), letterbox=True, **_UNIT,
    )  # fmt: skip


_A, _B, _D = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)

# Networks that the authors defined but never released weights for.
_UNPUBLISHED: dict[str, Any] = {"hub": "", "release": "", "license": ""}

# The bundled networks: trained on CIFAR-10, whose 32x32 photos are squashed to 64x64.
_CIFAR: dict[str, Any] = {
    "num_classes": 10,
    "input_size": (64, 64),
    "interpolation": "bilinear",
    "crop": None,
    "mean": CIFAR10_MEAN,
    "std": CIFAR10_STD,
    "labels": CIFAR10,
    "hub": "",
    "release": "",
    "license": "Apache-2.0",
}

_ROWS = (
    _repvgg("repvgg_a0", _A, (0.75, 0.75, 0.75, 2.5)),
    _repvgg("repvgg_a1", _A, (1, 1, 1, 2.5)),
    _repvgg("repvgg_a2", _A, (1.5, 1.5, 1.5, 2.75)),
    _repvgg("repvgg_b0", _B, (1, 1, 1, 2.5)),
    _repvgg("repvgg_b1", _B, (2, 2, 2, 4)),
    _repvgg("repvgg_b1g2", _B, (2, 2, 2, 4), groups=2, hub=""),
    _repvgg("repvgg_b1g4", _B, (2, 2, 2, 4), groups=4),
    _repvgg("repvgg_b2", _B, (2.5, 2.5, 2.5, 5)),
    _repvgg("repvgg_b2g2", _B, (2.5, 2.5, 2.5, 5), groups=2, **_UNPUBLISHED),
    _repvgg("repvgg_b2g4", _B, (2.5, 2.5, 2.5, 5), groups=4, epochs="-200epochs"),
    _repvgg("repvgg_b3", _B, (3, 3, 3, 5), epochs="-200epochs"),
    _repvgg("repvgg_b3g2", _B, (3, 3, 3, 5), groups=2, **_UNPUBLISHED),
    _repvgg("repvgg_b3g4", _B, (3, 3, 3, 5), groups=4, epochs="-200epochs"),
    _repvgg(
        "repvgg_d2se",
        _D,
        (2.5, 2.5, 2.5, 5),
        se=16,
        input_size=(320, 320),
        crop=1.0,
        epochs="-200epochs",
    ),
    ModelSpec(
        "repvggplus_l2pse",
        "repvggplus",
        {"depths": _D, "widths": (2.5, 2.5, 2.5, 5)},
        input_size=(320, 320),
        crop=1.0,
        release=f"RepVGGplus-L2pse-train256-acc84.06.pth at {REPVGGPLUS_DRIVE}",
        license="MIT",
    ),
    # Quantization-friendly forms to train anew. Nobody released QARepVGG's ImageNet weights.
    _qarepvgg("a0", _A, (0.75, 0.75, 0.75, 2.5)),
    _qarepvgg("a1", _A, (1, 1, 1, 2.5)),
    _qarepvgg("a2", _A, (1.5, 1.5, 1.5, 2.75)),
    _qarepvgg("b0", _B, (1, 1, 1, 2.5)),
    _qarepvgg("b1", _B, (2, 2, 2, 4)),
    _qarepvgg("b1g2", _B, (2, 2, 2, 4), groups=2),
    _qarepvgg("b1g4", _B, (2, 2, 2, 4), groups=4),
    _qarepvgg("b2", _B, (2.5, 2.5, 2.5, 5)),
    _qarepvgg("b2g4", _B, (2.5, 2.5, 2.5, 5), groups=4),
    _repopt("b1", _B, (2, 2, 2, 4), "1kBDue-19AG0Rm2NaS5h6aTl-ZHvdPe5K"),
    _repopt("b2", _B, (2.5, 2.5, 2.5, 5), "1o4enC7tFr0nORJHEE9vaHh8mHpusFvRE"),
    _repopt("l1", _D, (2, 2, 2, 4), "19wd13WgBK6LtyLVA_N9ZjFYaLwduywnm"),
    _repopt("l2", _D, (2.5, 2.5, 2.5, 5), "1PG0sSqOTRdnVoBS_ZBKPShcOIyHNLze6"),
    _repvit(
        "repvit_m0_6",
        (40, 80, 160, 320),
        (2, 2, 9, 1),
        hub="",
        release=f"{REPVIT_RELEASE}repvit_m0_6_distill_300e.pth",
    ),
    _repvit("repvit_m0_9", (48, 96, 192, 384), (3, 3, 15, 2)),
    _repvit("repvit_m1_0", (56, 112, 224, 448), (3, 3, 15, 2)),
    _repvit("repvit_m1_1", (64, 128, 256, 512), (3, 3, 13, 2)),
    _repvit("repvit_m1_5", (64, 128, 256, 512), (5, 5, 25, 4)),
    _repvit("repvit_m2_3", (80, 160, 320, 640), (7, 7, 35, 2)),
    _yolov5("n", 0.25, "m0_6"),
    _yolov5("n", 0.25, "m0_9"),
    _yolov5("s", 0.5, "m0_6"),
    _yolov5("s", 0.5, "m0_9"),
    # The port that its keys are of takes off VGG's mean, from pixels of 0..255.
    _headed("ssd300_vgg16", "ssd300", num_classes=21, input_size=(300, 300), **_CAFFE),
    _headed("ssdlite_repvit_m0_9", "ssdlite", "m0_9", num_classes=91, input_size=(320, 320)),
    _headed("dilated_vgg16_frontend", "dilated_vgg16", num_classes=21, input_size=(512, 512), **_CAFFE_BGR),
    _headed(
        "dilated_vgg16_context",
        "dilated_vgg16",
        config={"context": True},
        num_classes=21,
        input_size=(512, 512),
        **_CAFFE_BGR,
    ),
    _headed("lraspp_repvit_m0_9", "lraspp", "m0_9", num_classes=21, input_size=(512, 512)),
    _headed("matching_repvit_m0_6", "matching", "m0_6", num_classes=0, crop=0.875),
    _repvit("repvit_demo", (40, 80, 160, 320), (2, 2, 9, 1), **{**_CIFAR, "distillation": False}),
    _repvgg("repvgg_demo", _A, (0.75, 0.75, 0.4375, 0.75), **_CIFAR),
    _headed(
        "demo_detect",
        "yolov5",
        "m0_6",
        config={"width": 0.1875},
        num_classes=3,
        input_size=(416, 416),
        letterbox=True,
        labels=("Platelets", "RBC", "WBC"),
        license="MIT",
        **_UNIT,
    ),
)

_PLAIN: dict[str, str] = {
    "repvgg": "repvgg:RepVGG",
    "repvggplus": "repvgg:RepVGGplus",
    "qarepvgg": "qarepvgg:QARepVGG",
    "repoptvgg": "repopt:RepOptVGG",
    "repvit": "repvit:RepViT",
}
"""Family -> what builds it in training and in deploy form."""

_HEADED: dict[str, str] = {
    "yolov5": "heads.yolov5:on_repvit",
    "ssd300": "heads.ssd:SSD300",
    "ssdlite": "heads.ssd:SSDLite",
    "dilated_vgg16": "heads.segment:DilatedVGG16",
    "lraspp": "heads.segment:LRASPP",
    "matching": "heads.matching:Matching",
}
"""Family -> what builds it in training form; fusing gives the other."""

MODELS: dict[str, ModelSpec] = {row.name: row for row in _ROWS}


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


_BY_LETTERS = {_letters(name): name for name in MODELS}


def canonical(name: str) -> str:
    """``RepVGG-A0``, ``repvgg_a0`` -> ``repvgg_a0``; ``RepViT-M0.9`` -> ``repvit_m0_9``.

    Case and punctuation do not count.

    Raises:
        UserError: No model is called so; the nearest names are given.
    """
    letters = _letters(name)
    if letters in _BY_LETTERS:
        return _BY_LETTERS[letters]
    near = [_BY_LETTERS[n] for n in difflib.get_close_matches(letters, _BY_LETTERS, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"there is no model {name!r}; {hint}`repedge models` lists the names; "
        "file.onnx, package.module:factory and timm:NAME work too"
    )


def spec(name: str) -> ModelSpec:
    """The row of a name in any spelling.

    Raises:
        UserError: No model is called so.
    """
    return MODELS[canonical(name)]


def create(
    name: str,
    *,
    num_classes: int | None = None,
    distillation: bool | None = None,
    deploy: bool = False,
    in_channels: int = 3,
    aux: bool = True,
) -> nn.Module:
    """Build a named network with fresh weights, in training form unless ``deploy``.

    Args:
        num_classes: None for the published number.
        distillation: Second head of a RepViT in training form; None for as published.
        in_channels: Channels of the input image.
        aux: Auxiliary heads of a RepVGGplus in training form.

    Raises:
        UserError: No model is called so, or it has no classes.
    """
    row = spec(name)
    options: dict[str, Any] = {"in_channels": in_channels}
    if row.num_classes:
        options["num_classes"] = row.num_classes if num_classes is None else num_classes
    elif num_classes:
        raise UserError(f"{row.name} gives embeddings, which have no classes; leave their number out")
    if row.headed:
        return _built(_HEADED[row.family], **row.config, **options)
    options["deploy"] = deploy
    if row.family == "repvit":
        options["distillation"] = row.distillation if distillation is None else distillation
    if row.family == "repvggplus":
        options["aux"] = aux
    return _built(_PLAIN[row.family], **row.config, **options)


def _built(place: str, **options: Any) -> nn.Module:
    """What a class or a function of ``module:name`` makes."""
    module, _, name = place.partition(":")
    made: nn.Module = getattr(import_module(f"repedge.models.{module}"), name)(**options)
    return made
