"""Everything that is refused: always JSON, always OpenAI's envelope, over a real connection."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from activator_stack import MODELS, Stack, stack

from reconciler.activator import admission
from reconciler.activator.directory import Directory
from reconciler.activator.server import listen_tcp

CHAT = "/v1/chat/completions"


async def refused(response: aiohttp.ClientResponse, status: int, code: str) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(await response.read())["error"]
    assert (response.status, error["code"]) == (status, code)
    assert response.content_type == "application/json"
    assert response.headers["x-request-id"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def ask(s: Stack, body: Any, path: str = CHAT, status: int = 400, code: str = "") -> dict[str, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with s.http.post(s.url + path, data=data) as response:
        return await refused(response, status, code)


async def test_unknown_models_get_near_names() -> None:
    async with stack() as s:
        error = await ask(s, {"model": "qwen3-0.6"}, status=404, code="model_not_found")
        assert error == {
            "message": "The model 'qwen3-0.6' does not exist. Did you mean: 'qwen3-0.6b'?",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        error = await ask(s, {"model": "zzz"}, status=404, code="model_not_found")
        assert error["message"] == "The model 'zzz' does not exist."
        error = await ask(s, {"model": "q" * 100_000}, status=404, code="model_not_found")
        assert len(error["message"]) < 300
        error = await ask(s, b'{"model": "\\ud800"}', status=404, code="model_not_found")
        assert s.upstream.seen == []


@pytest.mark.parametrize("name", ["org/cold-model", "cold"])
async def test_a_cold_model_is_503_with_the_reason(name: str) -> None:
    async with stack() as s, s.http.post(s.url + CHAT, json={"model": name}) as response:
        error = await refused(response, 503, "model_unloaded")
        assert response.headers["retry-after"] == "8"
        assert error["message"] == f"The model '{name}' is unloaded: idle since 09:00; it is loaded on demand."
        assert error["type"] == "server_error"


async def test_a_failed_model_is_503_and_never_retry_at_once() -> None:
    async with stack() as s, s.http.post(s.url + CHAT, json={"model": "broken"}) as response:
        error = await refused(response, 503, "model_failed")
        assert response.headers["retry-after"] == "1"
        assert error["message"] == "The model 'broken' is failed: out of memory."


async def test_before_the_first_look_nothing_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_FIRST_LOOK_SECONDS", 0.1)
    async with stack(directory=Directory(MODELS.entries, settled=False)) as s:
        for model in ("nobody", "qwen3-0.6b"):
            async with s.http.post(s.url + CHAT, json={"model": model}) as response:
                await refused(response, 503, "starting")
                assert response.headers["retry-after"] == "2"
        async with s.http.get(s.url + "/v1/models/nobody") as response:
            await refused(response, 503, "starting")
        assert s.activator.waiting() == {}
        assert s.upstream.seen == []


async def test_bad_bodies() -> None:
    async with stack() as s:
        await ask(s, b"{nope", code="invalid_json")
        await ask(s, b"", code="invalid_json")
        await ask(s, [1], code="invalid_json")
        await ask(s, {}, code="invalid_model")
        await ask(s, {"model": 7}, code="invalid_model")
        await ask(s, {"model": "whisper"}, path="/v1/audio/transcriptions", code="invalid_form")


async def test_bodies_over_the_limit() -> None:
    async with stack(limit=100_000) as s:

        async def endless() -> Any:
            for _ in range(20):
                yield b"x" * 10_000

        big = b'{"model": "qwen", "x": "' + b"x" * 150_000 + b'"}'
        await ask(s, big, status=413, code="request_too_large")
        async with s.http.post(s.url + CHAT, data=endless()) as response:
            await refused(response, 413, "request_too_large")
        form = aiohttp.FormData({"model": "ears"})
        form.add_field("file", b"x" * 150_000, filename="a.wav")
        async with s.http.post(s.url + "/v1/audio/transcriptions", data=form) as response:
            await refused(response, 413, "request_too_large")
        exact = b'{"model": "qwen", "x": "' + b"x" * (100_000 - 26) + b'"}'
        assert len(exact) == 100_000
        async with s.http.post(s.url + CHAT, data=exact) as response:
            assert response.status == 200


async def test_a_client_that_waits_for_the_go_ahead_is_told_at_once() -> None:
    async with stack(limit=1000) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/chat/completions/",
        "/v1/chat/completions/render",
        "//v1/chat/completions",
        "/V1/chat/completions",
        "/v1/../v1/chat/completions",
        "/v1/load_lora_adapter",
        "/sleep",
        "/qwen-app-1/v1/chat/completions",
        "/v1/modelsx",
    ],
)
async def test_paths_off_the_list(path: str) -> None:
    async with stack() as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404")
        assert json.loads(body)["error"]["code"] == "unknown_path"
        assert s.upstream.seen == []
        writer.close()


async def test_a_lying_host_header_changes_nothing() -> None:
    async with stack() as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(b"POST /sleep HTTP/1.1\r\nHost: x/v1/chat/completions?\r\n")
        writer.write(b"Connection: close\r\nContent-Length: 0\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 404")
        writer.close()


async def test_wrong_methods() -> None:
    async with stack() as s:
        for method, path, allowed in [
            ("GET", CHAT, "POST"),
            ("OPTIONS", CHAT, "POST"),
            ("DELETE", "/v1/models/qwen3-0.6b", "GET, HEAD"),
            ("POST", "/v1/models", "GET, HEAD"),
            ("GET", "/models/load", "POST"),
        ]:
            async with s.http.request(method, s.url + path) as response:
                await refused(response, 405, "method_not_allowed")
                assert response.headers["allow"] == allowed


async def test_an_upstream_that_is_not_there() -> None:
    closed = listen_tcp("127.0.0.1", 0)
    url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    closed.close()
    async with stack(serve_url=url) as s, s.http.post(s.url + CHAT, json={"model": "qwen"}) as response:
        await refused(response, 503, "upstream_unreachable")
        assert response.headers["retry-after"] == "2"
        assert s.activator.in_flight() == {}


async def test_a_fault_of_ours_is_still_an_envelope(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stack() as s:

        def fail(_name: str) -> None:
            raise KeyError("secret detail")

        monkeypatch.setattr(s.activator.directory, "find", fail)
        error = await ask(s, {"model": "qwen"}, status=500, code="internal_error")
        assert "secret" not in error["message"]


async def test_refusals_keep_the_connection_and_the_request_id() -> None:
    async with stack() as s:
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as http:
            for n in range(3):
                headers = {"X-Request-Id": f"id-{n}"}
                async with http.post(s.url + "/nowhere", data=b"x" * 200_000, headers=headers) as response:
                    await refused(response, 404, "unknown_path")
                    assert response.headers["x-request-id"] == f"id-{n}"
                    assert "server" not in response.headers
