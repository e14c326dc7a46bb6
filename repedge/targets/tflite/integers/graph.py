"""A QDQ graph as a graph of integer operators: DequantizeLinear -> op -> QuantizeLinear becomes op.

Values that hold integers are listed with their scales in `IntegerGraph.quants`; an operator whose
first input is among them is an integer operator. QuantizeLinear and DequantizeLinear are left only
where integers meet floats, and between integers of different scales.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.values import add_initializer, const, only_reader
from repedge.targets.tflite.emit import ACTIVATIONS, bounds
from repedge.targets.tflite.integers.constants import Constants, channel_axis, quant_of
from repedge.targets.tflite.integers.rules import (
    MIN_ADD,
    MIN_MUL,
    RULES,
    Rule,
    passes_everything,
)
from repedge.targets.tflite.model import Quant

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BIAS = {"int8": "int32", "int16": "int64"}


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


class _Rewriter:
    def __init__(self, result: IntegerGraph) -> None:
        self.graph = result.model.graph
        self.quants = result.quants
        self.constants = Constants(self.graph, self.quants)

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
            _replace(node.outputs[0], self.constants.quantized(node, quant))
            self.graph.remove(node, safe=True)
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
        source = node.inputs[0]
        if const(source) is not None:
            self.constants.dequantized(node, quant, shift)
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
                node.replace_input_with(i, self.constants.operand(node.inputs[i], give.dtype, quant))
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
            node.replace_input_with(i, self.constants.operand(node.inputs[i], give.dtype, None, least))

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
        weight = self.constants.integers.get(node.inputs[1])  # type: ignore[arg-type]
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
        data, weight = self._as_wide(node, sources[0], give.dtype), self.constants.integers[node.inputs[1]]  # type: ignore[index]
        node.replace_input_with(0, data)
        node.replace_input_with(1, weight)
        given = node.inputs[2] if len(node.inputs) > 2 else None
        if given is None:
            return
        x, w = self.quants[data].scale[0], np.array(self.quants[weight].scale)
        quant = Quant(_BIAS[give.dtype], tuple(map(float, (x * w).astype(np.float32))))
        integers = self.constants.bias(node, given, quant)
        node.replace_input_with(2, self.constants.add(f"{node.name}/bias", integers, quant))

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
            ints = self.constants.integers[value]
            quant = self.quants[ints]
            stays = i == 1 and node.op_type in LAYERS and RULES[node.op_type].able(node)
            fits = len(quant.scale) == 1 or (quant.axis == channel_axis(node) and quant.zero_point == 0)
            if stays and fits and quant.dtype == "int8":
                node.replace_input_with(i, ints)
            else:
                real = self.constants.real(value).astype(np.float32)
                node.replace_input_with(i, add_initializer(self.graph, f"{value.name}/float", real))

    def _sweep(self) -> None:
        for node in reversed(list(self.graph)):
            used = any(v.uses() or v.is_graph_output() for v in node.outputs)
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not used:
                self.graph.remove(node, safe=True)


def _replace(old: ir.Value, new: ir.Value) -> None:
    old.replace_all_uses_with(new, replace_graph_outputs=True)
