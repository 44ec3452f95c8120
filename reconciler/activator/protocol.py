"""One connection of `server`: uvicorn's HTTP/1.1, with an end to waiting for the client, and our own refusals."""

import asyncio
from typing import cast

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.h11_impl import H11Protocol

from reconciler.activator import errors

_HEAD_SECONDS = 30.0
"""So long a client may take for the head of a request, and for what it still sends after its answer."""


class Protocol(H11Protocol):
    """uvicorn's protocol without the 500 that it makes up when an application raises before it has answered.

    No answer at all says that the request may be sent again; and the activator's own errors are JSON, that of a
    request which is no HTTP among them.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        app = cast(ASGIApp, self.app)

        async def breaking(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except BaseException:
                if not self.cycle.response_started:
                    # Also drops what is written from here on, which is that 500.
                    transport.abort()
                raise

        self.app = cast(ASGI3Application, breaking)
        self._expect(soon=True)

    def handle_events(self) -> None:
        """Take in what has come."""
        super().handle_events()
        # Between requests uvicorn itself closes a connection on which nothing comes; a single byte stops that.
        in_head = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        answered = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        self._expect(soon=in_head or answered)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of it."""
        super().connection_lost(exc)
        self._expect(soon=False)

    def _expect(self, *, soon: bool) -> None:
        """Whether the client has to go on within a time; what it sends meanwhile wins it no more."""
        if not soon and self._late is not None:
            self._late.cancel()
            self._late = None
        elif soon and self._late is None:
            self._late = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        if self.cycle is not None:
            # Whoever reads the body, or is about to answer, has nobody left to answer.
            self.cycle.disconnected = True
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # An answer has begun: it can only be broken off.
            self.transport.abort()
            return
        refusal = errors.bad_request(msg)
        body = refusal.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=refusal.status, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
