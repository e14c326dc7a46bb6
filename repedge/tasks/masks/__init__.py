"""A class for each pixel: which outputs say it, the maps that they make, and how near those are to float."""
