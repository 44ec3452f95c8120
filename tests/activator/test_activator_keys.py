"""Keys at the activator: who comes in, what each one sees, and who is refused after a wait."""

import asyncio
import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import anthropic
import openai
import pytest
from activator_stack import MODELS, Stack, cold, eventually, hot, stack
from aiohttp import web
from openai import AsyncOpenAI, AuthenticationError, NotFoundError, OpenAI

from reconciler.activator.app import INFERENCE_PATHS
from reconciler.activator.directory import Directory
from reconciler.core.keys import Key, KeyRing, Scope, digest_of, secret_from
from reconciler.host import log
from reconciler.host.key_file import KeyFileError

CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "hello"}]
ALL, SOME, OPERATOR, MEASURES = (secret_from(letter * 43) for letter in "abcd")
UNKNOWN = secret_from("z" * 43)


def key(name: str, secret: str, *scopes: Scope, **more: Any) -> Key:
    return Key(name, digest_of(secret), frozenset(scopes), created=0.0, **more)


RING = KeyRing(
    (
        key("all", ALL, Scope.INFERENCE),
        key("some", SOME, Scope.INFERENCE, models=frozenset({"qwen3-0.6b", "org/cold-model"})),
        key("operator", OPERATOR, Scope.ADMIN),
        key("measures", MEASURES, Scope.METRICS),
    )
)


@dataclass
class Held:
    """The keys that there are at the moment, or why that cannot be told."""

    ring: KeyRing = field(default_factory=lambda: RING)
    problem: str = ""

    def __call__(self) -> KeyRing:
        if self.problem:
            raise KeyFileError(self.problem)
        return self.ring

    def revoke(self, name: str) -> None:
        self.ring, _ = self.ring.revoke(name, time.time())


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    lines = io.StringIO()
    log.configure(json_lines=True, level="debug", stream=lines)
    return lines  # type: ignore[return-value]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def send(
    s: Stack, method: str, path: str, headers: Mapping[str, str] | None = None, body: Any = None
) -> tuple[int, dict[str, Any]]:
    async with s.http.request(method, s.url + path, json=body, headers=headers) as response:
        told = await response.read()
        if response.status == 401:
            assert response.headers["www-authenticate"] == "Bearer"
        return response.status, json.loads(told) if told else {}


ROUTES = [
    *(("POST", path) for path in sorted(INFERENCE_PATHS)),
    ("GET", "/v1/models"),
    ("GET", "/models"),
    ("GET", "/v1/models/qwen3-0.6b"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_asks_for_a_key(method: str, path: str) -> None:
    body = {"model": "qwen3-0.6b"} if method == "POST" else None
    async with stack(keys=Held()) as s:
        for headers in ({}, bearer(UNKNOWN), bearer(MEASURES)):
            status, _ = await send(s, method, path, headers, body)
            assert status == (403 if "load" in path and headers == bearer(MEASURES) else 401)
        assert s.upstream.seen == []


@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("GET", "/v1/models"), ("POST", "/models/load")])
async def test_nothing_is_had_without_a_key_that_is_valid(method: str, path: str) -> None:
    ring = RING.add(key("old", secret_from("e" * 43), Scope.INFERENCE, Scope.ADMIN, expires=1.0))
    ring, _ = ring.add(key("gone", secret_from("f" * 43), Scope.INFERENCE, Scope.ADMIN)).revoke("gone", 2.0)
    body = {"model": "qwen3-0.6b"} if method == "POST" else None
    async with stack(keys=Held(ring)) as s:
        for headers in (
            {},
            bearer(UNKNOWN),
            bearer(secret_from("e" * 43)),
            bearer(secret_from("f" * 43)),
            bearer(""),
            bearer(ALL[:-1]),
            bearer(ALL.upper()),
            bearer(digest_of(ALL)),
            {"Authorization": f"Basic {ALL}"},
            {"Authorization": ALL},
            {"X-Api-Key": UNKNOWN},
            {"Cookie": f"key={ALL}"},
            {**bearer(UNKNOWN), "X-Api-Key": ALL},
        ):
            status, told = await send(s, method, path, headers, body)
            assert (status, told["error"]["code"], told["error"]["type"]) == (
                401,
                "invalid_api_key",
                "invalid_request_error",
            ), headers
            status, _ = await send(s, method, f"{path}?api_key={ALL}", headers, body)
            assert status == 401
        assert s.upstream.seen == []


