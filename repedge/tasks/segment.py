"""``segment``: a score of each class for every pixel, or a map of the best classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from repedge.errors import UserError
from repedge.tasks import drawing
from repedge.tasks.annotations import Mask, mapping
from repedge.tasks.base import Figure, Limit, Network, Output, Part, Scorer, Task, Truths
from repedge.tasks.comparison import Comparison
from repedge.tasks.confusion import Confusion
from repedge.tasks.masks import maps
from repedge.tasks.masks.comparison import Ids, Scores, known
from repedge.tasks.masks.scores import OTHERS, UNITS, end_of, fits, has_classes, meaning_of, scores_classes
from repedge.tasks.view import View
from repedge.templates import Templates

if TYPE_CHECKING:
    import torch

TINY = 1e-7
"""Probabilities are held so far from 0 and 1 where their logarithm is taken."""


SHIP = Path(__file__).parent / "ship" / "segment"

IDS = {
    np.uint8: {
        "numpy": "uint8", "code": "u1", "bytes": 1, "cpp": "std::uint8_t", "kotlin": "ByteArray",
        "to": "toByte", "read": "get", "swift": "UInt8",
    },
    np.uint16: {
        "numpy": "uint16", "code": "u2", "bytes": 2, "cpp": "std::uint16_t", "kotlin": "ShortArray",
        "to": "toShort", "read": "getShort", "swift": "UInt16",
    },
}  # fmt: skip
"""What templates call the type of a pixel of a label map."""


class Segment(Task):
    """A class for each pixel: an output [N, C, H, W] of scores, or [N, H, W] of classes.

    Further outputs of as many channels are those of auxiliary heads; the first is the answer.
    """

    name: ClassVar[str] = "segment"
    title: ClassVar[str] = "classes of pixels"
    figures: ClassVar[tuple[Figure, ...]] = (
        Figure("pixel_agreement", "pixels kept", phrase="pixels of float's class", absent="no reference"),
        Figure("miou_float", "mIoU to float", phrase="mIoU with float's masks", absent="no reference"),
    )
    metrics: ClassVar[tuple[Figure, ...]] = (
        Figure("miou", "mIoU", absent="no masks"),
        Figure("pixel_acc", "pixels", phrase="pixels of the right class", absent="no masks"),
    )
    drop: ClassVar[Limit | None] = Limit("miou_drop", "mIoU drop", "points", "miou")
    annotated: ClassVar[str | None] = "masks"
    disagreement: ClassVar[Limit | None] = Limit(
        "miou_disagreement", "mIoU lacking to float's maps", "points", "agree_miou"
    )
    divergence: ClassVar[Limit | None] = Limit("kl", "KL divergence of a pixel from float", "nats", "kl")

    ship: ClassVar[Mapping[str, Templates]] = {
        "ios": Templates(SHIP / "ios", {"Maps.swift": "Sources/{name}/Maps.swift"}, SHIP),
        "android": Templates(
            SHIP / "android", {"LabelMap.kt": "{lower}/src/main/kotlin/repedge/{lower}/LabelMap.kt"}, SHIP
        ),
        "cpp": Templates(SHIP / "cpp", {"maps.cpp": "src/maps.cpp"}, SHIP),
        "python": Templates(SHIP / "python", {"maps.py": "{name}/maps.py"}, SHIP),
    }

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        found = meaning_of(network)
        assert found is not None, "asked of networks that are not refused"
        self.meaning = found
        self._maps = tuple(i for i, o in enumerate(network.outputs) if has_classes(o, found))
        self.outputs = tuple(self._named(o) if i in self._maps else o for i, o in enumerate(network.outputs))

    @classmethod
    def recognizes(cls, network: Network) -> bool:
        """Whether every output is a map of scores, of the input's size or a half to an eighth of it.

        Classes give themselves away by their names, by a Softmax or an ArgMax over them, or by a last
        convolution that nothing follows but a resize. One or three channels may be anything.
        """
        if network.graph is None or cls.refusal(network) is not None:
            return False
        meaning = meaning_of(network)
        if meaning is None or not all(has_classes(o, meaning) for o in network.outputs):
            return False
        if any(word in o.name.lower() for o in network.outputs for word in OTHERS):
            return False
        ends = [end_of(value) for value in network.graph.graph.outputs]
        sizes = {o.shape[-2:] for o in network.outputs}
        return len(sizes) == 1 and all(
            fits(o, meaning) and scores_classes(o, end, network.labels)
            for o, end in zip(network.outputs, ends, strict=True)
        )

    @classmethod
    def refusal(cls, network: Network) -> str | None:
        """There must be an output that is a map, and something known of it."""
        shapes = ", ".join(f"{o.name!r} {list(o.shape)}" for o in network.outputs)
        if not any(len(o.shape) in (2, 3) and min(o.shape) > 0 for o in network.outputs):
            return f"no output is a map of scores [classes, height, width]; they are {shapes}"
        meaning = meaning_of(network)
        if meaning is None:
            return f"what is known of its maps does not make sense; the outputs are {shapes}"
        first = next((o for o in network.outputs if has_classes(o, meaning)), None)
        if first is None:
            return f"no output is a map of {meaning.classes} classes; they are {shapes}"
        if any(a > b for a, b in zip(first.shape[-2:], meaning.size, strict=True)):
            return f"output {first.name!r} {list(first.shape)} is larger than the input {meaning.size}"
        return None

    def settings(self) -> dict[str, Any]:
        """See `Task.settings`."""
        m = self.meaning
        return {"activation": m.activation, "classes": m.classes, "size": list(m.size)}

    def describe(self) -> str:
        """The number of classes, what is said of them, and at which size."""
        m, (height, width) = self.meaning, self.map.shape[-2:]
        what = {
            "argmax": f"a map of {m.classes} classes",
            "none": f"scores of {m.classes} classes",
            "softmax": f"probabilities of {m.classes} classes",
            "sigmoid": f"probabilities of {m.classes} classes",
        }[m.activation]
        if self.is_mask:
            what = "a mask (one class and what is none)"
        smaller = "" if (height, width) == m.size else f", of {height}x{width} cells"
        return f"{what} for each pixel{smaller}" + (", named" if self.names else "")

    @property
    def map(self) -> Output:
        """The output that is the answer."""
        return self.outputs[self._maps[0]]

    @property
    def index(self) -> int:
        """Its index."""
        return self._maps[0]

    @property
    def is_mask(self) -> bool:
        """Whether there is one channel of scores."""
        return self.meaning.activation != "argmax" and self.map.shape[0] == 1

    @property
    def threshold(self) -> float:
        """From which score on a pixel is of a mask."""
        return 0.5 if self.meaning.activation == "sigmoid" else 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Of each class; empty if they have none."""
        return known(self.labels, self.meaning.classes)

    def check_labels(self) -> None:
        """There must be a label for each class; of a mask its own may be the only one."""
        if self.labels and not self.names:
            raise UserError(
                f"there are {len(self.labels)} labels, but output {self.map.name!r} has "
                f"{self.meaning.classes} classes"
            )

    def meter(self, index: int) -> Comparison:
        """See `Task.meter`."""
        if index not in self._maps:
            return Comparison()
        m = self.meaning
        if m.activation == "argmax":
            return Ids(classes=m.classes, labels=self.names)
        return Scores(classes=m.classes, labels=self.names, threshold=self.threshold)

    def decode(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The class of every pixel of the network's input: uint8 or uint16 [H, W], one for each image.

        Scores of a smaller map are interpolated first, since the best of them is not linear; see
        `repedge.tasks.masks.maps`.

        Args:
            outputs: Of the network, [n, ...] each, as the graph has them.
        """
        m = self.meaning
        found = []
        for y in outputs[self.index]:
            if m.activation == "argmax":
                ids = np.clip(np.rint(y.reshape(y.shape[-2:])), 0, m.classes - 1).astype(np.int64)
                found.append(maps.of_ids(ids, m.size, m.classes))
            elif self.is_mask:
                found.append(maps.of_mask(y[0], m.size, self.threshold))
            else:
                found.append(maps.of_scores(y, m.size))
        return found

    def truths(self, photos: Any) -> Truths | None:
        """The PNG mask of each photo; see `repedge.tasks.annotations.masks`."""
        return mapping.mask_truths(photos)

    def placed(self, truth: Mask, view: View) -> np.ndarray:
        """A mask as that of the network's input: the nearest pixel of each, void beside the photo."""
        return mapping.placed_mask(truth, view, self.meaning.classes)

    def as_truths(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Task.as_truths`."""
        return self.decode(outputs)

    apart_phrase: ClassVar[str] = "{:.1%} of the pixels are of another class than float's"

    def apart(self, outputs: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> np.ndarray:
        """The share of pixels of another class."""
        pairs = zip(self.decode(outputs), self.decode(exact), strict=True)
        return np.array([(got != want).mean() for got, want in pairs])

    def results(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Task.results`: label maps."""
        return self.decode(outputs)

    def draw(self, result: np.ndarray, size: tuple[int, int]) -> str:
        """See `Task.draw`."""
        return drawing.veil(result, self.meaning.classes, size)

    def legend(self) -> list[tuple[str, str]]:
        """See `Task.legend`."""
        names = self.names or tuple(map(str, range(self.meaning.classes)))
        return [(drawing.colour(c), name) for c, name in enumerate(names)]

    def scorer(self) -> Scorer:
        """Mean intersection over union of the classes, and the share of pixels that are right."""
        return Confusion(self.decode, self.meaning.classes)

    def nearness(self, got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """KL divergence of a pixel's classes from the float network's, the mean over an image, nats."""
        if self.meaning.activation == "argmax":
            return None
        first, *others = [_divergence(self._log(got[i]), self._log(want[i])) for i in self._maps]
        for other in others:
            first = first + other
        return first

    def _log(self, y: torch.Tensor) -> torch.Tensor:
        """Logarithms of probabilities that add up to 1 over axis 1: of classes, or of each and its other."""
        import torch
        from torch.nn import functional

        if self.meaning.activation == "softmax":
            return y.clamp_min(TINY).log()
        if self.meaning.activation == "sigmoid":
            p = y.clamp(TINY, 1 - TINY)
            return torch.stack([p.log(), (1 - p).log()], 1)
        if self.is_mask:
            return torch.stack([functional.logsigmoid(y), functional.logsigmoid(-y)], 1)
        return y.log_softmax(1)

    def curvature(
        self, outputs: Sequence[torch.Tensor], signs: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """See `Task.curvature`; by the second derivative of a KL divergence, the mean over pixels."""
        found: list[torch.Tensor | None] = [None] * len(outputs)
        if self.meaning.activation == "argmax":
            return found
        for i in self._maps:
            y = outputs[i]
            scale = math.sqrt(0.5 / (y.shape[-1] * y.shape[-2]))
            found[i] = scale * self._root(y, signs(y))
        return found

    def _root(self, y: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
        """A random vector with the divergence's second derivative, of one pixel, as its covariance."""
        if self.meaning.activation == "softmax":  # diag(1 / p)
            return signs / y.clamp_min(TINY).sqrt()
        if self.meaning.activation == "sigmoid":  # diag(1 / (p (1 - p)))
            p = y.clamp(TINY, 1 - TINY)
            return signs / (p * (1 - p)).sqrt()
        if self.is_mask:  # diag(p (1 - p))
            p = y.sigmoid()
            return signs * (p * (1 - p)).sqrt()
        p = y.softmax(1)  # diag(p) - p p'
        u = p.sqrt() * signs
        return u - p * u.sum(1, keepdim=True)

    @property
    def named(self) -> int | None:
        """See `Task.named`."""
        return None if self.meaning.activation == "argmax" or self.is_mask else self.index

    def metadata(self, consumer: str) -> dict[str, Any]:
        """See `Task.metadata`.

        Both take scores, no label maps, of one output. MediaPipe applies what makes probabilities of them,
        Model API compares them as they are, and a mask's it does not know.
        """
        activation = self.meaning.activation
        if len(self.outputs) > 1 or activation == "argmax":
            return {}
        if consumer == "mediapipe":
            made = "NONE" if activation != "none" else "SIGMOID" if self.is_mask else "SOFTMAX"
            return {"kind": "segmenter", "activation": made}
        if consumer == "model_api" and not self.is_mask:
            return {"model_type": "Segmentation", "blur_strength": "-1"}
        return {}

    def context(self, samples: Sequence[np.ndarray]) -> dict[str, Any]:
        """See `Task.context`.

        Keys:

        index: Of the output with the map; ``rows``, ``columns`` and ``channels_of_map`` are its sizes.
        classes, labels, colours: Of a label map; the labels are empty if there are none.
        activation, mask, limit: What the scores are, and from which on a pixel is of a mask.
        enlarged, whole: Whether the map is smaller than the input, and the sum of the weights then.
        void, id: What pixels are that the model does not see, and the type of a pixel in every language.
        """
        m, shape = self.meaning, self.map.shape
        whole = maps.weight_of(shape[-2:], m.size)
        return {
            "index": self.index,
            "rows": shape[-2],
            "columns": shape[-1],
            "channels_of_map": shape[0] if len(shape) == 3 else 1,
            "classes": m.classes,
            "labels": list(self.names),
            "colours": maps.colours(m.classes),
            "activation": m.activation,
            "mask": self.is_mask,
            "limit": float(self.threshold * whole),
            "enlarged": whole > 1,
            "whole": whole,
            "void": maps.none_of(m.classes),
            "id": IDS[maps.dtype_of(m.classes)],
        }

    def golden(self, outputs: Sequence[np.ndarray], views: Sequence[View]) -> dict[str, bytes]:
        """See `Task.golden`: ``map_N.bin``, the label map of photo N in its pixels, little-endian."""
        found = {}
        for n, (ids, view) in enumerate(zip(self.decode(outputs), views, strict=True)):
            photo = maps.on_photo(ids, view, maps.none_of(self.meaning.classes))
            found[f"map_{n}.bin"] = photo.astype(photo.dtype.newbyteorder("<")).tobytes()
        return found

    def _named(self, output: Output) -> Output:
        """The output, which says what its numbers are; of classes there is no more to say."""
        if self.meaning.activation == "argmax":
            return Output(output.name, output.shape)
        part = Part(1, 0, output.shape[0], "scores", UNITS[self.meaning.activation])
        return Output(output.name, output.shape, (part,))


def _divergence(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Sum over classes, mean over the rest, for each image."""
    apart = (want.exp() * (want - got)).sum(1)
    return apart.flatten(1).mean(1) if apart.ndim == 3 else apart.sum(1).flatten(1).mean(1)
