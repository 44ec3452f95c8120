"""A real activator in front of a real upstream, both on ephemeral loopback ports."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from aiohttp import web

from reconciler.activator.app import Activator
from reconciler.activator.directory import Directory, Entry, ModelState
from reconciler.activator.guard import Caller, Guard
from reconciler.activator.server import listen_tcp, serve_on
from reconciler.core.keys import KeyRing

ANYBODY = Caller(Guard(KeyRing), "")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MODELS = Directory(
    [
        Entry(
            "qwen3-0.6b",
            ModelState.LOADED,
            "qwen-app-1",
            aliases=("qwen", "größer"),
            description="small and quick",
            created=1700000000,
            max_model_len=8192,
        ),
        Entry("whisper", ModelState.LOADED, "whisper-app-1", aliases=("ears",), task="transcribe"),
        Entry(
            "org/cold-model",
            ModelState.UNLOADED,
            None,
            reason="idle since 09:00; it is loaded on demand.",
            retry_after=7.2,
            aliases=("cold",),
        ),
        Entry("broken", ModelState.FAILED, None, reason="out of memory", retry_after=0.0),
    ]
)


@dataclass
class Seen:
    """What the upstream got of one request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Upstream:
    """Plays Ray Serve: records each request, then answers as the test says."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    answer: Handler | None = None
    """Called with the request, its body read; by default the body is echoed."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.method, request.raw_path, headers, body))
        if self.answer is not None:
            return await self.answer(request)
        return web.Response(body=body, content_type="application/json")


@dataclass
class Stack:
    url: str
    activator: Activator
    upstream: Upstream
    http: aiohttp.ClientSession
    server: asyncio.Task[None]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@contextlib.asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    listener = listen_tcp("127.0.0.1", 0)
    await web.SockSite(runner, listener).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def stack(
    *,
    directory: Directory = MODELS,
    limit: int = 64 << 20,
    serve_url: str | None = None,
    keys: Callable[[], KeyRing] = KeyRing,
) -> AsyncIterator[Stack]:
    """Both servers and a client; everything is closed again, in order."""
    upstream = Upstream()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", upstream.handle)
    async with serving(app) as upstream.url, aiohttp.ClientSession() as http:
        activator = Activator(serve_url or upstream.url, max_body_bytes=limit, keys=keys)
        activator.directory = directory
        await activator.start()
        listener = listen_tcp("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = asyncio.create_task(
            serve_on(activator.asgi, listener, grace_seconds=1, on_stop=activator.stop_holding)
        )
        try:
            yield Stack(url, activator, upstream, http, server)
        finally:
            await http.close()
            await activator.close()
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)


def cold(name: str = "m", **fields: Any) -> Entry:
    """A model that a request may wait for."""
    return replace(Entry(name, ModelState.LOADING, None, reason="it is being started", holds=True), **fields)


def hot(name: str = "m", **fields: Any) -> Entry:
    """The same, up."""
    return replace(Entry(name, ModelState.LOADED, f"{name}-app"), **fields)


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something that happens in another task has happened."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 -- what is awaited is state of the code under test
            await asyncio.sleep(0.01)
