"""Value types that every part shares: what artifacts take, and the model's preprocessing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

InputKind = Literal["uint8", "float32"]
"""``uint8``: the artifact takes 8-bit pixels and normalises them itself. ``float32``: it takes the
network's own, already normalised input."""

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Color = Literal["RGB", "BGR", "GRAY"]

Positive = Annotated[int, Field(gt=0)]
Side = Annotated[int, Field(gt=0, le=16384)]


class Letterbox(BaseModel):
    """The whole image at the largest size that fits, with bars beside it: what detectors are trained on.

    Attributes:
        value: Of the bars, in every channel.
        corner: The image is at the top left; in the middle otherwise (the odd pixel right or below).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Annotated[int, Field(ge=0, le=255)] = 114
    corner: bool = False


class Preprocess(BaseModel):
    """From an image file to the network's input; it travels from the checkpoint to every artifact.

    An image is decoded to 8-bit RGB, resized, cropped to ``size``, put in ``color`` order, scaled to
    [0, 1] and normalised as ``(x - mean) / std``. An artifact of input kind ``uint8`` does the part
    after cropping itself and is fed RGB pixels (also when the network wants BGR; GRAY networks are
    fed one channel).

    Attributes:
        size: Height and width of the network's input, pixels.
        resize: Short side in pixels before the centre crop; None squashes the image to ``size``, unless
            there is a letterbox.
        letterbox: How the image is fitted into ``size`` instead; goes with a ``resize`` of None.
        interpolation: Filter of the resize (Pillow's, with antialiasing when it shrinks).
        color: Channel order that the network was trained on.
        mean, std: Per channel of ``color``, on the [0, 1] scale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[Side, Side] = (224, 224)
    resize: Positive | None = 256
    letterbox: Letterbox | None = None
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

    @model_validator(mode="after")
    def _one_geometry(self) -> Preprocess:
        if self.letterbox is not None and self.resize is not None:
            raise ValueError("letterbox goes with a resize of None")
        return self

    @property
    def channels(self) -> int:
        """Channels of the network's input: 1 for GRAY, else 3."""
        return 1 if self.color == "GRAY" else 3
