"""Benchmarks on the real stack. Each module with a `main` is a command: `python -m bench.front_door --help`."""
