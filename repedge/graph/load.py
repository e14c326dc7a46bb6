"""ONNX files -> float graphs with static shapes. A file is untrusted input."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import UnsupportedModel, UserError
from repedge.graph import inputs, opsets
from repedge.graph.attrs import attr
from repedge.graph.inputs import Form
from repedge.graph.opsets import DEFAULT_DOMAINS
from repedge.graph.serde import (
    BIG,
    first_line,
    from_proto,
    inferred,
    read_onnx,
    save_onnx,
    to_proto,
    with_small_proto,
)
from repedge.graph.values import check_weights

__all__ = ["from_proto", "load_onnx", "normalize", "save_onnx", "to_proto"]

INTEGER_OPERATORS = frozenset(
    {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QGemm"}
)
"""Of quantized files from which the float network can't be read."""

WINDOW = ("kernel_shape", "strides", "dilations", "pads", "output_padding", "output_shape")
"""Attributes of convolutions and poolings."""

WIDEST = 1 << 20
"""No image has as many pixels in a row."""

CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def load_onnx(
    path: str | os.PathLike,
    input_size: tuple[int, int] | None = None,
    form: Form | None = None,
    channels: int | None = None,
) -> ir.Model:
    """Read an ONNX file and bring it into the form that the passes start from.

    Any opset that ONNX itself can convert becomes opset 20, float16 becomes float32, the batch
    becomes 1, and every value that shape inference reaches gets a static shape. Weights stay mapped
    from the file where they are external data.

    Args:
        path: An ``.onnx`` file; external data must lie in its folder.
        input_size: Height and width in pixels, where the file leaves them open.
        form: Which input is the image, and what the others hold; None: it has no others.
        channels: Of the image, where the file leaves them open.

    Raises:
        UserError: The file is missing, damaged or invalid, refers to files outside its folder, has
            NaN weights, or has no image input of a known size.
        UnsupportedModel: It has operators of other domains, control flow, or an opset that can't be
            converted.
    """
    path = Path(path)
    model = _read(path)
    _check_external_data(model, path)
    try:
        _read_small(model)
        return normalize(model, input_size, path, form, channels)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as an ONNX model: {first_line(error)}") from error


def normalize(
    model: ir.Model,
    input_size: tuple[int, int] | None,
    path: str | os.PathLike = "the exported graph",
    form: Form | None = None,
    channels: int | None = None,
) -> ir.Model:
    """Everything `load_onnx` does after reading; changes ``model`` in place where it can."""
    from onnx_ir.passes import common

    common.InlinePass()(model)  # the model's own functions
    common.RemoveUnusedFunctionsPass()(model)
    _reject_foreign(model, path)
    opsets.spell_out(model, ("GroupNormalization",))  # ONNX's checker refuses its first version
    _check(model, path)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    form = form or inputs.settle(inputs.declared(model.graph), inputs.Given(), path)
    _fix_image(inputs.arrange(model.graph, form), input_size, channels, path)
    _half_to_float(model)
    if opsets.needs_shapes(model):
        _infer_shapes(model, path)
    opsets.spell_out(model)
    model = opsets.convert(model, path)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    _finite_masks(model)
    check_weights(model)
    _infer_shapes(model, path)
    common.NameFixPass()(model)
    for i, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{i}"
    model.ir_version, model.producer_name, model.producer_version = 10, "repedge", None
    model.metadata_props.clear()  # passes leave marks there, which a file must not bring
    return model


def _read(path: Path) -> ir.Model:
    if not path.is_file():
        raise UserError(f"there is no file {path}" if not path.exists() else f"{path} is not a file")
    log = logging.getLogger("onnx_ir")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it warns about what the checks report in one sentence
    try:
        model = read_onnx(path)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except Exception as error:  # what deserializing garbage raises is not documented
        raise UserError(f"{path} is not an ONNX file, or is cut short: {first_line(error)}") from error
    finally:
        log.setLevel(level)
    if not len(model.graph) or not model.opset_imports:
        raise UserError(f"{path} is not an ONNX file, or is cut short: it holds no graph")
    return model


