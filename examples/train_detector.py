"""Train YOLOv5 with a RepViT backbone on blood cells: the bundled demo detector.

    python examples/train_detector.py --data bccd.zip --out build/train
    python examples/train_detector.py --data bccd.zip --out build/train --device cuda --minutes 5

The archive holds the photos of BCCD (github.com/Shenggan/BCCD_Dataset, MIT) as ``JPEGImages/*.jpg``, their
boxes as ``Annotations/*.xml`` (VOC) and the split as ``ImageSets/Main/train.txt`` and ``val.txt``. The
backbone begins with the weights of the bundled classifier. The run is seeded, writes a checkpoint every few
hundred steps and goes on from it when started again; at the end it prints what the weights reach on the
photos of ``val`` and writes ``demo_detect.safetensors`` (fp16, training form). It needs repedge and what
that needs (on a machine for training torch, safetensors, Pillow and pydantic are enough).
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from training import boxes, mosaic, precision
from training.loop import Training, arguments

from repedge.config import Preprocess
from repedge.models.heads.yolov5 import Detect, YOLOv5
from repedge.models.registry import WEIGHTS, create, spec
from repedge.photos.images import decode, pixels, placement

MODEL = "demo_detect"
BACKBONE = "repvit_demo"
ALONE = 0.15
"""Share of the schedule at whose end photos are no longer put together, and of them before that."""


def split(archive: Path, name: str, pre: Preprocess, labels: tuple[str, ...]) -> mosaic.Photos:
    """The photos of ``train`` or ``val`` as the letterbox places them, with the boxes there."""
    images, truths = [], []
    with zipfile.ZipFile(archive) as z:
        for line in z.read(f"ImageSets/Main/{name}.txt").decode().split():
            photo = decode(io.BytesIO(z.read(f"JPEGImages/{line}.jpg")), line)
            images.append(torch.from_numpy(pixels(photo, pre).copy()).permute(2, 0, 1))
            truths.append(truth(z.read(f"Annotations/{line}.xml"), photo, pre, labels))
    most = max(len(rows) for rows in truths)
    empty = np.array([[0, 0, 0, 0, -1]], np.float32)
    table = np.stack([np.concatenate((rows, empty.repeat(most - len(rows), 0))) for rows in truths])
    found = torch.from_numpy(table)
    return mosaic.Photos(torch.stack(images), found[..., :4].contiguous(), found[..., 4].long())


def truth(file: bytes, photo: Image.Image, pre: Preprocess, labels: tuple[str, ...]) -> np.ndarray:
    """Boxes in pixels of the input and class of each object of a VOC file, float32 [n, 5]."""
    place = placement(photo.width, photo.height, pre)
    rows = []
    for item in ElementTree.fromstring(file).iter("object"):
        corners = [float(item.findtext(f"bndbox/{k}", "nan")) for k in ("xmin", "ymin", "xmax", "ymax")]
        if corners[0] < corners[2] and corners[1] < corners[3]:
            rows.append([*corners, labels.index(item.findtext("name", ""))])
    found = np.array(rows, np.float32).reshape(-1, 5)
    scale = np.array([place.width / photo.width, place.height / photo.height] * 2, np.float32)
    found[:, :4] = found[:, :4] * scale + np.array([place.left, place.top] * 2, np.float32)
    return found


def bare(photos: mosaic.Photos, pre: Preprocess, width: int, height: int) -> mosaic.Photos:
    """Photos without the letterbox's bars."""
    p = placement(width, height, pre)
    inner = photos.pixels[:, :, p.top : p.top + p.height, p.left : p.left + p.width].contiguous()
    shift = torch.tensor([p.left, p.top] * 2, dtype=torch.float32)
    return mosaic.Photos(inner, photos.boxes - shift, photos.classes)


def ends(model: nn.Module) -> tuple[nn.Module, Detect]:
    """The backbone and the head of a YOLOv5."""
    assert isinstance(model, YOLOv5)
    head = model.model[-1]
    assert isinstance(head, Detect)
    return model.model[0], head


