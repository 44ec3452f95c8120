"""Which request goes where, and that it arrives whole."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator

import aiohttp
import pytest
from edge_harness import CHAT, House, house, post, raw, sized

from reconciler.core.endpoints import ROUTED_PATHS


async def _goes_to(home: House, data: bytes) -> str:
    status, _, body = await raw(home.options.listen_port, data)
    assert status == 200, body
    return str(json.loads(body)["server"])


async def test_every_routed_path_reaches_the_application_of_the_model() -> None:
    async with house({"m": "app-m", "org/other-1.5": "app-o"}) as home:
        for path in ROUTED_PATHS:
            assert await home.ask("m", path) == ("serve", f"/app-m{path}")
        assert await home.ask("org/other-1.5") == ("serve", f"/app-o{CHAT}")


async def test_body_query_and_headers_arrive_unchanged_but_for_keys() -> None:
    async with house() as home:
        body = b'{ "messages" : [{"content": "\xc3\xa9\\u00e9 \\"model\\": x"}],\n "model":"m" }'
        headers = "Authorization: Bearer k\r\nX-Api-Key: k\r\nX-Own: yes"
        await raw(home.options.listen_port, post(f"{CHAT}?a=1&b=%2F", body, headers))
        seen = home.serve.seen[-1]
        assert (seen.method, seen.target, seen.body) == ("POST", f"/app-m{CHAT}?a=1&b=%2F", body)
        arrived = {name.lower(): value for name, value in seen.headers.items()}
        assert arrived["x-own"] == "yes"
        assert not {"authorization", "x-api-key"} & arrived.keys()


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "unknown"}',
        b'{"model": "M"}',
        b'{"model": "m "}',
        b'{"model": null}',
        b'{"model": {"model": "m"}}',
        b'{"messages": [{"model": "m"}]}',
        b'["m"]',
        b"",
        b"not json",
    ],
)
async def test_a_body_that_names_no_hot_model_goes_to_the_activator(body: bytes) -> None:
    async with house() as home:
        assert await _goes_to(home, post(CHAT, body)) == "activator"
        assert home.activator.seen[-1].target == CHAT
        assert home.activator.seen[-1].body == body


async def test_no_path_but_the_listed_ones_reaches_an_application() -> None:
    tricks = [
        *("/sleep", "/wake_up", "/collective_rpc", "/metrics", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
        *("/server_info", "/reset_prefix_cache", "/health", "/v1/models", "/", "/app-m/sleep", f"/app-m{CHAT}"),
        *(f"/{CHAT}", f"{CHAT}/", "/v1//chat/completions", "/v1%2fchat/completions", "/v1/chat%2Fcompletions"),
        *("/v1/chat/completion%73", "/v1/../v1/chat/completions", f"{CHAT}/../../../sleep", f"/.{CHAT}"),
        *(f"{CHAT};x=1", "/V1/chat/completions", "/v1/chat/completions%00", "/v1\\chat\\completions"),
        *("/v1/chat/completions/render", "/sleep?/v1/chat/completions"),
    ]
    async with house() as home:
        for path in tricks:
            assert await _goes_to(home, post(path)) == "activator", path
        assert home.serve.seen == []


async def test_no_method_but_post_reaches_an_application() -> None:
    async with house() as home:
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
            assert await _goes_to(home, post(CHAT).replace(b"POST", method.encode(), 1)) == "activator"
        async with home.client.get("/v1/models") as response:
            assert (await response.json())["server"] == "activator"


async def test_multipart_goes_to_the_activator_whole() -> None:
    async with house() as home:
        form = aiohttp.FormData()
        form.add_field("model", "m")
        form.add_field("file", b"RIFF" * 200_000, filename="a.wav")
        async with home.client.post("/v1/audio/transcriptions", data=form) as response:
            assert (await response.json())["server"] == "activator"
        assert len(home.activator.seen[0].body) > 800_000
        assert await home.ask() == ("serve", f"/app-m{CHAT}")


@pytest.mark.parametrize("size", [260_000, 300_000, 1_000_000])
async def test_a_large_body_arrives_whole_whoever_takes_it(size: int) -> None:
    async with house() as home:
        taken_by = "serve" if size < 260_500 else "activator"
        for headers in ((), ("Expect: 100-continue",)):
            async with home.client.post(
                CHAT, data=sized(size), headers={"Content-Type": "application/json"}
            ) as got:
                assert (await got.json())["server"] == taken_by, headers
        # A model that is named at the start is found though the body's end is not there yet.
        assert await _goes_to(home, post(CHAT, sized(size, model_first=True))) == "serve"
        bodies = {seen.body for seen in home.serve.seen + home.activator.seen}
        assert bodies == {sized(size), sized(size, model_first=True)}


async def test_no_size_around_the_buffer_hangs_or_fails() -> None:
    async with house() as home:
        sizes = [*range(260_300, 262_500, 97), *range(260_700, 260_900, 13), 261_119, 261_120, 262_143, 262_144]
        for size in sizes:
            headers = {"Content-Type": "application/json", "X-Pad": "p" * (size % 300)}
            async with home.client.post(CHAT, data=sized(size), headers=headers) as response:
                assert response.status == 200, size
        seen = home.serve.seen + home.activator.seen
        assert sorted(len(one.body) for one in seen) == sorted(sizes)
        assert home.serve.seen
        assert home.activator.seen


async def test_expect_100_continue_is_answered_before_the_body_is_sent() -> None:
    async with house() as home:
        reader, writer = await asyncio.open_connection("127.0.0.1", home.options.listen_port)
        head, _, body = post(CHAT, sized(300_000), "Expect: 100-continue").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 100")
        writer.write(body)
        assert await reader.readline() == b"\r\n"
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_chunked_body_is_read_as_any_other() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"messages": [], '
        await asyncio.sleep(0.05)
        yield b'"model": "m"}'

    async with house() as home, home.client.post(CHAT, data=pieces()) as response:
        assert (await response.json())["server"] == "serve"


async def test_a_stream_passes_chunk_by_chunk() -> None:
    async with house() as home, home.client.post(CHAT, json={"model": "m", "do": "stream"}) as response:
        assert await asyncio.wait_for(response.content.readuntil(b"\n\n"), 10) == b"data: one\n\n"
        home.serve.gate.set()  # only now does the upstream go on
        assert await response.content.read() == b"data: two\n\n"


async def test_the_request_id_is_ours_upstream_and_downstream() -> None:
    async with house() as home:
        ids = set()
        for model, server in (("m", home.serve), ("cold", home.activator)):
            data = post(CHAT, json.dumps({"model": model}).encode(), "X-Request-Id: mine", "x-request-id: again")
            _, headers, _ = await raw(home.options.listen_port, data)
            upstream = [value for name, value in server.seen[0].headers.items() if name.lower() == "x-request-id"]
            assert upstream == [headers["x-request-id"]]
            ids.add(str(uuid.UUID(headers["x-request-id"])))
        assert len(ids) == 2
