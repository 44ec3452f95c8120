"""Calls that fail: before they did anything, or after they did it and before anybody learnt of that."""

import errno
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from reconciler.edge.errors import EdgeUnreachableError
from reconciler.loop.memory import Memory
from reconciler.ray_serve.client import ServeUnreachableError

T = TypeVar("T")


class Call(StrEnum):
    """What the reconciler asks of the world."""

    GET = "Serve GET"
    SECOND_LOOK = "Serve GET before the PUT"
    PUT = "Serve PUT"
    ROUTES = "edge routes"
    PROBE = "probe"
    WRITE = "record written"
    RESOLVE = "hub resolve"
    DOWNLOAD = "hub download"


class When(StrEnum):
    """On which side of its effect a call fails."""

    BEFORE = "before"
    AFTER = "after"


class Faults:
    """Which calls fail next."""

    def __init__(self) -> None:
        self._armed: dict[Call, list[When]] = {}
        self.happened: list[str] = []

    def arm(self, call: Call, when: When, times: int = 1) -> None:
        """The next `times` calls of this kind fail."""
        self._armed[call] = [when] * times

    def clear(self) -> None:
        """Nothing fails any more."""
        self._armed.clear()

    def take(self, call: Call) -> When | None:
        """Whether this call fails, and on which side of its effect."""
        left = self._armed.get(call)
        if not left:
            return None
        self.happened.append(f"{call.value} failed {left[-1].value}")
        return left.pop()

    def run(self, call: Call, do: Callable[[], T]) -> T:
        """Make a call, which may fail as the real one would.

        Raises:
            ServeUnreachableError: It was Serve's turn to fail.
            EdgeUnreachableError: It was the edge's.
            OSError: It was the disk's.
        """
        when = self.take(call)
        if when is When.BEFORE:
            raise _error(call)
        done = do()
        if when is When.AFTER:
            raise _error(call)
        return done


class FallibleMemory(Memory):
    """The real memory on a disk that may be full."""

    def __init__(self, folder: Path, faults: Faults, *, monotonic: Callable[[], float]) -> None:
        super().__init__(folder, monotonic=monotonic)
        self._faults = faults

    def _save_records(self) -> None:
        self._faults.run(Call.WRITE, super()._save_records)

    def _save_failures(self) -> None:
        self._faults.run(Call.WRITE, super()._save_failures)


def _error(call: Call) -> Exception:
    if call is Call.WRITE:
        return OSError(errno.ENOSPC, "No space left on device")
    if call is Call.ROUTES:
        return EdgeUnreachableError("the edge does not answer")
    return ServeUnreachableError("Ray's dashboard does not answer")
