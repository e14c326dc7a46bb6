"""What a network's outputs mean: one file for each kind of answer."""
