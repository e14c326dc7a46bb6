"""What calibration simulates an operator by, against ONNX Runtime, row by row of the table of operators."""

from __future__ import annotations

import numpy as np
import op_rows_values
import pytest
from operators import reference, relative_error

from repedge.calib.simulation.simulator import Simulator

ONE_IMAGE = {"expand_rank", "gather_nd", "gather_computed"}
"""Rows that mix images."""


@pytest.mark.parametrize("name", [n for n in op_rows_values.CASES if n not in ONE_IMAGE])
def test_simulated_value(name):
    """Of a batch of three, with and without the rows that are torch functions."""
    row = op_rows_values.CASES[name]
    model, x = row.model(), row.input()
    found = [y.numpy() for y in Simulator(model).run(x)]
    wanted = reference(model, x)
    assert [f.dtype.kind for f in found] == [w.dtype.kind for w in wanted]
    assert relative_error([np.asarray(f) for f in found], wanted) < 2e-6
