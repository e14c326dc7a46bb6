"""From a model to verified bundles."""
