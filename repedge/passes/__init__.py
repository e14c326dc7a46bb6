"""From any float ONNX graph to the clean graph: prepare, canonicalize, (fuse,) simplify; `clean` does all.

The lists below are the order; each line says why it stands where it stands. Every list is run until
nothing changes any more, and the graph is checked after every pass that changed it.
"""

from __future__ import annotations

import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.analysis.parts import parts_of
from repedge.graph.check import check_clean
from repedge.graph.values import shape_of
from repedge.passes.base import Pass, run_passes
from repedge.passes.cleanup import (
    drop_noops,
    merge_duplicates,
    require_inference_form,
    sort_nodes,
    spell_out,
)
from repedge.passes.constants import (
    fold_constants,
    fold_empty,
    fold_shapes,
    inline_functions,
    lift_constants,
    undeclare_weights,
)
from repedge.passes.dense import spell_einsums, unify_dense, widen_vectors
from repedge.passes.fusion.certificate import Certificate, Outcome, certify
from repedge.passes.fusion.fuse import fuse
from repedge.passes.lines import widen_lines
from repedge.passes.order import fold_orders
from repedge.passes.pads import explicit_pads, fold_pads, unify_pads
from repedge.passes.patterns.activations import fuse_activations, unify_clips
from repedge.passes.patterns.norms import fuse_norms
from repedge.passes.pooling import spell_norm_pools, unify_global_pools
from repedge.passes.reshapes import (
    forward_slices,
    unify_gathers,
    unify_reshapes,
    unify_scatters,
    unify_transposes,
)
from repedge.passes.simplifier import infer_shapes, run_onnxsim
from repedge.photos.tensors import Tensors

PREPARE: tuple[Pass, ...] = (
    inline_functions,  # first: no other pass looks into a function's body
    sort_nodes,  # all later passes rely on the order
    undeclare_weights,  # before folding: a weight that is an input is no constant
    lift_constants,  # before inference, which reads shape vectors from initializers
    infer_shapes,
    fold_shapes,  # after inference: Shape(x) is a constant once the shape of x is known
    fold_constants,  # after fold_shapes: Gather, Concat, ... of shapes
)
"""Until every value has a static shape; the passes of the other lists rely on that."""

CANONICALIZE: tuple[Pass, ...] = (
    require_inference_form,  # first: fusing takes BatchNormalization for an affine map
    lift_constants,
    fold_shapes,
    fold_constants,
    fold_empty,  # before drop_noops: a Concat of one part is none
    drop_noops,  # early: an Identity between two operators hides every pattern
    unify_gathers,  # before spell_out: it leaves slices behind
    forward_slices,  # before spell_out, which writes forward bounds
    unify_pads,  # before spell_out: it leaves slices behind
    spell_out,
    unify_clips,  # before fuse_activations, which reads Clip and knows no Min, Max
    fuse_activations,  # before fusing: else the 0.5 of a GELU is folded into the next convolution
    fuse_norms,  # before fusing, which would fold a scale behind one into a layer further on
    widen_lines,  # before explicit_pads, which reads windows over maps
    explicit_pads,  # before fold_pads, which adds numbers
    spell_norm_pools,  # after widen_lines: those of one axis, too
    fold_pads,  # before fusing: branches must read the same tensor
    widen_vectors,  # before unify_dense: it makes matrices of vectors
    spell_einsums,  # before unify_dense: it leaves MatMuls behind
    unify_dense,  # before fusing: a distillation head is a mean of two Gemms
    fold_orders,  # before fusing: what is ahead of a layer may merge with it then
)
"""What makes linear structure visible to `repedge.passes.fusion.fuse`."""

SIMPLIFY: tuple[Pass, ...] = (
    unify_scatters,  # after fusing, which reads borders written by one; before unify_gathers, which slices
    *CANONICALIZE,  # for graphs that were never fused, and for what fusing leaves behind
    unify_global_pools,  # after fusing: an average pool may be a branch of a convolution
    unify_transposes,  # before unify_reshapes: some become a Reshape
    unify_reshapes,  # after unify_global_pools: it leaves Flatten behind
    merge_duplicates,  # last: it wants everything in one spelling
)
"""From the fused graph to the clean graph."""


