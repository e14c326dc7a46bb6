"""Core ML: all that repedge knows of it."""
