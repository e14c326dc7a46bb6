"""MODEL as the user wrote it -> the network, its weights, its preprocessing and its labels."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from repedge.config import Preprocess
from repedge.errors import MissingExtra, UserError
from repedge.hashing import sha256
from repedge.models import hub
from repedge.models.checkpoints import load_into, load_strictly, name_of
from repedge.models.files import SUFFIXES, Checkpoint, load_checkpoint, unusable
from repedge.models.foreign import call_factory, first_channels, guard, read_onnx_input
from repedge.models.options import adjust, parse_input_size, read_labels
from repedge.models.registry import DEMO, ModelSpec, create, spec

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

Kind = Literal["named", "onnx", "module", "timm", "demo"]
TIMM = "timm:"
SEED = 0  # of random weights
OPTIONS = ("input_size", "mean", "std", "resize", "interpolation", "color")  # of `adjust`


@dataclass
class Source:
    """A model, ready to be exported.

    Attributes:
        name: Fit for file names.
        kind: What MODEL was.
        module: The network in eval mode on the CPU; None for ``onnx``. The pipeline sets it to None
            once it has the graph, to free the weights.
        onnx: Path of the ONNX file; None for the others.
        input_shape: (1, C, H, W).
        preprocess: From image to input.
        labels: Class names in output order; empty if unknown.
        description: What was found, for people.
        checkpoint_sha256: Of the weights (or ONNX) file; None where there was none.
        license: Of the weights, where known.
    """

    name: str
    kind: Kind
    module: nn.Module | None
    onnx: Path | None
    input_shape: tuple[int, int, int, int]
    preprocess: Preprocess
    labels: tuple[str, ...]
    description: str
    checkpoint_sha256: str | None = None
    license: str = ""

    def graph(self) -> ir.Model:
        """The unfused float graph, static batch 1.

        Raises:
            UserError: The module can't be exported, or the file is no usable ONNX model.
        """
        if self.onnx is not None:
            from repedge.graph.load import load_onnx

            return load_onnx(self.onnx, self.input_shape[2:] if self.input_shape else None)
        from repedge.graph.export import export_module

        assert self.module is not None, "a source holds a module or an ONNX path"
        return export_module(self.module, self.input_shape)


@dataclass(frozen=True)
class Loaded:
    """What a kind of MODEL yields before the user's options are applied."""

    name: str
    kind: Kind
    preprocess: Preprocess
    description: str
    module: nn.Module | None = None
    onnx: Path | None = None
    channels: int = 3
    num_classes: int | None = None
    labels: tuple[str, ...] = ()
    checkpoint_sha256: str | None = None
    license: str = ""


@dataclass(frozen=True)
class WeightsFrom:
    """The options that say where the weights come from."""

    weights: str | None = None
    pretrained: bool = False
    random_weights: bool = False
    num_classes: int | None = None


def resolve(
    model: str | Path | nn.Module | None = None,
    *,
    weights: str | Path | None = None,
    pretrained: bool = False,
    random_weights: bool = False,
    num_classes: int | None = None,
    labels: str | Path | tuple[str, ...] | list[str] | None = None,
    **preprocess: Any,
) -> Source:
    """Find a model, load its weights, and settle its input and labels.

    Args:
        model: A name from ``repedge models`` in any spelling; ``file.onnx``;
            ``package.module:factory`` (imported from the working directory too); ``timm:NAME``; an
            ``nn.Module``; or None for the bundled demo model (with ``weights``: for the model that the
            weights look like).
        weights: A checkpoint file, or ``hf://ORG/NAME[@REVISION][/FILE]``.
        pretrained: Fetch the published weights of a named or timm model.
        random_weights: Seeded random weights for a named or timm model: enough to measure latency.
        num_classes: Classes of a network with random weights; otherwise read from the weights.
        labels: Class names, or a file of them; see `repedge.models.options.read_labels`.
        preprocess: input_size, mean, std, resize, interpolation, color; see
            `repedge.models.options.adjust`. What is not given comes from the model.

    Raises:
        UserError: MODEL, its weights or an option is wrong, or the hub can't be reached.
        MissingExtra: ``timm:NAME`` without timm.
    """
    if weights is not None and (pretrained or random_weights):
        raise UserError("--weights goes neither with --pretrained nor with --random-weights; choose one")
    if num_classes is not None and num_classes < 1:
        raise UserError(f"a network needs at least one class, not {num_classes}")
    if unknown := [name for name in preprocess if name not in OPTIONS]:
        close = difflib.get_close_matches(unknown[0], OPTIONS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(OPTIONS)}"
        raise UserError(f"there is no option {unknown[0]!r}; {hint}")
    options = {k: v for k, v in preprocess.items() if v is not None}
    if "input_size" in options:
        options["input_size"] = parse_input_size(options["input_size"])
    chosen = WeightsFrom(None if weights is None else str(weights), pretrained, random_weights, num_classes)
    found = _find(os.fspath(model) if isinstance(model, os.PathLike) else model, chosen)
    if found.onnx is not None:
        found = _onnx_input(found, found.onnx, options)
    _check_classes(found, num_classes)
    pre = adjust(found.preprocess, found.channels, **options)
    return Source(
        name=found.name,
        kind=found.kind,
        module=None if found.module is None else _settle(found.module, found.kind),
        onnx=found.onnx,
        input_shape=(1, found.channels, *pre.size),
        preprocess=pre,
        labels=found.labels if labels is None else read_labels(labels, found.num_classes),
        description=found.description,
        checkpoint_sha256=found.checkpoint_sha256,
        license=found.license,
    )