def network(train: mosaic.Photos, start: Path | None) -> nn.Module:
    """The network with anchors fitted to the photos' boxes, its backbone's weights those of ``start``."""
    model = create(MODEL)
    backbone, head = ends(model)
    if start is not None:
        own = backbone.state_dict()
        known = {k: v.float() for k, v in load_file(start).items() if k in own}
        backbone.load_state_dict({**own, **known})
    sizes = train.boxes[..., 2:] - train.boxes[..., :2]
    of = [sizes[train.classes == c].numpy() for c in range(int(train.classes.max()) + 1)]
    rng = np.random.default_rng(0)  # as many boxes of each class: one is ten times as frequent
    level = np.concatenate([rows[rng.integers(len(rows), size=300)] for rows in of])
    anchors = torch.from_numpy(boxes.fitted_anchors(level))
    head.anchors.copy_(anchors / torch.tensor(head.strides).view(-1, 1, 1))
    return model


def batch(
    photos: mosaic.Photos, side: int, n: int, alone: bool, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Augmented pictures float32 [n, 3, side, side] in 0..1, boxes and classes of their objects.

    Args:
        alone: No mosaics.
    """
    size = (photos.pixels.shape[2], photos.pixels.shape[3])
    many = 0 if alone else n - max(1, round(ALONE * n))
    chosen = torch.randint(len(photos.pixels), (n - many,), generator=rng, device=rng.device)
    places = mosaic.singles(chosen, size, side, rng)
    pictures, (corners, kinds) = mosaic.shown(photos, places, side, 1), mosaic.found(photos, places, 1)
    if many:
        places = mosaic.mosaics(many, len(photos.pixels), size, side, rng)
        pictures = torch.cat((mosaic.shown(photos, places, side, 4), pictures))
        four, of = mosaic.found(photos, places, 4)
        more = four.shape[1] - corners.shape[1]
        corners = torch.cat((four, nn.functional.pad(corners, (0, 0, 0, more))))
        kinds = torch.cat((of, nn.functional.pad(kinds, (0, more), value=-1)))
    pictures = mosaic.recoloured(pictures, rng, 0.1, 0.4, 0.2)
    return pictures / 255, corners, kinds


def judge(val: mosaic.Photos, classes: int) -> Callable[[nn.Module], dict[str, float]]:
    """What says how good a network is on photos."""
    truths = [(b[c >= 0].numpy(), c[c >= 0].numpy()) for b, c in zip(val.boxes, val.classes, strict=True)]

    @torch.no_grad()
    def reached(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        answers = [model(part.to(device).float() / 255).cpu().numpy() for part in val.pixels.split(16)]
        return precision.mean_average_precision([*np.concatenate(answers)], truths, classes)

    return reached


def main(argv: list[str] | None = None) -> dict[str, float]:
    """The command line; returns what the weights reach."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    arguments(parser, batch=32, lr=0.002, steps=1200)
    parser.add_argument("--side", type=int, help="of the input, pixels; default: the model's")
    parser.add_argument("--start", type=Path, default=WEIGHTS / f"{BACKBONE}.safetensors")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    row = spec(MODEL)
    side = args.side or row.input_size[0]
    pre = row.preprocess.model_copy(update={"size": (side, side)})
    photos = bare(split(args.data, "train", pre, row.labels), pre, 640, 480)
    val = split(args.data, "val", pre, row.labels)
    training = Training(MODEL, network(photos, args.start), args)
    photos = photos.to(training.device)
    _, head = ends(training.model)
    gains = boxes.Gains(objectness=(side / 640) ** 2)  # more of the cells hold objects in a smaller input

    def loss_of(training: Training, rng: torch.Generator) -> torch.Tensor:
        pictures, corners, kinds = batch(photos, side, args.batch, training.progress > 1 - ALONE, rng)
        maps = training.forward(pictures)
        return boxes.loss(maps, head.anchors, head.strides, corners, kinds, gains)

    return training.run(loss_of, judge(val, len(row.labels)))


if __name__ == "__main__":
    main()
