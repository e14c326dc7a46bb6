"""Tiny Core ML programs for the interpreter's tests: built with coremltools, saved, read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repedge.targets.mil import MilProgram, load

ct = pytest.importorskip("coremltools")

from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402

Build = Callable[[Any, type], Any]
"""(input variable, numpy type of the program's floats) -> output variable"""


def convert(
    build: Callable[[Any], Any], shape: tuple[int, ...], precision: str, opset: str, **options: Any
) -> Any:
    """An MLModel of ``build`` with one input ``x``, as it is: no pass of coremltools touches it."""
    spec = mb.TensorSpec(shape=shape, dtype=types.fp16 if precision == "fp16" else types.fp32)
    target = getattr(ct.target, opset)
    program = mb.program(input_specs=[spec], opset_version=target)(lambda x: build(x))
    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT32,  # the program states its own types
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
        **options,
    )


def saved(model: Any, folder: Path, name: str = "p") -> Path:
    path = folder / f"{name}.mlpackage"
    model.save(str(path))
    return path


def program_of(
    cases: Mapping[str, Build], shape: tuple[int, ...], precision: str, opset: str, folder: Path
) -> MilProgram:
    """One program with input ``x`` and one output per case."""
    dtype = np.float16 if precision == "fp16" else np.float32

    def build(x: Any) -> Any:
        return tuple(mb.identity(x=case(x, dtype), name=name) for name, case in cases.items())

    return load(saved(convert(build, shape, precision, opset), folder))


def assert_rounded(got: np.ndarray, want: np.ndarray, name: str = "") -> None:
    """``got`` is ``want`` (computed in float64), rounded once where it is fp16.

    Tolerance: half an fp16 ulp, and for the float32 arithmetic 1e-6 of the largest magnitude.
    """
    assert got.shape == want.shape, f"{name}: {got.shape} for {want.shape}"
    with np.errstate(over="ignore"):
        nearest = want.astype(got.dtype)
    finite = np.isfinite(nearest)
    np.testing.assert_array_equal(got[~finite], nearest[~finite], err_msg=name)
    slack = 1e-6 * max(1.0, float(np.abs(want[finite]).max(initial=0)))
    if got.dtype == np.float16:
        slack = slack + 0.501 * np.spacing(np.abs(nearest[finite])).astype(np.float64)
    error = np.abs(got[finite].astype(np.float64) - want[finite])
    assert (error <= slack).all(), f"{name}: error {error.max()}, allowed {np.max(slack)}"
