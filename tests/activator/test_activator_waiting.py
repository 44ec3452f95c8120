"""Held requests over real connections: order, one wake, bounds, every way out, and nothing left behind."""

import asyncio
import time
from typing import Any

import aiohttp
import pytest
from activator_stack import Stack, cold, eventually, hot, stack
from aiohttp import web
from openai import APIStatusError, AsyncOpenAI, OpenAI

from reconciler.activator import admission, holding
from reconciler.activator.admission import Admission, Asking
from reconciler.activator.directory import Directory, Entry, ModelState
from reconciler.activator.reply import Reply
from reconciler.activator.upstream import Call, Upstream
from reconciler.core.state import Waiting

CHAT = "/v1/chat/completions"
COLD = Directory([cold(aliases=("alias",), adapters=("adapter",))])
HOT = Directory([hot(aliases=("alias",), adapters=("adapter",))])


def ask(s: Stack, model: str = "m") -> asyncio.Task[tuple[int, dict[str, Any]]]:
    async def send() -> tuple[int, dict[str, Any]]:
        async with s.http.post(s.url + CHAT, json={"model": model}) as response:
            return response.status, {**await response.json(), "after": response.headers.get("retry-after")}

    return asyncio.create_task(send())


async def held(s: Stack, count: int) -> None:
    await eventually(lambda: sum(waiting.count for waiting in s.activator.waiting().values()) == count, seconds=60)


def nothing_is_left(s: Stack) -> bool:
    inner = s.activator._admission._holding
    return (s.activator.waiting(), s.activator.in_flight(), inner._lines, inner._bytes) == ({}, {}, {}, 0)


async def test_names_aliases_and_adapters_wait_in_one_line() -> None:
    async with stack(directory=COLD) as s:
        wakes: list[str] = []
        s.activator.wake = lambda: wakes.append("wake")
        requests = [ask(s, name) for name in ("m", "alias", "adapter")]
        await held(s, 3)
        assert set(s.activator.waiting()) == {"m"}
        assert s.activator.in_flight() == {}
        s.activator.directory = HOT
        answers = await asyncio.gather(*requests)
        assert [(status, body["model"]) for status, body in answers] == [(200, "m"), (200, "m"), (200, "adapter")]
        assert wakes == ["wake"]
        await eventually(lambda: nothing_is_left(s))


async def test_five_hundred_at_once_go_on_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived: list[int] = []
    released: list[int] = []
    admit, relay = Admission.admit, Upstream.relay

    async def noting_arrival(self: Admission, asking: Asking) -> tuple[Entry, str]:
        arrived.append(asking.size)
        return await admit(self, asking)

    async def noting_release(self: Upstream, call: Call, reply: Reply) -> None:
        released.append(call.body.body.size)
        await relay(self, call, reply)

    monkeypatch.setattr(Admission, "admit", noting_arrival)
    monkeypatch.setattr(Upstream, "relay", noting_release)
    async with stack(directory=COLD) as s:
        wakes: list[str] = []
        s.activator.wake = lambda: wakes.append("wake")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

            async def one(n: int) -> int:
                # Streams and others: both stand in one line.
                body = {"model": "m", "stream": n % 2 == 0, "pad": "x" * 2 * n}
                async with http.post(s.url + CHAT, json=body) as response:
                    return len(await response.read()) and response.status

            requests = [asyncio.create_task(one(n)) for n in range(500)]
            await held(s, 500)
            s.activator.directory = HOT
            assert await asyncio.gather(*requests) == [200] * 500
        assert len(set(arrived)) == 500
        assert released == arrived
        assert wakes == ["wake"]
        await eventually(lambda: nothing_is_left(s))


async def test_a_client_that_leaves_is_forgotten_at_once() -> None:
    async with stack(directory=Directory([cold(max_waiting=1)])) as s:
        wakes: list[str] = []
        s.activator.wake = lambda: wakes.append("wake")
        _, writer = await asyncio.open_connection("127.0.0.1", s.port)
        body = b'{"model": "m"}'
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await held(s, 1)
        status, refused = await ask(s)
        assert (status, refused["error"]["code"]) == (503, "queue_full")
        writer.close()
        await held(s, 0)
        assert wakes == ["wake", "wake"]
        await eventually(lambda: nothing_is_left(s))
        request = ask(s)
        await held(s, 1)
        s.activator.directory = HOT
        assert (await request)[0] == 200


