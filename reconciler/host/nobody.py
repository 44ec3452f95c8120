"""Whom to tell, or to wake, while nobody is there to be told."""


def nobody() -> None:
    """Nothing happens."""
