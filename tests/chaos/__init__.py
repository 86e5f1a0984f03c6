"""Chaos: everything that happens to machines at the edge, at once, and a judge."""
