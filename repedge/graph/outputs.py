"""Outputs begin with the axis of images, whatever axis the network's own code has first."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.graph.values import add_initializer


def images_first(model: ir.Model) -> list[str]:
    """Give every output of a graph of one image a first axis of 1, in place; no number moves.

    A text recognizer's [T, 1, C] becomes [1, T, C], what was squeezed to [C] becomes [1, C].

    Args:
        model: A graph of batch 1.

    Returns:
        A sentence for each output that changed.
    """
    graph, notes = model.graph, []
    for i, old in enumerate(graph.outputs):
        shape = old.shape
        if shape is None or not shape.is_static() or shape.numpy()[:1] == (1,) or old.producer() is None:
            continue
        before = [int(d) for d in shape.numpy()]
        after = list(before)
        if 1 in after:
            after.remove(1)
        after = [1, *after]
        name = str(old.name)
        old.name = f"{name}/as_given"
        target = add_initializer(graph, f"{name}/shape", np.array(after, np.int64))
        new = ir.Value(name=name, shape=ir.Shape(after), type=old.type)
        graph.append(ir.node("Reshape", [old, target], outputs=[new], name=f"{name}/images_first"))
        graph.outputs[i] = new
        notes.append(f"the output {name!r} is {after} instead of {before}: the axis of images comes first")
    return notes
