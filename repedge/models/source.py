"""MODEL as the user wrote it -> the network, its weights, its preprocessing and its labels."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.graph.inputs import Form, Given
from repedge.hashing import sha256
from repedge.models import from_timm, hub
from repedge.models.checkpoints import load_into, load_strictly, name_of
from repedge.models.files import SUFFIXES, Checkpoint, load_checkpoint
from repedge.models.foreign import call_factory, module_inputs, read_onnx_input
from repedge.models.loaded import Kind, Loaded, Origin, WeightsFrom, read_weights, safe
from repedge.models.modules import channels_of, is_initial, own_copy, settle, unwrapped
from repedge.models.options import adjust, parse_input_size, read_given, read_labels
from repedge.models.provenance import configured, origins
from repedge.models.registry import DEMO, ModelSpec, create, spec

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from repedge.photos.tensors import Tensors

SEED = 0  # of random weights
PIXELS: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
"""Normalisation that leaves pixels 0 to 255 as they are."""
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
        form: Which input of the module or the file is the image, and what the others hold.
        preprocess: From image to input.
        labels: Class names in output order; empty if unknown.
        description: What was found, for people.
        checkpoint_sha256: Of the weights (or ONNX) file; None where there was none.
        license: Of the weights, where known.
        warnings: What is doubtful about the weights.
        origins: Where each value of the preprocessing is from; see `repedge.models.provenance`.
        rounded: QuantizeLinear nodes of an ONNX file; its graph is the float network without them.
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
    warnings: tuple[str, ...] = ()
    form: Form = field(default_factory=lambda: Form(""))
    origins: dict[str, str] = field(default_factory=dict)
    rounded: int = 0

    @property
    def tensors(self) -> Tensors:
        """Samples of what the network takes beside its image."""
        return self.form.tensors

    def graph(self) -> ir.Model:
        """The unfused float graph, static batch 1, whose outputs have the axis of images first.

        Raises:
            UserError: The module can't be exported, or the file is no usable ONNX model.
        """
        if self.onnx is not None:
            from repedge.graph.load import load_onnx
            from repedge.graph.quantized import without_rounding

            _, channels, *size = self.input_shape
            model = load_onnx(self.onnx, (size[0], size[1]), self.form, channels)
            if self.rounded:
                without_rounding(model)
            return self._images_first(model)
        from repedge.graph.export import export_module

        assert self.module is not None, "a source holds a module or an ONNX path"
        return self._images_first(export_module(self.module, self.input_shape, self.form))

    def _images_first(self, graph: ir.Model) -> ir.Model:
        from repedge.graph.outputs import images_first

        self.warnings += tuple(note for note in images_first(graph) if note not in self.warnings)
        return graph


def resolve(
    model: str | Path | nn.Module | None = None,
    *,
    weights: str | Path | None = None,
    pretrained: bool = False,
    random_weights: bool = False,
    num_classes: int | None = None,
    labels: str | Path | tuple[str, ...] | list[str] | None = None,
    image_input: str | None = None,
    inputs: str | Path | Mapping[str, Any] | None = None,
    input_value: Mapping[str, Any] | Sequence[str] | None = None,
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
        image_input: Name of the image among several inputs.
        inputs: Samples of the inputs beside the image, which stay inputs: arrays [n, ...] by name, or a
            .npz of them. Photo k goes with sample k.
        input_value: What inputs beside the image always hold, by name (or words ``NAME=VALUE``): it becomes
            part of the network.
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
    asked = set(options)
    chosen = WeightsFrom(None if weights is None else str(weights), pretrained, random_weights, num_classes)
    found = _find(os.fspath(model) if isinstance(model, os.PathLike) else model, chosen)
    given = read_given(image_input, inputs, input_value)
    if found.onnx is not None:
        found = _onnx_input(found, found.onnx, options, given)
    elif found.module is not None:
        found = replace(found, form=module_inputs(found.module, given))
    _check_classes(found, num_classes)
    module = None if found.module is None else settle(found.module, check=found.kind in ("module", "timm"))
    channels = found.channels or _channels(module, found, options)
    pre = adjust(found.preprocess, channels, **options)
    return Source(
        name=found.name,
        kind=found.kind,
        module=module,
        onnx=found.onnx,
        input_shape=(1, channels, *pre.size),
        preprocess=pre,
        labels=found.labels if labels is None else read_labels(labels, found.num_classes),
        description=found.description,
        checkpoint_sha256=found.checkpoint_sha256,
        license=found.license,
        warnings=_doubts(module, found, chosen),
        form=found.form or Form(""),
        origins=origins(found.said, found.rest, asked),
        rounded=found.rounded,
    )


def _channels(module: Any, found: Loaded, options: dict[str, Any]) -> int:
    from repedge.graph.export import Call

    said = {"GRAY": (1,), "RGB": (3,), "BGR": (3,)}.get(str(options.get("color")).upper(), ())
    call = Call(module, found.form)
    size = options.get("input_size", found.preprocess.size)
    return channels_of(module, size, said, lambda image: call(image, *call.first()))


def _doubts(module: nn.Module | None, found: Loaded, chosen: WeightsFrom) -> tuple[str, ...]:
    """What to know of weights that nobody trained, and of those that were quantized."""
    name = found.name
    if found.rounded:
        return (
            f"{found.onnx} is quantized already: what is compiled is the float network inside, with the "
            f"weights that its integers stand for and without the rounding of {found.rounded} activations; "
            "the float file that it was made from is better, w8a8 above all",
        )
    if chosen.random_weights:
        return (f"{name} has random weights: good for latency, its answers mean nothing",)
    if module is None or not is_initial(module):
        return ()
    where = f"in {chosen.weights}" if chosen.weights else f"of {name}"
    hint = "pass the trained ones" if chosen.weights else "pass the trained ones with --weights FILE"
    return (
        f"the weights {where} are all at their initial values, as nobody trained them: its answers mean "
        f"nothing; {hint}",
    )


def _find(model: str | nn.Module | None, chosen: WeightsFrom) -> Loaded:
    if model is None:
        return _demo(chosen) if chosen.weights is None else _unnamed(chosen)
    if not isinstance(model, str):
        if isinstance(model, type):
            raise UserError(f"{model.__name__} is a class; pass a network made of it: {model.__name__}(...)")
        if not hasattr(model, "state_dict"):
            raise UserError(f"a model is a name, a file or an nn.Module, not a {type(model).__name__}")
        model = unwrapped(model)
        return _module(own_copy(model), type(model).__name__, chosen)
    if model.lower().endswith(".onnx"):
        return _onnx(Path(model), chosen)
    if model.startswith(from_timm.PREFIX):
        return from_timm.load(model.removeprefix(from_timm.PREFIX), chosen)
    if model.startswith(hub.SCHEME) or model.lower().endswith(SUFFIXES):
        return _unnamed(_alone(model, chosen))
    if ":" in model:
        made, ours = call_factory(model)
        made = unwrapped(made)
        return _module(made if ours else own_copy(made), model.rpartition(":")[2], chosen)
    return _named(spec(model), chosen)


# --- named models ---------------------------------------------------------------------------------


def _demo(chosen: WeightsFrom) -> Loaded:
    return _named(spec(DEMO), chosen)


def _alone(model: str, chosen: WeightsFrom) -> WeightsFrom:
    """The same with a weights file that stands where the model's name would.

    Raises:
        UserError: Other weights are asked for, too.
    """
    if chosen.weights or chosen.pretrained or chosen.random_weights:
        raise UserError(
            f"{model} is weights, and other weights are asked for, too; name the model, or leave one out"
        )
    return replace(chosen, weights=model)


def _unnamed(chosen: WeightsFrom) -> Loaded:
    """Weights without a model's name: the file says which model it is."""
    state, origin = read_weights(str(chosen.weights))
    return _loaded(spec(name_of(state)), state, origin)


