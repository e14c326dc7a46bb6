"""Integer precisions in the pipeline: calibrate on the user's photos, then hand a target its QDQ graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from repedge.config import InputKind, Preprocess
from repedge.errors import UserError
from repedge.photos.tensors import Tensors

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from repedge.calib.plan import QuantPlan
    from repedge.photos.choice import CalibrationImages
    from repedge.photos.feed import Feed
    from repedge.photos.photos import Photos
    from repedge.scheme import QuantScheme
    from repedge.tasks.base import Task


DECODING = "behind the last layer: decoding"
MIXED = "joins parts of an output that are of different kinds: each keeps its own scale"


@dataclass
class Calibration:
    """What to calibrate on. The images are read once, for all targets.

    Attributes:
        source: Photos like those that the app will see (labels are not needed): a folder, a .zip, a
            .npz, or from Python an array or an iterable; see `repedge.photos.photos.open_photos`.
        count: How many of them.
        recipe: fast, default, best, or a .json file.
        seed: Of the choice.
        keep_float: Names or patterns of layers that stay float; see `repedge.calib.mixed.choose.named`.
    """

    source: Any
    count: int = 64
    recipe: str = "default"
    seed: int = 0
    keep_float: tuple[str, ...] = ()
    _loaded: dict[str, CalibrationImages] = field(default_factory=dict, init=False, repr=False)

    def check(self) -> None:
        """Find what is wrong with the options before any work.

        Raises:
            UserError: An impossible count or seed, or an unknown recipe.
        """
        from repedge.calib.recipe import find_recipe
        from repedge.photos.choice import check_count

        check_count(self.count, self.seed)
        find_recipe(self.recipe)

    def open(self, pre: Preprocess) -> Photos:
        """All photos of the source, chosen or not.

        Raises:
            UserError: See `repedge.photos.photos.open_photos`.
        """
        from repedge.photos.photos import open_photos

        return open_photos(self.source, pre, seed=self.seed)

    def images(self, pre: Preprocess) -> CalibrationImages:
        """The chosen images, decoded and preprocessed at the first call.

        Raises:
            UserError: See `repedge.photos.choice.load`.
        """
        from repedge.photos.choice import load

        key = pre.model_dump_json()
        if key not in self._loaded:
            self._loaded[key] = load(self.source, pre, count=self.count, seed=self.seed)
        return self._loaded[key]


@dataclass(frozen=True)
class Quantized:
    """A QDQ graph for a target.

    Attributes:
        graph: The graph.
        summary: What the manifest says of it.
        simulate: What its integers must give: images as the artifact takes them, as float32 [n, C, H, W], to
            every output.
    """

    graph: ir.Model
    summary: dict[str, Any]
    simulate: Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Calibrated:
    """A calibration, before it becomes a QDQ graph.

    Attributes:
        graph: The float graph that was calibrated.
        model, plan: What `repedge.calib.recipe.calibrate` made of it.
        feed: The images that it was calibrated on.
    """

    graph: ir.Model
    model: ir.Model
    plan: QuantPlan
    feed: Feed


def quantize(
    graph: ir.Model,
    scheme: QuantScheme,
    pre: Preprocess,
    kind: InputKind,
    calibration: Calibration | None,
    task: Task | None = None,
    report: Callable[[str], None] = lambda step: None,
    raise_layers: Callable[[Calibrated], tuple[ir.Model, QuantPlan]] | None = None,
    tensors: Tensors | None = None,
) -> Quantized:
    """Calibrate a clean float graph for a target's integers.

    Args:
        graph: The clean graph; not changed.
        scheme: What the target's integers demand.
        pre: The model's preprocessing; folded in before calibrating for artifacts that take pixels.
        kind: What the artifact takes.
        calibration: The photos.
        task: What the outputs mean; None: what they say themselves.
        tensors: What the graph takes beside the image.
        raise_layers: Gives the calibration with layers raised to float; see `repedge.compiler.budget`.

    Raises:
        UserError: No photos, unusable ones, a layer to keep in float that the graph does not have, or a
            graph with nothing to quantize.
    """
    from repedge.calib.mixed.choose import chosen_float
    from repedge.calib.outputs import output_steps
    from repedge.calib.qdq import to_qdq
    from repedge.calib.recipe import calibrate
    from repedge.graph.analysis.decoding import decoding
    from repedge.graph.analysis.parts import mixed_nodes
    from repedge.passes.preprocess import fold_preprocess

    if calibration is None:
        raise UserError("8-bit activations need photos to calibrate on: pass --calib FOLDER")
    pixels = kind == "uint8"
    model = fold_preprocess(graph, pre, border=scheme.exact_pixels) if pixels else graph
    chosen = calibration.images(pre)
    feed = chosen.feed(pixels, tensors)
    floats = {str(node.name): DECODING for node in decoding(model)}
    floats |= {str(node.name): MIXED for node in mixed_nodes(model)}
    floats = {**floats, **chosen_float(model, scheme, calibration.keep_float)}
    quantized, plan = calibrate(
        model, feed, scheme, calibration.recipe, task=task, float_nodes=floats, progress=report
    )
    if raise_layers is not None:
        quantized, plan = raise_layers(Calibrated(model, quantized, plan, feed))
    summary = {
        "scheme": scheme.name,
        "recipe": plan.recipe,
        "images": len(chosen),
        "float_nodes": dict(plan.float_nodes),
        "output_steps": output_steps(quantized, plan),
        "calibration": chosen.record.as_json(),
    }

    def simulate(x: np.ndarray) -> list[np.ndarray]:
        from repedge.calib.simulation.simulator import Simulator

        rows = (tensors or Tensors()).rows(x)
        return Simulator(quantized, plan).answers(rows[i : i + 1] for i in range(len(x)))

    return Quantized(to_qdq(quantized, plan), summary, simulate)
