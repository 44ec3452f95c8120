"""Errors that a person can mend: the message says what is wrong and what to do. Commands print it and exit 1."""


class UserError(RuntimeError):
    """It cannot go on as things are; the message is for a person."""
