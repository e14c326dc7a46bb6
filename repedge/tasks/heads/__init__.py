"""Detectors' heads: where the numbers of boxes and scores stand in the outputs, and what they are."""
