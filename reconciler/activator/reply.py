"""The answer to one request, on ASGI's `send`: what has been sent so far, and the request's id on all of it."""

from starlette.types import Send

from reconciler.activator.errors import Refusal

Headers = list[tuple[bytes, bytes]]


class Reply:
    """Sends one response, whole or in chunks."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.started = False
        """Set once a status has been sent: from then on an error can only be told by breaking the stream."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers."""
        self.started = True
        headers = [*headers, (b"x-request-id", self.request_id.encode("latin-1"))]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def chunk(self, data: bytes) -> None:
        """Send a piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Complete the response; without this the client sees it break off."""
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
        """Send an error in OpenAI's envelope."""
        headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
        await self.json(refusal.status, refusal.body(), headers)
