"""Server-sent events: what comes is passed on as it comes, and a listener costs nothing that grows.

    feed or logs -> `Stream` -> one connection

Nothing is queued: all listeners of the feed read one ring, and where one is, is the id that it got last. One who
does not read is let go after a while; it comes again with its `Last-Event-ID`, and finds what it missed, or a
`feed.gap`.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from reconciler.host.log import get_logger
from reconciler.loop.by_hand import UNAVAILABLE, CommandRefusedError

log = get_logger()

HEARTBEAT_SECONDS = 15.0
STALL_SECONDS = 30.0
MOST_LISTENERS = 220
"""Of the API and of the page each: some of the port's 500 connections are left for who operates."""
MOST_LOG_FOLLOWERS = 20
"""Each looks for itself, at all files of its model and at other nodes."""
_BEAT, _HELLO = b": beat\n\n", b"retry: 2000\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # Proxies of nginx's kind would collect it.
    (b"x-accel-buffering", b"no"),
]


class Listeners:
    """Counts who listens."""

    def __init__(self, most: int = MOST_LISTENERS, what: str = "listeners") -> None:
        self._most, self._what = most, what
        self.count = 0

    def stream(
        self, events: AsyncGenerator[bytes, None], goes_on: Callable[[], bool], farewell: bytes = b""
    ) -> "Stream":
        """An answer that passes these on; see `Stream`.

        Raises:
            CommandRefusedError: There are too many listeners already.
        """
        self._look_for_room()
        return Stream(events, self, goes_on, farewell)

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        """Count one for as long as it listens.

        Raises:
            CommandRefusedError: There are too many already.
        """
        self._look_for_room()
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    def _look_for_room(self) -> None:
        if self.count >= self._most:
            raise CommandRefusedError(UNAVAILABLE, f"{self._most} {self._what} are there already; try again later")


class Stream(Response):
    """The answer to one listener."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        listeners: Listeners,
        goes_on: Callable[[], bool],
        farewell: bytes = b"",
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        """Pass on nothing yet.

        Args:
            events: Whole events, as they go over the wire.
            listeners: Counts this one while it listens.
            goes_on: Whether who listens still may; asked at each heartbeat.
            farewell: What is sent where that ends it.
            heartbeat_seconds: So often something is sent, so that both sides notice when the other is gone.
            stall_seconds: A listener who takes nothing for so long is let go.
        """
        super().__init__()
        self._events, self._listeners = events, listeners
        self._goes_on, self._farewell = goes_on, farewell
        self._heartbeat, self._stall = heartbeat_seconds, stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until one of the two leaves, or the listener may not go on.

        Raises:
            CommandRefusedError: Others came first, so that there are too many listeners.
        """
        with self._listeners.one_more():
            await self._pass_on(scope["path"], receive, send)

    async def _pass_on(self, path: str, receive: Receive, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        looked, end = clock(), b""
        gone = asyncio.create_task(_until_gone(receive))
        coming: asyncio.Task[bytes] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            chunk = _HELLO
            while True:
                async with asyncio.timeout(self._stall):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                coming = coming or asyncio.create_task(_next(self._events))
                await asyncio.wait({gone, coming}, timeout=self._heartbeat, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                # By the clock: who may not go on hears no more, however much happens.
                if clock() - looked >= self._heartbeat:
                    looked = clock()
                    if not self._goes_on():
                        end = self._farewell
                        break
                chunk = _BEAT
                if coming.done():
                    chunk, coming = coming.result(), None
                    if not chunk:
                        break
            await send({"type": "http.response.body", "body": end})
        except TimeoutError:
            # Without an end of the body the connection is closed.
            log.info("listener.dropped", path=path, reason=f"it took nothing for {self._stall:.0f} s")
        finally:
            tasks = [task for task in (gone, coming) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._events.aclose()


def as_event(data: Any, *, id: str | None = None) -> bytes:  # noqa: A002, ANN401 -- what the wire calls it; any JSON
    """One event as it goes over the wire. JSON has no line ends of its own."""
    head = f"id: {id}\n" if id is not None else ""
    return f"{head}data: {json.dumps(data, default=str)}\n\n".encode()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _next(events: AsyncIterator[bytes]) -> bytes:
    """The next one; empty at the end."""
    return await anext(events, b"")
