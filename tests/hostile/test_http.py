"""Every hostile request is answered with an error of OpenAI's form, and leaves the server as it was."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from activator_stack import MODELS, Stack, cold, eventually, stack
from aiohttp import web

from reconciler.activator.directory import Directory

from . import cases_http
from .cases_http import CHAT, HOT, LIMIT, HttpCase

_ANSWER_SECONDS = 20
DIRECTORY = Directory([*MODELS.entries, cold("slow")])


def _name(case: HttpCase) -> str:
    return case.name


pytestmark = pytest.mark.asyncio(loop_scope="module")


@contextlib.asynccontextmanager
async def hostile_stack() -> AsyncIterator[Stack]:
    """The real server; what it leaves unhandled fails the test."""
    unhandled: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    async with stack(directory=DIRECTORY, limit=LIMIT) as s:
        yield s
        await assert_well(s)
    assert unhandled == []


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def s() -> AsyncIterator[Stack]:
    """One server for all cases: what one leaves behind is found by the next."""
    async with hostile_stack() as s:
        yield s


async def assert_well(s: Stack) -> None:
    """It answers a healthy request, and holds nothing of the one before."""
    await eventually(lambda: (s.activator.waiting(), s.activator.in_flight()) == ({}, {}))
    holding = s.activator._admission._holding
    assert (holding._lines, holding._bytes) == ({}, 0)
    s.upstream.answer = None
    s.upstream.seen.clear()
    async with s.http.post(s.url + CHAT, data=HOT) as response:
        assert response.status == 200
    assert [seen.body for seen in s.upstream.seen] == [b'{"model":"qwen3-0.6b"}']
    assert s.upstream.seen[0].path == f"/qwen-app-1{CHAT}"


async def answer_of(port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the first answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            writer.write(data)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
            }
            body = (
                b""
                if "content-length" not in headers
                else await reader.readexactly(int(headers["content-length"]))
            )
        return int(head[0].split()[1]), headers, body
    finally:
        writer.close()


async def run_http(s: Stack, case: HttpCase) -> bytes:
    """Send it, and check the answer. Gives all that was answered."""
    s.upstream.seen.clear()
    status, headers, body = await answer_of(s.port, case.data)
    assert (status, "set-cookie" in headers) == (case.status, False), body
    if case.code:
        assert headers["content-type"] == "application/json"
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["code"], bool(error["message"])) == (case.code, True)
        assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
        assert len(body) < 2000
    assert tuple(seen.body for seen in s.upstream.seen) == tuple(
        body.replace(b'"qwen"', b'"qwen3-0.6b"') for body in case.passes
    )
    for seen in s.upstream.seen:
        assert seen.headers["host"] == s.upstream.url.removeprefix("http://")
        assert seen.headers["content-length"] == str(len(seen.body))
        assert "transfer-encoding" not in seen.headers
    return json.dumps(headers).encode() + body


@pytest.mark.parametrize("case", cases_http.CASES, ids=_name)
async def test_a_hostile_request(s: Stack, case: HttpCase) -> None:
    await run_http(s, case)
    await assert_well(s)


async def _gone(s: Stack, data: bytes, *, reset: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
    del reader
    writer.write(data)
    await writer.drain()
    await asyncio.sleep(0.02)
    _leave(writer, reset=reset)


def _leave(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "data", [data for _, data in cases_http.DISCONNECTS], ids=[name for name, _ in cases_http.DISCONNECTS]
)
async def test_a_client_that_goes_away_while_it_sends(s: Stack, data: bytes, *, reset: bool) -> None:
    await assert_well(s)
    before = len(asyncio.all_tasks())
    s.upstream.seen.clear()
    for _ in range(5):
        await _gone(s, data, reset=reset)
    await eventually(lambda: len(asyncio.all_tasks()) <= before)
    assert s.upstream.seen == []


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("stage", ["before the answer", "in the answer", "in a stream", "in a line for a model"])
async def test_a_client_that_goes_away_while_it_waits(s: Stack, stage: str, *, reset: bool) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()
    await assert_well(s)

    async def answer(request: web.Request) -> web.StreamResponse:
        kind = "text/event-stream" if stage == "in a stream" else "application/json"
        response = web.StreamResponse(headers={"Content-Type": kind})
        try:
            if stage != "before the answer":
                await response.prepare(request)
                await response.write(b"data: one\n\n")
            begun.set()
            await asyncio.sleep(60)
        finally:
            ended.set()
        return response

    s.upstream.answer = answer
    before = len(asyncio.all_tasks())
    body = b'{"model":"slow","stream":true}' if stage == "in a line for a model" else HOT
    reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    async with asyncio.timeout(10):
        if stage == "in a line for a model":
            await eventually(lambda: s.activator.waiting()["slow"].count == 1 if s.activator.waiting() else False)
        else:
            await begun.wait()
        _leave(writer, reset=reset)
        if stage != "in a line for a model":
            await ended.wait()
    del reader
    await eventually(lambda: len(asyncio.all_tasks()) <= before)


async def test_a_body_that_goes_wrong_behind_its_answer_breaks_the_connection(s: Stack) -> None:
    """It was too large, and answered before its end: nothing more can be said, and nothing is left."""
    reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    writer.write(b"".join(b"8000\r\n" + b" " * 0x8000 + b"\r\n" for _ in range(2 + 3 * LIMIT // 0x8000)))
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        with contextlib.suppress(ConnectionError):
            writer.write(b"zz\r\nnonsense\r\n\r\n")
            await reader.read()
    writer.close()
    await assert_well(s)


async def test_three_hundred_slow_clients_harm_nobody(s: Stack) -> None:
    """Each a byte at a time: they cost their connections, and nobody waits for them."""
    slow = [await asyncio.open_connection("127.0.0.1", s.port) for _ in range(300)]
    for index, (_, writer) in enumerate(slow):
        writer.write(cases_http.DISCONNECTS[1 + index % 6][1])
    await asyncio.sleep(0.1)
    async with asyncio.timeout(5), s.http.post(s.url + CHAT, data=HOT) as response:
        assert response.status == 200
    assert s.activator.waiting() == {}
    for _, writer in slow:
        writer.close()
