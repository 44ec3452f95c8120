"""The real front door: hostile requests reach no model, and cost nobody else anything."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from edge_harness import CHAT, TEMPLATE, House, house

from reconciler.core.endpoints import ROUTED_PATHS
from reconciler.edge.edge import Edge

from . import cases_http
from .cases_http import HttpCase

_HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n".encode()
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def home() -> AsyncIterator[House]:
    async with house() as home:
        # The operator's template is where these times are set.
        quick = TEMPLATE.replace("timeout http-request 60s", "timeout http-request 400ms").replace(
            "wait-for-body time 60s", "wait-for-body time 400ms"
        )
        assert quick.count("400ms") == 2
        await Edge(home.options, quick).ensure_running()
        yield home


async def _well(home: House) -> None:
    assert await home.ask() == ("serve", f"/app-m{CHAT}")
    home.serve.seen.clear()
    home.activator.seen.clear()


# What HAProxy's parser refuses by itself, and what it makes of the rest: the activator's own cases, for `m`.
_CASES = [case for case in cases_http.CASES if len(case.data) < 100_000 and case.name != "TLS"]


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
async def test_nothing_but_one_request_for_its_own_path_reaches_a_model(home: House, case: HttpCase) -> None:
    """With `qwen` called `m`, which the edge knows. It reads JSON loosely, so an engine may get what is none."""
    home.serve.seen.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", home.options.listen_port)
    try:
        writer.write(case.data.replace(b'"qwen"', b'"m"   '))
        async with asyncio.timeout(10):
            line = await reader.readline()
        assert line.split()[1] in (b"100", b"200", b"400", b"404", b"422")
    finally:
        writer.close()
    assert len(home.serve.seen) <= 1
    for seen in home.serve.seen:
        assert seen.target.removeprefix("/app-m") in ROUTED_PATHS
        assert b'"m"' in seen.body
        assert not {"transfer-encoding", "content-length"} <= {name.lower() for name in seen.headers}
    assert not {"/models/unload", "/admin"} & {seen.target for seen in home.activator.seen}
    await _well(home)


@pytest.mark.parametrize(
    ("name", "first", "then", "code"),
    [
        ("no request", b"", b"", ""),
        ("half a request line", b"POST /v1/ch", b"a", ""),
        ("a header a time", _HEAD, b"X: y\r\n", ""),
        ("a body a byte", _HEAD + b"Content-Length: 900\r\n\r\n", b" ", "request_timeout"),
        ("a chunk a byte", _HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", "request_timeout"),
    ],
)  # fmt: skip
async def test_a_slow_request_is_cut_off(home: House, name: str, first: bytes, then: bytes, code: str) -> None:
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", home.options.listen_port)

    async def drip() -> None:
        writer.write(first)
        while True:
            writer.write(then)
            await asyncio.sleep(0.1)

    dripping = asyncio.create_task(drip())
    try:
        async with asyncio.timeout(10):
            answer = await reader.read()
    except ConnectionResetError:
        answer = b""
    finally:
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        writer.close()
    assert time.monotonic() - began < 5, name
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer == b"" or head.startswith(b"HTTP/1.1 408")
    if code and answer:  # Until the headers are through, HAProxy's parser answers, and knows no error files.
        assert json.loads(body)["error"]["code"] == code
    await _well(home)


async def test_two_hundred_slow_clients_and_one_that_is_not(home: House) -> None:
    writers = []
    for _ in range(200):
        _, writer = await asyncio.open_connection("127.0.0.1", home.options.listen_port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{{".encode())
        writers.append(writer)
    began = time.monotonic()
    await _well(home)
    assert time.monotonic() - began < 20
    for writer in writers:
        writer.close()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "data", [data for _, data in cases_http.DISCONNECTS], ids=[name for name, _ in cases_http.DISCONNECTS]
)
async def test_a_client_that_goes_away(home: House, data: bytes, *, reset: bool) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", home.options.listen_port)
    writer.write(data)
    await writer.drain()
    if reset:
        writer.transport.abort()
    else:
        writer.close()
    await _well(home)
