"""What a restart of the reconciler does to requests that it held: sent again, to the last byte, or not at all."""

import asyncio
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import pytest
from edge_harness import CHAT, TEMPLATE, House, envelope, eventually, free_port, house, post, raw, sized

from reconciler.edge.edge import Edge

_PROGRAM = Path(__file__).with_name("fake_activator.py")


@dataclass
class Activator:
    """Processes at one port, one after the other."""

    port: int
    log: Path
    _process: asyncio.subprocess.Process | None = field(default=None)

    async def start(self, manner: str) -> int:
        assert self._process is None
        arguments = (str(self.port), str(self.log), manner)
        self._process = await asyncio.create_subprocess_exec(sys.executable, str(_PROGRAM), *arguments)
        await eventually(self._listens)
        return self._process.pid

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        self._process = None

    def seen(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    async def saw(self, count: int) -> None:
        async def enough() -> bool:
            return len(self.seen()) >= count

        await eventually(enough)

    async def _listens(self) -> bool:
        # The state of the socket, and no connection, which a deaf one would count as a request.
        return any(row.split()[1:4:2] == [f"0100007F:{self.port:04X}", "0A"] for row in _sockets())


def _sockets() -> list[str]:
    return Path("/proc/net/tcp").read_text().splitlines()[1:]


@contextlib.asynccontextmanager
async def standing_in(home: House, *, retries: int = 60, template: str = TEMPLATE) -> AsyncIterator[Activator]:
    """The house's edge, in front of processes that can be killed."""
    activator = Activator(free_port(), home.options.folder.parent / "seen.jsonl")
    options = replace(home.options, activator_port=activator.port)
    edge = Edge(options, template.replace("retries 60", f"retries {retries}"))
    await edge.ensure_running()
    try:
        yield activator
    finally:
        if activator._process is not None:
            await activator.kill()


def _cold(size: int = 2000) -> bytes:
    return sized(size).replace(b'"m"', b'"c"')


@pytest.mark.parametrize("manner", ["hold", "deaf"])
async def test_a_request_that_a_killed_reconciler_held_is_answered_by_the_next(manner: str) -> None:
    async with house() as home, standing_in(home) as activator:
        await activator.start(manner)
        body = _cold(100_000)
        asked = asyncio.create_task(raw(home.options.listen_port, post(CHAT, body)))
        await activator.saw(1)
        await activator.kill()
        await asyncio.sleep(1.5)
        assert not asked.done()
        pid = await activator.start("answer")
        status, headers, answer = await asked
        assert (status, json.loads(answer)) == (200, {"pid": pid, "bytes": 100_000})
        last = activator.seen()[-1]
        assert last["sha"] == hashlib.sha256(body).hexdigest()
        assert last["id"] == headers["x-request-id"]
        if manner == "hold":
            assert activator.seen()[0] == {**last, "pid": activator.seen()[0]["pid"]}
        assert len(activator.seen()) == 2


async def test_a_chunked_body_is_sent_again_whole() -> None:
    async with house() as home, standing_in(home) as activator:
        await activator.start("hold")
        body = _cold(100_000)
        asked = asyncio.create_task(_post(home, _in_pieces(body), {"Content-Type": "application/json"}))
        await activator.saw(1)
        await activator.kill()
        await activator.start("answer")
        assert await asked == (200, "answered")
        assert [one["sha"] for one in activator.seen()] == [hashlib.sha256(body).hexdigest()] * 2


async def _in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 7000):
        yield body[start : start + 7000]


