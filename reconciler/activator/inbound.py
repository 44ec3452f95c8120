"""The client's side of one request: its body, counted against a limit, and then whether it is still there."""

from collections.abc import AsyncIterator, Iterable

from starlette.types import Receive

from reconciler.activator import errors


class ClientGoneError(Exception):
    """The client went away; nobody is left to answer."""


class Inbound:
    """Reads the body of a request once, in chunks, and no more of it than allowed."""

    def __init__(self, receive: Receive, headers: Iterable[tuple[bytes, bytes]], limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._read = 0
        self._complete = False
        self._declared = 0
        self._waits_for_go_ahead = False
        for name, value in headers:
            if name == b"content-length" and value.isdigit():
                self._declared = int(value)
            elif name == b"expect":
                self._waits_for_go_ahead = True

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives.

        Raises:
            Refusal: It is larger than the limit.
            ClientGoneError: The client left before it was complete.
        """
        if self._declared > self._limit:
            raise errors.too_large(self._limit)
        while not self._complete:
            chunk = await self._next()
            if self._read > self._limit:
                raise errors.too_large(self._limit)
            if chunk:
                yield chunk

    async def discard(self) -> None:
        """Read what is left of the body and forget it, before an error is sent.

        A connection that is closed with unread data is reset, and a reset can overtake the answer: the client
        would see a broken pipe instead of the reason. Bounded, because the rest may have no end.
        """
        if self._waits_for_go_ahead and self._read == 0:
            return  # the client holds its body back until told to go on, so there is nothing to read
        bound = self._read + 2 * self._limit
        while not self._complete and self._read <= bound:
            await self._next()

    async def gone(self) -> None:
        """Return when the client has disconnected. For use after the body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk: bytes = message.get("body", b"")
        self._read += len(chunk)
        self._complete = not message.get("more_body", False)
        return chunk
