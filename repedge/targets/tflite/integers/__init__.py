"""From QDQ graphs to TensorFlow Lite's integer operators."""