async def _post(home: House, data: object, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Status, and the error's code if there is one."""
    async with home.client.post(CHAT, data=data, headers=headers) as response:
        body = await response.read()
        return response.status, "answered" if response.status == 200 else str(envelope(body)["code"])


async def test_twenty_at_once_survive_two_restarts() -> None:
    async with house() as home, standing_in(home) as activator:
        await activator.start("hold")
        bodies = [_cold(1000 + number) for number in range(20)]
        asked = [asyncio.create_task(_post(home, body)) for body in bodies]
        await activator.saw(20)
        await activator.kill()
        await activator.start("hold")
        await activator.saw(40)
        await activator.kill()
        pid = await activator.start("answer")
        assert await asyncio.gather(*asked) == [(200, "answered")] * 20
        answered = [one["sha"] for one in activator.seen() if one["pid"] == pid]
        assert sorted(map(str, answered)) == sorted(hashlib.sha256(body).hexdigest() for body in bodies)


async def test_an_answer_that_began_is_cut_and_not_asked_for_again() -> None:
    async with house() as home, standing_in(home) as activator:
        await activator.start("begin")
        async with home.client.post(CHAT, data=_cold()) as response:
            assert await response.content.readuntil(b"\n\n") == b"data: one\n\n"
            await activator.kill()
            await activator.start("answer")
            with contextlib.suppress(aiohttp.ClientPayloadError):
                assert await response.content.read() == b""
        assert await _post(home, _cold()) == (200, "answered")
        assert len(activator.seen()) == 2


async def test_a_client_that_leaves_while_nothing_listens_is_forgotten() -> None:
    async with house() as home, standing_in(home) as activator:
        await activator.start("hold")
        _, leaver = await asyncio.open_connection("127.0.0.1", home.options.listen_port)
        leaver.write(post(CHAT, _cold(1234)))
        await activator.saw(1)
        staying = asyncio.create_task(_post(home, _cold(5678)))
        await activator.saw(2)
        await activator.kill()
        await asyncio.sleep(0.5)
        leaver.close()
        await asyncio.sleep(1)
        pid = await activator.start("answer")
        assert await staying == (200, "answered")
        await asyncio.sleep(1.5)  # a pause between two tries, and half a one
        assert [one["bytes"] for one in activator.seen() if one["pid"] == pid] == [5678]


@pytest.mark.parametrize("size", [300_000, 2_000_000])
async def test_a_body_larger_than_the_buffer_goes_once_and_is_a_503(size: int) -> None:
    async with house() as home, standing_in(home) as activator:
        await activator.start("hold")
        asked = asyncio.create_task(_post(home, _cold(size)))
        await activator.saw(1)
        await activator.kill()
        assert await asked == (503, "control_plane_unavailable")
        assert [one["bytes"] for one in activator.seen()] == [size]


async def test_one_that_hangs_up_on_a_request_is_asked_a_bounded_number_of_times() -> None:
    async with house() as home, standing_in(home) as activator:
        await activator.start("hang_up")
        assert await _post(home, _cold()) == (503, "control_plane_unavailable")
        assert len(activator.seen()) == 61


async def test_with_very_many_held_no_more_are_kept() -> None:
    template = TEMPLATE.replace("be_conn(held) gt 1000", "be_conn(held) gt 5")
    async with house() as home, standing_in(home, template=template) as activator:
        await activator.start("hold")
        asked = [asyncio.create_task(_post(home, _cold())) for _ in range(9)]
        await activator.saw(9)
        await activator.kill()
        await activator.start("answer")
        answers = await asyncio.gather(*asked)
        assert answers.count((503, "control_plane_unavailable")) == 4
        assert answers.count((200, "answered")) == 5


async def test_a_reconciler_that_is_not_there_is_waited_for_with_a_request_for_a_model_and_with_nothing_else() -> (
    None
):
    async with house() as home, standing_in(home, retries=3) as activator:
        for path in ("/v1/models", "/v1/nonsense"):
            began = time.monotonic()
            async with home.client.get(path) as response:
                assert response.status == 503
                assert envelope(await response.read())["code"] == "control_plane_unavailable"
            assert time.monotonic() - began < 2.5
        began = time.monotonic()
        assert await _post(home, _cold()) == (503, "control_plane_unavailable")
        assert 2.5 < time.monotonic() - began < 10  # a second for each further try
        asked = asyncio.create_task(_post(home, _cold(300_000)))
        await asyncio.sleep(0.5)
        await activator.start("answer")
        assert await asked == (200, "answered")  # nothing was sent before, so a large body can wait as well
        assert home.serve.seen == []


def test_the_wait_is_longer_than_a_restart() -> None:
    assert TEMPLATE.partition("backend held\n")[2].count("    retries 60\n") == 1
