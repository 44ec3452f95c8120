"""Which applications have requests of the activator's in flight, so that draining and idleness count them."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class Usage:
    """Requests in flight for each application, and when the last one ended. One event loop, no locks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._ended: dict[str, float] = {}

    @contextmanager
    def request(self, application: str) -> Iterator[None]:
        """Count one request for as long as the block runs."""
        self._running[application] += 1
        try:
            yield
        finally:
            self._running[application] -= 1
            if not self._running[application]:
                del self._running[application]
            self._ended[application] = self._clock()

    def keep(self, applications: Iterable[str]) -> None:
        """Forget when others than these were last used."""
        kept = set(applications)
        self._ended = {name: ended for name, ended in self._ended.items() if name in kept}

    def in_flight(self) -> dict[str, int]:
        """Requests in flight, for the applications that have any."""
        return dict(self._running)

    def idle_seconds(self) -> dict[str, float]:
        """Seconds since the last request ended, for every application that ever had one; 0 while one runs."""
        now = self._clock()
        idle = {application: now - ended for application, ended in self._ended.items()}
        return idle | dict.fromkeys(self._running, 0.0)
