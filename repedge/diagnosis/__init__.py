"""``repedge diagnose``: what int8 will do to a network, and what will be done about it, before anything is built."""

from repedge.diagnosis.examine import Report, examine, scheme_name

__all__ = ["Report", "examine", "scheme_name"]
