"""A hub that names commits and sends weights, slowly, and a disk that keeps them."""

from collections.abc import Callable, Iterable
from hashlib import sha1
from typing import TypeAlias

from reconciler.core.weights import Copy, CopyState, Phase, Resolution, Wanted

from .faults import Call, Faults, When

RESOLVE_SECONDS, DOWNLOAD_SECONDS, RETRY_SECONDS = 1.0, 3.0, 30.0
SIZE = 1000
Known: TypeAlias = frozenset[tuple[Wanted, Resolution]]
"""Resolutions, so that they can be a key."""


class FakeHub:
    """What the weight store knows of the hub. Work goes on beside the loop; the loop never waits for it."""

    def __init__(self, clock: Callable[[], float], faults: Faults) -> None:
        self._clock, self._faults = clock, faults
        self._pushed = 0
        self._resolved: dict[Wanted, Resolution] = {}
        self._asked: dict[Wanted, float] = {}
        self._ends: dict[Copy, float] = {}
        self._copies: dict[Copy, CopyState] = {}

    def push(self) -> None:
        """Every branch moves."""
        self._pushed += 1

    def forget_pending(self) -> None:
        """The process ends: what was asked or on its way is not; what is on disk is."""
        self._asked.clear()
        self._ends.clear()
        self._copies = {copy: state for copy, state in self._copies.items() if state.phase is Phase.READY}

    def resolve(self, wanted: Iterable[Wanted]) -> Known:
        """What is known by now; the rest is asked for."""
        # In one order, or a fault would hit another one in each run.
        return frozenset((each, self._resolve(each)) for each in sorted(wanted, key=str))

    def fetch(self, copies: Iterable[Copy]) -> None:
        """Begin to download, or go on."""
        for copy in copies:
            if copy not in self._ends:
                self._ends[copy] = self._clock() + DOWNLOAD_SECONDS
                self._copies[copy] = CopyState(Phase.FETCHING, total=SIZE)

    def states(self) -> dict[Copy, CopyState]:
        """How far the copies are."""
        now = self._clock()
        for copy, end in list(self._ends.items()):
            if end > now:
                continue
            state, when = self._copies[copy], self._faults.take(Call.DOWNLOAD)
            if when is not None:
                retry = now + RETRY_SECONDS
                # After: all bytes are there, and what says so could not be written. They are looked at again.
                done = SIZE if when is When.AFTER else SIZE // 2
                self._copies[copy] = CopyState(
                    Phase.FAILED, total=SIZE, done=done, reason="No space left on device", retry_at=retry
                )
                self._ends[copy] = retry
            elif state.phase is Phase.FAILED:
                self._copies[copy] = CopyState(Phase.FETCHING, total=SIZE, done=state.done)
                self._ends[copy] = now + DOWNLOAD_SECONDS
            else:
                self._copies[copy] = CopyState(Phase.READY, total=SIZE, done=SIZE)
                del self._ends[copy]
        return dict(self._copies)

    def _resolve(self, wanted: Wanted) -> Resolution:
        known = self._resolved.get(wanted, Resolution())
        now = self._clock()
        if known.commit or (known.retry_at or 0.0) > now:
            return known
        asked = self._asked.setdefault(wanted, now)
        if now - asked < RESOLVE_SECONDS:
            return known
        del self._asked[wanted]
        if self._faults.take(Call.RESOLVE) is not None:
            known = Resolution(problem="the hub does not answer", retry_at=now + RETRY_SECONDS)
        else:
            text = f"{wanted.repo}@{wanted.revision}{self._pushed}"
            known = Resolution(sha1(text.encode(), usedforsecurity=False).hexdigest())
        self._resolved[wanted] = known
        return known
