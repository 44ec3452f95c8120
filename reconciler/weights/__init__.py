"""Weights: from the hub to a verified copy in the hub's standard cache."""
