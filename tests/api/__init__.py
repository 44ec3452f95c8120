"""Tests of the management API, with a simulated cluster behind real operations."""
