"""State-dict key layouts: timm's names onto the authors', and what a state dict's shapes say.

The authors' names are the ones that ``repedge.models`` uses. timm's come from
``timm/models/{byobnet,repvit}.py``; both have a training form and a deploy (fused) form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from repedge.models.registry import MODELS, Family, ModelSpec

Layout = Literal["official", "timm"]
Form = Literal["training", "deploy", "search"]  # search: the network that learns RepOpt-VGG's scales
Shapes = Mapping[str, tuple[int, ...]]

# timm -> official; the first rule that matches a key's beginning rewrites the whole key once.
# ``{block}`` is filled by `_numbering`, because timm counts blocks per stage and the authors' RepViT
# counts them through the whole network.
_REPVGG_BRANCHES = (
    ("conv_kxk.", "rbr_dense."),
    ("conv_1x1.", "rbr_1x1."),
    ("identity.", "rbr_identity."),
    ("reparam_conv.", "rbr_reparam."),
    ("attn.fc1.", "se.down."),
    ("attn.fc2.", "se.up."),
)
_REPVIT_BLOCK = (
    ("token_mixer.", "token_mixer.0."),
    ("se.", "token_mixer.1."),
    ("channel_mixer.conv1.", "channel_mixer.m.0."),
    ("channel_mixer.conv2.", "channel_mixer.m.2."),
)
_REPVIT_DOWNSAMPLE = (
    ("spatial_downsample.", "token_mixer.0."),
    ("channel_downsample.", "token_mixer.2."),
    ("ffn.conv1.", "channel_mixer.m.0."),
    ("ffn.conv2.", "channel_mixer.m.2."),
)
_REPVIT_ENDS = (
    ("stem.conv1.", "features.0.0."),
    ("stem.conv2.", "features.0.2."),
    ("head.head.", "classifier.classifier."),
    ("head.head_dist.", "classifier.classifier_dist."),
    ("head.weight", "classifier.weight"),
    ("head.bias", "classifier.bias"),
)


def to_official(keys: Iterable[str]) -> tuple[dict[str, str], Layout]:
    """Official name of every key, and the layout that the keys are in.

    Keys that no rule knows stay as they are.
    """
    keys = list(keys)
    if any(re.match(r"stem\.(conv_kxk|reparam_conv)\.", k) for k in keys):
        return {k: _repvgg_key(k) for k in keys}, "timm"
    if any(k.startswith("stem.conv1.") for k in keys) and any(k.startswith("stages.0.blocks.") for k in keys):
        first = _numbering(keys)
        return {k: _repvit_key(k, first) for k in keys}, "timm"
    from repedge.models.heads import layouts as headed

    return headed.official(keys), "official"


def _rewrite(key: str, rules: Iterable[tuple[str, str]]) -> str:
    for old, new in rules:
        if key.startswith(old):
            return new + key[len(old) :]
    return key


def _repvgg_key(key: str) -> str:
    if key.startswith("head.fc."):
        return "linear." + key[len("head.fc.") :]
    if key.startswith("stem."):
        return "stage0." + _rewrite(key[len("stem.") :], _REPVGG_BRANCHES)
    if m := re.match(r"stages\.(\d+)\.(\d+)\.(.+)", key):
        return f"stage{int(m[1]) + 1}.{m[2]}.{_rewrite(m[3], _REPVGG_BRANCHES)}"
    return key


def _numbering(keys: Iterable[str]) -> dict[int, int]:
    """timm's stage -> index of its first ``features`` entry in the authors' count.

    ``features.0`` is the stem. A timm stage after the first begins with a pre-block (the authors' last
    block of the stage before) and a downsampling block; both come before its ``blocks``.
    """
    depths: dict[int, int] = {}
    for key in keys:
        if m := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", key):
            depths[int(m[1])] = max(depths.get(int(m[1]), 0), int(m[2]) + 1)
    first, index = {}, 1
    for stage in sorted(depths):
        first[stage] = index
        index += depths[stage] + (2 if stage > 0 else 0)
    return first


def _repvit_key(key: str, first: Mapping[int, int]) -> str:
    m = re.match(r"stages\.(\d+)\.(.+)", key)
    if m is None or int(m[1]) not in first:
        return _rewrite(key, _REPVIT_ENDS)
    stage, rest = int(m[1]), m[2]
    index = first[stage]
    if rest.startswith("downsample.pre_block."):
        return f"features.{index}.{_rewrite(rest[len('downsample.pre_block.') :], _REPVIT_BLOCK)}"
    if rest.startswith("downsample."):
        return f"features.{index + 1}.{_rewrite(rest[len('downsample.') :], _REPVIT_DOWNSAMPLE)}"
    if block := re.match(r"blocks\.(\d+)\.(.+)", rest):
        number = index + int(block[1]) + (2 if stage > 0 else 0)
        return f"features.{number}.{_rewrite(block[2], _REPVIT_BLOCK)}"
    return key


@dataclass(frozen=True)
class Anatomy:
    """What the shapes of a state dict in official names say about its network.

    Attributes:
        family: Whose names the keys are; RepVGG's for QARepVGG's deploy form, which is the same.
        form: Training or deploy form, or RepOptimizer's search network (perhaps its scales alone).
        in_channels: Channels of the input image.
        num_classes: Rows of the classifier.
        distillation: Whether a second head is there (RepViT in training form).
        depths: Blocks per stage as in ``ModelSpec.config``.
        channels: Output channels of each stage; RepVGG's begin with the stem's.
        groups: Groups of the second block of the first stage that has one (RepVGG).
        se: Whether squeeze-excite is in the blocks (RepVGG).
        aux: Whether the auxiliary heads are there (RepVGGplus in training form).
    """

    family: Family
    form: Form
    in_channels: int
    num_classes: int
    distillation: bool = False
    depths: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    groups: int = 1
    se: bool = False
    aux: bool = False

    def fits(self, row: ModelSpec) -> bool:
        """Whether a row of the model table is this network, up to classes, heads and input channels."""
        mine = self.depths, self.channels, self.groups, self.se
        return self.belongs(row.family) and mine == _body(row)

    def belongs(self, family: Family) -> bool:
        """Whether the keys are those of a family's network in this form."""
        return family == self.family or ((family, self.family, self.form) == ("qarepvgg", "repvgg", "deploy"))

    def likely(self) -> ModelSpec | None:
        """The row that this network is; the published one where a demo model has the same body."""
        return next((row for row in MODELS.values() if self.fits(row)), None)


