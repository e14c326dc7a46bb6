"""What int8 will do to a network, what is in a file or model, and what this machine can do."""
