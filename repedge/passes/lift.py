"""Operators that fold, move or lose the batch axis, with an axis of images in front of all they work on.

A value of the graph of one image is *plain* where its first axis, of size 1, is the batch: for N images it is
``[N, *shape[1:]]``. Any other that depends on the image is *lifted*: ``[N, *shape]``. A rule here makes an
operator of one image that of N, on lifted values: axes move up by one, shapes of lower rank are filled with 1
behind the images, and what takes only maps ``[B, C, H, W]`` sees the images folded into B. In row-major order
both forms hold the same numbers, so that going from one to the other is a Reshape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.operators import UNARY
from repedge.passes.base import input_at, insert, ints

BATCH = "N"
"""Name of the symbolic batch dimension."""


class Lift:
    """What is known of a graph on its way from one image to any number.

    Attributes:
        graph: The graph, edited in place. Shapes of its values stay those of one image until `finish`.
        batched: Values that depend on the image.
        lifted: Those among them with an axis of images in front; the others are plain.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.batched: set[ir.Value] = set(graph.inputs)
        self.lifted: set[ir.Value] = set()
        self._between: dict[ir.Value, tuple[int | str | None, ...]] = {}
        self._forms: dict[tuple[ir.Value, int], ir.Value] = {}
        self._count: ir.Value | None = None

    def apply(self, node: ir.Node) -> str | None:
        """Make ``node`` work on lifted values; a reason where it can't."""
        return RULES.get(node.op_type, _unknown)(self, node)

    def form(self, node: ir.Node, value: ir.Value, pad: int = 0) -> ir.Value:
        """``value`` as ``[N, 1, ..., *shape]`` with ``pad`` ones, ahead of ``node``; constants as is."""
        if value not in self.batched or (value in self.lifted and not pad):
            return value
        if (value, pad) not in self._forms:
            shape = [1] * pad + list(shape_of(value))
            self._forms[value, pad] = self.reshaped(node, value, [0, *shape], [BATCH, *shape])
        return self._forms[value, pad]

    def reshaped(
        self, node: ir.Node, value: ir.Value, target: Sequence[int], shape: Sequence[int | str | None]
    ) -> ir.Value:
        """A Reshape ahead of ``node``; ``shape`` is what it gives for N images."""
        inputs = [value, ints(node, "images", target)]
        made = insert(node, "Reshape", inputs, shape=[1 for _ in shape], dtype=value.dtype)
        self._between[made] = tuple(shape)
        return made

    def expanded(self, node: ir.Node, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """A constant, made for one image, once for each: ``[N, *shape]``."""
        if self._count is None:
            first, attributes = next(iter(self.graph)), {"start": 0, "end": 1}
            source = self.graph.inputs[0]
            self._count = insert(first, "Shape", [source], attributes, shape=[1], dtype=ir.DataType.INT64)
        rest = ints(node, "image", shape)
        size = [len(shape) + 1]
        target = insert(node, "Concat", [self._count, rest], {"axis": 0}, shape=size, dtype=ir.DataType.INT64)
        made = insert(node, "Expand", [value, target], shape=[1, *shape], dtype=value.dtype)
        self._between[made] = (BATCH, *shape)
        return made

    def settle(self, out: ir.Value) -> None:
        """Take a lifted output, and make it plain again where its first axis is the batch of one image."""
        self.batched.add(out)
        self.lifted.add(out)
        if shape_of(out)[:1] == (1,):
            shape = shape_of(out)
            self.refold(out, [BATCH, *shape], [0, *shape[1:]])

    def refold(self, out: ir.Value, computed: Sequence[int | str | None], target: Sequence[int]) -> None:
        """Let the readers of ``out``, which is ``computed`` for N images, read it in the shape ``target``."""
        node = out.producer()
        assert node is not None
        self._between[out] = tuple(computed)
        self.batched.discard(out)
        self.lifted.discard(out)
        name = str(out.name)
        made = ir.Value(name=f"{name}/images", shape=out.shape, type=out.type)
        out.replace_all_uses_with(made, replace_graph_outputs=True)
        inputs = [out, ints(node, "images", target)]
        self.graph.insert_after(node, ir.node("Reshape", inputs, outputs=[made], name=f"{name}/images"))
        if made.is_graph_output():
            out.name, made.name = f"{name}/folded", name
        self.batched.add(made)
        if len(target) > len(shape_of(made)):
            self.lifted.add(made)

    def finish(self) -> None:
        """Give every value the shape that it has for N images."""
        for value in (*self.graph.inputs, *(v for node in self.graph for v in node.outputs)):
            if value in self._between:
                value.shape = ir.Shape(self._between[value])
            elif value in self.lifted:
                value.shape = ir.Shape([BATCH, *shape_of(value)])
            elif value in self.batched:
                value.shape = ir.Shape([BATCH, *shape_of(value)[1:]])


Rule = Callable[[Lift, ir.Node], str | None]


def _unknown(_: Lift, node: ir.Node) -> str | None:
    return "is not known to keep the images of a batch apart"


def _done(lift: Lift, node: ir.Node) -> str | None:
    for out in node.outputs:
        lift.settle(out)
    return None


def _others_batched(lift: Lift, node: ir.Node) -> bool:
    return any(v in lift.batched for v in node.inputs[1:])


PARAMETERS = "has weights or parameters that depend on the image"


def _elementwise(lift: Lift, node: ir.Node) -> str | None:
    rank = len(shape_of(node.outputs[0]))
    for i, value in enumerate(node.inputs):
        if value is not None and value in lift.batched:
            node.replace_input_with(i, lift.form(node, value, rank - len(shape_of(value))))
    return _done(lift, node)


def _unary(lift: Lift, node: ir.Node) -> str | None:
    if _others_batched(lift, node):
        return PARAMETERS
    quantized = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    scale = const(input_at(node, 1)) if quantized else None
    if scale is not None and scale.size > 1:
        return "has scales along an axis"
    return _elementwise(lift, node)


DEFAULT_AXIS = {"Split": 0, "Gather": 0, "GatherElements": 0, "ArgMax": 0, "ArgMin": 0}
"""Where it is not -1."""


def _along_axis(lift: Lift, node: ir.Node) -> str | None:
    if _others_batched(lift, node):
        return PARAMETERS
    x = node.inputs[0]
    assert x is not None
    _move_axis(node, len(shape_of(x)))
    node.replace_input_with(0, lift.form(node, x))
    return _done(lift, node)


def _move_axis(node: ir.Node, rank: int) -> None:
    axis = attr(node, "axis", DEFAULT_AXIS.get(node.op_type, -1))
    node.attributes["axis"] = ir.AttrInt64("axis", axis % rank + 1)


def _gather(lift: Lift, node: ir.Node) -> str | None:
    data, indices = node.inputs
    assert data is not None
    assert indices is not None
    if data in lift.batched:
        return _along_axis(lift, node)
    if attr(node, "axis", 0) % len(shape_of(data)):
        return "picks from constants by the image, behind another axis than the first"
    node.replace_input_with(1, lift.form(node, indices))
    return _done(lift, node)


def _concat(lift: Lift, node: ir.Node) -> str | None:
    rank = len(shape_of(node.outputs[0]))
    _move_axis(node, rank)
    for i, value in enumerate(node.inputs):
        assert value is not None
        constant = value not in lift.batched
        made = lift.expanded(node, value, shape_of(value)) if constant else lift.form(node, value)
        node.replace_input_with(i, made)
    return _done(lift, node)


def _reduction(lift: Lift, node: ir.Node) -> str | None:
    x, given = node.inputs[0], input_at(node, 1)
    assert x is not None
    listed = const(given) if given is not None else attr(node, "axes")
    if given is not None and listed is None:
        return "reduces along axes that are not constant"
    rank = len(shape_of(x))
    axes = [int(a) % rank + 1 for a in listed] if listed is not None else []
    if not axes and not attr(node, "noop_with_empty_axes", 0):
        axes = list(range(1, rank + 1))
    if "axes" in node.attributes:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    elif axes:
        node.resize_inputs(2)
        node.replace_input_with(1, ints(node, "axes", axes))
    node.replace_input_with(0, lift.form(node, x))
    return _done(lift, node)


def _reshape(lift: Lift, node: ir.Node) -> str | None:
    """Plain and lifted values have the same numbers in the same order: no other Reshape is needed."""
    out = node.outputs[0]
    shape = shape_of(out)
    if 0 in shape:
        return "gives a tensor without elements"
    plain = shape[:1] == (1,)
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(1, ints(node, "shape", [0, *shape[1:]] if plain else [0, *shape]))
    lift.batched.add(out)
    if not plain:
        lift.lifted.add(out)
    return None


def _transpose(lift: Lift, node: ir.Node) -> str | None:
    x = node.inputs[0]
    assert x is not None
    perm = attr(node, "perm", tuple(reversed(range(len(shape_of(x))))))
    node.attributes["perm"] = ir.AttrInt64s("perm", [0, *(p + 1 for p in perm)])
    node.replace_input_with(0, lift.form(node, x))
    return _done(lift, node)


def _matmul(lift: Lift, node: ir.Node) -> str | None:
    ranks = [len(shape_of(v)) for v in node.inputs]
    if min(ranks) < 2:
        return "multiplies with a vector"
    for i, value in enumerate(node.inputs):
        if value is not None and value in lift.batched:
            node.replace_input_with(i, lift.form(node, value, max(ranks) - ranks[i]))
    return _done(lift, node)


def _gemm(lift: Lift, node: ir.Node) -> str | None:
    """Rows of all images below each other."""
    x, bias = node.inputs[0], input_at(node, 2)
    rows = bias is not None and len(shape_of(bias)) == 2 and shape_of(bias)[0] != 1
    if attr(node, "transA", 0) or _others_batched(lift, node) or rows:
        return "multiplies images with each other"
    return _folded(lift, node) if x is not None else None


def _folded(lift: Lift, node: ir.Node) -> str | None:
    """Conv, pools and the like: ``[N, B, ...]`` as ``[N * B, ...]``, and back."""
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    inner, outer = shape_of(x), shape_of(out)
    if _others_batched(lift, node) or len(node.outputs) > 1 or inner[0] != outer[0]:
        return PARAMETERS if _others_batched(lift, node) else "has more than one output"
    if inner[0] > 1 or x in lift.lifted:
        node.replace_input_with(0, lift.reshaped(node, x, [-1, *inner[1:]], [None, *inner[1:]]))
    target = [-1, *outer] if outer[0] != 1 else [-1, *outer[1:]]
    lift.refold(out, [None, *outer[1:]], target)
    return None


def _slice(lift: Lift, node: ir.Node) -> str | None:
    x, given, starts = node.inputs[0], input_at(node, 3), const(input_at(node, 1))
    assert x is not None
    axes = const(given)
    if _others_batched(lift, node) or starts is None or (given is not None and axes is None):
        return "cuts where the image says"
    listed = range(len(starts)) if axes is None else axes.tolist()
    node.resize_inputs(max(4, len(node.inputs)))
    node.replace_input_with(3, ints(node, "axes", [a % len(shape_of(x)) + 1 for a in listed]))
    node.replace_input_with(0, lift.form(node, x))
    return _done(lift, node)


def _pad(lift: Lift, node: ir.Node) -> str | None:
    x, given, pads = node.inputs[0], input_at(node, 3), const(input_at(node, 1))
    assert x is not None
    axes, rank = const(given), len(shape_of(x))
    if _others_batched(lift, node) or pads is None or (given is not None and axes is None):
        return "pads by an amount that is not constant"
    if axes is not None:
        node.replace_input_with(3, ints(node, "axes", [int(a) % rank + 1 for a in axes]))
    else:
        node.replace_input_with(1, ints(node, "pads", [0, *pads[:rank], 0, *pads[rank:]]))
    node.replace_input_with(0, lift.form(node, x))
    return _done(lift, node)


def _expand(lift: Lift, node: ir.Node) -> str | None:
    x, shape = node.inputs[0], shape_of(node.outputs[0])
    assert x is not None
    if _others_batched(lift, node):
        return PARAMETERS
    node.replace_input_with(1, ints(node, "shape", [1, *shape]))
    node.replace_input_with(0, lift.form(node, x, len(shape) - len(shape_of(x))))
    return _done(lift, node)


def _tile(lift: Lift, node: ir.Node) -> str | None:
    x, repeats = node.inputs[0], const(input_at(node, 1))
    assert x is not None
    if repeats is None:
        return "repeats by a number that is not constant"
    node.replace_input_with(1, ints(node, "repeats", [1, *repeats]))
    node.replace_input_with(0, lift.form(node, x))
    return _done(lift, node)


FOLDED = (
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"),
    *("BatchNormalization", "InstanceNormalization", "LRN", "DepthToSpace", "SpaceToDepth"),
)
"""They take maps alone, and treat each by itself."""

BROADCASTING = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu", "Where", "And", "Or"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Xor", "Mod"),
)
ALONG_AXIS = (
    *("Split", "Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin", "TopK", "LayerNormalization"),
)
REDUCTIONS = (
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd"),
    *("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(FOLDED, _folded),
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BROADCASTING, _elementwise),
    **dict.fromkeys(ALONG_AXIS, _along_axis),
    **dict.fromkeys(REDUCTIONS, _reduction),
    "Concat": _concat,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Transpose": _transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Gather": _gather,
    "Slice": _slice,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
}
"""Every operator that can be lifted; anything else needs a fixed batch."""
