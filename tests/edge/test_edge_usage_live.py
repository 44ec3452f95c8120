"""In flight and idle, as HAProxy really counts them."""

import asyncio
import time

import aiohttp
import pytest
from edge_harness import CHAT, House, eventually, house, kill

from reconciler.edge.edge import EdgeUnreachableError, Usage


async def _in_flight(home: House, application: str = "app-m") -> int:
    return (await home.edge.usage())[application].in_flight


async def _idle(home: House, application: str = "app-m") -> float:
    idle = (await home.edge.usage())[application].idle_seconds
    assert idle is not None
    return idle


async def test_a_routed_application_was_never_used_until_it_was() -> None:
    async with house() as home:
        assert await home.edge.usage() == {"app-m": Usage(0, None)}
        await home.ask("cold")
        assert await home.edge.usage() == {"app-m": Usage(0, None)}
        await home.ask()
        assert await _in_flight(home) == 0
        assert await _idle(home) < 5


async def test_a_keep_alive_connection_is_not_in_flight_between_requests() -> None:
    async with house() as home:
        async with home.client.post(CHAT, json={"model": "m"}) as response:
            await response.read()
            assert response.headers.get("Connection", "keep-alive") == "keep-alive"
        assert len(home.client.connector._conns) == 1  # type: ignore[union-attr]
        assert await _in_flight(home) == 0


async def test_a_stream_is_in_flight_to_its_last_byte_and_idle_from_there() -> None:
    async with house() as home:
        async with home.client.post(CHAT, json={"model": "m", "do": "stream"}) as response:
            await response.content.readuntil(b"\n\n")
            await asyncio.sleep(0.5)
            assert (await home.edge.usage())["app-m"] == Usage(1, 0.0)
            nearly_over = time.monotonic()
            home.serve.gate.set()
            await response.read()
        await eventually(lambda: _is(home, 0))
        # It began half a second before that moment: only an idle time that counts from its end is as short.
        assert await _idle(home) < time.monotonic() - nearly_over + 0.1
        before = await _idle(home)
        await asyncio.sleep(0.2)
        assert await _idle(home) >= before + 0.15


async def _is(home: House, count: int) -> bool:
    return await _in_flight(home) == count


@pytest.mark.parametrize("do", ["stream", "hold"])
async def test_a_client_that_leaves_is_no_longer_in_flight(do: str) -> None:
    async with house() as home:
        async with aiohttp.ClientSession(str(home.client._base_url)) as leaver:
            request = asyncio.create_task(leaver.post(CHAT, json={"model": "m", "do": do}))
            await eventually(lambda: _is(home, 1))
            if do == "stream":
                await (await request).content.readuntil(b"\n\n")
            request.cancel()
        if do == "stream":
            # A stream's client is missed when something is written to it, or at once by its end of the connection.
            home.serve.gate.set()
        await eventually(lambda: _is(home, 0))


async def test_a_burst_is_counted_and_counted_down() -> None:
    async with house({"m": "app-m", "n": "app-n"}) as home:
        async with aiohttp.ClientSession(
            str(home.client._base_url), connector=aiohttp.TCPConnector(limit=0)
        ) as many:
            posts = [many.post(CHAT, json={"model": "mn"[i % 2], "do": "hold"}) for i in range(200)]
            answers = [asyncio.create_task(_status(one)) for one in posts]
            await eventually(lambda: _is(home, 100))
            assert await _in_flight(home, "app-n") == 100
            home.serve.gate.set()
            assert await asyncio.gather(*answers) == [200] * 200
        assert {name: use.in_flight for name, use in (await home.edge.usage()).items()} == {"app-m": 0, "app-n": 0}


async def _status(request: "aiohttp.client._RequestContextManager") -> int:
    async with request as response:
        await response.read()
        return response.status


async def test_an_application_is_remembered_when_it_is_no_longer_routed() -> None:
    async with house() as home:
        await home.ask()
        await home.edge.set_routes({})
        assert await _in_flight(home) == 0


async def test_what_was_touched_was_used_now_and_what_is_in_flight_stays_so() -> None:
    async with house() as home:
        async with home.client.post(CHAT, json={"model": "m", "do": "stream"}) as response:
            await response.content.readuntil(b"\n\n")
            await home.edge.touch(["app-m", "app-alias", "app-m"])
            assert (await home.edge.usage())["app-m"] == Usage(1, 0.0)
            assert await _idle(home, "app-alias") < 5
            home.serve.gate.set()
            await response.read()
        await eventually(lambda: _is(home, 0))
        assert await _in_flight(home, "app-alias") == 0
        await asyncio.sleep(0.3)
        before = await _idle(home, "app-alias")
        await home.edge.touch(["app-alias"])
        assert await _idle(home, "app-alias") < before
        assert await _in_flight(home) == 0


async def test_a_name_that_is_no_applications_is_not_touched() -> None:
    async with house() as home:
        with pytest.raises(ValueError, match="cannot be the name"):
            await home.edge.touch(["app-m", "x; @1 clear table applications"])
        assert await home.edge.usage() == {"app-m": Usage(0, None)}


async def test_an_edge_that_had_to_be_started_again_has_not_forgotten_what_was_used() -> None:
    async with house({"m": "app-m", "n": "app-n"}) as home:
        await home.ask()
        await home.edge.usage()
        kill(home.pids()[0])
        await eventually(lambda: _down(home))
        assert await home.edge.ensure_running()
        assert await _idle(home) < 5
        assert (await home.edge.usage())["app-n"] == Usage(0, None)


async def _down(home: House) -> bool:
    return not await home.edge.is_running()


async def test_usage_of_an_edge_that_is_down_is_an_error() -> None:
    async with house(running=False) as home:
        with pytest.raises(EdgeUnreachableError):
            await home.edge.usage()