def _find(model: str | nn.Module | None, chosen: WeightsFrom) -> Loaded:
    if model is None:
        return _demo(chosen) if chosen.weights is None else _unnamed(chosen)
    if not isinstance(model, str):
        if isinstance(model, type):
            raise UserError(f"{model.__name__} is a class; pass a network made of it: {model.__name__}(...)")
        if not hasattr(model, "state_dict"):
            raise UserError(f"a model is a name, a file or an nn.Module, not a {type(model).__name__}")
        return _module(model, type(model).__name__, chosen)
    if model.lower().endswith(".onnx"):
        return _onnx(Path(model), chosen)
    if model.startswith(TIMM):
        return _timm(model.removeprefix(TIMM), chosen)
    if model.startswith(hub.SCHEME) or model.lower().endswith(SUFFIXES):
        raise UserError(f"{model} is weights, not a model; pass it as --weights {model}")
    if ":" in model:
        return _module(call_factory(model), model.rpartition(":")[2], chosen)
    return _named(spec(model), chosen)


# --- named models ---------------------------------------------------------------------------------


def _demo(chosen: WeightsFrom) -> Loaded:
    return _named(spec(DEMO), chosen)


def _unnamed(chosen: WeightsFrom) -> Loaded:
    """--weights without MODEL: the file says which model it is."""
    state, origin = _read_weights(str(chosen.weights))
    return _loaded(spec(name_of(state)), state, origin)


def _named(row: ModelSpec, chosen: WeightsFrom) -> Loaded:
    if chosen.weights is not None:
        return _loaded(row, *_read_weights(chosen.weights))
    if chosen.pretrained and row.bundled is None:
        return _loaded(row, *_read_weights(str(hub.pretrained(row))))
    if chosen.random_weights and not chosen.pretrained:
        return _random(row, chosen.num_classes)
    if row.bundled is not None:
        if not row.bundled.exists():
            raise UserError(
                f"this installation lacks {row.bundled.name}, the bundled weights; reinstall repedge, "
                "pass --weights FILE, or --random-weights"
            )
        return _loaded(row, load_checkpoint(row.bundled), Origin("bundled weights", row.bundled))
    fetchable = "--pretrained to fetch the published weights, " if row.hub else ""
    raise UserError(
        f"{row.name} has no weights yet: pass --weights FILE, {fetchable}"
        "or --random-weights (good for latency, not for accuracy)"
    )


@dataclass(frozen=True)
class Origin:
    """Where weights came from: a phrase for people, the file, and the hub's config.json."""

    phrase: str
    path: Path
    config: dict[str, Any] | None = None


def _read_weights(weights: str) -> tuple[Checkpoint, Origin]:
    if weights.startswith(hub.SCHEME):
        fetched = hub.fetch(hub.Address.parse(weights))
        commit = f" at {fetched.commit[:12]}" if fetched.commit else ""
        origin = Origin(f"{fetched.address}{commit}", fetched.path, fetched.config)
    else:
        origin = Origin(Path(weights).name, Path(weights))
    return load_checkpoint(origin.path), origin


def _loaded(row: ModelSpec, state: Checkpoint, origin: Origin) -> Loaded:
    module, finding = load_into(row.name, state)
    published = origin.config is not None or origin.path == row.bundled
    return Loaded(
        row.name,
        "demo" if row.bundled else "named",
        hub.preprocess_of(origin.config or {}, row.preprocess),
        f"{row.name} from {origin.phrase}: {finding.describe(row.name)}",
        module,
        channels=finding.in_channels,
        num_classes=finding.num_classes,
        labels=row.labels if len(row.labels) == finding.num_classes else (),
        checkpoint_sha256=sha256(origin.path),
        license=row.license if published else "",
    )