async def test_two_keys_are_none() -> None:
    async with stack(keys=Held()) as s:
        for pair in ([ALL, SOME], [UNKNOWN, ALL], [ALL, UNKNOWN], [ALL, ALL]):
            headers = [("Authorization", f"Bearer {secret}") for secret in pair]
            async with s.http.get(s.url + "/v1/models", headers=headers) as response:
                assert response.status == 401
        both = [("Authorization", f"bearer  {ALL} "), ("X-Api-Key", ALL)]
        async with s.http.get(s.url + "/v1/models", headers=both) as response:
            assert response.status == 200


@pytest.mark.parametrize("secret", [OPERATOR, MEASURES])
async def test_a_key_for_something_else_does_not_infer(secret: str) -> None:
    async with stack(keys=Held()) as s:
        assert (await send(s, "POST", CHAT, bearer(secret), {"model": "qwen"}))[0] == 401
        assert (await send(s, "GET", "/v1/models", bearer(secret)))[0] == 401
        assert s.upstream.seen == []


@pytest.mark.parametrize("header", ["Authorization", "authorization", "X-Api-Key"])
async def test_a_valid_key_comes_in_and_is_not_passed_on(header: str, logged: io.StringIO) -> None:
    value = ALL if header == "X-Api-Key" else f"bearer {ALL}"
    async with stack(keys=Held()) as s:
        status, _ = await send(s, "POST", CHAT, {header: value}, {"model": "qwen"})
        assert status == 200
        (seen,) = s.upstream.seen
        assert not {"authorization", "x-api-key"} & seen.headers.keys()
        assert ALL not in str(seen)
    assert ALL[5:] not in logged.getvalue()


async def test_as_long_as_there_is_no_key_for_inference_any_will_do() -> None:
    held = Held(KeyRing(tuple(k for k in RING.keys if Scope.INFERENCE not in k.scopes)))
    async with stack(keys=held) as s:
        for headers in ({}, bearer("none")):
            assert (await send(s, "POST", CHAT, headers, {"model": "qwen"}))[0] == 200
            assert (await send(s, "GET", "/v1/models", headers))[0] == 200
        held.ring = RING
        assert (await send(s, "POST", CHAT, {}, {"model": "qwen"}))[0] == 401
        for name in ("all", "some"):
            held.revoke(name)
        assert (await send(s, "POST", CHAT, bearer(ALL), {"model": "qwen"}))[0] == 401, "revoking opens nothing"


# --- what a key sees ------------------------------------------------------------------------------------------


async def test_a_key_sees_its_models_only() -> None:
    async with stack(keys=Held()) as s:
        for path in ("/v1/models", "/models"):
            _, told = await send(s, "GET", path, bearer(SOME))
            assert [card["id"] for card in told["data"]] == [
                "qwen3-0.6b",
                "qwen",
                "größer",
                "org/cold-model",
                "cold",
            ]
        _, everything = await send(s, "GET", "/v1/models", bearer(ALL))
        assert {"whisper", "ears", "broken"} < {card["id"] for card in everything["data"]}


@pytest.mark.parametrize("asked", ["whisper", "ears", "broken", "whispr", "qwem", "nothing at all"])
async def test_what_a_key_may_not_use_does_not_exist(asked: str) -> None:
    """Word for word what is said where it is not declared at all."""
    visible = Directory([e for e in MODELS.entries if e.name in {"qwen3-0.6b", "org/cold-model"}])
    answers = []
    for directory in (MODELS, visible):
        async with stack(keys=Held(), directory=directory) as s:
            told = await send(s, "POST", CHAT, bearer(SOME), {"model": asked})
            shown = await send(s, "GET", f"/v1/models/{asked.replace(' ', '%20')}", bearer(SOME))
            answers.append((told, shown))
            assert told[0] == shown[0] == 404
            assert told[1]["error"]["code"] == "model_not_found"
            assert s.upstream.seen == []
    assert answers[0] == answers[1]
    if asked == "qwem":
        assert "Did you mean: 'qwen'" in answers[0][0][1]["error"]["message"]


