"""A QDQ graph as a graph of integer operators: DequantizeLinear -> op -> QuantizeLinear becomes op.

Values that hold integers are listed with their scales in `IntegerGraph.quants`; an operator whose
first input is among them is an integer operator. QuantizeLinear and DequantizeLinear are left only
where integers meet floats, and between integers of different scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr, conv_attrs
from repedge.graph.values import add_initializer, const, only_reader, shape_of
from repedge.targets.tflite_emit import ACTIVATIONS, bounds
from repedge.targets.tflite_int_rules import (
    MIN_ADD,
    MIN_MUL,
    RULES,
    Rule,
    passes_everything,
    quantize_constant,
)
from repedge.targets.tflite_writer import Quant

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BIAS = {"int8": "int32", "int16": "int64"}
_CLOSE = 1e-5  # relative difference of a bias's scale from s_x * s_w that still counts as equal


@dataclass
class IntegerGraph:
    """A rewritten graph.

    Attributes:
        model: Initializers of weights and biases hold integers where the graph had them.
        quants: Value -> what its integers stand for; ``axis`` is ONNX's.
    """

    model: ir.Model
    quants: dict[ir.Value, Quant] = field(default_factory=dict)


def is_quantized(model: ir.Model) -> bool:
    """Whether a graph has QuantizeLinear or DequantizeLinear nodes."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph)


def integer_graph(model: ir.Model) -> IntegerGraph:
    """Rewrite a copy of a QDQ graph; the weights are shared with it.

    Raises:
        UserError: Scales or zero points are computed, or of a form that TensorFlow Lite lacks.
    """
    result = IntegerGraph(model.clone())
    _Rewriter(result).run()
    return result


