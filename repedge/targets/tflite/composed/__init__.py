"""Operators put together from those that TensorFlow Lite has, by kind."""