def _check_external_data(model: ir.Model, path: Path) -> None:
    """Refuse any reference out of the model's folder: absolute, by "..", or through a link."""
    folder = path.parent.resolve()
    for tensor in _external_tensors(model):
        location = os.fspath(tensor.location)
        parts = Path(location.replace("\\", "/"))
        target = (folder / parts).resolve()
        if not location or parts.is_absolute() or ".." in parts.parts or not target.is_relative_to(folder):
            raise UserError(
                f"{path} keeps the weight {tensor.name!r} in {location!r}, outside its own folder; "
                "put the data file beside the model"
            )
        if not target.is_file():
            raise UserError(f"{path} keeps its weights in {location!r}, which is not beside it")
        if (tensor.offset or 0) < 0 or (tensor.offset or 0) + tensor.nbytes > target.stat().st_size:
            raise UserError(f"{location!r}, which holds the weights of {path}, is cut short")
        tensor.base_dir = folder


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Wherever a tensor can hide: initializers, attributes, subgraphs, functions."""
    owners: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for graph in owners:
        values = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
        tensors = [value.const_value for value in values]
        for node in graph.all_nodes():
            for attribute in node.attributes.values():
                if attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
                    found = attribute.value
                    tensors += list(found) if isinstance(found, (list, tuple)) else [found]
        yield from (t for t in tensors if isinstance(t, ir.ExternalTensor))


def _read_small(model: ir.Model) -> None:
    """Shapes, axes and the like that the file keeps as external data, too, are read at once."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes <= BIG:
            value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=value.name)


def _reject_foreign(model: ir.Model, path: Any) -> None:
    """Name every operator of another domain and every control-flow operator at once."""
    integers = sorted({n.op_type for n in model.graph.all_nodes()} & INTEGER_OPERATORS)
    if integers:
        raise UnsupportedModel(
            f"{path} is quantized into operators on integers ({', '.join(integers)}), from which the float "
            "network can't be read: compile the file that it was made from, or one with QuantizeLinear and "
            "DequantizeLinear nodes"
        )
    found = {
        f"{node.domain}.{node.op_type}" if node.domain not in DEFAULT_DOMAINS else node.op_type
        for node in model.graph.all_nodes()
        if node.domain not in DEFAULT_DOMAINS or node.op_type in CONTROL_FLOW
    }
    if found:
        raise UnsupportedModel(
            f"{path} has control flow or operators from outside the ONNX standard: {', '.join(sorted(found))}"
        )


def _check(model: ir.Model, path: Any) -> None:
    import onnx

    def check(proto: Any) -> None:
        for output in proto.graph.output:  # the checker wants a shape, and files do without
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(proto)

    try:
        with_small_proto(model, check)
    except Exception as error:
        raise UserError(f"{path} is not a valid ONNX model: {first_line(error)}") from error
    _check_windows(model, path)
    _check_stored(model, path)


def _check_windows(model: ir.Model, path: Any) -> None:
    """Runtimes trust the numbers of a window, and abort on some that no network has."""
    for node in model.graph.all_nodes():
        for name in WINDOW:
            numbers = attr(node, name, None)
            if isinstance(numbers, Sequence) and any(abs(int(v)) > WIDEST for v in numbers):
                raise UserError(
                    f"{path}: {name} of the {node.op_type} node {node.name!r} is {list(numbers)}, and no "
                    "network has that; is one of its numbers wrong?"
                )