def _body(row: ModelSpec) -> tuple[tuple[int, ...], tuple[int, ...], int, bool]:
    from repedge.models.heads import layouts as headed

    c = row.config
    if row.headed:
        return *headed.body(row.family, c), 1, False
    if row.family == "repvit":
        return tuple(c["depths"]), tuple(c["widths"]), 1, False
    from repedge.models.repvgg import stage_channels

    return tuple(c["depths"]), stage_channels(c["widths"]), c.get("groups", 1), bool(c.get("se"))


def anatomy(shapes: Shapes) -> Anatomy | None:
    """Read a state dict's shapes (official names); None where they are of no family's."""
    if "features.0.0.c.weight" in shapes or "features.0.0.weight" in shapes:
        return repvit_body(shapes)
    if "stage0.rbr_dense.conv.weight" in shapes or "stage0.rbr_reparam.weight" in shapes:
        return _repvgg(shapes)
    if "stage0.conv.weight" in shapes or "stage0.scale_conv.weight" in shapes:
        return _repopt(shapes)
    from repedge.models.heads import layouts as headed

    return headed.anatomy(shapes)


def _size(shapes: Shapes, key: str, axis: int) -> int:
    shape = shapes.get(key, ())
    return shape[axis] if len(shape) > axis else 0


def repvit_body(shapes: Shapes) -> Anatomy:
    """A RepViT by its shapes, with or without its classifier."""
    deploy = "features.0.0.weight" in shapes
    conv = "weight" if deploy else "c.weight"
    head = "classifier.weight" if deploy else "classifier.classifier.l.weight"
    depths, channels = [0], [_size(shapes, f"features.0.2.{conv}", 0)]
    blocks = {int(m[1]) for k in shapes if (m := re.match(r"features\.(\d+)\.", k))} - {0}
    for i in sorted(blocks):
        if out := _size(shapes, f"features.{i}.token_mixer.2.{conv}", 0):  # a stride-2 block
            depths.append(0)
            channels.append(out)
        else:
            depths[-1] += 1
    return Anatomy(
        "repvit",
        "deploy" if deploy else "training",
        in_channels=_size(shapes, f"features.0.0.{conv}", 1),
        num_classes=_size(shapes, head, 0),
        distillation="classifier.classifier_dist.l.weight" in shapes,
        depths=tuple(depths),
        channels=tuple(channels),
    )


def _repvgg(shapes: Shapes) -> Anatomy:
    deploy = "stage0.rbr_reparam.weight" in shapes
    plus = any(k.startswith("stage1.blocks.") for k in shapes)
    aware = "stage0.rbr_1x1.weight" in shapes  # QARepVGG's 1x1 branch has no BN
    return _stages(
        shapes,
        "repvggplus" if plus else "qarepvgg" if aware else "repvgg",
        "deploy" if deploy else "training",
        "rbr_reparam.weight" if deploy else "rbr_dense.conv.weight",
    )


def _repopt(shapes: Shapes) -> Anatomy:
    if "stage0.scale_conv.weight" in shapes:
        return _stages(shapes, "repoptvgg", "search", "scale_conv.weight")
    form: Form = "training" if "stage0.bn.weight" in shapes else "deploy"
    return _stages(shapes, "repoptvgg", form, "conv.weight")


def _stages(shapes: Shapes, family: Family, form: Form, each: str) -> Anatomy:
    """Widths and depths from ``each``: what every block has one of, one row per output channel."""
    pattern = re.compile(r"stage(\d)(?:_first|_second)?\.(?:blocks\.)?(\d+)\." + re.escape(each))
    depths = dict.fromkeys("1234", 0)
    channels = dict.fromkeys("1234", 0)
    groups = 1
    for key, shape in shapes.items():
        if (m := pattern.fullmatch(key)) and m[1] in depths and len(shape) in (1, 4):
            depths[m[1]] += 1
            channels[m[1]] = shape[0]
            # not the stage's first: as many channels in as out
            if m[2] == "1" and family != "repvggplus" and len(shape) == 4:
                groups = max(groups, shape[0] // max(shape[1], 1))
    return Anatomy(
        family,
        form,
        in_channels=_size(shapes, f"stage0.{each}", 1),
        num_classes=_size(shapes, "linear.weight", 0),
        depths=tuple(depths.values()),
        channels=(_size(shapes, f"stage0.{each}", 0), *channels.values()),
        groups=groups,
        se="stage0.se.down.weight" in shapes,
        aux="stage1_aux.0.conv.weight" in shapes,
    )
