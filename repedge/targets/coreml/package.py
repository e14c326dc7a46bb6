"""From a MIL program to a saved ``.mlpackage``: passes, signature, classifier, metadata, stable bytes."""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from repedge.targets.base import Job
from repedge.targets.coreml.build import PROBABILITIES, Built

PASSES = (
    "common::dead_code_elimination",  # the sigmoid of a fused silu
    "common::dedup_op_and_var_names",  # constants are named by the builder, which knows only its own names
)
"""coremltools' passes that a program lowered from a clean graph still needs, in order.

Left out of its default list of about a hundred: the fusions (the graph is fused and has its activations
as single ops), the fp16 casts (the program is written in its precision), constant folding and
deduplication of weights (a clean graph has neither constant ops nor twins, and both compare every weight).
"""

SETTING = 8
"""Greatest number of elements of a const that is a setting of operators, not a weight."""

NAMESPACE = uuid.UUID("5b1f6a39-8f3c-5d2e-9a77-3c1f0f6f0c11")
"""Of the item identifiers in a package's manifest."""


def import_coremltools() -> ModuleType:
    """coremltools without the warnings it logs about what this host lacks while it is imported."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import coremltools
    finally:
        logger.setLevel(level)
    return coremltools


def run_passes(program: Any) -> None:
    """Apply `PASSES` in place. The serializer validates the program, so nothing here does."""
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    for name in PASSES:
        PASS_REGISTRY[name](program)
    for block in program.functions.values():
        _share_settings(block)
        _shorten_names(block)


def _share_settings(block: Any) -> None:
    """One const for all equal strides, paddings, group counts and the like; in place.

    They are 40 % of the program's bytes, which coremltools' own pass leaves: it starts at 100 numbers, and
    takes numbers that are nearly equal for equal.
    """
    from coremltools.converters.mil.mil.passes.helper import block_context_manager

    @block_context_manager
    def share(block: Any) -> None:
        first: dict[tuple, Any] = {}
        for op in list(block.operations):
            if op.op_type != "const":
                continue
            var, value = op.outputs[0], np.asarray(op.outputs[0].val)
            if value.size > SETTING or value.dtype == object:
                continue
            kept = first.setdefault((value.dtype.str, value.shape, value.tobytes()), var)
            if kept is not var and var not in block.outputs:
                block.replace_uses_of_var_after_op(anchor_op=op, old_var=var, new_var=kept)
                block.remove_ops([op])

    share(block)


SHORT = {"quantize": "q", "dequantize": "d"}
"""Operators whose names are numbers, after this letter: what they round is named by the operator ahead."""


def _shorten_names(block: Any) -> None:
    """Numbers for names of settings and of roundings; in place.

    A name is written where it is made and where it is read: long ones of parts that nobody looks for are a
    third of an integer program.
    """
    taken = {v.name for op in block.operations for v in op.outputs} | set(block.inputs)
    for i, op in enumerate(block.operations):
        var = op.outputs[0]
        setting = op.op_type == "const" and np.size(var.val) <= SETTING
        short = f"{'c' if setting else SHORT.get(op.op_type, '')}{i}"
        if (setting or op.op_type in SHORT) and short not in taken and var not in block.outputs:
            var.name = op.name = short


def save(built: Built, job: Job, opset: Any, package: Path, scratch: Path) -> None:
    """Serialize the program and write ``package``.

    Args:
        built: The program, after `run_passes` and compression.
        job: Names and metadata.
        opset: A ``coremltools.target`` member; its value is the specification version.
        package: Path ending in ``.mlpackage`` that does not exist yet.
        scratch: An empty folder for the weights until they are in the package.
    """
    ct = import_coremltools()
    from coremltools.converters.mil.backend.mil.load import load as serialize

    function = built.program.functions["main"]
    shape = tuple(function.inputs[built.input].shape)
    if job.input_kind == "uint8":
        layout = ct.colorlayout.RGB if shape[1] == 3 else ct.colorlayout.GRAYSCALE
        image = ct.ImageType(name=built.input, shape=shape, color_layout=layout, channel_first=True)
        others = (ct.TensorType(name=n, shape=tuple(function.inputs[n].shape)) for n in built.tensors)
        function.set_input_types((image, *others))
    classifier = None
    if built.classifier:
        classifier = ct.ClassifierConfig(distinct(job.labels), "classLabel", PROBABILITIES)
    spec = serialize(
        built.program,
        weights_dir=str(scratch),
        specification_version=int(opset),
        classifier_config=classifier,
        convert_to="mlprogram",
        convert_from="milinternal",
    )
    describe(spec.description, built, job, ct.__version__)
    ct.models.utils.save_spec(spec, str(package), weights_dir=str(scratch))
    make_reproducible(package, spec)


def distinct(labels: Sequence[str]) -> list[str]:
    """Labels fit to be dictionary keys: one that occurs twice (ImageNet's "crane") gets its index.

    >>> distinct(["crane", "dog", "crane"])
    ['crane (0)', 'dog', 'crane (2)']
    """
    times = Counter(labels)
    return [label if times[label] == 1 else f"{label} ({i})" for i, label in enumerate(labels)]


def describe(description: Any, built: Built, job: Job, coremltools_version: str) -> None:
    """Fill in the model description (a ``ModelDescription`` message) that Xcode and apps read."""
    meta = description.metadata
    meta.shortDescription = job.description or job.name
    meta.author, meta.license, meta.versionString = job.author, job.license, job.version
    user = meta.userDefined
    user["com.repedge.version"] = version("repedge")
    user["com.repedge.precision"] = job.precision
    user["com.repedge.input_kind"] = job.input_kind
    user["com.repedge.preprocess"] = json.dumps(job.preprocess.model_dump(mode="json"), sort_keys=True)
    user["com.github.apple.coremltools.version"] = coremltools_version
    if job.labels:
        user["com.repedge.labels"] = json.dumps(list(job.labels), ensure_ascii=False)
    if built.classifier and job.input_kind == "uint8":
        user["com.apple.coreml.model.preview.type"] = "imageClassifier"
        user["com.apple.coreml.model.preview.parameters"] = json.dumps(
            {
                "labels": list(job.labels),
                "colorSpace": "RGB" if job.preprocess.channels == 3 else "GRAYSCALE",
            },
            ensure_ascii=False,
        )
    for feature in (*description.input, *description.output):
        feature.shortDescription = _meaning(feature.name, built, job)


def _meaning(name: str, built: Built, job: Job) -> str:
    if name == built.input:
        if job.input_kind == "float32":
            return "The network's input, already normalised: float32 [1, C, H, W]"
        height, width = job.preprocess.size
        kind = "RGB" if job.preprocess.channels == 3 else "grayscale"
        return f"{kind} image of {width}x{height} pixels; it is normalised inside the model"
    if name in built.tensors:
        return f"The network's input {name!r} beside the image, float32"
    if name == "classLabel":
        return "The most probable class"
    if name == "classLabel_probs":
        return "Probability of every class (softmax)"
    if built.scores is not None and name == built.outputs[built.scores]:
        return "Scores of the classes before the softmax, in the order of the labels"
    return f"The network's output {name!r}, float32"


def make_reproducible(package: Path, spec: Any) -> None:
    """Rewrite what differs between runs: the manifest's random identifiers, the order of protobuf maps."""
    manifest_path = package / "Manifest.json"
    manifest = json.loads(manifest_path.read_text())
    entries = manifest["itemInfoEntries"]
    stable = {old: str(uuid.uuid5(NAMESPACE, item["path"])).upper() for old, item in entries.items()}
    root = manifest["rootModelIdentifier"]
    manifest["itemInfoEntries"] = {stable[old]: item for old, item in entries.items()}
    manifest["rootModelIdentifier"] = stable[root]
    manifest_path.write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")
    model = package / "Data" / entries[root]["path"]
    model.write_bytes(spec.SerializeToString(deterministic=True))
