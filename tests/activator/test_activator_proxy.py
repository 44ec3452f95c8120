"""The proxy: aliases, streams, disconnects, forms, large bodies, many at once."""

import asyncio
import hashlib
import json
import os
import socket
from typing import Any

import aiohttp
import pytest
from activator_stack import MODELS, Seen, eventually, stack
from aiohttp import web
from openai import AsyncOpenAI, NotFoundError, OpenAI, RateLimitError
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Message
from yarl import URL

from reconciler.activator.directory import Directory, Entry, ModelState
from reconciler.activator.server import listen_tcp

CHAT = "/v1/chat/completions"


def chunk(text: str) -> bytes:
    data = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "qwen3-0.6b",
        "choices": [{"index": 0, "delta": {"content": text}}],
    }
    return f"data: {json.dumps(data)}\n\n".encode()


async def chat(request: web.Request) -> web.StreamResponse:
    """Play vLLM: refuse every name but the model's own, answer plainly or as a stream."""
    asked = json.loads(await request.read())
    if asked["model"] != "qwen3-0.6b":
        return web.json_response({"error": {"message": "no such model"}}, status=404)
    if not asked.get("stream"):
        message = {"role": "assistant", "content": "hello"}
        answer = {"id": "c", "object": "chat.completion", "created": 1, "model": asked["model"]}
        return web.json_response(
            {**answer, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        )
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for text in ("a", "b", "c"):
        await response.write(chunk(text))
    await response.write(b"data: [DONE]\n\n")
    return response


async def test_the_openai_client_by_alias() -> None:
    async with stack() as s:
        s.upstream.answer = chat
        messages: Any = [{"role": "user", "content": "größer 😀"}]

        def sync() -> tuple[str | None, str]:
            with OpenAI(base_url=f"{s.url}/v1", api_key="sk-ours", max_retries=0) as client:
                plain = client.chat.completions.create(model="qwen", messages=messages)
                stream = client.chat.completions.create(model="größer", messages=messages, stream=True)
                return plain.choices[0].message.content, "".join(p.choices[0].delta.content or "" for p in stream)

        assert await asyncio.to_thread(sync) == ("hello", "abc")
        async with AsyncOpenAI(base_url=f"{s.url}/v1", api_key="sk-ours", max_retries=0) as client:
            plain = await client.chat.completions.create(model="qwen", messages=messages)
            stream = await client.chat.completions.create(model="qwen3-0.6b", messages=messages, stream=True)
            text = "".join([p.choices[0].delta.content or "" async for p in stream])
            with pytest.raises(NotFoundError, match="Did you mean: 'qwen'"):
                await client.chat.completions.create(model="qwem", messages=messages)
        assert (plain.choices[0].message.content, text) == ("hello", "abc")
        assert {seen.path for seen in s.upstream.seen} == {"/qwen-app-1/v1/chat/completions"}
        assert all("authorization" not in seen.headers for seen in s.upstream.seen)


async def test_what_crosses_the_proxy() -> None:
    async with stack() as s:

        async def answer(_request: web.Request) -> web.Response:
            headers = {"X-Request-Id": "theirs", "Set-Cookie": "a=b", "X-Engine": "1", "Server": "engine"}
            return web.Response(body=b"\x1f\x8bnot really", headers={**headers, "Content-Encoding": "gzip"})

        s.upstream.answer = answer
        sent = {
            "X-Request-Id": "r-1",
            "Authorization": "Bearer sk",
            "X-Api-Key": "sk",
            "X-Other": "o",
            "Cookie": "c=d",
        }
        async with s.http.post(
            URL(f"{s.url}{CHAT}?a=%2F&b", encoded=True),
            json={"z": 1, "model": "qwen", "a": 2},
            headers=sent,
            auto_decompress=False,
        ) as response:
            body = await response.read()
        assert body == b"\x1f\x8bnot really", "content codings are passed, not undone"
        assert response.headers.getall("x-request-id") == ["r-1"]
        assert response.headers["x-engine"] == "1"
        assert "server" not in response.headers
        assert len(response.headers.getall("date")) == 1
        (seen,) = s.upstream.seen
        assert seen.path == "/qwen-app-1/v1/chat/completions?a=%2F&b"
        assert seen.body == b'{"z": 1, "model": "qwen3-0.6b", "a": 2}'
        assert seen.headers["host"] == s.upstream.url.removeprefix("http://")
        assert seen.headers["x-request-id"] == "r-1"
        assert seen.headers["x-other"] == "o"
        assert not {"authorization", "x-api-key", "transfer-encoding"} & set(seen.headers)
        async with s.http.post(s.url + CHAT, json={"model": "qwen"}):
            pass
        assert s.upstream.seen[1].headers.get("cookie") is None, "cookies of one client are not another's"


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_the_upstreams_own_errors_pass_through(status: int) -> None:
    async with stack() as s:

        async def answer(_request: web.Request) -> web.Response:
            return web.Response(status=status, body=b"as it is", headers={"Retry-After": "9"})

        s.upstream.answer = answer
        async with s.http.post(s.url + CHAT, json={"model": "qwen"}) as response:
            assert (response.status, await response.read()) == (status, b"as it is")
            assert response.headers["retry-after"] == "9"
        if status == 429:
            async with AsyncOpenAI(base_url=f"{s.url}/v1", api_key="x", max_retries=0) as client:
                with pytest.raises(RateLimitError):
                    await client.completions.create(model="qwen", prompt="x")


async def test_a_stream_arrives_chunk_by_chunk() -> None:
    async with stack() as s:
        go = asyncio.Queue[bytes]()

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            while data := await go.get():
                await response.write(data)
            return response

        s.upstream.answer = answer
        async with asyncio.timeout(10), s.http.post(s.url + CHAT, json={"model": "qwen"}) as response:
            # The status came before the first byte of the body, and each piece before the next is made.
            assert response.status == 200
            assert s.activator.in_flight() == {"qwen-app-1": 1}
            assert s.activator.idle_seconds() == {"qwen-app-1": 0.0}
            for n in range(5):
                go.put_nowait(b"data: %d\n\n" % n)
                assert await response.content.readany() == b"data: %d\n\n" % n
            go.put_nowait(b"")
            assert await response.content.read() == b""
        await eventually(lambda: s.activator.in_flight() == {})
        assert s.activator.idle_seconds()["qwen-app-1"] >= 0


@pytest.mark.parametrize("before_headers", [True, False])
async def test_a_client_that_leaves_ends_the_upstream_request(*, before_headers: bool) -> None:
    async with stack() as s:
        ended = asyncio.Event()
        begun = asyncio.Event()

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            try:
                if not before_headers:
                    await response.prepare(request)
                    await response.write(b"first")
                begun.set()
                await asyncio.sleep(60)
            finally:
                ended.set()
            return response

        s.upstream.answer = answer
        _, writer = await asyncio.open_connection("127.0.0.1", s.port)
        body = b'{"model": "qwen"}'
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await asyncio.wait_for(begun.wait(), 10)
        writer.close()
        await asyncio.wait_for(ended.wait(), 10)
        await eventually(lambda: s.activator.in_flight() == {})


async def test_a_client_that_leaves_while_sending_harms_nothing() -> None:
    async with stack() as s:
        _, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
        await writer.drain()
        writer.close()
        async with s.http.post(s.url + CHAT, json={"model": "qwen"}) as response:
            assert response.status == 200
        assert len(s.upstream.seen) == 1


@pytest.mark.parametrize("declared", [True, False])
async def test_an_upstream_that_dies_mid_stream_breaks_the_clients_stream(*, declared: bool) -> None:
    async with stack() as s:

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"content-length": "1000"} if declared else {})
            await response.prepare(request)
            await response.write(b"first")
            await asyncio.sleep(0.05)
            assert request.transport is not None
            request.transport.abort()
            return response

        s.upstream.answer = answer
        async with s.http.post(s.url + CHAT, json={"model": "qwen"}) as response:
            assert await response.content.readany() == b"first"
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
        assert s.activator.in_flight() == {}


