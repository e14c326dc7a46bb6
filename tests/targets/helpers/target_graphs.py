"""Small clean graphs in ONNX text with weights by name, whole networks, pixels, and what they give."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper

from repedge.config import Preprocess

SHAPE = (1, 4, 7, 9)

SHAPES = {
    "w6": (6, 4, 3, 3),
    "b6": (6,),
    "wdw": (4, 1, 3, 3),
    "wg": (6, 2, 3, 3),
    "wt": (4, 6, 3, 3),
    "wtg": (4, 3, 2, 2),
    "b4": (4,),
    "fw": (5, 252),
    "fb": (5,),
    "mm": (9, 5),
    "w3": (6, 3, 3, 3),
    "w1": (6, 1, 3, 3),
    "row": (9,),
    "big": (64, 64, 3, 3),
    "big_bias": (64, 1, 1),
    "head": (5, 6),
    "k66": (6, 6, 1, 1),
    "k636": (6, 6, 3, 3),
}

VALUES = {
    "big_number": np.array(300.0, np.float32),
    "pads4": np.array([0, 0, 1, 2, 0, 0, 3, 1]),
    "scales2": np.array([1, 1, 2, 2], np.float32),
}

CLASSIFIER = """
c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w3, b6)
a = Gelu(c)
g = GlobalAveragePool(a)
f = Flatten(g)
y = Gemm<transB=1>(f, head, fb)
"""
"""Five classes from three planes."""

IMAGE = (1, 3, 17, 21)


def graph(body: str, shape: tuple[int, ...] = SHAPE) -> onnx.ModelProto:
    """A clean graph of the statements in ``body``: ``x`` of ``shape`` is the input, ``y`` the output.

    Weights are the names of SHAPES (random, seeded) and VALUES that the body mentions.
    """
    sizes = ",".join(map(str, shape))
    head = f'<ir_version: 10, opset_import: ["": 20]> test (float[{sizes}] x) => (y)'
    proto = onnx.parser.parse_model(f"{head} {{\n{body}\n}}")
    rng = np.random.default_rng(0)
    weights = {name: (0.5 * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}
    read = {name for node in proto.graph.node for name in node.input}
    for name, array in (weights | VALUES).items():
        if name in read:
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for i, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{i}"
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)


def network(name: str) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    """A named network at 64x64 as a clean graph, four images for it, and PyTorch's float64 outputs.

    Its batch normalisations have the statistics of random images, as a trained network's have theirs.
    """
    import torch

    from repedge.graph.export import export_module
    from repedge.models.registry import create
    from repedge.passes import canonicalize, simplify

    torch.manual_seed(0)
    net = create(name, num_classes=10)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net.train()(torch.randn(8, 3, 64, 64))
    net.eval()
    model = export_module(net, (1, 3, 64, 64))
    canonicalize(model)
    simplify(model)
    images = np.random.default_rng(3).integers(0, 256, (4, 64, 64, 3), np.uint8)
    with torch.no_grad():
        outputs = net.double()(torch.from_numpy(normalised(images, Preprocess()).astype(np.float64)))
    return model, images, outputs.numpy()


def clean(proto: onnx.ModelProto) -> ir.Model:
    return ir.from_proto(proto)


def batch(n: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A random batch of inputs, float32 [n, ...]."""
    return np.random.default_rng(1).standard_normal((n, *shape[1:])).astype(np.float32)


def pixels(n: int, channels: int = 3) -> np.ndarray:
    """Random images uint8 [n, 17, 21, channels]."""
    return np.random.default_rng(2).integers(0, 256, (n, *IMAGE[2:], channels), np.uint8)


def reference(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """ONNX Runtime's float32 result, image by image."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": x[i : i + 1]})[0] for i in range(len(x))])


def normalised(images: np.ndarray, pre: Preprocess) -> np.ndarray:
    """What the network sees of RGB pixels: float32 NCHW, by the definition in Preprocess."""
    planes = images[..., ::-1] if pre.color == "BGR" else images
    planes = (planes / 255.0 - np.array(pre.mean)) / np.array(pre.std)
    return np.ascontiguousarray(planes.transpose(0, 3, 1, 2), dtype=np.float32)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def sqnr_db(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    noise = ((found.astype(np.float64) - expected) ** 2).sum()
    return float(10 * np.log10((expected.astype(np.float64) ** 2).sum() / max(noise, 1e-300)))
