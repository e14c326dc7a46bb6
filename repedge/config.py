"""Value types that every part shares: what artifacts take, and the model's preprocessing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

InputKind = Literal["uint8", "float32"]
"""``uint8``: the artifact takes 8-bit pixels and normalises them itself. ``float32``: it takes the
network's own, already normalised input."""

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Color = Literal["RGB", "BGR", "GRAY"]

Positive = Annotated[int, Field(gt=0)]
Side = Annotated[int, Field(gt=0, le=16384)]


class Preprocess(BaseModel):
    """From an image file to the network's input; it travels from the checkpoint to every artifact.

    An image is decoded to 8-bit RGB, resized, cropped to ``size``, put in ``color`` order, scaled to
    [0, 1] and normalised as ``(x - mean) / std``. An artifact of input kind ``uint8`` does the part
    after cropping itself and is fed RGB pixels (also when the network wants BGR; GRAY networks are
    fed one channel).

    Attributes:
        size: Height and width of the network's input, pixels.
        resize: Short side in pixels before the centre crop; None squashes the image to ``size``.
        interpolation: Filter of the resize (Pillow's, with antialiasing when it shrinks).
        color: Channel order that the network was trained on.
        mean, std: Per channel of ``color``, on the [0, 1] scale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[Side, Side] = (224, 224)
    resize: Positive | None = 256
    interpolation: Interpolation = "bilinear"
    color: Color = "RGB"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @field_validator("std")
    @classmethod
    def _std_is_positive(cls, std: tuple[float, ...]) -> tuple[float, ...]:
        if any(not s > 0 for s in std):
            raise ValueError("std must be positive")
        return std

    @property
    def channels(self) -> int:
        """Channels of the network's input: 1 for GRAY, else 3."""
        return 1 if self.color == "GRAY" else 3
