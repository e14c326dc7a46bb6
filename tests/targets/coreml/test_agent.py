"""The Core ML engine's own logic, with stand-ins for coremltools' benchmarker, which needs macOS."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from repedge.targets.coreml import agent


class MLNeuralEngineComputeDevice:
    pass


class MLCPUComputeDevice:
    pass


def operation(name, kind, ms, device):
    usage = None if device is None else SimpleNamespace(preferred_compute_device=device())
    statistics = None if ms is None else SimpleNamespace(median=ms)
    return SimpleNamespace(
        spec=SimpleNamespace(outputs=[SimpleNamespace(name=name)], type=kind),
        compute_device_usage=usage,
        measurement=SimpleNamespace(statistics=statistics),
    )


OPERATIONS = [
    operation("w", "const", None, None),
    operation("a", "conv", 0.9, MLNeuralEngineComputeDevice),
    operation("b", "gelu", 0.1, MLCPUComputeDevice),
]


def test_constants_have_no_place():
    assert agent.rows(OPERATIONS) == [
        {"name": "a", "type": "conv", "ms": 0.9, "where": "ane"},
        {"name": "b", "type": "gelu", "ms": 0.1, "where": "cpu"},
    ]


def test_share_on_the_neural_engine_and_what_is_outside():
    engine = agent.CoreML.__new__(agent.CoreML)
    engine._plan = OPERATIONS
    facts = engine.facts()
    assert facts["residency"] == pytest.approx({"ane": 0.9, "cpu": 0.1})
    assert facts["outside"] == ["gelu b"]


@pytest.mark.slow
def test_inputs_of_the_saved_program_are_understood(tmp_path):
    """With a real specification, made by coremltools on any system."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 8, 12))], opset_version=ct.target.iOS16)
    def program(image):
        return mb.relu(x=image, name="y")

    model = ct.convert(
        program, convert_to="mlprogram", inputs=[ct.ImageType(name="image", shape=(1, 3, 8, 12))]
    )
    (described,) = model.get_spec().description.input
    name, dtype, shape = agent._input(described)
    assert (name, dtype, shape) == ("image", np.dtype("uint8"), (1, 8, 12, 3))


@pytest.mark.skipif(sys.platform == "darwin", reason="runs there")
def test_elsewhere_the_error_says_where_it_runs():
    from repedge.devices.agent.engine import AgentError

    with pytest.raises(AgentError, match="ssh:// to a Mac, or iphone://"):
        agent.CoreML("x.mlpackage", {})
