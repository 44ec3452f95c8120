"""Server-sent events over real HTTP: as they come, after a break, and with listeners of all kinds."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, MutableMapping
from contextlib import AsyncExitStack
from functools import partialmethod
from typing import Any

import aiohttp
import pytest

from reconciler.api.answers import Answers
from reconciler.api.sessions import COOKIE
from reconciler.api.streams import MOST_LOG_FOLLOWERS, Listeners, Stream, as_event
from reconciler.core.keys import Scope
from reconciler.loop.by_hand import CommandRefusedError

from .reconciler_here import Here


class Listener:
    """A client of one stream."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._lines: AsyncIterator[bytes] = aiter(answer.content)
        self.ids: list[str] = []

    async def next(self) -> Any:
        """The data of the next event."""
        async with asyncio.timeout(10):
            async for line in self._lines:
                if line.startswith(b"id: "):
                    self.ids.append(line[4:].decode().strip())
                if line.startswith(b"data: "):
                    return json.loads(line[6:])
        raise AssertionError("it has ended")


def asking(here: Here) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(headers={"Authorization": f"Bearer {here.admin}"})


async def test_events_come_and_go_on_after_a_break(here: Here) -> None:
    async with here.serving() as url, asking(here) as session:
        here.feed.append({"event": "before"})
        async with session.get(f"{url}/api/v1/events") as answer:
            assert answer.content_type == "text/event-stream"
            listener = Listener(answer)
            await answer.content.readuntil(b"\n\n")
            for number in range(3):
                here.feed.append({"event": "model.ready", "model": f"m{number}\ndata: x"})
            assert [(await listener.next())["model"] for _ in range(3)] == [f"m{n}\ndata: x" for n in range(3)]
        here.feed.append({"event": "missed"})
        async with session.get(f"{url}/api/v1/events", headers={"Last-Event-ID": listener.ids[-2]}) as answer:
            listener = Listener(answer)
            assert [(await listener.next())["event"] for _ in range(2)] == ["model.ready", "missed"]
        async with session.get(f"{url}/api/v1/events", params={"after": "all"}) as answer:
            assert (await Listener(answer).next())["event"] == "before"


async def test_who_was_away_too_long_is_told_of_the_gap(here: Here) -> None:
    async with here.serving() as url, asking(here) as session:
        first = here.feed.last_id
        for number in range(150):
            here.feed.append({"event": "e", "n": number})
        async with session.get(f"{url}/api/v1/events", params={"after": first}) as answer:
            listener = Listener(answer)
            gap = await listener.next()
            assert (gap["event"], gap["lost"]) == ("feed.gap", 50)
            assert (await listener.next())["n"] == 50
        async with session.get(f"{url}/api/v1/events", headers={"Last-Event-ID": "nonsense"}) as answer:
            assert (await Listener(answer).next())["event"] == "feed.gap"


async def test_logs_are_followed(here: Here) -> None:
    async with here.serving() as url, asking(here) as session:
        async with session.get(f"{url}/api/v1/models/chat/logs/follow") as answer:
            assert answer.status == 200
        async with session.get(f"{url}/api/v1/models/nobody/logs/follow") as answer:
            assert (answer.status, answer.content_type) == (404, "application/json")


async def test_a_listener_who_leaves_is_forgotten(here: Here) -> None:
    async with here.serving() as url, asking(here) as session:
        for _ in range(5):
            answer = await session.get(f"{url}/api/v1/events")
            answer.close()
        await until(lambda: not streams())


