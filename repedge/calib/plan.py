"""The quantization plan: every decision of a calibration, as one JSON-able object."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from repedge.disk import regular
from repedge.errors import UserError
from repedge.scheme import QuantScheme

VERSION = 1
"""Version of the JSON form."""

LARGEST = 2**30
"""Bytes of a plan in JSON, which has a line for each channel of each weight."""


class TensorQuant(BaseModel):
    """How an activation (or a constant operand) becomes integers: ``q = round(x / scale) + zero_point``.

    Attributes:
        scale: A float32 number.
        zero_point: The integer that stands for 0.
        dtype: Integer type.
        low, high: The real values that the least and greatest integer stand for.
        why: The rule that the range comes from.
        tied_to: Name of the tensor whose parameters these are, or None.
    """

    model_config = ConfigDict(extra="forbid")

    scale: float
    zero_point: int
    dtype: str
    low: float
    high: float
    why: str = ""
    tied_to: str | None = None


class WeightQuant(BaseModel):
    """How a weight becomes integers: ``q = round(w / scale)``, ``-limit <= q <= limit``.

    The weights of the calibrated model are exactly ``q * scale``, so rounding them gives back ``q``
    whatever method chose it.

    Attributes:
        node: Node that reads the weight.
        axis: Axis of the output channels; None for one scale in all.
        scale: One float32 number per output channel (or one).
        limit: Greatest magnitude of ``q``.
        rounding: Method that chose ``q``: ``nearest``, ``gptq``, ``enumeration``, ``adaround``.
        raised: Channels whose scale was raised to keep the integer bias from overflowing.
    """

    model_config = ConfigDict(extra="forbid")

    node: str
    axis: int | None
    scale: list[float]
    limit: int = 127
    rounding: str = "nearest"
    raised: int = 0


class BiasChange(BaseModel):
    """What bias correction did to a layer: root mean square and greatest change over the channels."""

    model_config = ConfigDict(extra="forbid")

    rms: float
    max_abs: float
    method: str


class QuantPlan(BaseModel):
    """All decisions of a calibration.

    Attributes:
        scheme: The rules that it keeps to.
        tensors: Activation or constant operand -> parameters. What is not listed is float32.
        weights: Weight (initializer name) -> parameters. What is not listed is float32.
        biases: Node name -> what correction did to its bias.
        equalization: Tensor -> factor per channel that it was divided by.
        float_nodes: Node name -> why it stays float32.
        recipe: The steps that made the plan.
        notes: Sentences for the user.
    """

    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    scheme: QuantScheme
    tensors: dict[str, TensorQuant] = {}
    weights: dict[str, WeightQuant] = {}
    biases: dict[str, BiasChange] = {}
    equalization: dict[str, list[float]] = {}
    float_nodes: dict[str, str] = {}
    recipe: dict[str, Any] = {}
    notes: list[str] = []

    def set_range(self, names: Mapping[str, str | None], low: float, high: float, why: str) -> None:
        """Give the tensors (name -> the tensor they are tied to, or None) one range."""
        scale, zero_point = self.scheme.params(low, high)
        real_low, real_high = self.scheme.range_of(scale, zero_point)
        for name, tied_to in names.items():
            self.tensors[name] = TensorQuant(
                scale=scale,
                zero_point=zero_point,
                dtype=self.scheme.activations,
                low=real_low,
                high=real_high,
                why=why,
                tied_to=tied_to,
            )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; the same plan gives the same bytes."""
        Path(path).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> QuantPlan:
        """Read a plan.

        Raises:
            UserError: The file is missing or is no plan of this version.
        """
        try:
            plan = cls.model_validate_json(regular.read_bytes(path, LARGEST))
        except OSError as e:
            raise UserError(f"the quantization plan {path} can't be read ({e.strerror})") from e
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{path} is no quantization plan: {where}: {first['msg']}") from e
        if plan.version != VERSION:
            raise UserError(f"{path} is a plan of version {plan.version}, and this repedge reads {VERSION}")
        return plan
