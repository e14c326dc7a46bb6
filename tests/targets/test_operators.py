"""Every row of the table of operators on every target: equal to ONNX Runtime, or refused as the row says."""

from __future__ import annotations

import re

import pytest
from op_table import CASES
from operators import TOLERANCE, reference, relative_error, same_kinds

from repedge import targets
from repedge.config import Preprocess
from repedge.errors import UnsupportedModel, UserError
from repedge.targets.base import Job

JOB = Job("net", "fp32", Preprocess(), "float32")
SLOW = {"openvino"}
"""It makes machine code of each graph."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "target", [pytest.param(t, marks=pytest.mark.slow) if t in SLOW else t for t in targets.TARGETS]
)
def test_operator(target, name, tmp_path):
    """Compiled for float inputs and run on three images."""
    row, compiler = CASES[name], targets.get(target)
    model = row.model()
    said = [found.why for found in compiler.unsupported(model)]
    if words := row.refused.get(target):
        with pytest.raises(UserError, match=re.escape(words)) as error:
            compiler.compile(model, JOB, tmp_path)
        assert isinstance(error.value, UnsupportedModel) == bool(said)  # else it's the batch, not a node
        assert not said or any(words in why for why in said)
        assert list(tmp_path.iterdir()) == []
        return
    assert said == []
    artifact = compiler.compile(model, JOB, tmp_path)
    names = [str(value.name) for value in model.graph.outputs]
    x = row.input()
    found = compiler.open(tmp_path / artifact.main, JOB, names, threads=1).run(x)
    wanted = reference(model, x)
    if target == "gpu":  # images have an axis in front of an output that has none for them
        found = [
            f.reshape(w.shape) if f.ndim == w.ndim + 1 else f for f, w in zip(found, wanted, strict=True)
        ]
    assert same_kinds(found, wanted)
    tolerance, _ = row.loose.get(target, (TOLERANCE, ""))
    assert relative_error(found, wanted) < tolerance


@pytest.mark.parametrize("name", CASES)
def test_rows_name_targets(name):
    """A misspelt target would leave its row untested."""
    row = CASES[name]
    assert {*row.refused, *row.loose} <= set(targets.TARGETS)
