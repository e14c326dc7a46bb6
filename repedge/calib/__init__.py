"""Calibration: what low-bit compilation needs to know about a network's values."""