async def test_bounds_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "MAX_HELD_BYTES", 100)
    async with stack(directory=Directory([cold(max_waiting=2, expected_wait=33.3), cold("other")])) as s:
        requests = [ask(s), ask(s)]
        await held(s, 2)
        status, body = await ask(s)
        assert (status, body["error"]["code"], body["after"]) == (503, "queue_full", "34")
        assert body["error"]["message"] == (
            "2 requests wait for the model 'm' already, as many as may (loading: it is being started)."
        )
        async with s.http.post(s.url + CHAT, json={"model": "other", "x": "y" * 100}) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (503, "queue_full")
            assert "large" in error["message"]
        for request in requests:
            request.cancel()
        await eventually(lambda: s.activator._admission._holding._bytes == 0)


async def test_a_model_that_fails_fails_all_its_waiters_at_once_with_its_reason() -> None:
    async with stack(directory=COLD) as s:
        requests = [ask(s) for _ in range(20)]
        await held(s, 20)
        began = time.monotonic()
        failed = Entry("m", ModelState.FAILED, None, reason="out of memory", retry_after=60.0)
        s.activator.directory = Directory([failed])
        for status, body in await asyncio.gather(*requests):
            assert (status, body["error"]["code"], body["after"]) == (503, "model_failed", "60")
            assert body["error"]["message"] == "The model 'm' is failed: out of memory."
        assert time.monotonic() - began < 5
        await eventually(lambda: nothing_is_left(s))


async def test_a_model_that_is_removed_is_unknown_to_its_waiters() -> None:
    async with stack(directory=COLD) as s:
        request = ask(s)
        await held(s, 1)
        s.activator.directory = Directory([hot("mm")])
        status, body = await request
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        await eventually(lambda: nothing_is_left(s))


async def test_a_wait_has_an_end() -> None:
    directory = Directory([cold(wait_timeout=0.3, expected_wait=7.0)])
    async with stack(directory=directory) as s:
        began = time.monotonic()
        status, body = await ask(s)
        assert 0.3 <= time.monotonic() - began < 5
        assert (status, body["error"]["code"], body["after"]) == (503, "model_wait_timeout", "7")
        message = (
            "The model 'm' did not come up in the 0 s that the request waited (loading: it is being started)."
        )
        assert body["error"]["message"] == message
        # It will be asked for again in 7 s, so it is wanted until then.
        assert s.activator.waiting()["m"].count == 1
        s.activator.directory = HOT
        await eventually(lambda: nothing_is_left(s))


async def test_a_route_that_vanishes_again_leaves_everybody_in_place() -> None:
    async with stack(directory=COLD) as s:
        requests = [ask(s) for _ in range(5)]
        await held(s, 5)
        before = list(s.activator._admission._holding._lines["m"].waiters)
        s.activator.directory = HOT
        s.activator.directory = COLD
        # Each has been woken, has looked, and waits again.
        for _ in range(10):
            await asyncio.sleep(0)
        assert list(s.activator._admission._holding._lines["m"].waiters) == before
        assert s.upstream.seen == []
        late = ask(s)
        await held(s, 6)
        s.activator.directory = HOT
        assert {status for status, _ in await asyncio.gather(*requests, late)} == {200}


