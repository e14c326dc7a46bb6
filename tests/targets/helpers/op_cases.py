"""One small clean graph per use of an operator, in ONNX text, for the targets' tables."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper

from repedge.config import Preprocess

CASES = {
    "Conv": "y = Conv<pads=[1,1,1,1]>(x, w6, b6)",
    "Conv stride 2 dilated no bias": "y = Conv<strides=[2,2], dilations=[2,1], pads=[2,1,2,1]>(x, w6)",
    "Conv asymmetric pads": "y = Conv<strides=[2,2], pads=[0,1,2,0]>(x, w6, b6)",
    "Conv SAME_UPPER": 'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w6, b6)',
    "Conv depthwise": "y = Conv<group=4, pads=[1,1,1,1]>(x, wdw, b4)",
    "Conv grouped": "y = Conv<group=2, pads=[1,1,1,1]>(x, wg)",
    "ConvTranspose": "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, wt, b6)",
    "ConvTranspose grouped": "y = ConvTranspose<group=2, strides=[2,2]>(x, wtg)",
    "Gemm": "v = Flatten(x)\ny = Gemm<transB=1>(v, fw, fb)",
    "Gemm scaled": "v = Flatten(x)\ny = Gemm<transB=1, alpha=0.5, beta=2.0>(v, fw, fb)",
    "MatMul": "y = MatMul(x, mm)",
    "MatMul of two": "t = Transpose<perm=[0,1,3,2]>(x)\ny = MatMul(x, t)",
    "BatchNormalization": "y = BatchNormalization<epsilon=0.01>(x, b4, b4, b4, var)",
    "Relu": "y = Relu(x)",
    "Clip": "y = Clip(x, low, high)",
    "Clip below": "y = Clip(x, zero)",
    "Clip above": "y = Clip(x, , high)",
    "Clip with a float32 limit": "y = Clip(x, low, fltmax)",
    "LeakyRelu": "y = LeakyRelu<alpha=0.2>(x)",
    "PRelu": "y = PRelu(x, slope)",
    "Elu": "y = Elu<alpha=0.7>(x)",
    "Gelu": "y = Gelu(x)",
    "Gelu tanh": 'y = Gelu<approximate="tanh">(x)',
    "Sigmoid": "y = Sigmoid(x)",
    "HardSigmoid": "y = HardSigmoid(x)",
    "HardSigmoid sixth": "y = HardSigmoid<alpha=0.16666667, beta=0.5>(x)",
    "HardSwish": "y = HardSwish(x)",
    "Tanh": "y = Tanh(x)",
    "Softmax": "y = Softmax<axis=1>(x)",
    "Softmax last": "y = Softmax(x)",
    "Add": "y = Add(x, x)",
    "Add constant": "y = Add(x, slope)",
    "Sub constant": "y = Sub(low, x)",
    "Mul gate": "g = GlobalAveragePool(x)\ny = Mul(x, g)",
    "Div": "y = Div(x, var1)",
    "Pow": "r = Relu(x)\ny = Pow(r, two)",
    "Max": "y = Max(x, low, zero)",
    "Min": "y = Min(x, high)",
    "Exp": "y = Exp(x)",
    "Sqrt": "r = Relu(x)\ny = Sqrt(r)",
    "MaxPool": "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
    "MaxPool ceil": "y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)",
    "AveragePool": "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
    "AveragePool with padding": "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
    "AveragePool ceil": "y = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)",
    "GlobalAveragePool": "y = GlobalAveragePool(x)",
    "GlobalMaxPool": "y = GlobalMaxPool(x)",
    "ReduceMean": "y = ReduceMean<keepdims=0>(x, axes_hw)",
    "ReduceMean negative axes": "y = ReduceMean(x, axes_last)",
    "ReduceSum": "y = ReduceSum(x, axis1)",
    "Concat": "r = Relu(x)\ny = Concat<axis=1>(x, r)",
    "Split": "p, q = Split<axis=1, num_outputs=2>(x)\ny = Concat<axis=1>(q, p)",
    "Split uneven": "p, q = Split<axis=1>(x, three_one)\ny = Concat<axis=1>(q, p)",
    "Slice": "y = Slice(x, starts, ends, axes_hw, steps)",
    "Slice backwards": "y = Slice(x, minus1, int64min, axis1, minus1)",
    "Reshape": "y = Reshape(x, heads)",
    "Reshape channel shuffle": (
        "s = Reshape(x, groups)\nt = Transpose<perm=[0,2,1,3,4]>(s)\ny = Reshape(t, ungroup)"
    ),
    "Flatten": "y = Flatten(x)",
    "Flatten axis 2": "y = Flatten<axis=2>(x)",
    "Transpose": "y = Transpose<perm=[0,2,3,1]>(x)",
    "Squeeze": "g = GlobalAveragePool(x)\ny = Squeeze(g, axes_hw)",
    "Unsqueeze": "y = Unsqueeze(x, axis1)",
    "Pad": "y = Pad(x, pads4, low)",
    "Pad zeros by axes": "y = Pad(x, pads_hw, , axes_hw)",
    "Pad reflect": 'y = Pad<mode="reflect">(x, pads4)',
    "Pad edge": 'y = Pad<mode="edge">(x, pads4)',
    "Resize nearest": (
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
        "(x, , scales2)"
    ),
    "Resize linear": 'y = Resize<mode="linear">(x, , scales2)',
    "Resize linear aligned": (
        'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , sizes)'
    ),
    "Resize linear odd size": 'y = Resize<mode="linear", axes=[2,3]>(x, , , sizes_hw)',
    "DepthToSpace": "y = DepthToSpace<blocksize=2>(x)",
    "DepthToSpace CRD": 'y = DepthToSpace<blocksize=2, mode="CRD">(x)',
    "SpaceToDepth": "p = Pad(x, pads_even)\ny = SpaceToDepth<blocksize=2>(p)",
}

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
    "slope": (4, 1, 1),
}

VALUES = {
    "var": np.array([0.5, 1.0, 2.0, 3.0], np.float32),
    "var1": np.array([[[0.5]], [[1.0]], [[2.0]], [[3.0]]], np.float32),
    "low": np.array(-0.6, np.float32),
    "high": np.array(0.9, np.float32),
    "zero": np.array(0.0, np.float32),
    "two": np.array(2.0, np.float32),
    "big_number": np.array(300.0, np.float32),
    "fltmax": np.array(np.finfo(np.float32).max),
    "axes_hw": np.array([2, 3]),
    "axes_last": np.array([-1]),
    "axis1": np.array([1]),
    "minus1": np.array([-1]),
    "int64min": np.array([np.iinfo(np.int64).min]),
    "starts": np.array([1, -8]),
    "ends": np.array([6, np.iinfo(np.int64).max]),
    "steps": np.array([2, 3]),
    "three_one": np.array([3, 1]),
    "heads": np.array([0, 2, -1, 9]),
    "groups": np.array([0, 2, 2, 7, 9]),
    "ungroup": np.array([0, 4, 7, 9]),
    "pads4": np.array([0, 0, 1, 2, 0, 0, 3, 1]),
    "pads_hw": np.array([1, 2, 3, 1]),
    "pads_even": np.array([0, 0, 1, 1, 0, 0, 0, 0]),
    "scales2": np.array([1, 1, 2, 2], np.float32),
    "sizes": np.array([1, 4, 13, 5]),
    "sizes_hw": np.array([10, 13]),
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
