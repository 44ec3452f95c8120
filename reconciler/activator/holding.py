"""Requests that wait for their models: one line for each model, in the order of arrival, bounded.

Nothing here runs by itself. A new directory wakes whom it concerns, and each request then looks for itself; until
it goes on it keeps its place. A directory costs one comparison for each model that somebody waits for.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from reconciler.activator import errors
from reconciler.activator.directory import Directory, Entry
from reconciler.core.state import Waiting

MAX_HELD_BYTES = 512 << 20
"""The bodies of all requests that wait, together."""

# Before the first look no model says how many may wait for it.
_MAX_BEFORE_THE_FIRST_LOOK = 10_000
# Positions are counted anew no more often than they are shown.
_RENUMBER_SECONDS = 1.0
# A client that was told when to come back is expected for so much longer.
_LATE_SECONDS = 30.0


class Waiter:
    """One request that waits.

    Attributes:
        asked: The name that the client used.
        arrived: When it came, by the clock of `Holding`.
        size: Bytes of its body.
        follows: It is woken by every change of its model, and not only by one that ends the wait.
        position: Its place in the line, from 1.
        line: Where it waits; None while it does not.
    """

    __slots__ = ("_woken", "arrived", "asked", "follows", "line", "position", "size")

    def __init__(self, asked: str, arrived: float, size: int, *, follows: bool) -> None:
        self.asked = asked
        self.arrived = arrived
        self.size = size
        self.follows = follows
        self.position = 1
        self.line: _Line | None = None
        self._woken: asyncio.Future[None] | None = None

    def arm(self) -> None:
        """From here on a change is noticed, also one that comes before `wait`."""
        self._woken = asyncio.get_running_loop().create_future()

    async def wait(self, gone: asyncio.Task[None], seconds: float) -> None:
        """Return after a change since `arm`, when the client has gone, or when the time is over."""
        assert self._woken is not None, "arm() comes before wait()"
        if seconds > 0:
            await asyncio.wait({self._woken, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    def wake(self) -> None:
        """End its `wait`; it looks for itself what has changed."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


@dataclass(slots=True, eq=False)
class _Line:
    """Those who wait for one model, the first one first; without a model, those who wait for the first look."""

    entry: Entry | None
    waiters: dict[Waiter, None] = field(default_factory=dict)
    numbered: float = 0.0

    @property
    def name(self) -> str:
        return self.entry.name if self.entry is not None else ""

    @property
    def limit(self) -> int:
        return self.entry.max_waiting if self.entry is not None else _MAX_BEFORE_THE_FIRST_LOOK


class Holding:
    """All lines, and the clients that were told to come back.

    Attributes:
        stopped: Nobody is held any more.
    """

    def __init__(self, wake: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Make it empty.

        Args:
            wake: Called when a model gets its first waiter, and when its last one leaves without being served.
            clock: Seconds that only go forward.
        """
        self.stopped = False
        self._wake = wake
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        self._bytes = 0
        self._expected: dict[str, tuple[float, float]] = {}

    def join(self, waiter: Waiter, entry: Entry | None) -> None:
        """Put a request at the end of its model's line; one that is in that line keeps its place.

        Args:
            waiter: The request.
            entry: Its model; None while it waits for the reconciler's first look.

        Raises:
            Refusal: The line is full, or all bodies together are too large.
        """
        line = self._lines.get(entry.name if entry is not None else "")
        if line is None:
            line = _Line(entry)
        if waiter.line is line:
            return
        if len(line.waiters) >= line.limit:
            raise errors.queue_full(line.entry, waiter.asked) if line.entry is not None else errors.starting()
        self.leave(waiter, served=False)
        if self._bytes + waiter.size > MAX_HELD_BYTES:
            raise errors.bodies_full(entry)
        first = not line.waiters
        self._bytes += waiter.size
        self._lines[line.name] = line
        line.waiters[waiter] = None
        waiter.line = line
        waiter.position = len(line.waiters)
        if first and entry is not None:
            self._wake()

    def leave(self, waiter: Waiter, *, served: bool) -> None:
        """Take a request out of its line, if it is in one."""
        line, waiter.line = waiter.line, None
        if line is None:
            return
        del line.waiters[waiter]
        self._bytes -= waiter.size
        if not line.waiters:
            del self._lines[line.name]
            if line.entry is not None and not served:
                self._wake()

    def place(self, waiter: Waiter) -> tuple[int, int]:
        """Its position, from 1, and how many wait in its line; positions may be a second old."""
        line = waiter.line
        assert line is not None, "join() comes before place()"
        now = self._clock()
        if now - line.numbered >= _RENUMBER_SECONDS:
            line.numbered = now
            for position, other in enumerate(line.waiters, 1):
                other.position = position
        return min(waiter.position, len(line.waiters)), len(line.waiters)

    def expect(self, entry: Entry) -> None:
        """Count a client that was just told when to come back as waiting, until it should have come.

        Without this, a model whose clients are all in a hurry would never be loaded.
        """
        now = self._clock()
        since, _ = self._expected.get(entry.name, (now, 0.0))
        new = entry.name not in self._expected and entry.name not in self._lines
        self._expected[entry.name] = (since, now + errors.retry_after(entry) + _LATE_SECONDS)
        if new:
            self._wake()

    def update(self, directory: Directory) -> None:
        """Wake those whom a new directory concerns, in the order of their arrival."""
        for name, line in self._lines.items():
            if line.entry is None:
                if directory.settled:
                    _wake_all(line)
                continue
            entry = directory.find(name)
            if entry == line.entry:
                continue
            if entry is None or entry.name != name:
                _wake_all(line)
                continue
            old, line.entry = line.entry, entry
            all_of_them = _ends_the_wait(old, entry)
            for waiter in line.waiters:
                if all_of_them or waiter.follows:
                    waiter.wake()
        for name in list(self._expected):
            entry = directory.find(name)
            if directory.settled and (entry is None or entry.application is not None or not entry.holds):
                del self._expected[name]

    def waiting(self) -> dict[str, Waiting]:
        """How many wait for each model, and for how long; clients expected back count as one, all together."""
        now = self._clock()
        waiting = {
            name: Waiting(len(line.waiters), now - next(iter(line.waiters)).arrived)
            for name, line in self._lines.items()
            if line.entry is not None
        }
        for name, (since, until) in list(self._expected.items()):
            if until <= now:
                del self._expected[name]
                continue
            held = waiting.get(name, Waiting(0, 0.0))
            waiting[name] = Waiting(held.count + 1, max(held.seconds, now - since))
        return waiting

    def stop(self) -> None:
        """Hold nobody any more: whoever waits is woken, to leave."""
        self.stopped = True
        for line in self._lines.values():
            _wake_all(line)


def _ends_the_wait(old: Entry, new: Entry) -> bool:
    """Whether requests for `old` have to look again: it is up, it holds nobody, or it has other names."""
    if new.application is not None or not new.holds:
        return True
    return (old.aliases, old.adapters) != (new.aliases, new.adapters)


def _wake_all(line: _Line) -> None:
    for waiter in line.waiters:
        waiter.wake()