async def test_a_listener_who_does_not_read_is_let_go(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """And until then it costs no more than what is on its way."""
    monkeypatch.setattr(Stream, "__init__", partialmethod(Stream.__init__, stall_seconds=0.5))
    async with here.serving() as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            key = f"Authorization: Bearer {here.admin}"
            slow.sendall(f"GET /api/v1/events HTTP/1.1\r\nHost: {host}\r\n{key}\r\n\r\n".encode())
            await until(lambda: bool(streams()))
            end = time.monotonic() + 20
            while streams() and time.monotonic() < end:
                for _ in range(20):
                    here.feed.append({"event": "e", "text": "x" * 50_000})
                await asyncio.sleep(0.02)
            assert not streams()


@pytest.mark.parametrize("path", ["/events", "/logs/follow", "/models/chat/logs/follow"])
@pytest.mark.parametrize("by", ["key", "session", "log-out", "damage"])
async def test_who_may_not_any_more_hears_no_more(
    here: Here, monkeypatch: pytest.MonkeyPatch, path: str, by: str
) -> None:
    monkeypatch.setattr(Stream, "__init__", partialmethod(Stream.__init__, heartbeat_seconds=0.05))
    secret = here.key("second", Scope.ADMIN)
    logged_in = here.context.sessions.create(secret)
    assert logged_in is not None
    headers = {"Authorization": f"Bearer {secret}"}
    if by in ("session", "log-out"):
        headers = {"Cookie": f"{COOKIE}={logged_in[0]}"}
    async with here.serving() as url, aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{url}/api/v1{path}") as answer:
            assert answer.status == 200
            for _ in range(3):
                await asyncio.wait_for(answer.content.readuntil(b": beat\n\n"), 10)
            if by == "log-out":
                here.context.sessions.end(logged_in[0])
            elif by == "damage":
                (here.state / "keys.json").write_text("{")
            else:
                here.keys.revoke("second")
            await asyncio.wait_for(answer.content.read(), 10)
        await until(lambda: not streams())


async def test_who_may_not_any_more_hears_no_more_though_much_happens() -> None:
    sent: list[bytes] = []

    async def flood() -> AsyncGenerator[bytes, None]:
        while True:
            await asyncio.sleep(0.001)
            yield b"x"

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))

    allowed = iter([True, True, False])
    stream = Stream(flood(), Listeners(), lambda: next(allowed), b"ended", heartbeat_seconds=0.02)
    await asyncio.wait_for(stream({"type": "http", "path": "/"}, receive, send), 5)
    assert (sent[2], sent[-1], next(allowed, None)) == (b"x", b"ended", None)


async def test_only_some_follow_logs_at_a_time_over_the_api_and_on_the_page(here: Here) -> None:
    page = Answers(here.context)
    async with here.serving() as url, asking(here) as session, AsyncExitStack() as stack:
        for number in range(MOST_LOG_FOLLOWERS - 1):
            path = "/logs/follow" if number % 2 else "/models/chat/logs/follow"
            answer = await stack.enter_async_context(session.get(f"{url}/api/v1{path}"))
            assert answer.status == 200

        async def read() -> None:
            async for _ in page.follow_logs(None):
                pass

        reading = asyncio.create_task(read())
        await until(lambda: here.context.log_followers.count == MOST_LOG_FOLLOWERS)
        for path in ("/logs/follow", "/models/chat/logs/follow"):
            async with session.get(f"{url}/api/v1{path}") as answer:
                assert (answer.status, answer.content_type) == (503, "application/json")
                assert "20 followers of logs are there already" in (await answer.json())["error"]
        with pytest.raises(CommandRefusedError, match="20 followers of logs"):
            await anext(page.follow_logs("chat"))
        async with session.get(f"{url}/api/v1/events") as answer:
            assert answer.status == 200
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        async with session.get(f"{url}/api/v1/logs/follow") as answer:
            assert answer.status == 200
    await until(lambda: here.context.log_followers.count == 0)


async def test_something_is_sent_while_nothing_happens() -> None:
    sent: list[bytes] = []
    left = asyncio.Event()

    async def nothing() -> AsyncGenerator[bytes, None]:
        await asyncio.Event().wait()
        yield b""

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))
        if len(sent) > 4:
            left.set()

    listeners = Listeners()
    stream = Stream(nothing(), listeners, lambda: True, heartbeat_seconds=0.01)
    await asyncio.wait_for(stream({"type": "http", "path": "/"}, receive, send), 5)
    assert sent[2:5] == [b": beat\n\n"] * 3
    assert listeners.count == 0


async def test_there_is_an_end_to_listeners() -> None:
    async def one() -> AsyncGenerator[bytes, None]:
        yield b"x"

    listeners = Listeners(most=1)
    listeners.count = 1
    with pytest.raises(CommandRefusedError, match="1 listeners are there already"):
        listeners.stream(one(), lambda: True)


def test_an_event_is_two_lines_whatever_is_in_it() -> None:
    for text in ("a\nb", "\r", "\u2028", "\ud800", "\x00"):
        lines = as_event({"t": text}, id="1-2").split(b"\n")
        assert (lines[0], len(lines), lines[2:]) == (b"id: 1-2", 4, [b"", b""])
        assert b"\r" not in lines[1]


def streams() -> list[Any]:
    """Streams that are under way in this process."""
    return [task for task in asyncio.all_tasks() if "_until_gone" in repr(task.get_coro())]


async def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
