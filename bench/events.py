"""Listeners of the API's events for some minutes: what they cost in memory, and whether each got every event.

    python bench/events.py [--minutes 10] [--listeners 200] [--rate 20]

The API's own gate, stream and server in one process, the listeners in another. Memory is that of the API's
process, after each tenth of the time; the growth that counts is from the first tenth, when all listeners are
there, to the end.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from starlette.types import Receive, Scope, Send

from reconciler.activator.server import listen_tcp, serve_on
from reconciler.api.auth import Gate
from reconciler.api.context import Access
from reconciler.api.sessions import Sessions
from reconciler.api.streams import Listeners, as_event
from reconciler.core.keys import Scope as KeyScope
from reconciler.host.event_feed import EventFeed
from reconciler.host.key_file import KeyFile

_PARTS = 10
_TEXT = "x" * 200


def main() -> None:
    """Run it, and print what was measured."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--minutes", type=float, default=10.0)
    asked.add_argument("--listeners", type=int, default=200)
    asked.add_argument("--rate", type=float, default=20.0, help="events a second")
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder), options.minutes * 60, options.listeners, options.rate))


async def _measure(folder: Path, seconds: float, listeners: int, rate: float) -> None:
    keys, feed, counted = KeyFile(folder), EventFeed(), Listeners()
    _, secret = keys.add("bench", [KeyScope.ADMIN])

    async def events(scope: Scope, receive: Receive, send: Send) -> None:
        await counted.stream(_coming(feed))(scope, receive, send)

    gate = Gate(events, keys=keys, sessions=Sessions(keys.ring), access=Access())
    listener = listen_tcp("127.0.0.1", 0)
    server = asyncio.create_task(serve_on(gate, listener, grace_seconds=1))
    context = multiprocessing.get_context("spawn")
    found: Any = context.Queue()
    other = context.Process(target=_listen, args=(listener.getsockname()[1], secret, listeners, found))
    other.start()
    while counted.count < listeners:  # noqa: ASYNC110 -- nobody says so
        await asyncio.sleep(0.1)
    process, began, sent, sizes = psutil.Process(), time.monotonic(), 0, list[int]()
    print(f"{counted.count} listeners, {rate:g} events a second, {seconds / 60:g} min")
    while (passed := time.monotonic() - began) < seconds:
        while sent < passed * rate:
            sent += 1
            feed.append({"event": "bench.event", "n": sent, "text": _TEXT})
        if passed >= seconds * (len(sizes) + 1) / _PARTS:
            sizes.append(process.memory_info().rss)
            print(f"{passed / 60:5.1f} min: {sizes[-1] / 2**20:7.1f} MiB, {counted.count} listeners")
        await asyncio.sleep(1 / rate)
    sizes.append(process.memory_info().rss)
    feed.append({"event": "bench.over"})
    got: list[int] = await asyncio.to_thread(found.get)
    other.join()
    server.cancel()
    await asyncio.gather(server, return_exceptions=True)
    print(f"growth: {(sizes[-1] - sizes[0]) / 2**20:.1f} MiB of {sizes[-1] / 2**20:.1f} MiB")
    print(f"events: {sent} sent; each listener got {min(got)} to {max(got)}")


async def _coming(feed: EventFeed) -> AsyncGenerator[bytes, None]:
    async for each in feed.follow(feed.last_id):
        yield as_event(each.event, id=each.id)


def _listen(port: int, secret: str, listeners: int, found: Any) -> None:
    """The other process."""
    found.put(asyncio.run(_all(port, secret, listeners)))


async def _all(port: int, secret: str, listeners: int) -> list[int]:
    connector = aiohttp.TCPConnector(limit=0, family=socket.AF_INET)
    headers = {"Authorization": f"Bearer {secret}"}
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        return list(await asyncio.gather(*(_one(session, port) for _ in range(listeners))))


async def _one(session: aiohttp.ClientSession, port: int) -> int:
    got = 0
    async with session.get(f"http://127.0.0.1:{port}/api/v1/events") as answer:
        assert answer.status == 200
        async for line in answer.content:
            if line.startswith(b"data: "):
                if json.loads(line[6:])["event"] == "bench.over":
                    return got
                got += 1
    raise RuntimeError("a listener was dropped")


if __name__ == "__main__":
    main()
