"""What can go wrong on the way from the hub to the disk, sorted by what helps."""

import re
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

_QUERY = re.compile(r"(https?://[^\s'\"<>?]+)\?[^\s'\"<>]*")
_USERINFO = re.compile(r"(https?://)[^/\s'\"]+@")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9_]{6,}|\bapi_org_[A-Za-z0-9_]+|(?i:\bbearer\s+)[^\s'\"]+")
_LONGEST = 400


_TRIES, _PAUSE_SECONDS = 3, 1.0
_Found = TypeVar("_Found")


class Trouble(StrEnum):
    """Who can do something about it."""

    UNREACHABLE = "the hub does not answer"
    BUSY = "the hub wants us to slow down"
    DENIED = "the hub refuses"
    REFUSED = "we refuse"
    NO_SPACE = "the disk is full"
    CORRUPT = "the content is not what the hub listed"
    OFFLINE = "offline"
    FAULT = "a fault of the disk, or of ours"


class WeightsError(Exception):
    """A copy could not be made. What is on disk of it stays, and the next try goes on from there.

    Attributes:
        trouble: What kind of trouble it is.
        retry_after: Seconds that the hub asked us to wait, if it did.
    """

    def __init__(self, trouble: Trouble, text: str, *, retry_after: float | None = None) -> None:
        super().__init__(scrub(text))
        self.trouble = trouble
        self.retry_after = retry_after

    @property
    def passes(self) -> bool:
        """It may be over in a moment, without anybody's help."""
        return self.trouble in (Trouble.UNREACHABLE, Trouble.BUSY)


class StoppedError(Exception):
    """Nobody wants this download any more."""


def describe(error: BaseException) -> str:
    """An error in one line that says what it is, without what may be secret."""
    if isinstance(error, WeightsError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return scrub(f"{error.filename or 'the disk'}: {error.strerror}")
    return scrub(f"{type(error).__name__}: {error}")


def scrub(text: str) -> str:
    """The text without what may be secret: tokens, and the signatures in addresses of storage servers."""
    text = _TOKEN.sub("***", _USERINFO.sub(r"\1***@", _QUERY.sub(r"\1?***", text)))
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def tried(ask: Callable[[], _Found], pause: Callable[[float], object]) -> _Found:
    """What may be over in a moment is tried again before it counts as a problem.

    Args:
        ask: What is tried.
        pause: Waits for so many seconds; true where nobody wants the answer any more.

    Raises:
        WeightsError: It went wrong to the last.
        StoppedError: Nobody wants it any more.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            return ask()
        except WeightsError as error:
            if not error.passes or error.retry_after is not None or attempt == _TRIES:
                raise
            if pause(_PAUSE_SECONDS * attempt):
                raise StoppedError from error
    raise AssertionError("unreachable")
