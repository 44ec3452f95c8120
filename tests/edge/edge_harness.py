"""A real edge between real servers on loopback, for the tests of this folder."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
from aiohttp import web

from reconciler.edge.edge import Edge
from reconciler.edge.options import EdgeOptions

TEMPLATE_FILE = Path(__file__).parents[2] / "templates" / "edge.cfg.j2"
TEMPLATE = TEMPLATE_FILE.read_text()
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Seen:
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Upstream:
    """Answers with its name; for a body with "hold" after the gate opened, with "stream" in chunks around it."""

    name: str
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append(Seen(request.method, request.raw_path, dict(request.headers), body))
        if b'"hold"' in body:
            await self.gate.wait()
        if b'"stream"' in body:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"data: one\n\n")
            await self.gate.wait()
            await response.write(b"data: two\n\n")
            return response
        return web.json_response({"server": self.name, "path": request.path}, headers={"X-Request-Id": "upstream"})


@contextlib.asynccontextmanager
async def upstream(name: str) -> AsyncIterator[Upstream]:
    server = Upstream(name)
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        server.gate.set()
        await runner.cleanup()


@dataclass
class House:
    edge: Edge
    options: EdgeOptions
    serve: Upstream
    activator: Upstream
    client: aiohttp.ClientSession

    def another(self, **changes: object) -> Edge:
        """The same edge, asked for with other options."""
        return Edge(replace(self.options, **changes), TEMPLATE)  # type: ignore[arg-type]

    async def ask(self, model: str = "m", path: str = CHAT, **more: object) -> tuple[str, str]:
        """Which server answered, and which path it saw."""
        async with self.client.post(path, json={"messages": [], "model": model, **more}) as response:
            assert response.status == 200, await response.text()
            found = await response.json()
            return found["server"], found["path"]

    def pids(self) -> list[int]:
        """HAProxy's processes: the master and its workers."""
        master = int(self.options.pid_file.read_text())
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        return [master, *map(int, children)]


@contextlib.asynccontextmanager
async def house(
    routes: Mapping[str, str] | None = None, *, running: bool = True, listen_host: str = "127.0.0.1"
) -> AsyncIterator[House]:
    """An edge with a Serve and an activator behind it. Its folder is in /tmp: a socket's path must be short."""
    folder = Path(tempfile.mkdtemp(prefix="edge-", dir="/tmp"))
    async with upstream("serve") as serve, upstream("activator") as activator:
        options = EdgeOptions(
            folder=folder / "an edge",
            listen_host=listen_host,
            listen_port=free_port(),
            serve_port=serve.port,
            activator_port=activator.port,
            threads=2,
        )
        edge = Edge(options, TEMPLATE)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{options.listen_port}") as client:
            try:
                await edge.set_routes({"m": "app-m"} if routes is None else routes)
                if running:
                    assert await edge.ensure_running()
                yield House(edge, options, serve, activator, client)
            finally:
                await edge.stop(grace_seconds=0)
                shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def raw(port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body of the answer to exactly these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, body
    finally:
        writer.close()


def post(target: str, body: bytes = b'{"model":"m"}', *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: edge", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def sized(size: int, *, model_first: bool = False) -> bytes:
    """A JSON body of exactly so many bytes."""
    parts = ('{"model": "m", "x": "', '"}') if model_first else ('{"x": "', '", "model": "m"}')
    return (parts[0] + "a" * (size - len("".join(parts))) + parts[1]).encode()


async def eventually(true: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not await true():  # noqa: ASYNC110 -- what is waited for is outside this process
            await asyncio.sleep(0.01)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def envelope(body: bytes) -> dict[str, object]:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["param"] is None
    return dict(error)