def prepare(model: ir.Model) -> dict[str, int]:
    """Give every value of a float ONNX graph a static shape, computing what shapes hang on; in place.

    Returns:
        Rewrites by pass.

    Raises:
        UserError: Input shapes are not fixed, or the graph can't be read.
    """
    for value in model.graph.inputs:
        if value.name not in model.graph.initializers:
            shape_of(value)  # raises where it is not fixed
    counts = run_passes(model, PREPARE, static=False)
    # Only once the others have come to rest: it is slow to import, and mostly nothing is left for it.
    return _summed(counts, run_passes(model, (run_onnxsim, *PREPARE), static=False))


def canonicalize(model: ir.Model) -> dict[str, int]:
    """Bring a float ONNX graph into the form that fusing expects; in place.

    Args:
        model: Static input shapes, default operator domain of version 20.

    Returns:
        Rewrites by pass.

    Raises:
        UserError: Input shapes are not fixed, the model is in training mode, or it can't be read.
    """
    return _summed(prepare(model), run_passes(model, CANONICALIZE))


def simplify(model: ir.Model) -> dict[str, int]:
    """Bring a graph, fused or not, into the clean form of ``repedge.graph``; in place.

    Raises:
        UserError: As `canonicalize`; or what is left does not meet the contract of a clean graph.
    """
    counts = _summed(prepare(model), run_passes(model, SIMPLIFY))
    check_clean(model)
    return counts


def settle(model: ir.Model) -> None:
    """Give every value a fixed shape where some hang on computed ones (files of other exporters); in place.

    Raises:
        UserError: As `prepare`, or the shape of a value hangs on what other values are.
    """
    if _first_open(model) is None:
        return
    prepare(model)
    node = _first_open(model)
    if node is not None:
        raise UserError(
            f"the {node.op_type} node {node.name!r} gives a tensor whose shape is not known before it runs; "
            "a compiled network has fixed shapes"
        )


def _first_open(model: ir.Model) -> ir.Node | None:
    """The first node that gives a value without a fixed shape."""
    for node in model.graph:
        if any(v.name and (v.shape is None or not v.shape.is_static()) for v in node.outputs):
            return node
    return None


def settled(model: ir.Model) -> ir.Model:
    """A graph in which every value has a fixed shape: itself, or a copy that `settle` changed.

    Raises:
        UserError: As `settle`: running the graph may take any amount of memory.
    """
    if _first_open(model) is None:
        return model
    model = model.clone()
    settle(model)
    return model


def clean(
    model: ir.Model,
    real: Outcome | None = None,
    random: Outcome | None = None,
    tensors: Tensors = Tensors(),  # noqa: B008 - it is never changed
) -> Certificate:
    """Canonicalize, fuse and simplify; in place.

    Args:
        model: A float ONNX graph as it was exported or loaded.
        real, random: Inputs with what the unfused graph makes of them, to compare the fused one with;
            None leaves the end-to-end comparison out.
        tensors: What the graph takes beside the image, from the first sample on in each run.

    Returns:
        The fusion certificate.

    Raises:
        UserError: As `canonicalize` and `simplify`.
        CheckFailed: A merge, or the whole, is not exact.
    """
    from repedge.graph.count import count
    from repedge.graph.run import Session

    settle(model)
    before, parts = count(model), parts_of(model)
    canonicalize(model)
    fused = fuse(model)
    simplify(model)
    run = None if real is None and random is None else tensors.from_first(Session(model).run)
    return certify(fused, before, count(model), run, real, random, parts)


def _summed(*counts: dict[str, int]) -> dict[str, int]:
    return {name: sum(c.get(name, 0) for c in counts) for name in {k: None for c in counts for k in c}}
