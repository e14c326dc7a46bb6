"""Fixtures of the graph's tests."""

from __future__ import annotations

import pytest

from repedge.graph import export as export_file


@pytest.fixture
def no_fallback(monkeypatch):
    def refuse(*args):
        raise AssertionError(f"went to the stock exporter: {args[-1]}")

    monkeypatch.setattr(export_file, "_stock_export", refuse)
