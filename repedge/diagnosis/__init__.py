"""``repedge diagnose``: what int8 will do to a network, before anything is built."""

from repedge.diagnosis.examine import Report, examine, scheme_name

__all__ = ["Report", "examine", "scheme_name"]
