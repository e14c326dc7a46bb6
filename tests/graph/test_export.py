"""torch module -> graph: every row of the ATen table against torch, names, outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from aten_cases import CASES as MORE
from exported import SHAPE, Fn, check
from torch import nn

from repedge.graph.aten import TABLE
from repedge.graph.export import export, export_module
from repedge.graph.serde import to_proto
from repedge.graph.values import shape_of
from repedge.models.registry import create
from repedge.models.repvgg import RepVGG, RepVGGplus


class Tied(nn.Module):
    """One weight, read twice, once as it is and once as a filter made in ``forward``."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.full((4, 1, 1, 1), 0.5))

    def forward(self, x):
        return self.conv(x) + F.conv2d(x, self.conv.weight * self.gain, padding=1)


def random_bn(module):
    """Statistics far from the defaults, so that a swapped mean or variance shows."""
    generator = torch.Generator().manual_seed(0)
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean.uniform_(-1, 1, generator=generator)
            m.running_var.uniform_(0.2, 3, generator=generator)
            if m.affine:
                m.weight.data.uniform_(0.5, 2, generator=generator)
                m.bias.data.uniform_(-1, 1, generator=generator)
    return module


def padded(mode):
    return Fn(lambda x: F.pad(x, (1, 2, 0, 3), mode=mode))


def resized(**options):
    return Fn(lambda x: F.interpolate(x, **options))


