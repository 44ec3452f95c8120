"""What a client is told when something behind the edge is down, or its own request is broken."""

import asyncio
from dataclasses import replace

from edge_harness import CHAT, TEMPLATE, envelope, free_port, house, post, raw

from reconciler.edge.edge import Edge


async def test_without_the_activator_a_cold_model_is_a_503_to_be_tried_again() -> None:
    async with house() as home:
        options = replace(home.options, activator_port=free_port())
        await Edge(options, TEMPLATE.replace("retries 60", "retries 1")).ensure_running()
        for data in (post(CHAT, b'{"model": "cold"}'), b"GET /v1/models HTTP/1.1\r\nHost: edge\r\n\r\n"):
            status, headers, body = await raw(home.options.listen_port, data)
            assert status == 503
            assert headers["content-type"] == "application/json"
            assert headers["retry-after"] == "5"
            assert headers["x-request-id"]
            error = envelope(body)
            assert (error["type"], error["code"]) == ("server_error", "control_plane_unavailable")
        assert await home.ask() == ("serve", f"/app-m{CHAT}")  # what is hot goes on answering


async def test_without_serve_a_hot_model_is_a_503_of_its_own() -> None:
    async with house() as home:
        await home.another(serve_port=free_port()).ensure_running()
        status, headers, body = await raw(home.options.listen_port, post(CHAT))
        assert (status, headers["retry-after"]) == (503, "5")
        assert envelope(body)["code"] == "model_unavailable"
        assert (await home.edge.usage())["app-m"].in_flight == 0


async def test_a_serve_that_hangs_up_is_not_asked_twice() -> None:
    asked = 0

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await _reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with house() as home, await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        await home.another(serve_port=server.sockets[0].getsockname()[1]).ensure_running()
        status, _, body = await raw(home.options.listen_port, post(CHAT))
        assert status == 503
        assert envelope(body)["code"] == "model_unavailable"
        assert asked == 1


async def test_what_is_not_http_at_all_is_refused() -> None:
    async with house() as home:
        chunked = f"POST {CHAT} HTTP/1.1\r\nHost: edge\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n"
        for data in (b"POST  nonsense\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", chunked.encode()):
            # HAProxy's parser answers by itself, before any rule or error file: not in our envelope.
            status, _, _ = await raw(home.options.listen_port, data)
            assert status == 400
        assert home.serve.seen + home.activator.seen == []


async def test_a_body_that_stops_arriving_is_a_408() -> None:
    async with house() as home:
        quick = Edge(home.options, TEMPLATE.replace("wait-for-body time 60s", "wait-for-body time 200ms"))
        await quick.ensure_running()
        status, _, body = await raw(home.options.listen_port, post(CHAT)[:-1])
        assert status == 408
        assert envelope(body)["code"] == "request_timeout"
