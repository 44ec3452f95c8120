"""The proxy proper: one request to a model's Serve application, its answer passed on chunk by chunk."""

import asyncio
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp
from yarl import URL

from reconciler.activator import errors, headers
from reconciler.activator.body import Rendition
from reconciler.activator.reply import Reply
from reconciler.host.log import get_logger

_CONNECT_SECONDS = 5.0
_PAUSE_BEFORE_RETRY = 0.2
# What the client did not send is not made up on its behalf.
_NO_AUTO_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
# Raised before a byte of the request has left, so that sending it again cannot run it twice.
_NOTHING_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_FAILED = (aiohttp.ClientError, OSError)


class UpstreamDiedError(Exception):
    """The upstream broke off in the middle of its answer. Raised into the server, which then breaks ours off."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to be proxied.

    Attributes:
        application: The Serve application, which is also its route.
        key: The fingerprint of the client's key, for the log; empty where none was asked for.
        model: The name the client used, for errors.
        path: One of the closed list of inference paths.
        query: The raw query string.
        headers: The client's headers, as they came.
        body: What is sent.
    """

    application: str
    key: str
    model: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: Rendition


class Upstream:
    """Serve's HTTP address, and the connections to it."""

    def __init__(self, serve_url: str) -> None:
        self._base = serve_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Be ready for requests; needs a running event loop."""
        self._session = aiohttp.ClientSession(
            # No limit and no total timeout: a generation takes what it takes, and Serve bounds what runs at once.
            # Each request has a connection of its own, as with the edge: Serve's HAProxy reloads whenever a model
            # comes or goes, and the worker at the other end of an older connection knows nothing of newer models.
            # Also, a connection that is closed just as it is used again loses a POST, which may not be sent twice.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            auto_decompress=False,
            # One client's cookies are not another's.
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_NO_AUTO_HEADERS,
        )

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def relay(self, call: Call, reply: Reply) -> None:
        """Send the request and pass the answer on, whatever its status. Cancel it to abort the upstream request.

        Raises:
            Refusal: No answer came; nothing has been sent to the client.
            UpstreamDiedError: The answer broke off after it had begun.
        """
        try:
            response = await self._send(call, reply.request_id)
        except _FAILED as error:
            _log_failure("activator.upstream_unreachable", call, reply, error)
            raise errors.upstream_unreachable(call.model) from None
        async with response:
            try:
                await reply.start(response.status, headers.response_headers(response.raw_headers))
                async for chunk in response.content.iter_any():
                    await reply.chunk(chunk)
                await reply.end()
            except _FAILED as error:
                response.close()
                _log_failure("activator.upstream_died", call, reply, error)
                raise UpstreamDiedError(call.application) from None
            except BaseException:
                # Not released: a connection with an answer under way must end, for the engine to stop generating.
                response.close()
                raise

    async def _send(self, call: Call, request_id: str) -> aiohttp.ClientResponse:
        try:
            return await self._post(call, request_id)
        except _NOTHING_SENT:
            await asyncio.sleep(_PAUSE_BEFORE_RETRY)
            return await self._post(call, request_id)

    async def _post(self, call: Call, request_id: str) -> aiohttp.ClientResponse:
        assert self._session is not None, "start() comes before the first request"
        url = f"{self._base}/{quote(call.application, safe='')}{call.path}"
        if call.query:
            url += f"?{call.query.decode('latin-1')}"
        return await self._session.post(
            URL(url, encoded=True),
            data=call.body.chunks(),
            headers=headers.request_headers(call.headers, length=call.body.length, request_id=request_id),
            allow_redirects=False,
        )


def _log_failure(event: str, call: Call, reply: Reply, error: Exception) -> None:
    get_logger().warning(
        event,
        application=call.application,
        key=call.key,
        path=call.path,
        request_id=reply.request_id,
        error=f"{type(error).__name__}: {error}",
    )
