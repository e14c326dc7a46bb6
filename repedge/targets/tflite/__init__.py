"""TensorFlow Lite: all that repedge knows of it."""
