"""Saved Core ML programs, read back and run without Core ML."""
