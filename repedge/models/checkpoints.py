"""What a state dict is, and putting it into the network it belongs to.

A checkpoint may be in the authors' or in timm's key layout, in training or deploy form, with any
number of classes; all of that is read from the keys and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from repedge.errors import UserError
from repedge.models.files import Checkpoint, load_checkpoint
from repedge.models.layouts import Anatomy, Form, Layout, anatomy, to_official
from repedge.models.registry import Family, ModelSpec, canonical, create, spec

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Checkpoint", "Finding", "identify", "load_checkpoint", "load_into", "load_strictly"]

FEW = 3  # keys of each kind that a message shows


@dataclass(frozen=True)
class Finding:
    """What a checkpoint was found to be; ``str()`` gives the sentence for people.

    Attributes:
        name: The model whose body it fits; None if none does.
        family: None if it is none that repedge has.
        form: Training form, deploy (fused) form, or the search network of RepOptimizer.
        layout: Whose key names it uses.
        num_classes: Read from the classifier.
        distillation: Whether it has RepViT's second head (a fused one has both averaged in).
        in_channels: Channels of the input image.
        aux: Whether it has RepVGGplus' auxiliary heads.
        notes: Further facts for people, such as the entry of the file that was taken.
    """

    name: str | None
    family: Family | None = None
    form: Form | None = None
    layout: Layout | None = None
    num_classes: int = 0
    distillation: bool = False
    in_channels: int = 3
    aux: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.describe()

    def describe(self, asked: str = "") -> str:
        """The sentence; what it looks like is left out where that is what was ``asked`` for."""
        if self.family is None:
            return "; ".join(("neither a RepVGG nor a RepViT", *self.notes))
        if self.form == "search":
            which = f"for {self.name}" if self.name else "of no known size"
            return "; ".join((f"RepOptimizer's scales {which}, which training starts from", *self.notes))
        parts = [f"{self.form} form", f"{self.num_classes} classes"]
        if self.family == "repvit" and self.form == "training":
            parts.append("distillation head" if self.distillation else "no distillation head")
        if self.aux:
            parts.append("auxiliary heads")
        if self.in_channels != 3:
            parts.append(f"{self.in_channels} input channel{'s' * (self.in_channels > 1)}")
        parts.append(f"{self.layout} layout")
        if self.name is None:
            parts.append(f"a {self.family} of no known size")
        elif self.name != asked:
            parts.append(f"looks like {self.name}")
        return "; ".join((", ".join(parts), *self.notes))


def identify(state: Mapping[str, Tensor]) -> Finding:
    """Say what a state dict is, by its keys and shapes alone.

    Args:
        state: As `load_checkpoint` returns it.
    """
    renamed, layout = to_official(state)
    body = anatomy({renamed[k]: tuple(t.shape) for k, t in state.items()})
    notes = _notes(state)
    if body is None:
        keys = ", ".join(list(state)[:FEW])
        return Finding(None, notes=(f"{len(state)} tensors such as {keys}", *notes))
    row = body.likely()
    return Finding(
        name=row.name if row else None,
        family=body.family,
        form=body.form,
        layout=layout,
        num_classes=body.num_classes,
        distillation=body.distillation,
        in_channels=body.in_channels,
        aux=body.aux,
        notes=notes,
    )


def _notes(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    if not isinstance(state, Checkpoint):
        return ()
    notes = []
    if state.dtype != "float32":
        notes.append(f"stored as {state.dtype}")
    if state.entry:
        others = f" (it also has {', '.join(state.also)})" if state.also else ""
        notes.append(f"from its entry {state.entry!r}{others}")
    return tuple(notes)


def load_into(name: str, state: Mapping[str, Tensor]) -> tuple[nn.Module, Finding]:
    """Build the named network in the form, and with the heads and classes, of a state dict; load it.

    The tensors of ``state`` become the network's parameters; they are not copied.

    Returns:
        The network in eval mode, and what was found.

    Raises:
        UserError: The state dict is of another network; the message lists what does not fit and says
            what it looks like instead.
    """
    import torch

    row, finding = spec(name), identify(state)
    body, renamed = _anatomy(state)
    if body is not None and body.form == "search":
        raise UserError(
            f"{_where(state)} holds {finding}; train with them (repedge.models.repopt.reparameterize) and "
            "pass what the training saves"
        )
    if body is not None and not body.belongs(row.family):
        body = None
    with torch.device("meta"):  # no time or memory for weights that are replaced at once
        module = _build(row, body)
    official = {renamed[k]: t for k, t in state.items()}
    original = {v: k for k, v in renamed.items()}
    misfit = compare(module, official, original)
    if misfit:
        like = "" if finding.name == row.name else f"; it {_like(finding)}"
        raise UserError(f"{_where(state)} does not fit {row.name}: {misfit}{like}")
    _assign(module, official)
    if finding.name and body and body.fits(row):  # repvit_demo has repvit_m0_6's body: believe the user
        finding = Finding(**{**vars(finding), "name": row.name})
    return module.eval(), finding


def _anatomy(state: Mapping[str, Tensor]) -> tuple[Anatomy | None, dict[str, str]]:
    renamed, _ = to_official(state)
    return anatomy({renamed[k]: tuple(t.shape) for k, t in state.items()}), renamed


def _build(row: ModelSpec, body: Anatomy | None) -> nn.Module:
    if body is None:
        return create(row.name)
    return create(
        row.name,
        num_classes=body.num_classes or None,  # a file without a classifier: list it as missing
        distillation=body.distillation,
        deploy=body.form == "deploy",
        in_channels=body.in_channels or 3,
        aux=body.aux,
    )


def _where(state: Mapping[str, Tensor]) -> str:
    return str(state.path) if isinstance(state, Checkpoint) and state.path else "the state dict"


def _like(finding: Finding) -> str:
    if finding.name:
        return f"looks like {finding.name}, {finding.form} form, {finding.num_classes} classes"
    return f"is {finding}"


def compare(module: nn.Module, state: Mapping[str, Tensor], original: Mapping[str, str] | None = None) -> str:
    """What keeps a state dict from fitting a module, as a clause; empty if it fits.

    Args:
        original: Key in the file of every key of ``state``, for the message.
    """
    wanted = module.state_dict()
    original = original or {}
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [original.get(k, k) for k in state if k not in wanted]
    shapes, dtypes = [], []
    for key, mine in wanted.items():
        theirs = state.get(key)
        if theirs is None:
            continue
        if mine.shape != theirs.shape:
            named = original.get(key, key)
            shapes.append(f"{named} is {list(theirs.shape)}, not {list(mine.shape)}")
        elif mine.is_floating_point() and not theirs.is_floating_point():
            dtypes.append(f"{original.get(key, key)} is {str(theirs.dtype).removeprefix('torch.')}")
    clauses = [
        _clause(missing, "missing"),
        _clause(unexpected, "unexpected"),
        _clause(shapes, "of the wrong shape"),
        _clause(dtypes, "not floating point"),
    ]
    return ", ".join(c for c in clauses if c)


def _clause(items: Sequence[str], what: str) -> str:
    if not items:
        return ""
    more = f", and {len(items) - FEW} more" if len(items) > FEW else ""
    return f"{len(items)} key{'s' * (len(items) > 1)} {what} ({'; '.join(items[:FEW])}{more})"


def load_strictly(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load a state dict into a user's own module: every key, every shape.

    Raises:
        UserError: It does not fit; the message lists what doesn't, and what it looks like.
    """
    if misfit := compare(module, state):
        finding = identify(state)
        like = f"; it {_like(finding)}" if finding.family else ""
        raise UserError(f"{_where(state)} does not fit the module: {misfit}{like}")
    _assign(module, state)
    return module


def _assign(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    import torch

    full = {k: t.float() if t.is_floating_point() else t for k, t in state.items()}
    for key in module.state_dict():
        full.setdefault(key, torch.tensor(0))  # only num_batches_tracked may be absent
    module.load_state_dict(full, assign=True)


def name_of(state: Mapping[str, Tensor]) -> str:
    """The model that a state dict looks like.

    Raises:
        UserError: It looks like none.
    """
    finding = identify(state)
    if finding.name is None:
        raise UserError(
            f"{_where(state)} is {finding}; name the model it belongs to, as in `package.module:factory "
            "--weights FILE`"
        )
    return canonical(finding.name)
