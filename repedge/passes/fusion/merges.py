"""The graph while it is being fused: which nodes are linear, what a merge replaces, what was refused.

A merge puts a Conv or Gemm node without weights in place of the nodes it stands for and keeps their
`Expr`. Later merges build on that expression, and the weights are worked out once, at the end: in
float64 from the original constants, cast once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from repedge.graph.values import const, only_reader, unused
from repedge.passes.fusion.certificate import Unfused
from repedge.passes.fusion.linear import Apply, Block, Expr, Input, Sum
from repedge.passes.fusion.operators import Conv, Op
from repedge.passes.fusion.read import feature_map, read


@dataclass(frozen=True)
class Term:
    """One summand: ``sign * value``."""

    sign: float
    value: ir.Value


class MergePlan:
    """A graph, its linear nodes, the merges that await their weights, and what was refused."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.refused: list[Unfused] = []
        self._ops: dict[ir.Node, tuple[Op, int] | None] = {}
        self._spans: dict[ir.Node, list[ir.Node]] = {}
        self.kinds: dict[ir.Node, list[str]] = {}
        self._taken = {v.name for node in graph for v in node.outputs}
        self._taken.update(graph.initializers, (v.name for v in graph.inputs))

    def nodes(self) -> Iterator[ir.Node]:
        """The nodes in order, without those that are removed on the way."""
        for node in tuple(self.graph):
            if node.graph is not None:
                yield node

    def refuse(self, kind: str, nodes: tuple[str, ...], reason: str) -> None:
        """Note a candidate that stays."""
        self.refused.append(Unfused(kind=kind, nodes=nodes, reason=reason))

    def op(self, node: ir.Node | None) -> Op | None:
        """The node as a linear operator of one tensor, or None."""
        found = self._found(node)
        return None if found is None else found[0]

    def data(self, node: ir.Node) -> ir.Value:
        """The tensor that a linear node works on."""
        found = self._found(node)
        last = self._spans.get(node, [node])[-1]
        value = last.inputs[found[1]] if found else None
        assert value is not None, "only asked of linear nodes"
        return value

    def _found(self, node: ir.Node | None) -> tuple[Op, int] | None:
        if node is None:
            return None
        if node not in self._ops:
            self._ops[node] = read(node)
        return self._ops[node]

    def adopt(self, nodes: list[ir.Node], op: Op) -> None:
        """Read several nodes in a row, outermost first, as one linear operator."""
        self._ops[nodes[0]] = (op, 0)
        self._spans[nodes[0]] = nodes

    def block(self, node: ir.Node) -> Block | None:
        """The merge that stands in this node, if one does."""
        op = self.op(node)
        return op if isinstance(op, Block) else None

    def terms(self, node: ir.Node | None) -> tuple[Term, ...]:
        """The summands of an Add, Sub or Sum of feature maps of one shape; empty if it is none."""
        if node is None or node.op_type not in ("Add", "Sub", "Sum") or self.op(node) is not None:
            return ()
        values = [v for v in node.inputs if v is not None]
        if feature_map(node.outputs[0]) is None or any(v.shape != node.outputs[0].shape for v in values):
            return ()
        if len(values) < 2 or any(const(v) is not None for v in values):
            return ()
        return tuple(Term(-1.0 if node.op_type == "Sub" and i else 1.0, v) for i, v in enumerate(values))

    # --- linear expressions --------------------------------------------------------------------

    def inner(self, value: ir.Value) -> tuple[ir.Value, ...]:
        """What the linear node (or sum) behind ``value`` reads; empty where no linear node stands."""
        node = value.producer()
        if self.op(node) is not None:
            return (self.data(node),)  # type: ignore[arg-type]
        return tuple(t.value for t in self.terms(node))

    def roots(self, value: ir.Value, *, through: bool = False) -> list[ir.Value]:
        """The tensors that ``value`` is a linear function of, walking back while nothing else reads.

        Args:
            value: Where to start.
            through: Step behind ``value`` itself even if it has other readers.
        """
        found: dict[ir.Value, None] = {}
        stack = [(value, through)]
        while stack:
            at, step = stack.pop()
            behind = self.inner(at) if step or only_reader(at) is not None else ()
            if behind:
                stack.extend((v, False) for v in reversed(behind))
            else:
                found[at] = None
        return list(found)

    def expr(self, value: ir.Value, root: ir.Value) -> Expr:
        """``value`` as a function of ``root``, its only root."""
        if value is root:
            mapped = feature_map(root)
            assert mapped is not None, "roots of linear nodes are feature maps"
            return Input(*mapped)
        node = value.producer()
        assert node is not None, "the walk ends at the root"
        op = self.op(node)
        if op is not None:
            return Apply(op, self.expr(self.data(node), root))
        return Sum([(t.sign, self.expr(t.value, root)) for t in self.terms(node)], (str(node.name),))

    def between(self, value: ir.Value, root: ir.Value) -> list[ir.Node]:
        """The nodes from ``value`` down to ``root``, outermost first."""
        if value is root:
            return []
        node = value.producer()
        assert node is not None, "the walk ends at the root"
        own = self._spans.get(node, [node])
        return [*own, *(n for v in self.inner(value) for n in self.between(v, root))]

    # --- merging -------------------------------------------------------------------------------

    def insert(self, kind: str, before: ir.Node, like: ir.Value, root: ir.Value, expr: Expr) -> ir.Node:
        """A Conv or Gemm node for ``expr`` of ``root``, its weights still to come; output as ``like``."""
        assert like.shape is not None, "feature maps have a shape"
        convs = [op for op in expr.ops if isinstance(op, Conv)]
        host = max(convs, key=lambda op: op.weight.size).name if convs else str(before.name)
        op_type = "Conv" if len(like.shape) == 4 else "Gemm"
        name = self.fresh(f"{like.name}_fused")
        out = ir.Value(name=name, shape=like.shape, type=like.type)
        node = ir.node(op_type, [root, None, None], outputs=[out], name=host)
        self.graph.insert_before(before, node)
        self._ops[node] = (Block(host, op_type, expr), 0)
        self.kinds[node] = [kind]
        return node

    def merge(self, kind: str, top: ir.Value, root: ir.Value, expr: Expr) -> ir.Node:
        """Replace the nodes between ``root`` and ``top`` by one Conv or Gemm."""
        old = self.between(top, root)
        node = self.insert(kind, old[0], top, root, expr)
        for o in old:
            self.kinds[node] += self.kinds.pop(o, [])
        node.metadata_props.update(common_source(old))
        self.take_over(top, node.outputs[0])
        self.remove(old)
        return node

    def fresh(self, name: str) -> str:
        """``name``, or ``name_N`` where a value has it."""
        unique = unused(name, self._taken)
        self._taken.add(unique)
        return unique

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let ``new`` have the readers and the name of ``old``."""
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = None, name

    def remove(self, nodes: list[ir.Node]) -> None:
        """Remove nodes that nothing reads, outermost first, with the constants that were theirs."""
        for node in nodes:
            constants = [v for v in node.inputs if v is not None]
            self.graph.remove(node, safe=True)
            self._ops.pop(node, None)
            self.drop_unread(constants)

    def drop_unread(self, values: list[ir.Value]) -> None:
        """Remove those of the constants that nothing reads any more."""
        for value in values:
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            owner = value.producer()
            if value.is_initializer() and value.name is not None and value.name in self.graph.initializers:
                del self.graph.initializers[value.name]
            elif owner is not None and owner.op_type == "Constant":
                self.graph.remove(owner, safe=True)

    def forget(self, node: ir.Node) -> None:
        """Let go of what was read from the node."""
        self._ops.pop(node, None)


def common_source(nodes: list[ir.Node]) -> dict[str, str]:
    """The module that all merged nodes came from: the common head of their dotted paths."""
    paths = [p.split(".") for n in nodes if (p := n.metadata_props.get("source"))]
    if not paths:
        return {}
    head = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        head.append(parts[0])
    return {"source": ".".join(head or max(paths, key=len))}
