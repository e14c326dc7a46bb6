"""Normalisation becomes part of the network: pixels 0..255 in, exact to the border pixel.

With p the RGB pixels and c the network's channel that reads pixel channel r(c):

    z_c            = (p_r(c) / 255 - mean_c) / std_c
    conv(z)        = sum_c W_c * z_c + b
                   = sum_c W_c / (255 std_c) * (p_r(c) - 255 mean_c) + b

so 1 / (255 std) goes into the first convolution's weights and the colour order into the order of its
input channels. A zero in the padding of z is the pixel 255 mean, not the pixel 0: so the mean goes
into the bias only where the convolution does not pad, and stays one Sub in front of it otherwise.
All in float64, cast once.

Centred pixels span 276 units of colour, more than 8 bits hold. A graph that is to be quantized therefore
gets a border of the mean pixel instead (two Concats and no padding), and its mean goes into the bias:
pixels then are the integers that the convolution reads, of scale 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.graph.attrs import attr, conv_attrs
from repedge.graph.values import add_initializer, const, shape_of
from repedge.passes.base import fresh_node_name, fresh_value_name, input_at, insert

IMAGE = "image"
"""Name of the folded graph's input."""

INPUT_KEY = "repedge.input"
"""Graph metadata: ``pixels`` where the input is pixels 0 to 255 already, as `fold_preprocess` leaves it."""

PIXEL_MAX = 255.0


def fold_preprocess(model: ir.Model, pre: Preprocess, border: bool = False) -> ir.Model:
    """A copy of the clean graph that takes pixels instead of normalised values; itself where it does already.

    The input is ``image``, float32 [1, C, H, W], RGB pixel values 0 to 255 (one channel for GRAY).
    Where the network's input goes into one plain convolution, normalisation and colour order are
    folded into its weights; else they are explicit operators: Sub and Mul, or for BGR one 1x1 Conv.

    Args:
        model: A clean graph, whose first input is the image [1, C, H, W]; it is not changed. All weights
            but the first convolution's are shared with the copy.
        pre: The preprocessing that the network was trained with.
        border: For graphs of batch 1 that are to be quantized with zero points: a padded first
            convolution reads the pixels in a border of the mean pixel.

    Raises:
        UserError: The input's channels or size are not what ``pre`` says.
    """
    if takes_pixels(model):
        return model
    _check(model, pre)
    folded = model.clone()
    image = folded.graph.inputs[0]
    old_name = str(image.name)
    _free_name(folded.graph, IMAGE, image)
    image.name = IMAGE
    image.metadata_props.clear()
    conv = _foldable_conv(image, pre)
    if conv is not None:
        _fold_into(folded.graph, conv, image, pre, border)
    else:
        _normalise_explicitly(folded.graph, image, pre, old_name)
    folded.metadata_props[INPUT_KEY] = "pixels"
    return folded


def takes_pixels(model: ir.Model) -> bool:
    """Whether the graph's input is pixels 0 to 255, because the preprocessing was folded in before."""
    return model.metadata_props.get(INPUT_KEY) == "pixels"


def _check(model: ir.Model, pre: Preprocess) -> None:
    value = model.graph.inputs[0]
    wanted = (1, pre.channels, *pre.size)
    if shape_of(value) != wanted:
        raise UserError(
            f"the model's input {value.name!r} is {list(shape_of(value))}, but preprocessing to {pre.color} "
            f"makes {list(wanted)}; set --input-size and --color to fit the model"
        )
    if value.is_graph_output():
        raise UserError(
            f"the model returns its own input {value.name!r}, which is not what the artifact gets"
        )
    if not value.uses():
        raise UserError(
            f"nothing that the model gives depends on its image {value.name!r}: every output is a constant"
        )
    if not len(pre.mean) == len(pre.std) == pre.channels:
        raise UserError(
            f"{pre.color} has {pre.channels} channels, mean has {len(pre.mean)} values and std {len(pre.std)}"
        )


def _pixel_order(pre: Preprocess) -> list[int]:
    """For each channel of the network, the channel of the RGB image that it reads."""
    return [2, 1, 0] if pre.color == "BGR" else list(range(pre.channels))


def _foldable_conv(image: ir.Value, pre: Preprocess) -> ir.Node | None:
    """The one Conv that reads the image and nothing else does, if its weights can take the folding."""
    uses = list(image.uses())
    if len(uses) != 1 or uses[0].idx != 0 or uses[0].node.op_type != "Conv":
        return None
    conv = uses[0].node
    bias = input_at(conv, 2)
    if const(conv.inputs[1]) is None or (bias is not None and const(bias) is None):
        return None
    if attr(conv, "group", 1) != 1 and pre.color == "BGR":
        return None  # a group would have to read channels of another group
    return conv