CASES = {
    # name: (module, ONNX operators it becomes)
    "conv": (nn.Conv2d(4, 6, 3, 2, 1, groups=2), "Conv"),
    "conv_dilated": (nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False), "Conv"),
    "conv_same": (nn.Conv2d(4, 4, (2, 3), padding="same"), "Conv"),
    "conv_valid": (nn.Conv2d(4, 4, 3, padding="valid"), "Conv"),
    "conv_zero_pad": (nn.Sequential(nn.ZeroPad2d((0, 1, 2, 1)), nn.Conv2d(4, 4, 3, padding=1)), "Conv"),
    "conv_reflect": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "Pad Conv"),
    "conv_tied": (Tied(), "Conv Conv Add"),
    "conv_transpose": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), "ConvTranspose"),
    "conv_bn": (nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)), "Conv BatchNormalization"),
    "bn": (nn.BatchNorm2d(4, eps=0.1), "BatchNormalization"),
    "bn_plain": (nn.BatchNorm2d(4, affine=False), "BatchNormalization"),
    "bn_linear": (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3)),
        "GlobalAveragePool Flatten BatchNormalization Gemm",
    ),
    "linear_no_bias": (nn.Sequential(nn.Flatten(), nn.Linear(320, 3, bias=False)), "Flatten Gemm"),
    "linear_rank4": (nn.Linear(10, 3), "MatMul Add"),
    "linear_rank4_no_bias": (nn.Linear(10, 3, bias=False), "MatMul"),
    "addmm": (Fn(lambda x: torch.addmm(x[0, 0, :, :8], x[0, 0], x[0, 1].T)), None),
    "mm": (Fn(lambda x: x[0, 0] @ x[0, 1].t()), None),
    "matmul": (Fn(lambda x: x @ x.transpose(2, 3)), "Transpose MatMul"),
    "bmm": (Fn(lambda x: torch.bmm(x[0], x[0].transpose(1, 2))), None),
    "einsum": (Fn(lambda x: torch.einsum("bchw,bdhw->bcd", x, x)), None),
    "relu": (nn.ReLU(), "Relu"),
    "relu_inplace": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)), "Conv Relu"),
    "relu6": (nn.ReLU6(), "Clip"),
    "hardtanh": (nn.Hardtanh(-0.5, 0.7), "Clip"),
    "clamp": (Fn(lambda x: x.clamp(0, 1)), "Clip"),
    "clamp_min": (Fn(lambda x: x.clamp_min(0.1)), "Clip"),
    "clamp_max": (Fn(lambda x: torch.clamp(x, max=0.1)), "Clip"),
    "leaky_relu": (nn.LeakyReLU(0.2), "LeakyRelu"),
    "prelu": (nn.PReLU(4), "PRelu"),
    "elu": (nn.ELU(0.5), "Elu"),
    "gelu": (nn.GELU(), "Gelu"),
    "gelu_tanh": (nn.GELU("tanh"), "Gelu"),
    "sigmoid": (nn.Sigmoid(), "Sigmoid"),
    "hardsigmoid": (nn.Hardsigmoid(), "HardSigmoid"),
    "hardswish": (nn.Hardswish(inplace=True), "HardSwish"),
    "silu": (nn.SiLU(), "Sigmoid Mul"),
    "mish": (nn.Mish(), "Mish"),
    "softplus": (nn.Softplus(), "Softplus"),
    "tanh": (nn.Tanh(), "Tanh"),
    "threshold": (nn.Threshold(0, 0), "Relu"),
    "softmax": (nn.Softmax(1), "Softmax"),
    "log_softmax": (nn.LogSoftmax(-1), "LogSoftmax"),
    "layer_norm": (nn.LayerNorm(10), "LayerNormalization"),
    "add_alpha": (Fn(lambda x: torch.add(x, x, alpha=2)), "Mul Add"),
    "add_scalar": (Fn(lambda x: x + 1), "Add"),
    "add_inplace": (Fn(lambda x: (x * 2).add_(1)), "Mul Add"),
    "sub": (Fn(lambda x: x - x.sigmoid()), "Sigmoid Sub"),
    "rsub": (Fn(lambda x: 1 - x), "Sub"),
    "mul_gate": (Fn(lambda x: x * x.mean((2, 3), keepdim=True)), "GlobalAveragePool Mul"),
    "mul_expanded": (Fn(lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x)), "GlobalAveragePool Mul"),
    "div": (Fn(lambda x: x / 3), "Div"),
    "div_tensor": (Fn(lambda x: x / (x.abs() + 1)), "Abs Add Div"),
    "pow": (Fn(lambda x: x**2), "Mul"),
    "pow3": (Fn(lambda x: x**3), "Pow"),
    "sqrt": (Fn(lambda x: x.abs().sqrt()), "Abs Sqrt"),
    "rsqrt": (Fn(lambda x: (x.abs() + 1).rsqrt()), "Abs Add Sqrt Reciprocal"),
    "exp_log": (Fn(lambda x: (x.exp() + 1).log()), "Exp Add Log"),
    "neg_floor_ceil": (Fn(lambda x: -x.floor() + x.ceil()), "Floor Neg Ceil Add"),
    "reciprocal_erf": (Fn(lambda x: 1 / (x.erf() + 2)), None),
    "max_min": (Fn(lambda x: torch.maximum(x, -x) + torch.minimum(x, x * 2)), "Neg Max Mul Min Add"),
    "addcmul": (Fn(lambda x: torch.addcmul(x, x, x, value=0.5)), "Mul Mul Add"),
    "lerp": (Fn(lambda x: torch.lerp(x, x.tanh(), 0.3)), None),
    "mean": (Fn(lambda x: x.mean((2, 3))), "GlobalAveragePool Flatten"),
    "mean_channels": (Fn(lambda x: x.mean(1, keepdim=True)), "ReduceMean"),
    "mean_all": (Fn(lambda x: x.mean()), "ReduceMean"),
    "sum": (Fn(lambda x: x.sum((2, 3))), "ReduceSum"),
    "sum_all": (Fn(lambda x: x.sum()), "ReduceSum"),
    "amax_amin": (Fn(lambda x: x.amax(1) - x.amin(1)), "ReduceMax ReduceMin Sub"),
    "max_pool": (nn.MaxPool2d(3, 2, 1), "MaxPool"),
    "max_pool_ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), "MaxPool"),
    "max_pool_dilated": (nn.MaxPool2d(3, 1, 1, dilation=2), "MaxPool"),
    "avg_pool": (nn.AvgPool2d(2), "AveragePool"),
    "avg_pool_pad": (nn.AvgPool2d(3, 2, 1), "AveragePool"),
    "avg_pool_pad_excluded": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), "AveragePool"),
    "avg_pool_ceil": (nn.AvgPool2d(3, 2, ceil_mode=True), "AveragePool"),
    "avg_pool_ceil_pad": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), "Pad AveragePool"),
    "adaptive_avg_pool": (nn.AdaptiveAvgPool2d((4, 5)), "AveragePool"),
    "adaptive_max_pool": (nn.AdaptiveMaxPool2d(1), "MaxPool"),
    "cat": (Fn(lambda x: torch.cat([x, x.relu()], 1)), "Relu Concat"),
    "stack": (Fn(lambda x: torch.stack([x, x.relu()], 1)), None),
    "repeat": (Fn(lambda x: x.repeat(1, 2, 1, 3)), "Concat Concat"),
    "expand": (Fn(lambda x: x[:, :1].expand(1, 4, 8, 10)), "Slice Expand"),
    "split": (Fn(lambda x: x.split([1, 3], 1)), "Split"),
    "chunk": (Fn(lambda x: x.chunk(2, 1)), "Split"),
    "unbind": (Fn(lambda x: x.unbind(1)), None),
    "slice": (Fn(lambda x: x[:, 1:3, ::2, -4:]), "Slice Slice Slice"),
    "select": (Fn(lambda x: x[:, -1]), "Slice Reshape"),
    "narrow": (Fn(lambda x: x.narrow(1, 1, 2)), "Slice"),
    "permute": (Fn(lambda x: x.permute(0, 2, 3, 1).contiguous()), "Transpose"),
    "reshape": (Fn(lambda x: x.reshape(1, 2, 2, 80).flatten(2)), "Reshape"),
    "flatten": (nn.Flatten(), "Flatten"),
    "unflatten": (Fn(lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)), None),
    "squeeze": (Fn(lambda x: x.unsqueeze(1).relu().squeeze(1)), "Reshape Relu Reshape"),
    "channel_shuffle": (nn.ChannelShuffle(2), "Reshape Transpose Reshape"),
    "pixel_shuffle": (nn.PixelShuffle(2), "DepthToSpace"),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), "Reshape Transpose Reshape"),
    "pad_constant": (padded("constant"), "Pad"),
    "pad_reflect": (padded("reflect"), "Pad"),
    "pad_replicate": (padded("replicate"), "Pad"),
    "nearest": (resized(scale_factor=2), "Resize"),
    "nearest_odd": (resized(size=(13, 17)), "Resize"),
    "bilinear": (resized(size=(16, 20), mode="bilinear"), "Resize"),
    "bilinear_odd": (resized(size=(13, 17), mode="bilinear"), "Resize"),
    "bilinear_scale": (resized(scale_factor=0.7, mode="bilinear"), "Resize"),
    "bilinear_corners": (resized(size=(13, 17), mode="bilinear", align_corners=True), "Resize"),
    "bicubic": (resized(scale_factor=1.5, mode="bicubic"), "Resize"),
    "dropout": (nn.Sequential(nn.Dropout(), nn.ReLU(), nn.Dropout2d()), "Relu"),
    "nothing": (nn.Identity(), "Identity"),
    "constant_arithmetic": (Fn(lambda x: x + torch.arange(10.0) * 2 - torch.ones(1)), "Add Sub"),
    "data": (Fn(lambda x: (x * 2).data + 1), "Mul Add"),
    "script": (torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())), "Conv Relu"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_row_of_the_table_equals_torch(name, no_fallback):
    module, ops = CASES[name]
    exported = export(random_bn(module), SHAPE)
    check(exported)
    if ops is not None:
        assert [n.op_type for n in exported.model.graph] == ops.split()


