"""Tests of the memory estimate."""