def _named(row: ModelSpec, chosen: WeightsFrom) -> Loaded:
    if chosen.weights is not None:
        return _loaded(row, *read_weights(chosen.weights))
    if chosen.pretrained and row.bundled is None:
        return _loaded(row, *read_weights(str(hub.pretrained(row))))
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
        said=dict.fromkeys(configured(origin.config or {}), "the weights' config.json"),
        rest=f"{row.name}'s own",
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
        rest=f"{row.name}'s own",
    )


# --- anything else --------------------------------------------------------------------------------


def _module(module: nn.Module, name: str, chosen: WeightsFrom) -> Loaded:
    if chosen.pretrained:
        raise UserError("--pretrained works for the models of `repedge models` and for timm:NAME only")
    phrase, digest, config = "with its own weights", None, None
    if chosen.weights is not None:
        state, origin = read_weights(chosen.weights)
        load_strictly(module, state)
        phrase, digest, config = f"with weights from {origin.phrase}", sha256(origin.path), origin.config
    parameters = sum(p.numel() for p in module.parameters())
    return Loaded(
        safe(name),
        "module",
        hub.preprocess_of(config or {}, Preprocess()),
        f"{type(module).__name__} {phrase}, {parameters / 1e6:.2f} M parameters",
        module,
        channels=None,
        checkpoint_sha256=digest,
        said=dict.fromkeys(configured(config or {}), "the weights' config.json"),
    )


def _onnx(path: Path, chosen: WeightsFrom) -> Loaded:
    if chosen.weights or chosen.pretrained:
        raise UserError(
            f"{path} has its weights inside; --weights and --pretrained do not go with an ONNX file"
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder, not an ONNX file")
    if not path.exists():
        raise UserError(f"there is no file {path}")
    if not path.is_file():  # to open a pipe is to wait for its writer
        raise UserError(f"{path} is a device or a pipe; copy the model into a file")
    return Loaded(safe(path.stem), "onnx", Preprocess(), "", onnx=path)


def _onnx_input(found: Loaded, path: Path, options: dict[str, Any], given: Given) -> Loaded:
    """Read the input's shape; a fixed size goes into ``options``, a free one must be there."""
    image = read_onnx_input(path, given)
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
    if image.form.pixels:  # the file normalises them itself
        found = replace(found, preprocess=found.preprocess.model_copy(update=PIXELS))
    return replace(
        found,
        form=image.form,
        channels=image.channels,
        rounded=image.rounded,
        description=f"ONNX file {path.name}, {image.nodes} nodes",
        checkpoint_sha256=sha256(path),
        said={"size": "the file"},
    )


# --- common ends ----------------------------------------------------------------------------------


def _check_classes(found: Loaded, num_classes: int | None) -> None:
    if num_classes is not None and found.num_classes not in (None, num_classes):
        raise UserError(f"{found.name}'s weights have {found.num_classes} classes, not {num_classes}")
