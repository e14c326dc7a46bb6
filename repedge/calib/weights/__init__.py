"""Weights and biases that suit integers."""
