"""What a graph says of itself: its parts, what an arithmetic can tell of it, what it was trained on."""
