"""iPhones on the cable of a Mac."""