def quant_of(node: ir.Node) -> tuple[Quant, int]:
    """Parameters of a QuantizeLinear or DequantizeLinear in signed integers, and what to subtract
    from unsigned ones.

    Raises:
        UserError: See `integer_graph`.
    """
    scale = const(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = const(given) if given is not None else np.zeros(1, _type_without_zero_point(node))
    if scale is None or zero is None:
        raise UserError(f"{node.op_type} node {node.name!r} has a computed scale or zero point")
    shift = {"uint8": 128, "uint16": 32768}.get(str(zero.dtype), 0)
    dtype = {"uint8": "int8", "uint16": "int16"}.get(str(zero.dtype), str(zero.dtype))
    zeros = zero.reshape(-1).astype(np.int64) - shift
    if dtype not in ("int8", "int16", "int32") or (zeros != zeros[0]).any():
        raise UserError(
            f"{node.op_type} node {node.name!r} has {zero.dtype} integers with zero points "
            f"{zero.reshape(-1)[:4].tolist()}; TensorFlow Lite takes 8 and 16 bits and one zero point"
        )
    if dtype == "int16" and zeros[0] != 0:
        raise UserError(f"{node.op_type} node {node.name!r}: 16-bit integers need zero point 0")
    scales = tuple(float(s) for s in np.float32(scale).reshape(-1))
    if not all(np.isfinite(s) and s > 0 for s in scales):
        raise UserError(f"{node.op_type} node {node.name!r} has a scale that is not a positive number")
    axis = attr(node, "axis", 1) % max(1, len(shape_of(node.inputs[0]))) if len(scales) > 1 else 0
    return Quant(dtype, scales, int(zeros[0]), axis), shift


def _type_without_zero_point(node: ir.Node) -> str:
    source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    if source is not None and source.dtype is not None:
        return str(source.dtype.numpy())
    wanted = attr(node, "output_dtype", 0)
    return str(ir.DataType(wanted).numpy()) if wanted else "uint8"


class _Rewriter:
    def __init__(self, result: IntegerGraph) -> None:
        self.graph = result.model.graph
        self.quants = result.quants
        self.constants: dict[ir.Value, ir.Value] = {}  # output of a constant's DequantizeLinear -> integers

    def run(self) -> None:
        for node in list(self.graph):
            if node.graph is None:
                continue  # an earlier node took it along
            if node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantize(node)
            elif not self._integer(node):
                self._float(node)
        self._sweep()

    # The two border operators

    def _quantize(self, node: ir.Node) -> None:
        quant, _ = quant_of(node)
        if const(node.inputs[0]) is not None:
            self._round_constant(node, quant)
            return
        if len(quant.scale) > 1:
            raise UserError(f"activation {node.inputs[0].name!r} has several scales; TensorFlow Lite has one")  # type: ignore[union-attr]
        out, source = node.outputs[0], self._integers(node.inputs[0])
        self._hold(out, quant)
        if source is not None and self.quants[source] == quant:
            _replace(out, source)
            self.graph.remove(node, safe=True)
        elif source is not None:
            node.replace_input_with(0, source)
        else:
            twin = self._twin(node, quant)
            if twin is not None:
                _replace(out, twin)
                self.graph.remove(node, safe=True)

    def _round_constant(self, node: ir.Node, quant: Quant) -> None:
        array = np.asarray(const(node.inputs[0]), np.float64)
        integers = np.rint(array / _column(quant, array.ndim)) + quant.zero_point
        name = f"{node.inputs[0].name}/{quant.dtype}"  # type: ignore[union-attr]
        value = self._constant(name, np.clip(integers, *quant.limits).astype(quant.dtype), quant)
        _replace(node.outputs[0], value)
        self.graph.remove(node, safe=True)

    def _twin(self, node: ir.Node, quant: Quant) -> ir.Value | None:
        """The result of an earlier QuantizeLinear that does the same."""
        for use in node.inputs[0].uses():  # type: ignore[union-attr]
            other = use.node
            if other is not node and other.op_type == "QuantizeLinear":
                found = other.outputs[0]
                if self.quants.get(found) == quant:
                    return found
        return None

    def _dequantize(self, node: ir.Node) -> None:
        quant, shift = quant_of(node)
        source, out = node.inputs[0], node.outputs[0]
        array = const(source)
        if array is not None and source in self.quants:
            self.constants[out] = source
        elif array is not None:
            assert source is not None
            name = f"{source.name}/{quant.dtype}" if shift else str(source.name)
            signed = (array.astype(np.int64) - shift).astype(quant.dtype) if shift else array
            value = self._constant(name, signed, quant) if shift else source
            self.quants[value] = quant
            self.constants[out] = value
        elif source in self.quants and self.quants[source] != quant:
            raise UserError(f"DequantizeLinear node {node.name!r} undoes another scale than was applied")
        elif source not in self.quants:
            raise UserError(f"DequantizeLinear node {node.name!r} reads integers that nothing quantized")

    def _integers(self, value: ir.Value | None) -> ir.Value | None:
        """The integers behind a float activation."""
        node = value.producer() if value is not None else None
        if node is None or node.op_type != "DequantizeLinear" or value in self.constants:
            return None
        return node.inputs[0] if node.inputs[0] in self.quants else None

    # Integer operators

    def _integer(self, node: ir.Node) -> bool:
        rule = RULES.get(node.op_type)
        if rule is None or not node.inputs or node.domain not in ("", "ai.onnx"):
            return False
        count = {"binary": 2, "tied": len(node.inputs) if node.op_type == "Concat" else 1}.get(rule.kind, 1)
        sources = [self._integers(v) for v in node.inputs[:count]]
        if all(s is None for s in sources):
            return False
        for value, source in zip(node.inputs, sources, strict=False):
            if source is None and const(value) is None and value not in self.constants:
                return False
        if not rule.able(node):
            return False
        if rule.kind == "move":
            assert sources[0] is not None
            return self._move(node, rule, sources[0])
        return self._compute(node, rule, sources)

    def _move(self, node: ir.Node, rule: Rule, source: ir.Value) -> bool:
        """Move integers instead of floats; what reads floats gets them behind the move."""
        quant = self.quants[source]
        if quant.dtype not in rule.dtypes:
            return False
        node.replace_input_with(0, source)
        for out in node.outputs:
            if out.uses() or out.is_graph_output():
                self._widen_behind(node, out)
            self._hold(out, quant)
        return True

    def _widen_behind(self, node: ir.Node, out: ir.Value) -> None:
        wide = ir.Value(name=out.name, shape=out.shape, type=ir.TensorType(ir.DataType.FLOAT))
        out.name = f"{out.name}/moved"
        out.replace_all_uses_with(wide, replace_graph_outputs=True)
        widening = ir.Node("", "DequantizeLinear", [out], outputs=[wide], name=f"{node.name}/dequantize")
        self.graph.insert_after(node, widening)

    def _compute(self, node: ir.Node, rule: Rule, sources: list[ir.Value | None]) -> bool:
        clamp = None
        out = node.outputs[0]
        wanted = self._wanted(out)
        if wanted is None:
            clamp = only_reader(out)
            if clamp is None or clamp.op_type not in ("Relu", "Clip") or clamp.inputs[0] is not out:
                return False
            wanted = self._wanted(clamp.outputs[0])
        if wanted is None or (rule.kind == "layer" and not self._weight_fits(node)):
            return False
        types = {wanted.dtype, *(self.quants[s].dtype for s in sources if s is not None)}
        dtype = "int16" if "int16" in types else "int8"
        if not types <= {"int8", "int16"} or dtype not in rule.dtypes:
            return False
        if rule.kind == "clamp" and passes_everything(*bounds(node), wanted):
            return self._drop_clamp(node, sources[0])
        give = self._result(rule, dtype, wanted, sources)
        operands = {"layer": self._layer, "binary": self._binary}.get(rule.kind, self._operands)
        operands(node, rule, sources, give)
        self._bind(node, rule, clamp, give, wanted)
        return True

    def _wanted(self, value: ir.Value) -> Quant | None:
        """The integers that all readers of a value want."""
        readers = [use.node for use in value.uses()]
        if not readers or value.is_graph_output() or any(n.op_type != "QuantizeLinear" for n in readers):
            return None
        first, *others = (quant_of(n)[0] for n in readers)
        return first if all(q == first for q in others) else None

    def _drop_clamp(self, node: ir.Node, source: ir.Value | None) -> bool:
        """A Relu that saturation does anyway: its readers convert the integers in front of it."""
        assert node.inputs[0] is not None
        _replace(node.outputs[0], node.inputs[0])
        self.graph.remove(node, safe=True)
        return True

    def _result(self, rule: Rule, dtype: str, wanted: Quant, sources: list[ir.Value | None]) -> Quant:
        """What the operator itself gives; where that is not what is wanted, a QUANTIZE follows."""
        if dtype in rule.fixed:
            return rule.fixed[dtype]
        if rule.kind == "tied" and len(sources) == 1 and sources[0] is not None:
            return self.quants[sources[0]]
        if wanted.dtype == dtype:
            return wanted
        return Quant("int16", (float(np.float32(max(map(abs, wanted.reals)) / 32767)),))

    def _operands(self, node: ir.Node, rule: Rule, sources: list[ir.Value | None], give: Quant) -> None:
        """Integers instead of floats; operators with several inputs that are tied get one scale."""
        tied = rule.kind == "tied"
        for i, source in enumerate(sources):
            if source is None:
                quant = give if tied else None
                node.replace_input_with(i, self._operand(node.inputs[i], give.dtype, quant))
            elif tied and self.quants[source] != give:
                node.replace_input_with(i, self._converted(node, source, give))
            else:
                node.replace_input_with(i, self._as_wide(node, source, give.dtype))

    def _binary(self, node: ir.Node, rule: Rule, sources: list[ir.Value | None], give: Quant) -> None:
        known = next(self.quants[s] for s in sources if s is not None)
        for i, source in enumerate(sources):
            if source is not None:
                node.replace_input_with(i, self._as_wide(node, source, give.dtype))
                continue
            least = MIN_ADD * give.scale[0]
            if node.op_type == "Mul":
                least = MIN_MUL * give.scale[0] / known.scale[0]
            node.replace_input_with(i, self._operand(node.inputs[i], give.dtype, None, least))

    def _operand(
        self, value: ir.Value | None, dtype: str, quant: Quant | None, least: float = 0.0
    ) -> ir.Value:
        """A constant operand as integers: those that the graph has, if they fit."""
        assert value is not None
        given = self.constants.get(value)
        if given is not None:
            found = self.quants[given]
            if found.dtype == dtype and len(found.scale) == 1 and quant in (None, found):
                return given
        real = self._real(value)
        quant = quant or quantize_constant(real, dtype, least)
        return self._constant(f"{value.name}/{dtype}", quant.integers(real), quant)

    def _as_wide(self, node: ir.Node, source: ir.Value, dtype: str) -> ir.Value:
        """8-bit integers as 16-bit ones of the same scale, exactly, where 16 are computed with."""
        quant = self.quants[source]
        if quant.dtype == dtype:
            return source
        return self._converted(node, source, Quant(dtype, quant.scale))

    def _converted(self, node: ir.Node, source: ir.Value, quant: Quant) -> ir.Value:
        for use in source.uses():
            other = use.node
            if other.op_type == "QuantizeLinear" and self.quants.get(other.outputs[0]) == quant:
                return other.outputs[0]
        name = f"{source.name}/{quant.dtype}_{len(self.quants)}"
        out = ir.Value(name=name, shape=source.shape, type=ir.TensorType(ir.DataType[quant.dtype.upper()]))
        converter = ir.Node("", "QuantizeLinear", [source], outputs=[out], name=name)
        self.graph.insert_before(node, converter)
        self.quants[out] = quant
        return out

    # Layers

    def _weight_fits(self, node: ir.Node) -> bool:
        weight = self.constants.get(node.inputs[1])  # type: ignore[arg-type]
        if weight is None:
            return False
        quant = self.quants[weight]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and const(bias) is None and bias not in self.constants:
            return False
        fits = len(quant.scale) == 1 or quant.axis == channel_axis(node)
        return quant.dtype == "int8" and quant.zero_point == 0 and fits

    def _layer(self, node: ir.Node, rule: Rule, sources: list[ir.Value | None], give: Quant) -> None:
        assert sources[0] is not None
        data, weight = self._as_wide(node, sources[0], give.dtype), self.constants[node.inputs[1]]  # type: ignore[index]
        node.replace_input_with(0, data)
        node.replace_input_with(1, weight)
        given = node.inputs[2] if len(node.inputs) > 2 else None
        if given is None:
            return
        x, w = self.quants[data].scale[0], np.array(self.quants[weight].scale)
        quant = Quant(_BIAS[give.dtype], tuple(map(float, (x * w).astype(np.float32))))
        integers = self._bias_integers(node, given, quant)
        node.replace_input_with(2, self._constant(f"{node.name}/bias", integers, quant))

    def _bias_integers(self, node: ir.Node, given: ir.Value, quant: Quant) -> np.ndarray:
        count = shape_of(node.outputs[0])[1 if node.op_type.startswith("Conv") else -1]
        scale = np.array(quant.scale)
        ints = self.constants.get(given)
        found = self.quants[ints] if ints is not None else None
        if found is not None and found.zero_point == 0 and len(found.scale) in (1, len(scale)):
            array = const(ints)
            if array is not None and np.allclose(found.scale, scale, rtol=_CLOSE, atol=0):
                return np.broadcast_to(array.reshape(-1), count).astype(quant.dtype)
        real = np.broadcast_to(self._real(given).reshape(-1), count)
        integers = np.rint(real / scale)
        limits = quant.limits
        if (np.abs(integers) > limits[1]).any():
            worst = int(np.abs(integers).argmax())
            raise UserError(
                f"the bias {real[worst]:.3g} of channel {worst} of {node.op_type} node {node.name!r} does "
                f"not fit {quant.dtype} at scale {scale[worst % len(scale)]:.3g}; raise that weight scale to "
                "at least |bias| / (s_x * 2**30)"
            )
        return integers.astype(quant.dtype)

    # Results

    def _bind(self, node: ir.Node, rule: Rule, clamp: ir.Node | None, give: Quant, wanted: Quant) -> None:
        """Say that a node gives integers, with the Relu or Clip behind it."""
        out = node.outputs[0]
        if clamp is not None:
            final = clamp.outputs[0]
            if passes_everything(*bounds(clamp), give) and passes_everything(*bounds(clamp), wanted):
                _replace(final, out)
                self.graph.remove(clamp, safe=True)
            elif rule.fuses and bounds(clamp) in ACTIVATIONS:
                out = final
            else:
                self._hold(out, give)
                out = final
        self._hold(out, give)
        if give == wanted:
            for use in list(out.uses()):
                if use.node.op_type == "QuantizeLinear":
                    _replace(use.node.outputs[0], out)
                    self.graph.remove(use.node, safe=True)

    def _hold(self, value: ir.Value, quant: Quant) -> None:
        self.quants[value] = quant
        value.type = ir.TensorType(ir.DataType[quant.dtype.upper()])  # a clone shares the old type

    # Float operators

    def _float(self, node: ir.Node) -> None:
        """Widen constants; weights of layers stay 8 bits in the file."""
        for i, value in enumerate(node.inputs):
            if value is None or value not in self.constants:
                continue
            ints = self.constants[value]
            quant = self.quants[ints]
            stays = i == 1 and node.op_type in LAYERS and RULES[node.op_type].able(node)
            fits = len(quant.scale) == 1 or (quant.axis == channel_axis(node) and quant.zero_point == 0)
            if stays and fits and quant.dtype == "int8":
                node.replace_input_with(i, ints)
            else:
                real = self._real(value).astype(np.float32)
                node.replace_input_with(i, add_initializer(self.graph, f"{value.name}/float", real))

    def _real(self, value: ir.Value) -> np.ndarray:
        """The real numbers of a constant, float64."""
        ints = self.constants.get(value)
        if ints is None:
            return np.asarray(const(value), np.float64)
        quant, array = self.quants[ints], const(ints)
        assert array is not None
        return (array.astype(np.float64) - quant.zero_point) * _column(quant, array.ndim)

    def _constant(self, name: str, array: np.ndarray, quant: Quant) -> ir.Value:
        value = add_initializer(self.graph, name, array)
        self.quants[value] = quant
        return value

    def _sweep(self) -> None:
        for node in reversed(list(self.graph)):
            used = any(v.uses() or v.is_graph_output() for v in node.outputs)
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not used:
                self.graph.remove(node, safe=True)


def channel_axis(node: ir.Node) -> int | None:
    """The axis of output channels of a layer's weight; None if there is no such axis."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if conv_attrs(node).group == 1 else None
    if node.op_type == "Gemm":
        return 0 if attr(node, "transB", 0) else 1
    return 1


def _column(quant: Quant, rank: int) -> np.ndarray:
    """The scales, to be multiplied with an array."""
    scale = np.array(quant.scale)
    if len(quant.scale) == 1:
        return scale.reshape(())
    return scale.reshape([-1 if axis == quant.axis else 1 for axis in range(rank)])


def _replace(old: ir.Value, new: ir.Value) -> None:
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def round_weights(model: ir.Model) -> IntegerGraph:
    """A copy of a float graph whose layers have 8-bit weights: nearest, one scale per output channel."""
    result = IntegerGraph(model.clone())
    graph = result.model.graph
    for node in _layers(graph):
        weight, axis = node.inputs[1], channel_axis(node)
        array = const(weight)
        assert array is not None
        assert weight is not None
        if node.op_type == "MatMul" and array.ndim != 2:
            continue
        others = tuple(a for a in range(array.ndim) if a != axis)
        largest = np.abs(array).max(axis=others, keepdims=True)
        scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
        integers = np.clip(np.rint(array / scale), -127, 127).astype(np.int8)
        value = add_initializer(graph, f"{weight.name}/int8", integers)
        result.quants[value] = Quant("int8", tuple(map(float, scale.reshape(-1))), 0, axis or 0)
        node.replace_input_with(1, value)
    return result


def _layers(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        if node.op_type in LAYERS and const(node.inputs[1]) is not None and RULES[node.op_type].able(node):
            yield node


_TYPES = {"w8a8": "int8", "w8a16": "int16"}


def check_integers(graph: IntegerGraph, precision: str, pixels: bool) -> None:
    """Refuse a graph whose integers are not those of the precision.

    Args:
        graph: The graph.
        precision: The job's precision word.
        pixels: Whether its input must be able to hold pixels, 0 to 255.

    Raises:
        UserError: See above.
    """
    activations = {v: q for v, q in graph.quants.items() if const(v) is None}
    wanted = _TYPES.get(precision)
    if wanted is not None and wanted not in {q.dtype for q in activations.values()}:
        raise UserError(
            f"tflite {precision} needs a QDQ graph with {wanted} activations, and this one has none; "
            "calibrate the model first (repedge.calib)"
        )
    if wanted is None and activations:
        name = next(iter(activations)).name
        raise UserError(f"tflite {precision} has float activations, but the graph quantizes {name!r}")
    for value in graph.model.graph.inputs if pixels else ():
        for use in value.uses():
            quant = graph.quants.get(use.node.outputs[0]) if use.node.op_type == "QuantizeLinear" else None
            if quant is not None and quant.reals[1] < _BRIGHT:
                raise UserError(
                    f"the input {value.name!r} is quantized up to {quant.reals[1]:.3g}, which holds no "
                    "pixels of 0 to 255: fold the preprocessing into the graph before it is calibrated"
                )


_BRIGHT = 64.0
"""An input range that ends below this is one of normalised values."""
