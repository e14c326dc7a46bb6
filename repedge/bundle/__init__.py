"""The bundle: a folder with an artifact, its manifest and what proves it."""
