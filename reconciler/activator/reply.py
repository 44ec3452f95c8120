"""The answer to one request, on ASGI's `send`: what has been sent so far, and the request's id on all of it."""

from starlette.types import Send

from reconciler.activator import progress
from reconciler.activator.errors import Refusal

Headers = list[tuple[bytes, bytes]]

_OK = 200
_EVENT_STREAM = b"text/event-stream"
_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # For proxies of the nginx kind, which would keep the comments until there are many.
    (b"x-accel-buffering", b"no"),
]
_MOST_OF_AN_ERROR = 64 * 1024


class BrokenOffError(Exception):
    """The connection is to end without an answer, or without the rest of it. Raised into the server."""


class Reply:
    """Sends one response, whole or in chunks.

    A client that waits for a stream may get comments before the answer proper. They begin a response with status
    200, so from the first comment on whatever is no stream of events becomes an error event at its end.
    """

    def __init__(self, send: Send, request_id: str, path: str) -> None:
        self._send = send
        self._path = path
        self._failed: bytearray | None = None
        self._status = _OK
        self.request_id = request_id
        self.commented = False
        """Set once a comment has been sent."""
        self.started = False
        """Set once the answer proper has begun: then an error can only be told by breaking the stream."""

    async def comment(self, text: str) -> None:
        """Send a comment of an event stream; the first one begins the stream."""
        if not self.commented:
            await self._head(_OK, _STREAM_HEADERS)
            self.commented = True
        await self._piece(progress.comment(text))

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers; after comments, only note what they say."""
        self.started = True
        if not self.commented:
            await self._head(status, headers)
        elif status != _OK or not _is_event_stream(headers):
            self._failed = bytearray()
            self._status = status

    async def chunk(self, data: bytes) -> None:
        """Send a piece of the body."""
        if self._failed is None:
            await self._piece(data)
        else:
            self._failed += data[: _MOST_OF_AN_ERROR - len(self._failed)]

    async def end(self) -> None:
        """Complete the response; without this the client sees it break off."""
        if self._failed is not None:
            error = progress.error_in(bytes(self._failed), self._status)
            await self._piece(progress.error_event(self._path, self._status, error))
        await self._send({"type": "http.response.body", "body": b""})

    async def json(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """Send a whole JSON document."""
        length = str(len(body)).encode()
        await self.start(
            status, [(b"content-type", b"application/json"), (b"content-length", length), *(headers or [])]
        )
        await self.chunk(body)
        await self.end()

    async def refuse(self, refusal: Refusal) -> None:
        """Send an error in OpenAI's envelope; after comments, as an event of the stream."""
        headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
        await self.json(refusal.status, refusal.body(), headers)

    async def _head(self, status: int, headers: Headers) -> None:
        headers = [*headers, (b"x-request-id", self.request_id.encode("latin-1"))]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _piece(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})


def _is_event_stream(headers: Headers) -> bool:
    """Whether a body of these headers can follow the comments: events, and no coding on top."""
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    coded = any(name == b"content-encoding" for name, _ in headers)
    return kind.strip().lower().startswith(_EVENT_STREAM) and not coded
