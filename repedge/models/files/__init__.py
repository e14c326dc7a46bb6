"""Weights files from strangers: read the tensors, run nothing, name what is wrong in one sentence."""

from repedge.models.files.checkpoint import SUFFIXES, Checkpoint, load_checkpoint, strip_prefixes, unusable

__all__ = ["SUFFIXES", "Checkpoint", "load_checkpoint", "strip_prefixes", "unusable"]