async def test_an_alias_of_the_name_of_a_hidden_model_is_no_way_to_it_nor_a_trace_of_it() -> None:
    directory = Directory([hot("mine", aliases=("hidden",)), hot("hidden")])
    ring = RING.add(key("mine", UNKNOWN, Scope.INFERENCE, models=frozenset({"mine"})))
    async with stack(keys=Held(ring), directory=directory) as s:
        status, told = await send(s, "POST", CHAT, bearer(UNKNOWN), {"model": "hidden"})
        assert (status, told["error"]["message"]) == (404, "The model 'hidden' does not exist.")
        _, told = await send(s, "GET", "/v1/models", bearer(UNKNOWN))
        assert [card["id"] for card in told["data"]] == ["mine"]


async def test_an_adapter_goes_with_its_model() -> None:
    directory = Directory([hot("mine", adapters=("tuned",)), hot("other", adapters=("tuned-2",))])
    ring = RING.add(key("mine", UNKNOWN, Scope.INFERENCE, models=frozenset({"mine"})))
    async with stack(keys=Held(ring), directory=directory) as s:
        assert (await send(s, "POST", CHAT, bearer(UNKNOWN), {"model": "tuned"}))[0] == 200
        status, told = await send(s, "POST", CHAT, bearer(UNKNOWN), {"model": "tuned-2"})
        assert (status, told["error"]["message"]) == (
            404,
            "The model 'tuned-2' does not exist. Did you mean: 'tuned'?",
        )


# --- load and unload ------------------------------------------------------------------------------------------


async def test_loading_by_hand_needs_an_admin_once_there_is_any_key() -> None:
    held = Held(KeyRing())
    commands = []

    async def command(verb: str, model: str) -> None:
        commands.append((verb, model))

    async with stack(keys=held) as s:
        s.activator.command = command
        asked = {"model": "qwen"}
        assert (await send(s, "POST", "/models/load", {}, asked))[0] == 200
        held.ring = KeyRing(RING.keys[-1:])  # a key for measures alone
        assert (await send(s, "POST", "/models/load", {}, asked))[0] == 401
        held.ring = RING
        for secret in (ALL, SOME, MEASURES):
            status, told = await send(s, "POST", "/models/unload", bearer(secret), asked)
            assert (status, told["error"]["code"]) == (403, "insufficient_scope")
        assert commands == [("load", "qwen3-0.6b")]
        assert (await send(s, "POST", "/models/unload", bearer(OPERATOR), {"model": "whisper"}))[0] == 200
        assert commands[1:] == [("unload", "whisper")]


@pytest.mark.parametrize("header", [{"Origin": "https://example.com"}, {"Sec-Fetch-Site": "cross-site"}])
async def test_without_keys_no_page_of_the_web_loads_or_unloads(header: dict[str, str]) -> None:
    async with stack(keys=Held(KeyRing())) as s:
        status, told = await send(s, "POST", "/models/unload", header, {"model": "qwen"})
        assert (status, told["error"]["code"]) == (403, "of_a_page")
        assert s.activator.refused() == {"of_a_page": 1}


async def test_an_admin_who_is_revoked_while_the_body_arrives_loads_nothing() -> None:
    held = Held()
    commands = []

    async def command(verb: str, model: str) -> None:
        commands.append((verb, model))

    async with stack(keys=held) as s:
        s.activator.command = command

        async def body() -> Any:
            yield b'{"model": '
            await asyncio.sleep(0.2)
            held.revoke("operator")
            yield b'"qwen"}'

        async with s.http.post(f"{s.url}/models/load", data=body(), headers=bearer(OPERATOR)) as response:
            assert response.status == 401
        assert commands == []


# --- while a request waits --------------------------------------------------------------------------------------


def waits(s: Stack, secret: str, **more: Any) -> asyncio.Task[tuple[int, dict[str, Any]]]:
    return asyncio.create_task(send(s, "POST", CHAT, bearer(secret), {"model": "m", **more}))


async def test_a_key_that_is_revoked_while_its_request_waits_is_not_let_through() -> None:
    held = Held()
    async with stack(keys=held, directory=Directory([cold()])) as s:
        gone, stays = waits(s, ALL), waits(s, UNKNOWN)
        assert (await stays)[0] == 401
        held.ring = held.ring.add(key("new", UNKNOWN, Scope.INFERENCE))
        stays = waits(s, UNKNOWN)
        await eventually(lambda: s.activator.waiting()["m"].count == 2)
        held.revoke("all")
        s.activator.directory = Directory([hot()])
        status, told = await gone
        assert (status, told["error"]["code"]) == (401, "invalid_api_key")
        assert (await stays)[0] == 200
        assert len(s.upstream.seen) == 1
        await eventually(lambda: s.activator.waiting() == {})


