"""Listeners of the API's events for some minutes: what they cost in memory, and whether each got every event.

    python -m bench.events [--minutes 10] [--listeners 200] [--rate 20]

The management API as it listens, asked for `GET /api/v1/events` with an admin key, in one process; the listeners
in another. Memory is that of the API's process, after each tenth of the time; the growth that counts is from the
first tenth, when all listeners are there, to the end.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from starlette.types import ASGIApp

from reconciler.activator.server import listen_tcp, serve_on
from reconciler.api.app import PREFIX, api_app
from reconciler.api.context import Context, Place
from reconciler.api.sessions import Sessions
from reconciler.core.keys import Scope
from reconciler.host.event_feed import EventFeed
from reconciler.host.key_file import KeyFile

_PARTS = 10
_TEXT = "x" * 200
_OVER = "bench.over"
_PATIENCE_SECONDS = 60.0


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
    keys, feed = KeyFile(folder), EventFeed()
    _, secret = keys.add("bench", [Scope.ADMIN])
    listener = listen_tcp("127.0.0.1", 0)
    server = asyncio.create_task(serve_on(_app(folder, keys, feed), listener, grace_seconds=1))
    context = multiprocessing.get_context("spawn")
    found: Any = context.Queue()
    # Ends with this one, whatever comes between.
    other = context.Process(
        target=_listen, args=(listener.getsockname()[1], secret, listeners, found), daemon=True
    )
    other.start()
    there: int = await asyncio.to_thread(found.get, timeout=_PATIENCE_SECONDS)
    process, began, sent, sizes = psutil.Process(), time.monotonic(), 0, list[int]()
    print(f"{there} listeners, {rate:g} events a second, {seconds / 60:g} min", flush=True)
    while (passed := time.monotonic() - began) < seconds:
        while sent < passed * rate:
            sent += 1
            feed.append({"event": "bench.event", "n": sent, "text": _TEXT})
        if passed >= seconds * (len(sizes) + 1) / _PARTS:
            sizes.append(process.memory_info().rss)
            print(f"{passed / 60:5.1f} min: {sizes[-1] / 2**20:7.1f} MiB", flush=True)
        await asyncio.sleep(1 / rate)
    sizes.append(process.memory_info().rss)
    feed.append({"event": _OVER})
    got: list[int] = await asyncio.to_thread(found.get, timeout=_PATIENCE_SECONDS)
    other.join()
    server.cancel()
    await asyncio.gather(server, return_exceptions=True)
    print(f"growth: {(sizes[-1] - sizes[0]) / 2**20:.1f} MiB of {sizes[-1] / 2**20:.1f} MiB")
    print(f"events: {sent} sent; each listener got {min(got)} to {max(got)}")
    if set(got) != {sent}:
        sys.exit("not every listener got every event")


def _app(folder: Path, keys: KeyFile, feed: EventFeed) -> ASGIApp:
    """The whole API. What its other routes would ask is not there, and nobody asks them."""
    nothing: Any = None
    return api_app(
        Context(
            operations=nothing,
            keys=keys,
            sessions=Sessions(keys.ring),
            state_dir=folder,
            source=Place("folder", ""),
            feed=feed,
            logs=nothing,
            edits=nothing,
            serve=nothing,
            metrics_text=nothing,
            model_metrics=nothing,
        )
    )


def _listen(port: int, secret: str, listeners: int, found: Any) -> None:
    """The other process."""
    found.put(asyncio.run(_all(port, secret, listeners, found)))


async def _all(port: int, secret: str, listeners: int, found: Any) -> list[int]:
    """How many events each got, once the last one came; that all are there is told at once."""
    connector = aiohttp.TCPConnector(limit=0, family=socket.AF_INET)
    headers = {"Authorization": f"Bearer {secret}"}
    there = asyncio.Barrier(listeners + 1)
    async with (
        aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(total=None)
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(_one(session, port, there)) for _ in range(listeners)]
        await there.wait()
        found.put(listeners)
    return [task.result() for task in tasks]


async def _one(session: aiohttp.ClientSession, port: int, there: asyncio.Barrier) -> int:
    got = 0
    async with session.get(f"http://127.0.0.1:{port}{PREFIX}/events") as answer:
        answer.raise_for_status()
        await there.wait()
        async for line in answer.content:
            if line.startswith(b"data: "):
                if json.loads(line[6:])["event"] == _OVER:
                    return got
                got += 1
    raise RuntimeError("a listener was dropped")


if __name__ == "__main__":
    main()