@pytest.mark.parametrize("name", MORE)
def test_what_networks_are_made_of_equals_torch(name, no_fallback):
    """The numbers; what becomes of them is the table's business."""
    torch.manual_seed(0)
    check(export(random_bn(MORE[name]), SHAPE), tolerance=2e-5)


def test_the_cases_cover_the_table(no_fallback, monkeypatch):
    """A row that no case uses is either reached only in other PyTorch versions or untested."""
    used = set()

    class Spy(dict):
        def __getitem__(self, key):
            used.add(key)
            return super().__getitem__(key)

    monkeypatch.setattr("repedge.graph.trace.TABLE", Spy(TABLE))
    for module in [*(m for m, _ in CASES.values()), *MORE.values()]:
        export(module, SHAPE)
    other_versions = {
        "reshape", "contiguous", "dropout", "alias", "detach", "lift_fresh", "_to_copy", "_reshape_alias",
        "add.Scalar", "sub.Scalar", "rsub.Tensor", "mul.Scalar", "div.Scalar", "pow.Tensor_Tensor",
        "lerp.Tensor", "squeeze", "squeeze.dims", "max_pool2d", "reflection_pad1d", "native_channel_shuffle",
        "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "clamp_max",
    }  # fmt: skip
    assert TABLE.keys() - used <= other_versions


