"""Random linear-branch blocks.

Whatever is drawn must come out equal in float64, and as one convolution where the rules say so.
"""

from __future__ import annotations

import numpy as np
import pytest
from fuse_graphs import bn, bn_inputs, fused, graph, normal, ops
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

PHASES = (Phase.explicit, Phase.generate)  # blocks are small: shrinking costs more than it tells
KERNELS = [(1, 1), (1, 3), (3, 1), (3, 3), (5, 5), (2, 2), (1, 4)]


@st.composite
def blocks(draw):
    """(ONNX text, input shape, weights, number of branches): a sum of branches from x, maybe nested."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    group = draw(st.sampled_from([1, 2, 4]))
    cin, cout = draw(st.sampled_from([(4, 4), (8, 8), (4, 8), (8, 4)]))
    stride = draw(st.sampled_from([1, 1, 2, 3]))
    size = draw(st.tuples(st.integers(9, 14), st.integers(9, 14)))
    tiny = draw(st.booleans())
    lines, weights, results = [], {}, []

    def norm(name, value, channels):
        weights.update(bn(rng, name, channels, tiny))
        lines.append(f"{name} = BatchNormalization({value}, {bn_inputs(name)})")
        return name

    def conv(name, value, inputs, kernel, dilation, groups, bias, pads=None, strides=stride):
        weights[f"{name}_w"] = normal(rng, cout, inputs // groups, *kernel)
        arguments = [value, f"{name}_w"]
        if bias:
            weights[f"{name}_bias"] = normal(rng, cout)
            arguments.append(f"{name}_bias")
        if pads is None:  # "same", even spans with the odd cell at the end
            total = [(k - 1) * dilation for k in kernel]
            pads = [total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2]
        lines.append(
            f"{name} = Conv<group={groups}, strides=[{strides},{strides}], "
            f"dilations=[{dilation},{dilation}], pads=[{','.join(map(str, pads))}]>({', '.join(arguments)})"
        )
        return name

    identity_fits = cin == cout and stride == 1
    kinds = ["conv", "conv", "conv bn", "1x1-kxk"] + (["bn", "bare"] if identity_fits else [])
    if cin == cout:
        kinds.append("pool")
    for i, kind in enumerate(draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=4))):
        name = f"b{i}"
        kernel, dilation = draw(st.sampled_from(KERNELS)), draw(st.sampled_from([1, 1, 2]))
        if kind in ("conv", "conv bn"):
            groups = draw(st.sampled_from([group, group, 1, 4]))
            value = conv(name, "x", cin, kernel, dilation, groups, draw(st.booleans()))
            results.append(norm(f"{name}n", value, cout) if kind == "conv bn" else value)
        elif kind == "bn":
            results.append(norm(name, "x", cin))
        elif kind == "bare":
            results.append("x")
        elif kind == "pool":
            lines.append(
                f"{name} = AveragePool<kernel_shape=[3,3], strides=[{stride},{stride}], pads=[1,1,1,1], "
                "count_include_pad=1>(x)"
            )
            results.append(norm(f"{name}n", name, cin) if draw(st.booleans()) else name)
        else:
            inner = conv(f"{name}i", "x", cin, (1, 1), 1, group, False, strides=1)
            results.append(norm(f"{name}n", conv(name, inner, cout, (3, 3), 1, group, True), cout))
    total = results[0]
    for i, other in enumerate(results[1:]):
        op = draw(st.sampled_from(["Add", "Sub"]))
        left, right = draw(st.permutations([total, other]))
        lines.append(f"s{i} = {op}({left}, {right})")
        total = f"s{i}"
        if draw(st.integers(0, 3)) == 0:
            total = norm(f"s{i}n", total, cout)
    lines.append(f"y = Relu({total})")
    return "\n".join(lines), (1, cin, *size), weights


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True, phases=PHASES)
@given(blocks())
def test_random_blocks_stay_equal(block):
    text, shape, weights = block
    m = graph(text, shape, **weights)
    result = fused(m, rounded=1e-4)
    assert result.left or ops(m) == ["Conv", "Relu"]  # one convolution, or it is told why not


@pytest.mark.slow
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**16),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2]),
    st.sampled_from([3, 5]),
    st.tuples(st.integers(7, 13), st.integers(7, 13)),
    st.booleans(),
)
def test_random_repvgg_blocks_become_one_convolution(seed, group, stride, dilation, kernel, size, tiny):
    rng = np.random.default_rng(seed)
    pad = kernel // 2 * dilation
    identity = f"i = BatchNormalization(x, {bn_inputs('i')})\nt = Add(i, s)" if stride == 1 else "t = Neg(s)"
    m = graph(
        f"""a = Conv<group={group}, strides=[{stride},{stride}], dilations=[{dilation},{dilation}],
            pads=[{pad},{pad},{pad},{pad}]>(x, w)
        an = BatchNormalization(a, {bn_inputs("a")})
        b = Conv<group={group}, strides=[{stride},{stride}]>(x, v)
        bn = BatchNormalization(b, {bn_inputs("b")})
        s = Add(an, bn)
        {identity}
        tn = BatchNormalization(t, {bn_inputs("t")})
        y = Relu(tn)""".replace(",\n", ", "),
        (1, 8, *size), w=normal(rng, 8, 8 // group, kernel, kernel), v=normal(rng, 8, 8 // group, 1, 1),
        **bn(rng, "a", 8, tiny), **bn(rng, "b", 8), **bn(rng, "i", 8, tiny), **bn(rng, "t", 8, tiny),
    )  # fmt: skip
    result = fused(m)
    assert ops(m) == ["Conv", "Relu"]
    assert len(result) == 1
    assert result.left == []
