"""The pure core: parsing, state, diff, plan, rendering. No I/O, no clock, no logging, no Ray."""
