"""Listening: taken ports by name, unix sockets for their owner only, a clean end."""

import asyncio
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from activator_stack import eventually

from reconciler.activator.app import Activator
from reconciler.activator.server import ListenError, listen_tcp, listen_unix, serve, serve_on, serve_unix


async def slow(scope: Any, receive: Any, send: Any) -> None:
    """Begin at once, end half a second later."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
    await asyncio.sleep(0.5)
    await send({"type": "http.response.body", "body": b"ended"})


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)


async def test_a_taken_port_is_named() -> None:
    taken = listen_tcp("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with pytest.raises(ListenError, match=f"port {port} on 127.0.0.1 is taken"):
        await serve(slow, "127.0.0.1", port)
    taken.close()
    with pytest.raises(ListenError, match=r"cannot listen on port 0 of 192\.0\.2\.1"):
        listen_tcp("192.0.2.1", 0)


def test_connections_do_not_wait_for_acknowledgements() -> None:
    with listen_tcp("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


async def test_serves_until_cancelled_and_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    free = listen_tcp("127.0.0.1", 0)
    port = free.getsockname()[1]
    free.close()
    activator = Activator("http://127.0.0.1:1")
    await activator.start()
    task = asyncio.create_task(serve(activator.asgi, "127.0.0.1", port, grace_seconds=1))
    async with aiohttp.ClientSession() as http:

        async def status() -> int:
            async with http.get(f"http://127.0.0.1:{port}/v1/models") as response:
                return response.status

        for _ in range(500):
            try:
                assert await status() == 200
                break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.01)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        await end(task)
        with pytest.raises(aiohttp.ClientConnectorError):
            await status()
    await activator.close()
    listen_tcp("127.0.0.1", port).close()


@pytest.mark.parametrize(("grace", "whole"), [(5, True), (0, False)])
async def test_requests_under_way_get_their_grace(grace: int, *, whole: bool) -> None:
    listener = listen_tcp("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    task = asyncio.create_task(serve_on(slow, listener, grace_seconds=grace))
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        assert await response.content.readany() == b"begun "
        ending = asyncio.create_task(end(task))
        if whole:
            assert await response.content.read() == b"ended"
        else:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
        await ending


async def test_a_unix_socket_is_for_its_owner_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "activator.sock"
    # What a killed process leaves behind.
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    task = asyncio.create_task(serve_unix(slow, path))
    await eventually(lambda: path.exists() and stat.S_IMODE(path.stat().st_mode) == 0o600)
    with pytest.raises(ListenError, match="another process listens"):
        listen_unix(path)
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http,
        http.get("http://activator/") as response,
    ):
        assert await response.read() == b"begun ended"
    await end(task)
    assert not path.exists()


def test_a_path_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(ListenError, match="not a socket"):
        listen_unix(path)
    assert path.read_text() == "precious"
    with pytest.raises(ListenError, match="cannot listen on the socket"):
        listen_unix(tmp_path / "absent" / "x.sock")
