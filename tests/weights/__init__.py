"""Weights over real HTTP: fetching, the store, the commands."""
