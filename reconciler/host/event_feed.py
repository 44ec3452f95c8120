"""The newest events in memory, for whoever listens: written by `host.log`, read by the API's server-sent events.

All listeners read one ring. There is no queue for each, so a hundred of them, or one that is stuck, cost nothing;
who is too slow finds a gap, and is told so.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from itertools import islice

GAP = "feed.gap"
"""The event that stands where events are missing: the listener was away too long, or the reconciler began anew."""
_AT_ONCE = 100
_PLAIN = (str, int, float, bool, type(None), list, tuple, dict)
_Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """An event and where it stands.

    Attributes:
        id: Names its place, also to a reconciler that was started again.
        event: Its fields, as in docs/events.md.
    """

    id: str
    event: dict[str, object]


class EventFeed:
    """Keeps the newest events. `append` may be called from any thread, the rest too.

    Args:
        keep: How many.
        began: Milliseconds since the epoch: what tells ids of this process from those of earlier ones.
    """

    def __init__(self, keep: int = 1000, *, began: int | None = None) -> None:
        self._ring: deque[FeedEvent] = deque(maxlen=keep)
        self._began = time.time_ns() // 1_000_000 if began is None else began
        self._count = 0
        self._lock = threading.Lock()
        self._bells: dict[asyncio.AbstractEventLoop, asyncio.Event] = {}

    @property
    def last_id(self) -> str:
        """The id of the newest event; what comes after it is new."""
        with self._lock:
            return self._id(self._count)

    def append(self, event: Mapping[str, object]) -> None:
        """Add an event and wake all that wait for one."""
        plain: dict[str, object] = {
            key: value if isinstance(value, _PLAIN) else str(value) for key, value in event.items()
        }
        with self._lock:
            self._count += 1
            self._ring.append(FeedEvent(self._id(self._count), plain))
            bells, self._bells = self._bells, {}
        for loop, bell in bells.items():
            # A loop that is closed has nobody left who waits.
            if not loop.is_closed():
                try:
                    loop.call_soon_threadsafe(bell.set)
                except RuntimeError:
                    continue

    def after(self, last_id: str | None) -> list[FeedEvent]:
        """What is kept and came after `last_id`, oldest first; with None all that is kept.

        Where events are missing in between, or the id is unknown, the first is a `feed.gap`: its field `lost` says
        how many are missing, or is None where nobody can tell.
        """
        with self._lock:
            return self._after(last_id, most=len(self._ring))

    async def follow(self, last_id: str | None) -> AsyncIterator[FeedEvent]:
        """What is kept and came after `last_id`, then each event as it comes; never ends by itself.

        Gaps as in `after`, also where the listener was too slow.
        """
        while True:
            with self._lock:
                events = self._after(last_id, most=_AT_ONCE)
                if not events:
                    bell = self._bells.setdefault(asyncio.get_running_loop(), asyncio.Event())
            if not events:
                await bell.wait()
            for event in events:
                last_id = event.id
                yield event

    def _after(self, last_id: str | None, *, most: int) -> list[FeedEvent]:
        oldest = self._count - len(self._ring)
        place = (self._began, oldest) if last_id is None else _place(last_id)
        gap: list[FeedEvent] = []
        if place is None or place[0] != self._began or not oldest <= place[1] <= self._count:
            known = place is not None and place[0] == self._began and place[1] < oldest
            lost = oldest - place[1] if known and place is not None else None
            gap = [FeedEvent(self._id(oldest), {"event": GAP, "level": "warning", "lost": lost})]
            place = (self._began, oldest)
        start = place[1] - oldest
        return gap + list(islice(self._ring, start, start + most))

    def _id(self, number: int) -> str:
        return f"{self._began}-{number}"


def _place(text: str) -> _Place | None:
    """Comes from the header `Last-Event-ID`, so it may be anything."""
    began, dash, number = text[:64].partition("-")
    if not dash or not all(part.isascii() and part.isdigit() for part in (began, number)):
        return None
    return int(began), int(number)
