"""How much one key may ask, counted by HAProxy; and what it has asked."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import replace

import openai
import pytest
from edge_harness import CHAT, House, Upstream, envelope, eventually, house, post, raw

from reconciler.core.keys import Key, KeyRing, Scope, digest_of
from reconciler.edge.usage import KeyCount, parse_key_table


def key(secret: str, **changes: object) -> Key:
    made = Key(secret, digest_of(secret), frozenset({Scope.INFERENCE}), created=0.0)
    return replace(made, **changes)  # type: ignore[arg-type]


async def let(home: House, *keys: Key) -> None:
    await home.edge.set_keys(KeyRing(keys), time.time())


async def ask(home: House, secret: str, model: str = "m", **more: object) -> int:
    headers = {"Authorization": f"Bearer {secret}"}
    async with home.client.post(CHAT, json={"model": model, **more}, headers=headers) as answer:
        await answer.read()
        return answer.status


async def usage(home: House) -> dict[str, int]:
    return await home.edge.key_usage()


async def test_so_many_a_minute_and_the_next_is_refused_wherever_it_would_go() -> None:
    async with house() as home:
        await let(home, key("a", requests_per_minute=3), key("b"))
        assert [await ask(home, "a"), await ask(home, "a", "cold"), await ask(home, "a")] == [200] * 3
        for model in ("m", "cold"):
            body = json.dumps({"model": model}).encode()
            status, headers, answer = await raw(
                home.options.listen_port, post(CHAT, body, "Authorization: Bearer a")
            )
            assert status == 429
            assert int(headers["retry-after"]) > 0
            error = envelope(answer)
            assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert [await ask(home, "b") for _ in range(5)] == [200] * 5
        # What is refused counts for nothing, neither for the limit nor as use.
        assert await usage(home) == {digest_of("a")[:12]: 3, digest_of("b")[:12]: 5}
        await let(home, key("a", requests_per_minute=4), key("b"))
        assert [await ask(home, "a"), await ask(home, "a")] == [200, 429]
        await let(home, key("a"), key("b"))
        assert await ask(home, "a") == 200


async def test_so_many_at_a_time_streams_included_and_a_place_is_free_again() -> None:
    async with house() as home:
        await let(home, key("a", concurrent=2), key("b", concurrent=1))
        stream = asyncio.create_task(ask(home, "a", x="stream"))
        held = asyncio.create_task(ask(home, "a", "cold", x="hold"))

        async def both() -> bool:
            return (await usage(home)).get(digest_of("a")[:12]) == 2

        await eventually(both)
        assert await ask(home, "a") == 429
        assert await ask(home, "b") == 200
        assert (await home.edge.usage())["app-m"].in_flight == 1
        home.activator.gate.set()
        assert await held == 200
        assert await ask(home, "a") == 200
        home.serve.gate.set()
        assert await stream == 200
        assert [await ask(home, "a") for _ in range(4)] == [200] * 4
        assert (await home.edge.usage())["app-m"].in_flight == 0


async def test_a_client_that_leaves_gives_its_place_back() -> None:
    async with house() as home:
        await let(home, key("a", concurrent=1))
        for model in ("m", "cold"):
            server = home.serve if model == "m" else home.activator
            before = len(server.seen)
            task = asyncio.create_task(ask(home, "a", model, x="hold"))

            async def held(server: Upstream = server, before: int = before) -> bool:
                return len(server.seen) > before

            await eventually(held)
            assert await ask(home, "a") == 429
            task.cancel()

            async def free() -> bool:
                return await ask(home, "a") == 200

            await eventually(free)


async def test_a_burst_never_has_more_than_its_places() -> None:
    async with house() as home:
        await let(home, key("a", concurrent=4))
        burst = [asyncio.create_task(ask(home, "a", x="hold")) for _ in range(40)]

        async def refused() -> bool:
            return sum(task.done() for task in burst) >= 36

        await eventually(refused)
        assert len(home.serve.seen) <= 4
        home.serve.gate.set()
        answers = Counter(await asyncio.gather(*burst))
        assert set(answers) == {200, 429}
        assert 1 <= answers[200] <= 4


async def test_what_is_not_let_in_is_counted_for_nobody() -> None:
    async with house() as home:
        await let(home, key("a"))
        assert await ask(home, "wrong") == 401
        assert await usage(home) == {}
        await let(home)
        assert await ask(home, "a") == 200  # open: nobody is asked who it is
        assert await usage(home) == {}


async def test_a_reload_goes_on_counting_and_a_start_begins_anew() -> None:
    async with house() as home:
        await let(home, key("a", requests_per_minute=3))
        assert [await ask(home, "a"), await ask(home, "a")] == [200, 200]
        changed = home.another(max_connections=100)
        assert await changed.ensure_running() is False
        assert await usage(home) == {digest_of("a")[:12]: 2}
        assert [await ask(home, "a"), await ask(home, "a")] == [200, 429]
        await changed.stop(grace_seconds=0)
        assert await changed.ensure_running()
        assert await usage(home) == {}


async def test_openais_client_takes_the_refusals_for_what_they_are() -> None:
    async with house() as home:
        await let(home, key("a", requests_per_minute=1))
        for stream in (False, True):
            for secret, expected in (("wrong", openai.AuthenticationError), ("a", openai.RateLimitError)):
                if secret == "a":
                    await ask(home, "a")
                url = f"http://127.0.0.1:{home.options.listen_port}/v1"
                async with openai.AsyncOpenAI(api_key=secret, base_url=url, max_retries=0) as client:
                    with pytest.raises(expected) as caught:
                        await client.chat.completions.create(model="m", messages=[], stream=stream)
                assert caught.value.code in ("invalid_api_key", "rate_limit_exceeded")
        assert len(home.serve.seen) == 1


def test_the_table_tells_how_much_each_key_asked() -> None:
    answer = """# table: keys, type: string, size:102400, used:1
0x7f2e34043e28: key=0123456789ab use=0 exp=2073597139 shard=0 conn_cur=0 http_req_cnt=3 http_req_rate(60000)=2

"""
    assert parse_key_table(answer) == {"0123456789ab": KeyCount(3, 2)}
    assert parse_key_table("No such table\n") == {}
