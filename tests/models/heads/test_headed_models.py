"""Networks with heads by name: made, saved as their training scripts do, recognized and loaded."""

import pytest
import torch
from torch import nn

from repedge.errors import UserError
from repedge.models.checkpoints import identify, load_into
from repedge.models.files import load_checkpoint
from repedge.models.registry import MODELS, create, spec
from repedge.models.source import resolve

HEADED = [row.name for row in MODELS.values() if row.headed]
SMALL = [n for n in HEADED if "vgg16" not in n]


def meta(name, **options):
    with torch.device("meta"):
        return create(name, **options)


@pytest.mark.parametrize("name", HEADED)
def test_a_state_dict_is_recognized(name):
    classes = 5 if spec(name).num_classes else None
    finding = identify(meta(name, num_classes=classes).state_dict())
    assert (finding.name, finding.num_classes, finding.in_channels) == (name, classes or 0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov5n_repvit_m0_6", "matching_repvit_m0_6", "lraspp_repvit_m0_9"])
def test_a_checkpoint_loads(name, tmp_path):
    torch.manual_seed(0)
    network = create(name).eval()
    torch.save({"model_state_dict": network.state_dict()}, tmp_path / "w.pt")
    again, _ = load_into(name, load_checkpoint(tmp_path / "w.pt"))
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(again(image), network(image))


@pytest.mark.slow
def test_a_detector_that_yolov5s_script_saved(tmp_path):
    """As an object in half precision, under ``model``; its anchors are those of the training."""
    torch.manual_seed(0)
    network = create("yolov5n_repvit_m0_6", num_classes=2)
    network.get_buffer("model.16.anchors").mul_(0.5)
    torch.save(
        {"epoch": -1, "best_fitness": None, "model": network.half(), "ema": None}, tmp_path / "best.pt"
    )
    source = resolve(weights=tmp_path / "best.pt")
    assert source.name == "yolov5n_repvit_m0_6"
    anchors = network.get_buffer("model.16.anchors").float()
    torch.testing.assert_close(source.module.get_buffer("model.16.anchors"), anchors)
    assert source.module(torch.zeros(1, 3, 64, 64)).shape == (1, 3 * (64 + 16 + 4), 7)


def test_letterbox_and_pixels_of_0_to_1_are_yolov5s():
    pre = spec("yolov5s_repvit_m0_9").preprocess
    assert (pre.size, pre.resize, pre.letterbox.value, pre.mean, pre.std) == (
        (640, 640), None, 114, (0, 0, 0), (1, 1, 1),
    )  # fmt: skip


def test_embeddings_have_no_classes():
    with pytest.raises(UserError, match="no classes"):
        create("matching_repvit_m0_6", num_classes=5)


@pytest.mark.slow
def test_another_networks_weights_are_refused(tmp_path):
    torch.save(create("yolov5n_repvit_m0_6").state_dict(), tmp_path / "n.pt")
    with pytest.raises(UserError, match="looks like yolov5n_repvit_m0_6"):
        resolve("lraspp_repvit_m0_9", weights=tmp_path / "n.pt")
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict(), tmp_path / "other.pt")
    with pytest.raises(UserError, match="missing"):
        resolve("yolov5n_repvit_m0_6", weights=tmp_path / "other.pt")
