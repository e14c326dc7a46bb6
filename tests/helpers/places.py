"""Folders outside of a test's own."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""
SHARED = ROOT.parent / "shared"
"""Weights and photos that only some machines have; tests skip without them."""