NETWORKS = {
    "repvgg": lambda: create("repvgg_demo"),
    "repvit": lambda: create("repvit_demo"),
    "repvit_distilled": lambda: create("repvit_demo", distillation=True),
    "repvgg_se": lambda: RepVGG((1, 2, 1, 1), (0.25, 0.25, 0.25, 0.25), num_classes=7, groups=2, se=16),
    "repvggplus": lambda: RepVGGplus((1, 1, 2, 1), (0.25, 0.25, 0.25, 0.25), num_classes=7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_named_networks(name, no_fallback):
    module = random_bn(NETWORKS[name]())
    exported = export(module, (1, 3, 33, 57))
    check(exported)
    assert module.training
    graph = exported.model.graph
    assert [v.name for v in (*graph.inputs, *graph.outputs)] == ["input", "logits"]
    assert shape_of(graph.inputs[0]) == (1, 3, 33, 57)
    assert all(shape_of(v) and v.dtype.name == "FLOAT" for n in graph for v in n.outputs)


def test_weights_are_the_modules_own_memory_and_names(no_fallback):
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(192, 5))
    model = export_module(module, SHAPE)
    weights = model.graph.initializers
    assert set(weights) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for name, parameter in module.named_parameters():
        assert weights[name].const_value.numpy().ctypes.data == parameter.data_ptr()


def test_nodes_know_the_module_they_came_from(no_fallback):
    model = export_module(create("repvgg_demo"), (1, 3, 32, 32))
    sources = {n.name: n.metadata_props.get("source") for n in model.graph}
    assert sources["stage1.0.rbr_dense.conv/Conv"] == "stage1.0.rbr_dense.conv"
    assert len(sources) == len(list(model.graph))


def test_reshapes_leave_the_batch_free(no_fallback):
    """Made dynamic, the graph runs a batch of three and gives what torch gives."""
    module = nn.Sequential(
        nn.ChannelShuffle(2),
        nn.Conv2d(4, 8, 3, 2, 1),
        Fn(lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x)),
        Fn(lambda x: torch.cat([a.unsqueeze(2).squeeze(2) for a in x.chunk(2, 1)], 1)),
        Fn(lambda x: F.interpolate(x, size=(7, 9), mode="bilinear")[:, 0].flatten(1)),
        nn.Linear(63, 3),
    ).eval()
    proto = to_proto(export_module(module, SHAPE))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del proto.graph.value_info[:]
    import onnxruntime as ort

    x = torch.randn(3, *SHAPE[1:], generator=torch.Generator().manual_seed(1))
    got = ort.InferenceSession(proto.SerializeToString()).run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x.flatten(1), ["logits"]),
        (lambda x: x.relu(), ["output"]),
        (lambda x: (x.relu(), x.tanh()), ["output_0", "output_1"]),
        (lambda x: {"main": x.relu(), "aux": [x.tanh(), x.exp()]}, ["main", "aux_0", "aux_1"]),
        (lambda x: {"input": x, "same": x, "const": torch.ones(2)}, ["input_out", "same", "const"]),
    ],
)
def test_outputs_are_named_after_the_result(function, names, no_fallback):
    exported = export(Fn(function), SHAPE)
    check(exported)
    assert [v.name for v in exported.model.graph.outputs] == names
