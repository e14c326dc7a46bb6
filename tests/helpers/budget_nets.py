"""A small classifier as an ONNX file and photos of its kind, for the tests of budgets and parity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from calib_nets import he
from graph_helpers import parse
from PIL import Image

from repedge.config import Preprocess

OPTIONS: dict[str, Any] = {
    "input_size": "12x12",
    "resize": "squash",
    "mean": "0.5,0.5,0.5",
    "std": "0.25,0.25,0.25",
}
PRE = Preprocess(size=(12, 12), resize=None, mean=(0.5,) * 3, std=(0.25,) * 3)


def classifier(path: Path, seed: int = 0, classes: int = 10, rough: float = 1000.0) -> Path:
    """conv, depthwise, pointwise with a residual, pool, gemm.

    Args:
        rough: One channel of ``mid`` is this many times as large as the others, and hardly read: what
            makes ``mid``'s integers coarse.
    """
    rng = np.random.default_rng(seed)
    w = {
        "w0": he(rng, 8, 3, 3, 3),
        "w1": he(rng, 8, 1, 3, 3),
        "w2": he(rng, 16, 8, 1, 1),
        "w3": he(rng, 16, 16, 1, 1),
        "w4": he(rng, classes, 16) * 4,
        "b4": rng.standard_normal(classes).astype(np.float32),
    }
    for i, width in enumerate((8, 8, 16, 16)):
        w[f"b{i}"] = (0.2 * rng.standard_normal(width)).astype(np.float32)
    w["w2"][0] *= rough
    w["w3"][:, 0] /= rough
    body = """
      c0 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w0, b0)
      r0 = Relu(c0)
      c1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=8> (r0, w1, b1)
      a1 = Add(c1, r0)
      c2 = Conv <kernel_shape=[1,1]> (a1, w2, b2)
      mid = Clip(c2, low, high)
      c3 = Conv <kernel_shape=[1,1]> (mid, w3, b3)
      r3 = Relu(c3)
      p = GlobalAveragePool(r3)
      f = Flatten(p)
      y = Gemm <transB=1> (f, w4, b4)
    """
    w["low"], w["high"] = (
        np.array(0, np.float32),
        np.array(1e4, np.float32),
    )  # a clip is not homogeneous: no equalization
    model = parse(f"net (float[1,3,12,12] x) => (float[1,{classes}] y) {{ {body} }}", w)
    names = {"c0": "stem", "c1": "deep", "c2": "wide", "c3": "point", "y": "head"}
    for node in model.graph:
        out = str(node.outputs[0].name)
        node.name = f"{names.get(out, out)}/{node.op_type}"
    ir.save(model, path)
    return path


def photos(folder: Path, count: int = 48, seed: int = 0) -> Path:
    """Smooth random pictures, 16x16, lossless."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(count):
        small = rng.uniform(0, 255, (4, 4, 3)) * rng.uniform(0.3, 1)
        image = Image.fromarray(small.astype(np.uint8)).resize((16, 16), Image.Resampling.BILINEAR)
        image.save(folder / f"{i:03}.png")
    return folder


def label(folder: Path, model: Path, wrong: int = 3) -> None:
    """A labels.json of what the float model says, but for every ``wrong``-th photo."""
    from repedge.graph.run import Session
    from repedge.photos import images
    from repedge.photos.photos import open_photos, stacked

    session, table, photos = Session(model), {}, open_photos(folder)
    assert photos.names is not None
    for i, pixels in enumerate(stacked(photos, PRE)):
        best = int(session.run(images.normalise(pixels[None], PRE))[0].argmax())
        table[photos.names[i]] = (best + 1) % 10 if i % wrong == 0 else best
    (folder / "labels.json").write_text(json.dumps(table))
