"""Small networks and images for the tests of calibration."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from graph_helpers import parse

from repedge import passes, targets
from repedge.scheme import QuantScheme


def schemes() -> dict[str, QuantScheme]:
    """Every scheme of a target, by name."""
    return {s.name: s for t in targets.installed() for s in t.schemes.values()}


def images(count: int = 24, size: int = 12, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, float32 [N, C, H, W]."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, channels, size // 3, size // 3))
    fine = np.repeat(np.repeat(coarse, 3, 2), 3, 3) + 0.3 * rng.standard_normal((count, channels, size, size))
    return (fine * rng.uniform(0.4, 1.6, (count, 1, 1, 1))).astype(np.float32)


def he(rng: np.random.Generator, *shape: int, spread: float = 0.0) -> np.ndarray:
    """He-initialised weights whose output channels differ in size by e^spread."""
    w = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return (w * np.exp(spread * rng.standard_normal((shape[0], *[1] * (len(shape) - 1))))).astype(np.float32)


def mobile(seed: int = 0, spread: float = 0.8) -> ir.Model:
    """conv3x3, depthwise, pointwise, depthwise, pointwise, pool, gemm: MobileOne's manner, in small."""
    rng = np.random.default_rng(seed)
    weights = {
        "w0": he(rng, 8, 3, 3, 3, spread=spread),
        "w1": he(rng, 8, 1, 3, 3, spread=spread),
        "w2": he(rng, 12, 8, 1, 1, spread=spread),
        "w3": he(rng, 12, 1, 3, 3, spread=spread),
        "w4": he(rng, 16, 12, 1, 1, spread=spread),
        "w5": he(rng, 10, 16) * 2,
        "b5": rng.standard_normal(10).astype(np.float32),
    }
    for i, width in enumerate((8, 8, 12, 12, 16)):
        weights[f"b{i}"] = (0.2 * rng.standard_normal(width)).astype(np.float32)
    body = """
      c0 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x, w0, b0)
      r0 = Relu(c0)
      c1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=8> (r0, w1, b1)
      r1 = Relu(c1)
      c2 = Conv <kernel_shape=[1,1]> (r1, w2, b2)
      r2 = Relu(c2)
      c3 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=12> (r2, w3, b3)
      r3 = Relu(c3)
      c4 = Conv <kernel_shape=[1,1]> (r3, w4, b4)
      r4 = Relu(c4)
      p = GlobalAveragePool(r4)
      f = Flatten(p)
      y = Gemm <transB=1> (f, w5, b5)
    """
    return clean(f"net (float[1,3,12,12] x) => (float[1,10] y) {{ {body} }}", weights)


def mixed(seed: int = 0) -> ir.Model:
    """Residual sum, concat, pools, GELU, a Sigmoid gate, a constant factor: what ties and fixes scales."""
    rng = np.random.default_rng(seed)
    weights = {
        "w0": he(rng, 6, 3, 3, 3),
        "b0": (0.1 * rng.standard_normal(6)).astype(np.float32),
        "w1": he(rng, 6, 6, 3, 3),
        "w2": he(rng, 6, 6, 1, 1),
        "w3": he(rng, 12, 12, 1, 1),
        "k": rng.uniform(0.5, 1.5, (1, 12, 1, 1)).astype(np.float32),
        "w5": he(rng, 5, 12),
        "b5": rng.standard_normal(5).astype(np.float32),
    }
    body = """
      c0 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w0, b0)
      g0 = Gelu(c0)
      c1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (g0, w1)
      a = Add(g0, c1)
      r = Relu(a)
      c2 = Conv <kernel_shape=[1,1]> (r, w2)
      m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
      n = AveragePool <kernel_shape=[2,2], strides=[2,2]> (c2)
      t = Concat <axis=1> (m, n)
      s0 = Conv <kernel_shape=[1,1]> (t, w3)
      s = Sigmoid(s0)
      u = Mul(t, s)
      v = Mul(u, k)
      p = GlobalAveragePool(v)
      f = Flatten(p)
      y = Gemm <transB=1> (f, w5, b5)
    """
    return clean(f"net (float[1,3,12,12] x) => (float[1,5] y) {{ {body} }}", weights)


def clean(text: str, weights: dict[str, np.ndarray]) -> ir.Model:
    model = parse(text, weights)
    passes.simplify(model)
    return model
