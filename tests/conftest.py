"""Fixtures of more than one file."""

from __future__ import annotations

import pytest

from repedge.cli import main


@pytest.fixture
def cli(capsys):
    """Runs a command line: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as done:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return done.value.code, out, err

    return run
