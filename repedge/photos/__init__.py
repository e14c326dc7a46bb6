"""Photos from any source: read, chosen, decoded, brought to a network's input."""
