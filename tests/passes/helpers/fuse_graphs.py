"""Graphs for the tests of fusing, and an executor in float64 that shares no code with what it tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, parser

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.passes.fusion.certificate import Fused
from repedge.passes.fusion.fuse import find_merges, finish
from repedge.passes.fusion.linear import Expr
from repedge.passes.fusion.merges import MergePlan


def graph(nodes: str, x: tuple[int, ...], outputs: str = "y", /, **weights: npt.ArrayLike) -> ir.Model:
    """One ONNX node per line (named after its output), input ``x``; shapes are inferred."""
    protos = []
    for line in filter(None, (part.strip() for part in nodes.split("\n"))):
        node = parser.parse_node(line)
        node.name = node.output[0]
        protos.append(node)
    g = helper.make_graph(
        protos,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()],
        [onnx.numpy_helper.from_array(np.asarray(w), k) for k, w in weights.items()],
    )
    proto = helper.make_model(g, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def bn(rng: np.random.Generator, name: str, channels: int, tiny: bool = False) -> dict[str, np.ndarray]:
    """Statistics far from the defaults; the inputs of a BatchNormalization are name_g, _b, _m, _v."""
    var = rng.uniform(1e-6 if tiny else 0.01, 1e-4 if tiny else 9, channels)
    return {
        f"{name}_g": rng.uniform(-2, 2, channels).astype("f"),
        f"{name}_b": rng.normal(0, 2, channels).astype("f"),
        f"{name}_m": rng.normal(0, 2, channels).astype("f"),
        f"{name}_v": var.astype("f"),
    }


def bn_inputs(name: str) -> str:
    return ", ".join(f"{name}_{s}" for s in "gbmv")


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype("f")


def run64(model: ir.Model, x: torch.Tensor, plan: MergePlan | None = None) -> dict[str, torch.Tensor]:
    """Evaluate in float64 by PyTorch; nodes that ``plan`` merged take their weights before the cast."""
    values: dict[ir.Value, torch.Tensor] = {model.graph.inputs[0]: x}

    def read(value: ir.Value | None) -> torch.Tensor:
        assert value is not None
        if value not in values:
            values[value] = torch.from_numpy(np.array(const(value))).double()
        return values[value]

    def get(value: ir.Value | None) -> torch.Tensor | None:
        return None if value is None else read(value)

    for node in model.graph:
        block = plan.block(node) if plan is not None else None
        if block is not None:
            values[node.outputs[0]] = _merged(block.expr, read(node.inputs[0]))
        elif "scaled" in node.meta:
            w, b = node.meta["scaled"].collapse()
            values[node.outputs[0]] = OPS[node.op_type](
                node, get(node.inputs[0]), torch.from_numpy(w), torch.from_numpy(b)
            )
        else:
            values[node.outputs[0]] = OPS[node.op_type](node, *(get(v) for v in node.inputs))
    return {str(v.name): values[v] for v in model.graph.outputs}


def _merged(expr: Expr, x: torch.Tensor) -> torch.Tensor:
    weight, bias = (torch.from_numpy(a) for a in expr.collapse())
    g = expr.geometry
    if x.ndim == 2:
        return F.linear(x, weight.flatten(1), bias)
    top, left, bottom, right = g.pads
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, g.strides, 0, g.dilations, g.group)


def _conv(node: ir.Node, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    n = w.ndim - 2
    pads = attr(node, "pads", (0,) * 2 * n)
    around = [p for axis in reversed(range(n)) for p in (pads[axis], pads[n + axis])]
    function = {1: F.conv1d, 2: F.conv2d}[n]
    ones = (1,) * n
    strides, dilations = attr(node, "strides", ones), attr(node, "dilations", ones)
    return function(F.pad(x, around), w, b, strides, 0, dilations, attr(node, "group", 1))


def _conv_transpose(
    node: ir.Node, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None
) -> torch.Tensor:
    pads = attr(node, "pads", (0, 0, 0, 0))
    assert pads[:2] == pads[2:]
    return F.conv_transpose2d(x, w, b, attr(node, "strides", (1, 1)), pads[:2], 0, attr(node, "group", 1))


def _average(node: ir.Node, x: torch.Tensor) -> torch.Tensor:
    top, left, bottom, right = attr(node, "pads", (0, 0, 0, 0))
    kernel, strides = attr(node, "kernel_shape"), attr(node, "strides", (1, 1))
    around = (left, right, top, bottom)
    total = F.avg_pool2d(F.pad(x, around), kernel, strides)
    if attr(node, "count_include_pad", 0):
        return total
    return total / F.avg_pool2d(F.pad(torch.ones_like(x), around), kernel, strides)


def _gemm(node: ir.Node, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    y = attr(node, "alpha", 1.0) * (x @ (w.T if attr(node, "transB", 0) else w))
    return y if b is None else y + attr(node, "beta", 1.0) * b


def _pad(
    node: ir.Node, x: torch.Tensor, pads: torch.Tensor, value: torch.Tensor | None = None
) -> torch.Tensor:
    amounts = [int(p) for p in pads]
    around = (amounts[3], amounts[7], amounts[2], amounts[6])
    return F.pad(x, around, value=0.0 if value is None else float(value))


OPS: dict[str, Callable[..., torch.Tensor]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": lambda node, a, b: a @ b,
    "BatchNormalization": lambda node, x, g, b, m, v: F.batch_norm(
        x, m, v, g, b, eps=attr(node, "epsilon", 1e-5)
    ),
    "AveragePool": _average,
    "Pad": _pad,
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Div": lambda node, a, b: a / b,
    "Sum": lambda node, *values: sum(values),
    "Neg": lambda node, x: -x,
    "Relu": lambda node, x: x.relu(),
    "Sigmoid": lambda node, x: x.sigmoid(),
    "Identity": lambda node, x: x,
    "Transpose": lambda node, x: x.permute(attr(node, "perm")),
}


def fused(model: ir.Model, exact: float = 1e-9, rounded: float = 2e-5) -> Fused:
    """Fuse the graph and hold it, before and after the cast to float32, against itself; the `Fused`.

    ``exact`` and ``rounded`` bound the difference relative to a channel's largest value.
    """
    shape = shape_of(model.graph.inputs[0])
    x = torch.randn(4, *shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    signature = [(v.name, v.shape, v.dtype) for v in model.graph.outputs]
    expected = run64(model, x)
    plan = find_merges(model.graph)
    assert difference(run64(model, x, plan), expected) <= exact
    result = finish(plan)
    assert difference(run64(model, x), expected) <= rounded
    assert [(v.name, v.shape, v.dtype) for v in model.graph.outputs] == signature
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for merge in result:
        assert merge.error <= 1e-9
        assert merge.cast_error <= 1e-5
    return result


def difference(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference relative to the largest value of the channel (with a floor for dead ones)."""
    worst = 0.0
    for name, e in expected.items():
        a, e = actual[name].transpose(0, 1).flatten(1), e.transpose(0, 1).flatten(1)
        scale = e.abs().amax(1) + 1e-6 * e.abs().max()
        worst = max(worst, float(((a - e).abs().amax(1) / scale).max()))
    return worst


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]
