"""What is on the disk: folders that are whole or absent, leftovers of killed processes, regular files."""