def _check_stored(model: ir.Model, path: Any) -> None:
    """The checker asks for enough bytes, and takes more than a tensor's shape and type say."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None or isinstance(tensor, ir.ExternalTensor):
                continue
            try:
                tensor.numpy()
            except (ValueError, TypeError, OverflowError) as error:
                raise UserError(
                    f"{path}: the weight {name!r} does not hold what its shape {list(tensor.shape)} and type "
                    f"{tensor.dtype} say: {first_line(error)}"
                ) from error


def _fix_image(image: ir.Value, input_size: tuple[int, int] | None, channels: int | None, path: Any) -> None:
    """float32 [1, C, H, W]."""
    if image.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        raise UserError(f"the input {image.name!r} of {path} is {image.dtype}; it must be float32 or uint8")
    shape = list(image.shape) if image.shape is not None else []
    if len(shape) != 4:
        raise UserError(
            f"the input {image.name!r} of {path} has rank {len(shape)}; "
            "it must be [batch, channels, height, width]"
        )
    own = shape[1] if isinstance(shape[1], int) and shape[1] > 0 else channels
    if own is None:
        raise UserError(f"the channels of the input {image.name!r} of {path} are not fixed")
    size = [_extent(side, i, input_size, image.name, path) for i, side in enumerate(shape[2:])]
    if isinstance(shape[0], int) and shape[0] > 1:
        raise UserError(f"{path} is made for batches of {shape[0]}; export it for batch 1 or a dynamic batch")
    image.shape = ir.Shape([1, own, *size])


def _extent(own: Any, axis: int, input_size: tuple[int, int] | None, name: Any, path: Any) -> int:
    if isinstance(own, int) and own > 0:
        if input_size is not None and input_size[axis] != own:
            what = ("height", "width")[axis]
            raise UserError(
                f"{path} has a fixed {what} of {own} pixels; --input-size asks for {input_size[axis]}"
            )
        return own
    if input_size is None:
        raise UserError(
            f"the input {name!r} of {path} has no fixed size; give one with --input-size HEIGHTxWIDTH"
        )
    return input_size[axis]


def _finite_masks(model: ir.Model) -> None:
    """-inf in a constant that is only added or chosen -> the lowest float32: a mask ahead of a softmax."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        masks = [use.node.op_type in ("Add", "Where") for use in value.uses()]
        if tensor is None or tensor.size < 2 or not tensor.dtype.is_floating_point() or not all(masks):
            continue
        array = tensor.numpy()
        if (array == -np.inf).any() and array.max() < np.inf:
            lowest = np.finfo(np.float32).min
            value.const_value = ir.Tensor(np.where(array == -np.inf, lowest, array), name=value.name)


def _half_to_float(model: ir.Model) -> None:
    """float16 tensors, casts and declared types become float32."""
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == half:
            value.const_value = ir.Tensor(tensor.numpy().astype(np.float32), name=value.name)
            value.dtype = single
    for value in [*model.graph.inputs, *(v for n in model.graph for v in n.outputs)]:
        if value.dtype == half:
            value.dtype = single
    for node in model.graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == half:
                tensor = ir.Tensor(attribute.value.numpy().astype(np.float32))
                node.attributes[name] = ir.AttrTensor(name, tensor)
            elif node.op_type == "Cast" and name == "to" and attribute.value == half:
                node.attributes[name] = ir.AttrInt64(name, int(single))


def to_run(path: Path) -> Path | ir.Model:
    """What of a file is run as it is: all of it, or its graph without the nodes that no output hangs on.

    ONNX Runtime computes those, too, and nothing has looked at how large their values are.
    """
    from onnx_ir.passes import common

    model = _read(path)
    before = len(model.graph)
    common.RemoveUnusedNodesPass()(model)
    if len(model.graph) == before:
        return path
    _check_external_data(model, path)
    return model


def check_file(path: Path) -> None:
    """Fail where a file that is to be run as it is is no graph, or would not fit into memory.

    Raises:
        UserError: Says why.
    """
    model = _read(path)
    _check_external_data(model, path)
    _infer_shapes(model, path)


def computes_in_half(path: str | os.PathLike) -> bool:
    """Whether the file has float16 weights or casts to float16."""
    graph = _read(Path(path)).graph
    half = ir.DataType.FLOAT16
    values = (*graph.inputs, *graph.initializers.values())
    casts = (n.attributes.get_int("to", 0) for n in graph.all_nodes() if n.op_type == "Cast")
    return any(v.dtype == half for v in values) or int(half) in casts


def _infer_shapes(model: ir.Model, path: Any) -> None:
    """Shapes and types of every value, from the now static input; symbols of the file are dropped."""
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    try:
        found = with_small_proto(model, inferred)
    except UserError as error:
        raise UserError(f"{path} is too large: {error}") from error
    except Exception as error:
        raise UserError(f"the shapes of {path} do not fit together: {first_line(error)}") from error
    known = {v.name: v for v in (*found.graph.value_info, *found.graph.output)}
    for node in model.graph:
        for value in node.outputs:
            info = known.get(value.name)
            if info is None or not info.type.HasField("tensor_type"):
                continue
            value.dtype = ir.DataType(info.type.tensor_type.elem_type)
            value.shape = ir.serde.deserialize_type_proto_for_shape(info.type)
