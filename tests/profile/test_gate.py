"""Requirements and baselines: what fails a build, and what does not."""

import json

import pytest
from profile_helpers import profile

from repedge.errors import UserError
from repedge.profile import gate


def missed(row, *texts):
    """What the gates say of a profile."""
    return "; ".join(gate.Gates(tuple(gate.parse(t) for t in texts)).hold([row]).failures)


@pytest.mark.parametrize("text", ["partitions<=1", " partitions <= 1 ", "ane>=0.95", "ane>=95%", "p50_ms<5"])
def test_requirements_are_read(text):
    found = gate.parse(text)
    assert found.name in ("partitions", "ane", "p50_ms")
    assert found.limit in (1, 0.95, 5)


@pytest.mark.parametrize(
    "text", ["", "partitions", "partitions<=", "partitions=1", "ane>=much", "ane>=1e", "=<1"]
)
def test_malformed_requirements(text):
    with pytest.raises(UserError, match="write it as 'partitions<=1'"):
        gate.parse(text)


def test_unknown_requirement_names_the_known_ones():
    with pytest.raises(UserError, match="'partition' is unknown; use partitions"):
        gate.parse("partition<=1")


def test_a_met_requirement_passes():
    p = profile(partitions=1, residency={"ane": 0.97, "cpu": 0.03})
    assert missed(p, "partitions<=1", "outside==0", "ane>=0.95", "gpu<=0", "p99_ms<2") == ""


def test_a_missed_requirement_names_the_operators():
    p = profile(partitions=3, outside=("GELU a", "GELU b"), residency={"ane": 0.9})
    assert "partitions<=1 is missed: it is 3 (outside: GELU a, GELU b)" in missed(p, "partitions<=1")
    assert "ane>=0.95 is missed: it is 0.9" in missed(p, "ane>=0.95")


def test_what_a_runtime_does_not_report_is_no_pass():
    assert "partitions<=1 can't be told, tflite does not report it" in missed(profile(), "partitions<=1")
    assert "ane>=0.95 can't be told" in missed(profile(), "ane>=0.95")


@pytest.mark.parametrize(
    ("required", "passes_at", "measurements", "failed"),
    [
        ("p50_ms<5", 1, 1, False),
        ("p50_ms<5", 3, 3, False),  # two slow ones are noise
        ("p50_ms<5", 9, 3, True),
        ("partitions<=1", 9, 1, True),  # a fact of the artifact: no second look changes it
    ],
)
def test_a_missed_time_is_measured_again_before_it_is_believed(required, passes_at, measurements, failed):
    taken: list[None] = []

    def measure():
        taken.append(None)
        good = len(taken) >= passes_at
        row = profile([4.0 if good else 6.0] * 30, partitions=1 if good else 2)
        return [row], {"p50_ms": row.p50_ms}

    _, data, held = gate.measured(measure, gate.Gates((gate.parse(required),)))
    assert len(taken) == measurements
    assert bool(held.failures) is failed
    assert (data["p50_ms"] == 4.0) is not failed
    if measurements == 3 and failed:
        assert "in each of 3 measurements" in held.failures[0]


def test_regression_needs_both_size_and_certainty():
    base = [10 + 0.01 * (i % 7) for i in range(60)]
    noisy = [10 + (i % 5) ** 2 for i in range(60)]  # median 14, anything from 10 to 26
    then = profile(base)
    assert gate.regression(profile([x * 1.2 for x in base]), then, 0.05).failed
    assert not gate.regression(profile([x * 1.03 for x in base]), then, 0.05).failed
    assert not gate.regression(profile([x * 0.8 for x in base]), then, 0.05).failed
    assert not gate.regression(profile(noisy[:4]), profile(noisy), 0.05).failed


def test_a_baseline_is_read_back(tmp_path):
    file = tmp_path / "base.json"
    p = profile()
    ended = {"max_regression": 0.05, "regression": True, "error": "slow", "exit_code": 3}
    file.write_text(json.dumps({**p.model_dump(mode="json"), **ended}))
    assert gate.read_baseline(file) == p


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not what `repedge profile --json` prints"),
        ("[]", "is not what"),
        ('{"p50_ms": 3}', "is not what"),
        ('{"profiles": []}', "holds a comparison"),
    ],
)
def test_a_baseline_that_is_none(tmp_path, text, message):
    file = tmp_path / "base.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        gate.read_baseline(file)
    with pytest.raises(UserError, match="can't be read"):
        gate.read_baseline(tmp_path / "none.json")


@pytest.mark.parametrize("field", ["threads", "device", "runtime"])
def test_a_baseline_taken_otherwise_is_refused(field):
    other = profile().model_copy(update={field: 7 if field == "threads" else "other"})
    with pytest.raises(UserError, match=f"another {field}"):
        gate.comparable(profile(), other)


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.1", 0.1), (" 2.5 % ", 0.025)])
def test_limits(text, share):
    assert gate.parse_limit(text) == pytest.approx(share)


def test_a_limit_that_is_none():
    with pytest.raises(UserError, match="write a share such as 5%"):
        gate.parse_limit("five")
