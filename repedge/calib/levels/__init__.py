"""Which real values an activation's integers stand for."""
