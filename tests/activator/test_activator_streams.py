"""Held streams: comments meanwhile, the model's stream after them, errors as the clients raise them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from activator_stack import ANYBODY, Stack, cold, eventually, hot, stack
from aiohttp import web
from openai import AsyncOpenAI, OpenAI
from starlette.types import Message

from reconciler.activator import admission, progress
from reconciler.activator.admission import Admission, Asking
from reconciler.activator.directory import Directory, Entry, ModelState
from reconciler.activator.errors import Refusal
from reconciler.activator.json_body import read_json
from reconciler.activator.reply import Reply

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "stream": True}
MESSAGES: Any = [{"role": "user", "content": "hi"}]
FAILED = Directory([Entry("m", ModelState.FAILED, None, reason="out of memory")])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(admission, "_COMMENT_SECONDS", 0.3)


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for text in ("a", "b"):
        choice = {"index": 0, "delta": {"content": text}}
        data = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        await response.write(f"data: {json.dumps(data)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


async def commented(s: Stack) -> aiohttp.ClientResponse:
    """A held stream that has begun."""
    response = await s.http.post(s.url + CHAT, json=ASK, headers={"Accept-Encoding": "gzip"})
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"]
    return response


async def test_comments_then_the_models_own_stream() -> None:
    async with stack(directory=Directory([cold(expected_wait=71.0)])) as s, asyncio.timeout(20):
        s.upstream.answer = stream
        response = await commented(s)
        assert await response.content.readuntil(b"\n\n") == (
            b": loading: it is being started; it answers in about 75 s\n\n"
        )
        assert s.activator.waiting()["m"].count == 1
        s.activator.directory = Directory([cold(reason="downloading\r\n\x00 42 %\ndata: x")])
        assert await response.content.readuntil(b"\n\n") == b": loading: downloading 42 % data: x\n\n"
        # Unchanged words are said again, so that nobody takes the silence for a death.
        assert await response.content.readuntil(b"\n\n") == b": loading: downloading 42 % data: x\n\n"
        s.activator.directory = Directory([hot()])
        rest = (await response.read()).decode()
        assert "data: [DONE]" in rest
        assert [json.loads(line[6:])["choices"] for line in rest.split("\n\n") if line.startswith("data: {")]
        assert "accept-encoding" not in s.upstream.seen[0].headers
        await eventually(lambda: s.activator.in_flight() == {})


async def test_words_change_at_most_once_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_PAUSE_SECONDS", 0.4)
    monkeypatch.setattr(admission, "_COMMENT_SECONDS", 5)
    async with stack(directory=Directory([cold()])) as s, asyncio.timeout(20):
        s.upstream.answer = stream
        response = await commented(s)
        for n in range(100):
            s.activator.directory = Directory([cold(reason=f"downloading {n} %")])
            await asyncio.sleep(0.01)
        s.activator.directory = Directory([hot()])
        comments = [line for line in (await response.read()).split(b"\n\n") if line.startswith(b":")]
        assert 2 <= len(comments) <= 6


async def test_a_short_wait_and_other_paths_have_no_comments() -> None:
    async with stack(directory=Directory([cold()])) as s, asyncio.timeout(20):
        request = asyncio.create_task(s.http.post(s.url + CHAT, json=ASK))
        await eventually(lambda: s.activator.waiting() != {})
        s.activator.directory = FAILED
        assert (await request).status == 503
        s.activator.directory = Directory([cold()])
        requests = [
            asyncio.create_task(s.http.post(s.url + path, json={"model": "m", "stream": value}))
            for path, value in [(CHAT, False), (CHAT, "true"), ("/v1/embeddings", True)]
        ]
        await eventually(lambda: s.activator.waiting().get("m") is not None)
        await asyncio.sleep(0.3)
        assert not any(request.done() for request in requests)
        s.activator.directory = FAILED
        assert [response.status for response in await asyncio.gather(*requests)] == [503] * 3


def sync_text(s: Stack) -> str:
    with OpenAI(base_url=f"{s.url}/v1", api_key="x", max_retries=0) as client:
        pieces = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        return "".join(piece.choices[0].delta.content or "" for piece in pieces)


async def async_text(s: Stack) -> str:
    async with AsyncOpenAI(base_url=f"{s.url}/v1", api_key="x", max_retries=0) as client:
        pieces = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        return "".join([piece.choices[0].delta.content or "" async for piece in pieces])


async def test_the_openai_client_reads_a_held_stream() -> None:
    async with stack(directory=Directory([cold()])) as s, asyncio.timeout(20):
        s.upstream.answer = stream
        texts = [asyncio.create_task(asyncio.to_thread(sync_text, s)), asyncio.create_task(async_text(s))]
        await eventually(lambda: s.activator.waiting().get("m") is not None)
        await asyncio.sleep(0.5)
        s.activator.directory = Directory([hot()])
        assert await asyncio.gather(*texts) == ["ab", "ab"]


async def completions(client: AsyncOpenAI) -> None:
    async for _ in await client.completions.create(model="m", prompt="x", stream=True):
        pass


async def responses(client: AsyncOpenAI) -> None:
    async for _ in await client.responses.create(model="m", input="x", stream=True):
        pass


async def chat(client: AsyncOpenAI) -> None:
    async for _ in await client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
        pass


@pytest.mark.parametrize("use", [chat, completions, responses])
async def test_the_openai_client_raises_the_reason_of_a_wait_that_fails(use: Callable[[AsyncOpenAI], Any]) -> None:
    async with stack(directory=Directory([cold()])) as s, asyncio.timeout(20):
        async with AsyncOpenAI(base_url=f"{s.url}/v1", api_key="x", max_retries=0) as client:
            request = asyncio.create_task(use(client))
            await eventually(lambda: s.activator.waiting() != {})
            await asyncio.sleep(0.3)
            s.activator.directory = FAILED
            with pytest.raises(openai.APIError, match="out of memory") as caught:
                await request
            assert not isinstance(caught.value, openai.APIStatusError), "it came as an event"
            assert (caught.value.code, caught.value.type) == ("model_failed", "server_error")
        with pytest.raises(openai.APIError, match="out of memory"):
            await asyncio.to_thread(sync_text, s)


async def test_the_anthropic_client_raises_the_reason_of_a_wait_that_fails() -> None:
    async with (
        asyncio.timeout(20),
        stack(directory=Directory([cold()])) as s,
        anthropic.AsyncAnthropic(base_url=s.url, api_key="x", max_retries=0) as client,
    ):

        async def use() -> None:
            create = client.messages.create
            async for _ in await create(model="m", max_tokens=5, messages=MESSAGES, stream=True):
                pass

        request = asyncio.create_task(use())
        await eventually(lambda: s.activator.waiting() != {})
        await asyncio.sleep(0.3)
        s.activator.directory = FAILED
        with pytest.raises(anthropic.APIError, match="out of memory"):
            await request


@pytest.mark.parametrize(
    ("status", "headers", "body", "message", "code"),
    [
        (
            400,
            {},
            b'{"error": {"message": "too long", "type": "BadRequestError", "code": 400}}',
            "too long",
            "400",
        ),
        (500, {}, b"Internal\nServer Error", "The model answered with status 500: Internal Server Error", "500"),
        (502, {}, b"", "The model answered with status 502.", "502"),
        (200, {}, b'{"id": 1}', 'The model answered with something else than a stream: {"id": 1}', "200"),
        (503, {}, b"x" * 1_000_000, "The model answered with status 503: " + "x" * 2000 + "…", "503"),
    ],
)
async def test_what_a_model_answers_instead_of_a_stream(
    status: int, headers: dict[str, str], body: bytes, message: str, code: str
) -> None:
    async with stack(directory=Directory([cold()])) as s, asyncio.timeout(20):

        async def answer(_request: web.Request) -> web.Response:
            return web.Response(status=status, body=body, content_type="application/json")

        s.upstream.answer = answer
        response = await commented(s)
        await response.content.readuntil(b"\n\n")
        s.activator.directory = Directory([hot()])
        events = (await response.read()).decode().split("\n\n")
        assert events[1:] == ["data: [DONE]", ""]
        error = json.loads(events[0].removeprefix("data: "))["error"]
        assert (error["message"], str(error["code"])) == (message, code)


async def test_a_model_that_dies_in_the_middle_breaks_the_stream() -> None:
    async with stack(directory=Directory([cold()])) as s, asyncio.timeout(20):

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"data: 1\n\n")
            await asyncio.sleep(0.05)
            assert request.transport is not None
            request.transport.abort()
            return response

        s.upstream.answer = answer
        response = await commented(s)
        s.activator.directory = Directory([hot()])
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_an_unreachable_model_a_timeout_and_a_stop_are_events() -> None:
    async with stack(directory=Directory([cold(wait_timeout=0.5)]), serve_url="http://127.0.0.1:1") as s:
        async with asyncio.timeout(20):
            response = await commented(s)
            assert b"model_wait_timeout" in await response.read()
            s.activator.directory = Directory([cold()])
            response = await commented(s)
            s.activator.directory = Directory([hot()])
            assert b"upstream_unreachable" in await response.read()
            s.activator.directory = Directory([cold()])
            response = await commented(s)
            s.activator.stop_holding()
            assert b'"code": "stopping"' in await response.read()


async def test_a_stream_whose_client_leaves_is_forgotten() -> None:
    async with stack(directory=Directory([cold()])) as s, asyncio.timeout(20):
        response = await commented(s)
        response.close()
        await eventually(lambda: s.activator.waiting() == {})


async def test_before_the_first_look() -> None:
    async with stack(directory=Directory(settled=False)) as s, asyncio.timeout(20):
        s.upstream.answer = stream
        response = await commented(s)
        assert await response.content.readuntil(b"\n\n") == b": starting: the server has just started\n\n"
        s.activator.directory = Directory([cold()])
        assert await response.content.readuntil(b"\n\n") == b": loading: it is being started\n\n"
        s.activator.directory = Directory([hot()])
        assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def test_a_client_that_does_not_read_keeps_its_place_no_longer_than_others() -> None:
    async def never(_message: Message) -> None:
        await asyncio.sleep(60)

    gone = asyncio.create_task(asyncio.sleep(60))
    waiting = Admission(lambda: None)
    waiting.directory = Directory([cold(wait_timeout=0.5)])
    asking = Asking(ANYBODY, "m", 10, None, streams=True, reply=Reply(never, "id", CHAT), gone=gone)
    with pytest.raises(Refusal, match="did not come up"):
        await asyncio.wait_for(waiting.admit(asking), 10)
    assert waiting._holding._lines == {}
    gone.cancel()


@pytest.mark.parametrize(
    ("text", "streams"),
    [
        ('{"model": "m"}', False),
        ('{"model": "m", "stream": true}', True),
        ('{"stream": true, "model": "m", "stream": false}', False),
        ('{"stream": false, "model": "m", "str\\u0065am": true}', True),
        ('{"model": "m", "x": {"stream": true}}', False),
        ('{"model": "m", "stream": [true]}', False),
        ('{"model": "m", "stream": 1, "größe": "😀"}', False),
    ],
)
async def test_what_asks_for_a_stream(text: str, streams: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield text.encode()

    assert (await read_json(chunks())).streams is streams


def test_words() -> None:
    assert progress.words(cold(reason=""), 1, 1) == "loading"
    assert progress.words(cold(reason="queued.", expected_wait=1.0), 3, 12) == (
        "loading: queued; it answers in about 5 s; request 3 of 12"
    )
    assert progress.words(cold(reason="", expected_wait=300.0), 1, 1) == "loading; it answers in about 5 min"
    hostile = "\ud800\u2028\x1b[31m" + "\n: x\r\r" * 1000
    comment = progress.comment(hostile)
    assert comment.startswith(b": [31m : x : x")
    assert comment.endswith(b"\n\n")
    assert len(comment) < 400
    assert len(comment.splitlines()) == 2


def test_errors_of_any_kind() -> None:
    for body in (b"[" * 100_000, b"\xff\xfe", b'{"error": "text"}', b'{"error": {"message": 5}}', b"null"):
        error = progress.error_in(body, 500)
        assert error["message"].startswith("The model answered with status 500")
        assert json.loads(progress.error_event(CHAT, 500, error).split(b"\n\n")[0][6:])["error"] == error
