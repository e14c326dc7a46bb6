"""Classes known by a few examples: how well embeddings tell them, and sets of examples that grow."""
