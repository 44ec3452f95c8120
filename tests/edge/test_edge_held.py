"""Requests that wait: how many connections they may have, and for how long the edge lets them."""

import asyncio
import re
from dataclasses import replace

import aiohttp
import pytest
from edge_harness import CHAT, TEMPLATE, House, envelope, eventually, house, post, raw

from reconciler.core.spec import LONGEST_WAIT_SECONDS
from reconciler.edge.config import render_config
from reconciler.edge.edge import Edge
from reconciler.edge.options import EdgeOptions


async def ask(home: House, model: str, **more: object) -> int:
    # A connection for each, as many clients have it.
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as client,
        client.post(f"http://127.0.0.1:{home.options.listen_port}{CHAT}", json={"model": model, **more}) as answer,
    ):
        await answer.read()
        return answer.status


async def test_hot_models_and_listings_answer_however_many_requests_wait() -> None:
    async with house(running=False) as home:
        edge = Edge(replace(home.options, max_connections=20), TEMPLATE)
        await edge.set_routes({"m": "app-m"})
        await edge.ensure_running()
        held = [asyncio.create_task(ask(home, "cold", x="hold")) for _ in range(15)]

        async def all_wait() -> bool:
            return len(home.activator.seen) == 15

        await eventually(all_wait)
        for _ in range(10):
            status, headers, body = await raw(home.options.listen_port, post(CHAT, b'{"model":"cold"}'))
            assert (status, headers["retry-after"], envelope(body)["code"]) == (503, "5", "queue_full")
        assert await asyncio.wait_for(ask(home, "m"), 10) == 200
        async with asyncio.timeout(10), home.client.get("/v1/models") as answer:
            assert answer.status == 200
        home.activator.gate.set()
        assert await asyncio.gather(*held) == [200] * 15
        assert await ask(home, "cold") == 200


@pytest.mark.parametrize(("connections", "held"), [(1, 1), (2, 1), (4096, 3072)])
def test_a_quarter_is_left_and_somebody_may_always_wait(
    connections: int, held: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    options = EdgeOptions(folder=tmp_path_factory.getbasetemp(), max_connections=connections)
    assert f"be_conn(held) ge {held} }}" in render_config(TEMPLATE, options)


async def test_what_waits_may_be_silent_for_longer_than_an_answer() -> None:
    quick = TEMPLATE.replace("timeout client 1h", "timeout client 1s").replace(
        "timeout server 1h", "timeout server 1s"
    )
    quick = quick.replace("timeout server 5h", "timeout server 4s")
    assert quick.count("timeout server 4s") == 1
    async with house(running=False) as home:
        edge = Edge(home.options, quick)
        await edge.set_routes({"m": "app-m"})
        await edge.ensure_running()
        waits = asyncio.create_task(ask(home, "cold", x="hold"))
        await asyncio.sleep(2.5)
        home.activator.gate.set()
        assert await waits == 200


def test_the_longest_wait_that_a_file_allows_is_shorter_than_what_the_edge_allows() -> None:
    held = TEMPLATE.partition("\nbackend held\n")[2]
    (hours,) = re.findall(r"^ +timeout server (\d+)h$", held, re.MULTILINE)
    (stop,) = re.findall(r"^ +hard-stop-after (\d+)h$", TEMPLATE, re.MULTILINE)
    (silence,) = re.findall(r"^ +timeout server (\d+)h$", TEMPLATE.partition("\nbackend ")[0], re.MULTILINE)
    assert LONGEST_WAIT_SECONDS + int(silence) * 3600 <= int(hours) * 3600 <= int(stop) * 3600
