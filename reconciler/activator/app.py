"""The activator's ASGI application: what becomes of a request that the edge did not send straight to a model."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from reconciler.activator import errors, headers, listing, patience
from reconciler.activator.admission import Admission, Asking
from reconciler.activator.body import Body
from reconciler.activator.directory import Directory, Entry
from reconciler.activator.form_body import read_form
from reconciler.activator.guard import Caller, Guard
from reconciler.activator.inbound import ClientGoneError, Inbound
from reconciler.activator.json_body import read_json
from reconciler.activator.progress import STREAM_PATHS
from reconciler.activator.reply import BrokenOffError, Reply
from reconciler.activator.upstream import Call, Upstream, UpstreamDiedError
from reconciler.activator.usage import Usage
from reconciler.core.endpoints import FORM_PATHS, ROUTED_PATHS
from reconciler.core.keys import KeyRing
from reconciler.core.state import Waiting
from reconciler.host.log import get_logger

INFERENCE_PATHS = ROUTED_PATHS
_MODELS = "/v1/models"
# As llama.cpp's router has them, and Open WebUI asks for them: outside of /v1.
_LISTINGS = frozenset({_MODELS, "/models"})
_COMMANDS = {"/models/load": "load", "/models/unload": "unload"}


@dataclass(frozen=True, slots=True)
class _Request:
    """One request and the way to answer it."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    inbound: Inbound
    reply: Reply


async def _no_command(verb: str, _model: str) -> None:
    raise errors.command_refused(f"{verb} is not available here")


class Activator:
    """Holds requests for models that are not up, lists all models, and proxies what only Python can rewrite.

    Attributes:
        wake: Called when a model gets its first waiting request, and when its last one leaves unserved.
        command: Called with `load` or `unload` and a model's own name; raises a `Refusal` where that is not
            accepted.
    """

    def __init__(
        self, serve_url: str, *, max_body_bytes: int = 64 << 20, keys: Callable[[], KeyRing] = KeyRing
    ) -> None:
        """Make the application; `start` has it ready to proxy.

        Args:
            serve_url: Serve's HTTP address; a model is reached at `<serve_url>/<application><path>`.
            max_body_bytes: The largest request body that is taken.
            keys: Gives all keys as they are now, often; without it nobody is asked for one. A `UserError` from it
                refuses every request.
        """
        self.wake: Callable[[], None] = lambda: None
        self.command: Callable[[str, str], Awaitable[None]] = _no_command
        self._admission = Admission(self._wake)
        self._max_body_bytes = max_body_bytes
        self._upstream = Upstream(serve_url)
        self._usage = Usage()
        self._refused: Counter[str] = Counter()
        self._guard = Guard(keys)

    @property
    def directory(self) -> Directory:
        """What is known about models. The loop replaces it whole, which wakes the requests that it concerns."""
        return self._admission.directory

    @directory.setter
    def directory(self, directory: Directory) -> None:
        self._admission.directory = directory

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

    def forget_others(self, applications: Iterable[str]) -> None:
        """Keep no use in mind but that of these applications, which are all that there are."""
        self._usage.keep(applications)

    def waiting(self) -> dict[str, Waiting]:
        """Requests that wait for a model, by its name.

        A client that was told when to come back counts as one of them until it should have come: its model is
        wanted no less.
        """
        return self._admission.waiting()

    def refused(self) -> Mapping[str, int]:
        """Requests that were refused here since this process began, by the code of the error."""
        return self._refused

    def stop_holding(self) -> None:
        """Let go of every request that waits, and hold no more.

        The connection of such a request breaks without an answer, so that the edge can send it to the next
        reconciler; a stream that has had comments ends with an error event.
        """
        self._admission.stop()

    async def start(self) -> None:
        """Be ready to proxy."""
        await self._upstream.start()

    async def close(self) -> None:
        """Let go of what waits, and close every connection to a model, and with it what is under way."""
        self.stop_holding()
        await self._upstream.close()

    def _wake(self) -> None:
        self.wake()

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
            reply=Reply(send, headers.request_id(raw), scope["path"]),
        )
        try:
            await self._dispatch(request)
        except ClientGoneError:
            pass
        except errors.Refusal as refusal:
            self._refused[refusal.code] += 1
            await _refuse(request, refusal)
        except (UpstreamDiedError, BrokenOffError):
            raise
        except Exception:
            get_logger().exception("activator.error", path=request.path, request_id=request.reply.request_id)
            if request.reply.started:
                raise
            await _refuse(request, errors.internal())

    async def _dispatch(self, request: _Request) -> None:
        if request.path in INFERENCE_PATHS:
            _allow(request, "POST")
            await self._infer(request, self._guard.caller(request.headers))
        elif request.path in _LISTINGS:
            _allow(request, "GET", "HEAD")
            directory = self._guard.caller(request.headers).visible(self.directory)
            await request.reply.json(200, listing.models_json(directory))
        elif request.path.startswith(f"{_MODELS}/"):
            _allow(request, "GET", "HEAD")
            name = request.path.removeprefix(f"{_MODELS}/")
            directory = self._guard.caller(request.headers).visible(self.directory)
            await request.reply.json(200, listing.model_json(_entry(directory, name), name))
        elif request.path in _COMMANDS:
            _allow(request, "POST")
            self._guard.check_operator(request.headers)
            await self._command(request, _COMMANDS[request.path])
        else:
            raise errors.unknown_path(request.path)

    async def _command(self, request: _Request, verb: str) -> None:
        body = await _read_body(request)
        body.close()
        # The body may have taken its time.
        self._guard.check_operator(request.headers)
        await self.command(verb, _entry(self.directory, body.model).name)
        await request.reply.json(200, json.dumps({"success": True}).encode())

    async def _infer(self, request: _Request, caller: Caller) -> None:
        body = await _read_body(request)
        gone = asyncio.create_task(request.inbound.gone())
        try:
            entry, application = await self._admission.admit(_asking(request, caller, body, gone))
            # Between the look at the directory and this count nothing is awaited, so that whoever routes away from
            # an application and then sees no request in flight for it may remove it.
            with self._usage.request(application):
                commented = request.reply.commented
                call = Call(
                    application=application,
                    key=caller.fingerprint,
                    model=body.model,
                    path=request.path,
                    query=request.query,
                    # What follows comments cannot be compressed.
                    headers=headers.uncoded(request.headers) if commented else request.headers,
                    body=body.naming(entry.served_as(body.model)),
                )
                await self._relay(call, request.reply, gone)
        finally:
            body.close()
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _relay(self, call: Call, reply: Reply, gone: asyncio.Task[None]) -> None:
        """Proxy for as long as the client is there."""
        relay = asyncio.create_task(self._upstream.relay(call, reply))
        try:
            await asyncio.wait({relay, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not relay.done():
                raise ClientGoneError
            relay.result()
        finally:
            relay.cancel()
            await asyncio.gather(relay, return_exceptions=True)


def _asking(request: _Request, caller: Caller, body: Body, gone: asyncio.Task[None]) -> Asking:
    streams = body.streams and request.path in STREAM_PATHS
    return Asking(
        caller=caller,
        model=body.model,
        size=body.size,
        patience=patience.stated(request.headers, streams=streams),
        streams=streams,
        reply=request.reply,
        gone=gone,
    )


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