async def test_an_upstream_that_hangs_up_without_an_answer_is_503_and_not_asked_twice() -> None:
    async with stack() as s:

        async def answer(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        s.upstream.answer = answer
        async with s.http.post(s.url + CHAT, json={"model": "qwen"}) as response:
            assert response.status == 503
            assert response.headers["retry-after"] == "2"
        assert len(s.upstream.seen) == 1


async def test_a_refused_connection_is_tried_once_more() -> None:
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    port = reserved.getsockname()[1]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async with stack(serve_url=f"http://127.0.0.1:{port}") as s:
        request = asyncio.create_task(s.http.post(s.url + CHAT, json={"model": "qwen"}))
        # The first try has been refused once the request is counted; the second comes 0.2 s later.
        await eventually(lambda: s.activator.in_flight() != {})
        await asyncio.sleep(0.02)
        server = await asyncio.start_server(answer, sock=reserved)
        response = await request
        assert (response.status, await response.read()) == (200, b"ok")
        server.close()


async def read_as_vllm_does(seen: Seen) -> dict[str, bytes]:
    """The fields of a form as Starlette reads them."""

    async def receive() -> Message:
        return {"type": "http.request", "body": seen.body}

    headers = [(name.encode(), value.encode()) for name, value in seen.headers.items()]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    fields = (await request.form()).items()
    return {name: await v.read() if isinstance(v, UploadFile) else v.encode() for name, v in fields}


@pytest.mark.parametrize("model", ["ears", "whisper"])
async def test_a_form_with_a_binary_file(model: str) -> None:
    audio = os.urandom(3 << 20) + b"\r\n--" + bytes(range(256))
    async with stack() as s:

        async def answer(_request: web.Request) -> web.Response:
            return web.json_response({"text": "heard"})

        s.upstream.answer = answer
        async with AsyncOpenAI(base_url=f"{s.url}/v1", api_key="x", max_retries=0) as client:
            heard = await client.audio.transcriptions.create(model=model, file=("a.wav", audio), language="de")
        assert heard.text == "heard"
        (seen,) = s.upstream.seen
        got = await read_as_vllm_does(seen)
        assert got["model"] == b"whisper"
        assert got["language"] == b"de"
        assert hashlib.sha256(got["file"]).digest() == hashlib.sha256(audio).digest()
        assert seen.path == "/whisper-app-1/v1/audio/transcriptions"


@pytest.mark.parametrize("model", ["qwen", "qwen3-0.6b"])
async def test_a_large_body(model: str) -> None:
    async with stack() as s:
        text = "größer 😀" * (2 << 20)
        sent = json.dumps({"model": model, "text": text}, ensure_ascii=False).encode()
        assert len(sent) > 24 << 20

        async def answer(request: web.Request) -> web.Response:
            return web.Response(text=hashlib.sha256(await request.read()).hexdigest())

        s.upstream.answer = answer
        async with s.http.post(s.url + CHAT, data=sent) as response:
            digest = await response.text()
        expected = json.dumps({"model": "qwen3-0.6b", "text": text}, ensure_ascii=False).encode()
        assert digest == hashlib.sha256(expected).hexdigest()


async def test_an_upstream_that_answers_before_it_has_read_the_body() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with stack(serve_url=f"http://127.0.0.1:{port}") as s, asyncio.timeout(10):
        data = json.dumps({"model": "qwen", "text": "x" * (16 << 20)}).encode()
        async with s.http.post(s.url + CHAT, data=data) as response:
            assert (response.status, await response.read()) == (413, b"no")
        await eventually(lambda: s.activator.in_flight() == {})
    server.close()


async def test_fifty_at_once() -> None:
    async with stack() as s:
        everyone = asyncio.Barrier(50)

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await everyone.wait()
            for piece in ("x", "y"):
                await response.write(piece.encode())
                await asyncio.sleep(0)
            await response.write(json.loads(await request.read())["n"].encode())
            return response

        s.upstream.answer = answer

        async def one(n: int) -> str:
            async with s.http.post(s.url + CHAT, json={"model": "qwen", "n": str(n)}) as response:
                return await response.text()

        async with asyncio.timeout(20):
            connector = aiohttp.TCPConnector(limit=0)
            await s.http.close()
            s.http = aiohttp.ClientSession(connector=connector)
            requests = [asyncio.create_task(one(n)) for n in range(50)]
            await eventually(lambda: everyone.n_waiting == 0 and len(s.upstream.seen) == 50)
            assert await asyncio.gather(*requests) == [f"xy{n}" for n in range(50)]
        await eventually(lambda: s.activator.in_flight() == {})


async def test_each_request_goes_by_the_directory_of_its_moment() -> None:
    async with stack() as s:
        for application in ("v1", "v2"):
            # Its next version is loading; the old one has the traffic and answers.
            s.activator.directory = Directory([Entry("m", ModelState.LOADING, application)])
            async with s.http.post(s.url + CHAT, json={"model": "m"}) as response:
                assert response.status == 200
        assert [seen.path for seen in s.upstream.seen] == [f"/v1{CHAT}", f"/v2{CHAT}"]
        s.activator.directory = MODELS


async def test_listing_with_the_openai_client() -> None:
    async with stack() as s:

        def sync() -> tuple[list[Any], Any, Any]:
            with OpenAI(base_url=f"{s.url}/v1", api_key="x", max_retries=0) as client:
                models = list(client.models.list())
                with pytest.raises(NotFoundError):
                    client.models.retrieve("nobody")
                return models, client.models.retrieve("org/cold-model"), client.models.retrieve("qwen")

        models, cold, alias = await asyncio.to_thread(sync)
        ids = ["qwen3-0.6b", "qwen", "größer", "whisper", "ears", "org/cold-model", "cold", "broken"]
        assert [model.id for model in models] == ids
        assert all(model.object == "model" and model.owned_by for model in models)
        assert models[0].to_dict() == {
            "id": "qwen3-0.6b",
            "object": "model",
            "created": 1700000000,
            "owned_by": "llm-reconciler",
            "status": {"value": "loaded", "reason": ""},
            "task": "generate",
            "description": "small and quick",
            "max_model_len": 8192,
        }
        assert (alias.id, alias.to_dict()["alias_of"]) == ("qwen", "qwen3-0.6b")
        assert cold.to_dict()["status"]["value"] == "unloaded"
        assert "max_model_len" not in cold.to_dict()
        async with AsyncOpenAI(base_url=f"{s.url}/v1", api_key="x", max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == ids
        async with s.http.get(f"{s.url}/v1/models/org%2Fcold-model") as response:
            assert response.status == 200
        async with s.http.head(f"{s.url}/v1/models") as response:
            assert (response.status, await response.read()) == (200, b"")
        assert s.upstream.seen == []


async def test_a_worker_that_was_replaced_gets_no_more_requests() -> None:
    """Serve's HAProxy after a reload: the old worker answers on its connections, and knows no newer model."""

    async def old(request: web.Request) -> web.StreamResponse:
        await request.read()
        known = request.path.startswith("/old-app/")
        return web.Response(text="old", status=200 if known else 404)

    async def new(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(text="new")

    runners, listeners = [], []
    for handler in (old, new):
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", handler)
        runners.append(web.AppRunner(app, shutdown_timeout=0.1))
        await runners[-1].setup()
    listeners.append(listen_tcp("127.0.0.1", 0))
    port = listeners[0].getsockname()[1]
    entries = [Entry("a", ModelState.LOADED, "old-app"), Entry("b", ModelState.LOADED, "new-app")]
    async with stack(directory=Directory(entries), serve_url=f"http://127.0.0.1:{port}") as s:

        async def ask(model: str) -> tuple[int, str]:
            async with s.http.post(s.url + CHAT, json={"model": model}) as answer:
                return answer.status, await answer.text()

        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(runners[0].server, sock=listeners[0])  # type: ignore[arg-type]
            assert await asyncio.gather(*(ask("a") for _ in range(5))) == [(200, "old")] * 5
            # It takes no new connections, and keeps those that it has.
            server.close()
            listeners.append(listen_tcp("127.0.0.1", port))
            await web.SockSite(runners[1], listeners[1]).start()
            assert await asyncio.gather(*(ask("b") for _ in range(5))) == [(200, "new")] * 5
        finally:
            for runner in runners:
                await runner.cleanup()
