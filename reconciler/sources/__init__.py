"""Where model files come from. A source gives a snapshot of all of them, read at one time."""
