"""The core and the memory against a simulated world that can fail at every step."""
