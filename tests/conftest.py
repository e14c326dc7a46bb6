"""Fixtures of more than one file."""

from __future__ import annotations

import pytest

from repedge.cli import main


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=40, help="inputs of tests/fuzz (make fuzz: 10,000)")
    parser.addoption("--kills", type=int, default=5, help="kill -9 of tests/fuzz (make kills: 500)")
    parser.addoption("--fuzz-seed", type=int, default=0, help="what both begin from")


@pytest.fixture
def cli(capsys):
    """Runs a command line: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as done:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return done.value.code, out, err

    return run
