"""Operators that exporters spell out in several: found, and written as one."""
