"""YOLOv5 from its table: the authors' sizes, keys, decoding; RepViT as the backbone."""

import numpy as np
import pytest
import torch

from repedge.errors import UserError
from repedge.models.heads import yolov5
from repedge.models.registry import spec

BODIES = {
    name: (spec(name).config["widths"], spec(name).config["depths"])
    for name in ("repvit_m0_6", "repvit_m0_9")
}

# The authors' yolov5{n,s}.yaml, v6.0.
AUTHORS = {
    "nc": 80,
    "depth_multiple": 0.33,
    "anchors": yolov5.ANCHORS,
    "backbone": [
        [-1, 1, "Conv", [64, 6, 2, 2]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 3, "C3", [128]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 6, "C3", [256]],
        [-1, 1, "Conv", [512, 3, 2]],
        [-1, 9, "C3", [512]],
        [-1, 1, "Conv", [1024, 3, 2]],
        [-1, 3, "C3", [1024]],
        [-1, 1, "SPPF", [1024, 5]],
    ],
    "head": [
        [-1, 1, "Conv", [512, 1, 1]],
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 6], 1, "Concat", [1]],
        [-1, 3, "C3", [512, False]],
        [-1, 1, "Conv", [256, 1, 1]],
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 3, "C3", [256, False]],
        [-1, 1, "Conv", [256, 3, 2]],
        [[-1, 14], 1, "Concat", [1]],
        [-1, 3, "C3", [512, False]],
        [-1, 1, "Conv", [512, 3, 2]],
        [[-1, 10], 1, "Concat", [1]],
        [-1, 3, "C3", [1024, False]],
        [[17, 20, 23], 1, "Detect", ["nc", "anchors"]],
    ],
}


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("width", "count"), [(0.25, 1_872_157), (0.5, 7_235_389)])
def test_the_authors_tables_have_the_authors_sizes(width, count):
    with torch.device("meta"):
        network = yolov5.YOLOv5({**AUTHORS, "width_multiple": width}, {})
    assert parameters(network) == count


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return yolov5.YOLOv5(yolov5.table("repvit_m0_6", 0.25), BODIES, num_classes=3).eval()


def test_keys_are_those_of_the_tutorial(network):
    keys = network.state_dict()
    assert "model.0.features.1.token_mixer.0.conv.c.weight" in keys
    assert keys["model.1.cv1.conv.weight"].shape == (160, 320, 1, 1)
    assert keys["model.16.m.0.weight"].shape[0] == 3 * (5 + 3)
    assert keys["model.16.anchors"].shape == (3, 3, 2)
    assert not any(k.startswith("model.17") for k in keys)


def test_batch_norm_of_the_backbone_is_yolov5s_too(network):
    """Their initialize_weights sets it everywhere, and a checkpoint doesn't carry it."""
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {1e-3}


def test_boxes_are_where_the_maps_say(network):
    """Decoded once more in float64, box by box, from the formulas of the authors' page."""
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        found = network(image)[0].double().numpy()
        network.model[-1].training = True
        maps = [m[0].double().numpy() for m in network(image)]
        network.model[-1].training = False
    assert [m.shape[1:] for m in maps] == [(8, 12), (4, 6), (2, 3)]

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    row = 0
    for level, m in enumerate(maps):
        stride = (8, 16, 32)[level]
        for a in range(3):
            width, height = yolov5.ANCHORS[level][2 * a : 2 * a + 2]
            for y in range(m.shape[1]):
                for x in range(m.shape[2]):
                    t = sigmoid(m[a * 8 : (a + 1) * 8, y, x])
                    want = [
                        (2 * t[0] - 0.5 + x) * stride,
                        (2 * t[1] - 0.5 + y) * stride,
                        (2 * t[2]) ** 2 * width,
                        (2 * t[3]) ** 2 * height,
                        *t[4:],
                    ]
                    np.testing.assert_allclose(found[row], want, rtol=1e-4, atol=1e-4)
                    row += 1
    assert row == len(found)


def test_training_form_gives_maps(network):
    fresh = yolov5.YOLOv5(yolov5.table("repvit_m0_9", 0.5), BODIES, num_classes=2).train()
    maps = fresh(torch.randn(2, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(2, 21, 8, 8), (2, 21, 4, 4), (2, 21, 2, 2)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([-1, 1, "C2f", [256]], "names C2f"),
        ([[-1, 99], 1, "Concat", [1]], "row 3"),
        ([[-1, 2], 1, "Concat", [1]], "strides 32, 8"),
        ([[-1, 0], 1, "Concat", [1]], "stride 2"),
        ([-1, 1], "row 3"),
    ],
)
def test_a_wrong_row_is_named(row, says):
    table = yolov5.table("repvit_m0_6", 0.25)
    head = [*table["head"]]
    head[1] = row
    with pytest.raises(UserError, match=says):
        yolov5.YOLOv5({**table, "head": head}, BODIES)
