"""Fusing as algebra: linear maps found on the graph, and merged where that is exact."""
