"""Whom to tell, or to wake, while nobody is there to be told."""


def nobody(*_told: object) -> None:
    """Nothing happens."""
