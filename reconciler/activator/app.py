"""The activator's ASGI application: what becomes of a request that the edge did not send straight to a model."""

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from reconciler.activator import errors, headers, listing
from reconciler.activator.body import Body
from reconciler.activator.directory import Directory, Entry
from reconciler.activator.form_body import read_form
from reconciler.activator.inbound import ClientGoneError, Inbound
from reconciler.activator.json_body import read_json
from reconciler.activator.reply import Reply
from reconciler.activator.upstream import Call, Upstream, UpstreamDiedError
from reconciler.activator.usage import Usage
from reconciler.core.endpoints import FORM_PATHS, ROUTED_PATHS
from reconciler.host.log import get_logger

INFERENCE_PATHS = ROUTED_PATHS
_MODELS = "/v1/models"


@dataclass(frozen=True, slots=True)
class _Request:
    """One request and the way to answer it."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    inbound: Inbound
    reply: Reply


class Activator:
    """Answers for models that are not up, lists all of them, and proxies what only Python can rewrite.

    Attributes:
        directory: What is known about models. The loop replaces it whole; each request reads it once.
    """

    def __init__(self, serve_url: str, *, max_body_bytes: int = 64 << 20) -> None:
        """Make the application; `start` opens its connections.

        Args:
            serve_url: Serve's HTTP address; a model is reached at `<serve_url>/<application><path>`.
            max_body_bytes: The largest request body that is taken.
        """
        self.directory = Directory(settled=False)
        self._max_body_bytes = max_body_bytes
        self._upstream = Upstream(serve_url)
        self._usage = Usage()

    @property
    def asgi(self) -> ASGIApp:
        """The application to serve."""
        return self._answer

    def in_flight(self) -> dict[str, int]:
        """Requests under way, for the applications that have any."""
        return self._usage.in_flight()

    def idle_seconds(self) -> dict[str, float]:
        """Seconds since an application's last request ended, for those that had one; 0 while one is under way."""
        return self._usage.idle_seconds()

    async def start(self) -> None:
        """Open the connection pool."""
        await self._upstream.start()

    async def close(self) -> None:
        """Close the connection pool, and with it what is under way."""
        await self._upstream.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"the activator speaks HTTP, not {scope['type']}")
        raw = list(scope["headers"])
        request = _Request(
            method=scope["method"],
            # Decoded by the server and compared as a whole: no URL is built or parsed to decide what is allowed.
            path=scope["path"],
            query=scope["query_string"],
            headers=raw,
            inbound=Inbound(receive, raw, self._max_body_bytes),
            reply=Reply(send, headers.request_id(raw)),
        )
        try:
            await self._dispatch(request)
        except ClientGoneError:
            pass
        except errors.Refusal as refusal:
            await _refuse(request, refusal)
        except UpstreamDiedError:
            raise
        except Exception:
            get_logger().exception("activator.error", path=request.path, request_id=request.reply.request_id)
            if request.reply.started:
                raise
            await _refuse(request, errors.internal())

    async def _dispatch(self, request: _Request) -> None:
        if request.path in INFERENCE_PATHS:
            _allow(request, "POST")
            await self._infer(request)
        elif request.path == _MODELS:
            _allow(request, "GET", "HEAD")
            await request.reply.json(200, listing.models_json(self.directory))
        elif request.path.startswith(f"{_MODELS}/"):
            _allow(request, "GET", "HEAD")
            name = request.path.removeprefix(f"{_MODELS}/")
            await request.reply.json(200, listing.model_json(_entry(self.directory, name), name))
        else:
            raise errors.unknown_path(request.path)

    async def _infer(self, request: _Request) -> None:
        body = await _read_body(request)
        try:
            directory = self.directory
            if not directory.settled:
                raise errors.starting()
            entry = _entry(directory, body.model)
            application = await self._application(entry, body.model)
            # Between the look at the directory and this count nothing is awaited, so that whoever routes away from
            # an application and then sees no request in flight for it may remove it.
            with self._usage.request(application):
                call = Call(
                    application=application,
                    model=body.model,
                    path=request.path,
                    query=request.query,
                    headers=request.headers,
                    body=body.naming(entry.served_as(body.model)),
                )
                await self._relay(call, request)
        finally:
            body.close()

    async def _application(self, entry: Entry, asked: str) -> str:
        """The application that has the model's traffic.

        The one place where a request for a model that is not up is decided. Holding requests until it is up
        belongs here: wait, then look at `self.directory` anew before returning.
        """
        if entry.application is None:
            raise errors.not_up(entry, asked)
        return entry.application

    async def _relay(self, call: Call, request: _Request) -> None:
        """Proxy for as long as the client is there."""
        relay = asyncio.create_task(self._upstream.relay(call, request.reply))
        gone = asyncio.create_task(request.inbound.gone())
        try:
            await asyncio.wait({relay, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not relay.done():
                raise ClientGoneError
            relay.result()
        finally:
            relay.cancel()
            gone.cancel()
            await asyncio.gather(relay, gone, return_exceptions=True)


def _entry(directory: Directory, name: str) -> Entry:
    entry = directory.find(name)
    if entry is not None:
        return entry
    if not directory.settled:
        raise errors.starting()
    raise errors.unknown_model(name, directory.near(name))


def _allow(request: _Request, *methods: str) -> None:
    if request.method not in methods:
        raise errors.wrong_method(request.method, ", ".join(methods))


async def _read_body(request: _Request) -> Body:
    chunks = request.inbound.chunks()
    if request.path in FORM_PATHS:
        return await read_form(chunks, headers.find(request.headers, b"content-type"))
    return await read_json(chunks)


async def _refuse(request: _Request, refusal: errors.Refusal) -> None:
    try:
        await request.inbound.discard()
    except ClientGoneError:
        return
    await request.reply.refuse(refusal)
