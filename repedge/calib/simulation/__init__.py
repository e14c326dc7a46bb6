"""The graph in torch, in float or with a plan's rounding, and what is seen while it runs."""