def _random(row: ModelSpec, num_classes: int | None) -> Loaded:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = create(row.name, num_classes=num_classes)
    classes = num_classes or row.num_classes
    return Loaded(
        row.name,
        "demo" if row.bundled else "named",
        row.preprocess,
        f"{row.name} with random weights (seed {SEED}): training form, {classes} classes",
        module,
        num_classes=classes,
        labels=row.labels if len(row.labels) == classes else (),
    )


# --- anything else --------------------------------------------------------------------------------


def _module(module: nn.Module, name: str, chosen: WeightsFrom) -> Loaded:
    if chosen.pretrained:
        raise UserError("--pretrained works for the models of `repedge models` and for timm:NAME only")
    phrase, digest, config = "with its own weights", None, None
    if chosen.weights is not None:
        state, origin = _read_weights(chosen.weights)
        load_strictly(module, state)
        phrase, digest, config = f"with weights from {origin.phrase}", sha256(origin.path), origin.config
    parameters = sum(p.numel() for p in module.parameters())
    return Loaded(
        _safe(name),
        "module",
        hub.preprocess_of(config or {}, Preprocess()),
        f"{type(module).__name__} {phrase}, {parameters / 1e6:.2f} M parameters",
        module,
        channels=first_channels(module),
        checkpoint_sha256=digest,
    )


def _timm(name: str, chosen: WeightsFrom) -> Loaded:
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("timm", "timm", f"{TIMM}{name}") from error
    if not (chosen.weights or chosen.pretrained or chosen.random_weights):
        raise UserError(
            f"{TIMM}{name} has no weights yet: pass --weights FILE, --pretrained or --random-weights"
        )
    state, origin, options = None, None, {}
    if chosen.weights is not None:
        state, origin = _read_weights(chosen.weights)
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
        _safe(name),
        "timm",
        hub.preprocess_of((origin.config if origin else None) or cfg, Preprocess()),
        f"timm's {name} with {f'weights from {origin.phrase}' if origin else weights}",
        module,
        channels=first_channels(module),
        num_classes=getattr(module, "num_classes", None),
        checkpoint_sha256=sha256(origin.path) if origin else None,
        license=str(cfg.get("license") or "") if chosen.pretrained else "",
    )


def _classifier_rows(state: Checkpoint, classifier: Any) -> int:
    """Classes of a timm checkpoint: rows of what ``pretrained_cfg`` calls the classifier."""
    first = classifier[0] if isinstance(classifier, (list, tuple)) and classifier else classifier
    weight = state.get(f"{first}.weight")
    return 0 if weight is None else int(weight.shape[0])


def _onnx(path: Path, chosen: WeightsFrom) -> Loaded:
    if chosen.weights or chosen.pretrained:
        raise UserError(
            f"{path} has its weights inside; --weights and --pretrained do not go with an ONNX file"
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder, not an ONNX file")
    if not path.exists():
        raise UserError(f"there is no file {path}")
    return Loaded(_safe(path.stem), "onnx", Preprocess(), "", onnx=path)


def _onnx_input(found: Loaded, path: Path, options: dict[str, Any]) -> Loaded:
    """Read the input's shape; a fixed size goes into ``options``, a free one must be there."""
    image = read_onnx_input(path)
    wanted = options.get("input_size")
    if wanted is None and not (image.height > 0 and image.width > 0):
        raise UserError(f"{path} leaves its input's height and width open; say which with --input-size HxW")
    fixed = image.height, image.width
    if wanted is not None and any(
        side > 0 and side != want for side, want in zip(fixed, wanted, strict=True)
    ):
        raise UserError(
            f"{path} takes images of {image.height}x{image.width}, not {wanted[0]}x{wanted[1]}; "
            "leave --input-size out"
        )
    options["input_size"] = wanted or fixed
    return replace(
        found,
        channels=image.channels,
        description=f"ONNX file {path.name}, {image.nodes} nodes",
        checkpoint_sha256=sha256(path),
    )


# --- common ends ----------------------------------------------------------------------------------


def _safe(name: str) -> str:
    """A name that every file system and every target takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "model"


def _check_classes(found: Loaded, num_classes: int | None) -> None:
    if num_classes is not None and found.num_classes not in (None, num_classes):
        raise UserError(f"{found.name}'s weights have {found.num_classes} classes, not {num_classes}")


def _settle(module: nn.Module, kind: Kind) -> nn.Module:
    """Eval mode, CPU, float32, no gradients; refuses weights that are not numbers."""
    import torch

    foreign = kind in ("module", "timm")  # the others' weights were checked when they were read
    for key, value in module.state_dict().items() if foreign else ():
        if isinstance(value, torch.Tensor) and (problem := unusable(key, value)):
            raise UserError(f"{problem}; the network can't be compiled like this")
    return module.to("cpu", torch.float32).eval().requires_grad_(False)
