"""Tiny Core ML programs for the interpreter's tests: built with coremltools, saved, read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repedge.targets.coreml.interpreter.interpreter import MilProgram, load

ct = pytest.importorskip("coremltools")

from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402

Build = Callable[[Any, type], Any]
"""(input variable, numpy type of the program's floats) -> output variable"""

Definition = Callable[[np.ndarray], np.ndarray]
"""What the op is, in numpy."""

RNG = np.random.default_rng(7)


def half(shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Random numbers that fp16 can hold, as float64."""
    return (RNG.standard_normal(shape) * scale).astype(np.float16).astype(np.float64)


def per_channel(v: np.ndarray) -> np.ndarray:
    return v.reshape(-1, 1, 1)


SHAPE = (2, 6, 9, 7)
X = half(SHAPE, 2)
W = {
    "dense": half((4, 6, 3, 2)),
    "grouped": half((4, 3, 3, 3)),
    "depthwise": half((6, 1, 5, 5)),
    "up": half((6, 2, 3, 3)),
    "fc": half((5, 7)),
    "bias": half((4,)),
    "channel": half((6,)),
    "var": np.maximum(np.abs(half((6,))), 0.125),
    "full": half(SHAPE),
}


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


def check_ops(
    cases: Mapping[str, tuple[Build, Definition]],
    x: np.ndarray,
    precision: str,
    opset: str,
    folder: Path,
) -> None:
    """Run each case's op on ``x`` and compare with its definition; all are outputs of one program."""
    program = program_of({n: build for n, (build, _) in cases.items()}, x.shape, precision, opset, folder)
    got = program.run({"x": x.astype(np.float32)})
    assert set(got) == set(cases)
    for name, (_, definition) in cases.items():
        want = definition(x)
        if want.dtype == np.int32:
            assert got[name].dtype == np.int32
            np.testing.assert_array_equal(got[name], want, err_msg=name)
        else:
            assert got[name].dtype == ("float16" if precision == "fp16" else "float32"), name
            assert_rounded(got[name], want, name)
