"""A repedge target that writes C."""