async def test_an_application_is_counted_before_anything_else_can_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes the route away right after a release sees either no request or all of them in flight."""
    async with stack(directory=COLD) as s:
        requests = [ask(s) for _ in range(10)]
        await held(s, 10)
        wrong: list[Any] = []
        relay = Upstream.relay

        async def look(self: Upstream, call: Call, reply: Reply) -> None:
            if s.activator.in_flight().get(call.application, 0) == 0:
                wrong.append(call)
            await relay(self, call, reply)

        monkeypatch.setattr(Upstream, "relay", look)
        s.activator.directory = HOT
        seen = []
        while not all(request.done() for request in requests):
            in_flight = s.activator.in_flight().get("m-app", 0)
            held_still = s.activator.waiting().get("m", Waiting(0, 0.0)).count
            seen.append((in_flight, held_still))
            await asyncio.sleep(0)
        assert wrong == []
        assert max(in_flight for in_flight, _ in seen) == 10
        # A request that left the line is in flight at that very moment.
        assert all(in_flight + held_still == 10 for in_flight, held_still in seen[: seen.index((10, 0)) + 1])


async def test_before_the_first_look_requests_wait_and_listings_do_not() -> None:
    async with stack(directory=Directory(settled=False)) as s:
        wakes: list[str] = []
        s.activator.wake = lambda: wakes.append("wake")
        requests = {name: ask(s, name) for name in ("m", "up", "nobody", "manual")}
        inner = s.activator._admission._holding
        await eventually(lambda: [len(line.waiters) for line in inner._lines.values()] == [4])
        async with s.http.get(s.url + "/v1/models/m") as response:
            assert (await response.json())["error"]["code"] == "starting"
        manual = Entry("manual", ModelState.UNLOADED, None, reason="manual")
        s.activator.directory = Directory([cold(), hot("up"), manual])
        assert (await requests["up"])[0] == 200
        assert (await requests["nobody"])[1]["error"]["code"] == "model_not_found"
        assert (await requests["manual"])[1]["error"]["code"] == "model_unloaded"
        await held(s, 1)
        assert wakes == ["wake"]
        s.activator.directory = HOT
        assert (await requests["m"])[0] == 200
        await eventually(lambda: nothing_is_left(s))


async def test_too_many_before_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_MAX_BEFORE_THE_FIRST_LOOK", 1)
    monkeypatch.setattr(admission, "_FIRST_LOOK_SECONDS", 0.5)
    async with stack(directory=Directory(settled=False)) as s:
        answers = await asyncio.gather(ask(s), ask(s))
        assert [(status, body["error"]["code"]) for status, body in answers] == [(503, "starting")] * 2


@pytest.mark.parametrize("way", ["close", "cancel"])
async def test_a_stop_breaks_held_connections_without_an_answer_and_at_once(way: str) -> None:
    async with stack(directory=COLD) as s:
        going = asyncio.Event()

        async def answer(_request: web.Request) -> web.Response:
            await going.wait()
            return web.Response(text="whole")

        s.upstream.answer = answer
        s.activator.directory = Directory([cold(), hot("up")])
        under_way = asyncio.create_task(s.http.post(s.url + CHAT, json={"model": "up"}))
        await eventually(lambda: s.activator.in_flight() == {"up-app": 1})
        connections = [await asyncio.open_connection("127.0.0.1", s.port) for _ in range(3)]
        body = b'{"model": "m"}'
        for _, writer in connections:
            writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await held(s, 3)
        began = time.monotonic()
        if way == "close":
            await s.activator.close()
        else:
            s.server.cancel()
        for reader, writer in connections:
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        assert time.monotonic() - began < 0.9, "the grace is for what is answered"
        assert s.activator.waiting() == {}
        going.set()
        if way == "cancel":
            assert await (await under_way).text() == "whole"
        else:
            await asyncio.gather(under_way, return_exceptions=True)


async def test_a_request_that_comes_after_the_stop_is_not_held() -> None:
    async with stack(directory=COLD) as s:
        s.activator.stop_holding()
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await ask(s)
        s.activator.directory = HOT
        assert (await ask(s))[0] == 200


async def test_the_openai_client_waits_and_hears_why_not() -> None:
    async with stack(directory=COLD) as s:
        messages: Any = [{"role": "user", "content": "hi"}]

        async def answer(_request: web.Request) -> web.Response:
            message = {"role": "assistant", "content": "hello"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            return web.json_response(body)

        s.upstream.answer = answer

        def sync() -> str | None:
            with OpenAI(base_url=f"{s.url}/v1", api_key="x", max_retries=0) as client:
                return client.chat.completions.create(model="m", messages=messages).choices[0].message.content

        async with AsyncOpenAI(base_url=f"{s.url}/v1", api_key="x", max_retries=0) as client:
            requests: list[Any] = [
                asyncio.create_task(asyncio.to_thread(sync)),
                asyncio.create_task(client.chat.completions.create(model="alias", messages=messages)),
            ]
            await held(s, 2)
            s.activator.directory = HOT
            first, second = await asyncio.gather(*requests)
            assert (first, second.choices[0].message.content) == ("hello", "hello")
            s.activator.directory = COLD
            refused = asyncio.create_task(client.chat.completions.create(model="m", messages=messages))
            await held(s, 1)
            s.activator.directory = Directory([Entry("m", ModelState.FAILED, None, reason="no such GPU")])
            with pytest.raises(APIStatusError, match="no such GPU"):
                await refused