def _fold_into(graph: ir.Graph, conv: ir.Node, image: ir.Value, pre: Preprocess, border: bool) -> None:
    weight = np.asarray(const(conv.inputs[1])).astype(np.float64)  # [O, C / group, kh, kw]
    bias = const(input_at(conv, 2))
    mean, std = np.asarray(pre.mean, np.float64), np.asarray(pre.std, np.float64)
    order = _pixel_order(pre)
    group = attr(conv, "group", 1)
    # channels[o, j]: the network's channel that weight[o, j] multiplies.
    per_group = weight.shape[1]
    first = np.repeat(np.arange(group), weight.shape[0] // group) * per_group
    channels = first[:, None] + np.arange(per_group)
    scaled = weight / (PIXEL_MAX * std)[channels][:, :, None, None]
    # New nodes see the image's channel order: channel order[c] of the image is the network's c.
    shift = np.empty_like(mean)
    shift[order] = PIXEL_MAX * mean
    if any(conv_attrs(conv).pads) and mean.any() and not border:
        centered = _node("Sub", [image, _channel_vector(graph, "image_mean", shift)], conv, image)
        conv.replace_input_with(0, centered)
    elif mean.any():
        if any(conv_attrs(conv).pads):
            _border(graph, conv, shift)
        offset = -np.einsum("ojhw,oj->o", scaled, PIXEL_MAX * mean[channels])
        total = offset if bias is None else bias.astype(np.float64) + offset
        _set_input(graph, conv, 2, _initializer(graph, f"{conv.name}_bias", total))
    if group == 1:
        flipped = np.empty_like(scaled)
        flipped[:, order] = scaled
        scaled = flipped
    _set_input(graph, conv, 1, _initializer(graph, f"{conv.name}_weight", scaled))


def _border(graph: ir.Graph, conv: ir.Node, pixel: np.ndarray) -> None:
    """Rows and columns of ``pixel`` [C] around the input, as many as the padding that the filters reach."""
    a = conv_attrs(conv)
    x = conv.inputs[0]
    assert x is not None
    for axis in (0, 1):
        size = shape_of(x)[2 + axis]
        reach = a.dilations[axis] * (a.kernel[axis] - 1) + 1
        before, after = a.pads[axis], a.pads[axis + 2]
        last = (size + before + after - reach) // a.strides[axis] * a.strides[axis] + reach
        parts = [x]
        for count, first in ((before, True), (last - size - before, False)):
            if count > 0:
                shape = list(shape_of(x))
                shape[2 + axis] = count
                rows = np.broadcast_to(pixel.reshape(1, -1, 1, 1), shape)
                parts.insert(0 if first else len(parts), _initializer(graph, "image_border", rows))
        if len(parts) > 1:
            shape = list(shape_of(x))
            shape[2 + axis] = sum(shape_of(v)[2 + axis] for v in parts)
            x = _node("Concat", parts, conv, x, {"axis": 2 + axis}, tuple(shape))
    conv.replace_input_with(0, x)
    conv.attributes.pop("auto_pad", None)
    conv.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 0, 0])


def _normalise_explicitly(graph: ir.Graph, image: ir.Value, pre: Preprocess, old_name: str) -> None:
    """Compute the network's own input by operators; it keeps its name unless that was ``image``."""
    mean, std = np.asarray(pre.mean, np.float64), np.asarray(pre.std, np.float64)
    readers = [(use.node, use.idx) for use in image.uses()]
    anchor = next(node for node in graph if any(node is reader for reader, _ in readers))
    scale = 1 / (PIXEL_MAX * std)
    if pre.color == "BGR":
        kernel = np.zeros((3, 3, 1, 1))
        kernel[range(3), _pixel_order(pre), 0, 0] = scale
        weights = [_initializer(graph, "image_scale", kernel), _initializer(graph, "image_bias", -mean / std)]
        value = _node("Conv", [image, *weights], anchor, image, {"kernel_shape": [1, 1]})
    else:
        value = image
        if mean.any():
            value = _node(
                "Sub", [value, _channel_vector(graph, "image_mean", PIXEL_MAX * mean)], anchor, image
            )
        value = _node("Mul", [value, _channel_vector(graph, "image_scale", scale)], anchor, image)
    for node, index in readers:
        node.replace_input_with(index, value)
    if old_name != IMAGE:
        value.name = old_name


def _node(
    op_type: str,
    inputs: list[ir.Value],
    before: ir.Node,
    image: ir.Value,
    attributes: dict[str, Any] | None = None,
    shape: tuple[int, ...] | None = None,
) -> ir.Value:
    """The output of a new node ahead of ``before``; of the image's shape if no other is given."""
    shape = shape_of(image) if shape is None else shape
    out = insert(before, op_type, inputs, attributes, shape=shape, dtype=ir.DataType.FLOAT)
    graph, node = before.graph, out.producer()
    if isinstance(graph, ir.Graph) and node is not None:
        out.name = fresh_value_name(graph, f"image_{op_type.lower()}")
        node.name = fresh_node_name(graph, f"image_{op_type.lower()}")
        node.metadata_props.clear()  # it comes from no module
    return out


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    return add_initializer(graph, fresh_value_name(graph, name), array.astype(np.float32))


def _channel_vector(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    return _initializer(graph, name, values.reshape(1, -1, 1, 1))


def _set_input(graph: ir.Graph, node: ir.Node, index: int, value: ir.Value) -> None:
    """Read ``value`` there; the initializer that was read before goes if nobody else reads it."""
    old = input_at(node, index)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
    if old is not None and not old.uses():
        del graph.initializers[str(old.name)]


def _free_name(graph: ir.Graph, name: str, keep: ir.Value) -> None:
    """Rename the value (other than ``keep``) that has the name, if there is one."""
    if any(value.name == name and value is not keep for value in graph.inputs):
        raise UserError(f"an input beside the image is called {name!r}, as the image will be; rename it")
    values = [*graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    for value in values:
        if value.name == name and value is not keep:
            if value.is_graph_output():
                raise UserError(
                    f"an output of the model is called {name!r}, as the input will be; rename the output"
                )
            value.name = fresh_value_name(graph, f"{name}_value")
