"""Two models that can be served offline, for `./start.sh --demo`; nothing else in the package uses it."""