async def test_a_key_that_expires_while_its_request_waits_is_not_let_through() -> None:
    ring = RING.add(key("short", UNKNOWN, Scope.INFERENCE, expires=time.time() + 1.0))
    async with stack(keys=Held(ring), directory=Directory([cold()])) as s:
        request = waits(s, UNKNOWN)
        await eventually(lambda: s.activator.waiting() != {})
        await asyncio.sleep(1.1)
        s.activator.directory = Directory([hot()])
        assert (await request)[0] == 401
        assert s.upstream.seen == []


async def test_whoever_waits_without_a_key_when_the_first_one_is_made_is_not_let_through() -> None:
    held = Held(KeyRing())
    async with stack(keys=held, directory=Directory([cold()])) as s:
        request = asyncio.create_task(send(s, "POST", CHAT, {}, {"model": "m"}))
        await eventually(lambda: s.activator.waiting() != {})
        held.ring = RING
        s.activator.directory = Directory([hot()])
        assert (await request)[0] == 401
        assert s.upstream.seen == []


async def test_a_stream_that_has_had_comments_hears_it_as_an_event() -> None:
    held = Held()
    async with stack(keys=held, directory=Directory([cold()])) as s, asyncio.timeout(20):

        async def ask() -> None:
            async with AsyncOpenAI(base_url=f"{s.url}/v1", api_key=ALL, max_retries=0) as client:
                async for _ in await client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
                    pass

        async def ask_like_anthropic() -> None:
            async with anthropic.AsyncAnthropic(base_url=s.url, api_key=ALL, max_retries=0) as client:
                create = client.messages.create
                async for _ in await create(model="m", max_tokens=5, messages=MESSAGES, stream=True):
                    pass

        requests = [asyncio.create_task(ask()), asyncio.create_task(ask_like_anthropic())]
        await eventually(lambda: s.activator.waiting()["m"].count == 2 if s.activator.waiting() else False)
        await asyncio.sleep(1.3)  # the first comment has been sent
        held.revoke("all")
        with pytest.raises(openai.APIError, match="revoked") as caught:
            await requests[0]
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(anthropic.APIError, match="authentication_error"):
            await requests[1]
        assert s.upstream.seen == []


# --- when it cannot be told -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("GET", "/v1/models"), ("POST", "/models/load")])
async def test_nobody_comes_in_while_it_cannot_be_told_who_may(
    method: str, path: str, logged: io.StringIO
) -> None:
    held = Held(problem="keys.json is damaged")
    body = {"model": "qwen"} if method == "POST" else None
    async with stack(keys=held) as s:
        for headers in ({}, bearer(ALL), bearer(OPERATOR)):
            status, told = await send(s, method, path, headers, body)
            assert (status, told["error"]["code"]) == (503, "keys_unavailable")
            assert "damaged" not in str(told)
        assert logged.getvalue().count("activator.keys_unavailable") == 1, "not a line for each request"
        held.problem = ""
        assert (await send(s, "GET", "/v1/models", bearer(ALL)))[0] == 200
        held.problem = "keys.json is damaged"
        assert (await send(s, "GET", "/v1/models", bearer(ALL)))[0] == 503
        assert logged.getvalue().count("activator.keys_unavailable") == 2
        assert s.upstream.seen == []


async def test_a_log_names_the_fingerprint_and_never_the_key(logged: io.StringIO) -> None:
    async with stack(keys=Held(), serve_url="http://127.0.0.1:1") as s:
        assert (await send(s, "POST", CHAT, bearer(ALL), {"model": "qwen"}))[0] == 503
        assert (await send(s, "POST", CHAT, bearer(UNKNOWN), {"model": "qwen"}))[0] == 401
    (line,) = [json.loads(line) for line in logged.getvalue().splitlines() if "upstream_unreachable" in line]
    assert line["key"] == RING.keys[0].fingerprint
    for secret in (ALL, UNKNOWN):
        assert secret[:20] not in logged.getvalue()


# --- the real client --------------------------------------------------------------------------------------------


