"""Parts of benches that have several files."""
