"""What the precision words promise: how near to the float model an artifact must be.

A word is open: a target may bring one of its own (`repedge.targets.base.Target.thresholds`), as long as it
says what the word promises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any


class _Word:
    """Tells pydantic what a word looks like, without importing it."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.str_schema(pattern=r"^[a-z][a-z0-9_]{0,31}$")


Precision = Annotated[str, _Word]
"""``w8a32`` is 8-bit weights with float activations; ``paletteN`` is an N-bit weight look-up table."""


@dataclass(frozen=True)
class Threshold:
    """What an artifact of one precision must reach, every output taken alone.

    Attributes:
        min_sqnr_db: Signal-to-quantization-noise ratio against the float reference.
        max_rel_err: Largest error over the largest reference value; None for no bound.
        same_decisions: Whether every image must keep what the task makes of it, such as its best class. A
            change between two answers that the reference holds closer to each other than ``tie`` does not
            count.
        why: The reason for the numbers.
        tie: Relative gap between two values under which their order means nothing in this precision.
        elsewhere: Error that another processor may add, as a share of an output's largest value.
        epsilon: Greatest relative error of rounding to this precision, where all of the network is in it: an
            output that it can't tell any better passes (`repedge.graph.analysis.resolution`). None elsewhere.
    """

    min_sqnr_db: float
    max_rel_err: float | None
    same_decisions: bool
    why: str
    tie: float = 2.0**-8
    elsewhere: float = 2.0**-8
    epsilon: float | None = None


THRESHOLDS: dict[str, Threshold] = {
    "fp32": Threshold(
        90, 1e-4, True, "only the order of float32 sums differs: about 120 dB is usual", 1e-5, 1e-4, 2.0**-24
    ),
    "fp16": Threshold(
        40, None, True, "11-bit significands leave 55 to 70 dB at the logits; 40 is a fault", epsilon=2.0**-11
    ),
    "w8a32": Threshold(8, None, False, "8-bit weights, rounded to nearest: 10 to 35 dB, depth decides"),
    "w8a16": Threshold(8, None, False, "as w8a32; 16-bit activations add nothing visible"),
    "w8a8": Threshold(8, None, False, "the loss is judged by eval on a validation set, this finds faults"),
    "palette8": Threshold(8, None, False, "256 shared values per tensor: like w8a32"),
    "palette6": Threshold(3, None, False, "64 shared values per tensor: 5 to 20 dB"),
    "palette4": Threshold(0, None, False, "16 shared values per tensor: most nets need retraining"),
}
"""Of the words that several targets share.

fp32 differs elsewhere in the order of sums: ``elsewhere`` is the bound of verification. Everything else
computes in float16 or in 8-bit steps on some processor: 2**-8, where two values are called a tie.
"""

SYNONYMS = {
    "int8": "w8a8", "i8": "w8a8", "int16": "w8a16", "float16": "fp16", "half": "fp16", "f16": "fp16",
    "float32": "fp32", "f32": "fp32", "float": "fp32",
}  # fmt: skip
"""What others call our words, for error messages that say ours."""