async def answer(request: web.Request) -> web.StreamResponse:
    """Play vLLM, plainly or as a stream."""
    asked = json.loads(await request.read())
    head = {"id": "c", "created": 1, "model": asked["model"]}
    if not asked.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        return web.json_response({**head, "object": "chat.completion", "choices": [choice]})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    piece = {"choices": [{"index": 0, "delta": {"content": "hi"}}]}
    await response.write(f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', **piece})}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


def use(s: Stack, secret: str) -> tuple[str | None, str, list[str]]:
    """What the client gets to hear: an answer, a stream, the names of the models."""
    with OpenAI(base_url=f"{s.url}/v1", api_key=secret, max_retries=0) as client:
        plain = client.chat.completions.create(model="qwen", messages=MESSAGES)
        stream = client.chat.completions.create(model="qwen", messages=MESSAGES, stream=True)
        text = "".join(part.choices[0].delta.content or "" for part in stream)
        return plain.choices[0].message.content, text, [model.id for model in client.models.list()]


async def test_the_openai_client_with_a_key_without_one_and_with_one_that_is_revoked() -> None:
    held = Held()
    async with stack(keys=held) as s:
        s.upstream.answer = answer
        plain, text, models = await asyncio.to_thread(use, s, SOME)
        assert (plain, text) == ("hi", "hi")
        assert models == ["qwen3-0.6b", "qwen", "größer", "org/cold-model", "cold"]
        with pytest.raises(AuthenticationError, match="not valid") as caught:
            await asyncio.to_thread(use, s, "none")
        assert caught.value.code == "invalid_api_key"
        held.revoke("some")
        before = len(s.upstream.seen)
        async with AsyncOpenAI(base_url=f"{s.url}/v1", api_key=SOME, max_retries=0) as client:
            with pytest.raises(AuthenticationError, match="revoked"):
                await client.chat.completions.create(model="qwen", messages=MESSAGES)
            with pytest.raises(AuthenticationError):
                await client.chat.completions.create(model="qwen", messages=MESSAGES, stream=True)
            with pytest.raises(AuthenticationError):
                await client.models.list()
            with pytest.raises(AuthenticationError):
                await client.models.retrieve("qwen")
        assert len(s.upstream.seen) == before


async def test_the_openai_client_and_a_model_that_its_key_may_not_use() -> None:
    async with stack(keys=Held()) as s, AsyncOpenAI(base_url=f"{s.url}/v1", api_key=SOME, max_retries=0) as client:
        with pytest.raises(NotFoundError, match="does not exist") as caught:
            await client.chat.completions.create(model="whisper", messages=MESSAGES)
        assert caught.value.code == "model_not_found"
        with pytest.raises(NotFoundError):
            await client.models.retrieve("whisper")
        assert (await client.models.retrieve("qwen")).id == "qwen"


async def test_the_anthropic_client_puts_its_key_elsewhere() -> None:
    async with stack(keys=Held()) as s:

        async def message(request: web.Request) -> web.Response:
            asked = json.loads(await request.read())
            return web.json_response(
                {
                    "id": "m",
                    "type": "message",
                    "role": "assistant",
                    "model": asked["model"],
                    "content": [{"type": "text", "text": "hi"}],
                    "stop_reason": "end_turn",
                    "stop_sequence": None,
                    "usage": {"input_tokens": 1, "output_tokens": 1},
                }
            )

        s.upstream.answer = message
        for secret, works in ((ALL, True), (UNKNOWN, False)):
            async with anthropic.AsyncAnthropic(base_url=s.url, api_key=secret, max_retries=0) as client:
                asking = client.messages.create(model="qwen", max_tokens=5, messages=MESSAGES)
                if works:
                    assert (await asking).content[0].text == "hi"  # type: ignore[union-attr]
                else:
                    with pytest.raises(anthropic.AuthenticationError):
                        await asking


def test_a_directory_for_some_is_made_of_the_same_names() -> None:
    directory = Directory([hot("a", aliases=("x",)), hot("b", aliases=("y",))], settled=False)
    part = directory.only(lambda name: name == "a")
    assert ([entry.name for entry in part.entries], part.settled) == (["a"], False)
    assert (part.find("x"), part.find("y"), part.find("b")) == (directory.find("a"), None, None)
    assert replace(hot("a"), aliases=("x",)) == part.find("a")
