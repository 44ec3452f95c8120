"""Where a model should be in this turn, and why: `residency` decides it; `room`, `approach`, `planner` read it."""

from dataclasses import dataclass
from enum import StrEnum


class Wish(StrEnum):
    """Where a model should be."""

    UP = "up"
    """Up, and started where it is not."""
    STAY = "stay"
    """What is there stays, and follows its file; nothing is started for it."""
    SLEEP = "sleep"
    """Its engine sleeps, or goes to sleep; nothing is started for it."""
    REST = "rest"
    """Not up."""


@dataclass(frozen=True, slots=True)
class Want:
    """A model's wish, and why.

    Attributes:
        why: In words.
        pinned: It does not leave to make room.
        since: Seconds that it has been asked for, which is its place in the queue.
        on_request: At rest, a request is enough to bring it up.
        asked: Somebody asked for it, beyond what its file says.
    """

    wish: Wish
    why: str
    pinned: bool = False
    since: float = 0.0
    on_request: bool = True
    asked: bool = False
