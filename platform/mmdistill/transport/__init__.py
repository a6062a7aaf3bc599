"""Optimal transport between batches: numerics only, no networks and no labels."""
