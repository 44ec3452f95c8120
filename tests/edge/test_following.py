"""Two real edges, one reconciler: the same routes, one account of what is in flight."""

import asyncio
import contextlib
import json
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from edge_harness import CHAT, TEMPLATE_FILE, House, eventually, free_port, house
from starlette.responses import PlainTextResponse
from structlog.testing import capture_logs

from reconciler.activator.server import listen_tcp, serve_on
from reconciler.core.keys import Key, KeyRing, Scope, digest_of, secret_from
from reconciler.edge.access import Access
from reconciler.edge.edge import EdgeUnreachableError, Usage
from reconciler.edge.reports import SYNC_PATH
from reconciler.loop.edges import Edges
from reconciler.loop.follow import follow

_FOLLOW = """
import asyncio, sys
from pathlib import Path
from reconciler.edge.edge import Edge, EdgeOptions
from reconciler.loop.follow import follow
folder, listen, serve, activator, template, url, token = sys.argv[1:]
ports = {"listen_port": int(listen), "serve_port": int(serve), "activator_port": int(activator)}
options = EdgeOptions(Path(folder), **ports, threads=2)
edge = Edge(options, Path(template).read_text())
asyncio.run(follow(edge, url, Path(token), "b", asyncio.Event()))
"""


@dataclass
class Nodes:
    """The reconciler's side on one node, and another node whose edge may follow it."""

    here: House
    there: House
    state_dir: Path
    port: int = field(default_factory=free_port)
    edges: Edges = field(init=False)
    ring: KeyRing | None = field(default_factory=KeyRing)
    """What the reconciler knows of keys when it starts; None: it cannot tell."""
    _serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token_file(self) -> Path:
        return self.state_dir / "edge-token"

    async def start(self) -> None:
        """Start the reconciler's side anew, with nothing in its memory."""
        self.edges = Edges(self.here.edge, self.state_dir)
        # As the reconciler does, before anybody hears of routes.
        if self.ring is not None:
            await self.edges.set_keys(self.ring, time.time())
        app = self.edges.asgi(PlainTextResponse("the activator"))
        self._serving = asyncio.create_task(serve_on(app, listen_tcp("127.0.0.1", self.port), grace_seconds=1))

    async def stop(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def followed(self, token_file: Path | None = None) -> AsyncIterator[None]:
        """The second edge follows for as long as the block runs."""
        stop = asyncio.Event()
        agent = asyncio.create_task(follow(self.there.edge, self.url, token_file or self.token_file, "b", stop))
        try:
            yield
        finally:
            stop.set()
            await agent

    async def known(self) -> bool:
        try:
            await self.edges.usage()
        except EdgeUnreachableError:
            return False
        return True

    async def usage(self) -> dict[str, Usage]:
        """What both edges say, waited for where one is silent, as one of a busy machine is now and then."""
        await eventually(self.known, seconds=60)
        while True:
            with contextlib.suppress(EdgeUnreachableError):
                return await self.edges.usage()
            await asyncio.sleep(0.01)

    async def unknown(self) -> bool:
        return not await self.known()

    async def sync(self, data: object, token: str | None = None) -> tuple[int, Any]:
        """What a call that no agent would make is answered."""
        headers = {"Authorization": f"Bearer {token or self.token_file.read_text()}"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}{SYNC_PATH}", data=data, headers=headers) as response,
        ):
            return response.status, await response.json()


@contextlib.asynccontextmanager
async def nodes() -> AsyncIterator[Nodes]:
    with tempfile.TemporaryDirectory() as folder:
        async with house({"m": "app-m"}) as here, house({}) as there:
            both = Nodes(here, there, Path(folder))
            await both.start()
            try:
                yield both
            finally:
                await both.stop()


async def _join(both: Nodes) -> None:
    async def joined() -> bool:
        return await both.there.edge.routes() == await both.here.edge.routes() and await both.known()

    await eventually(joined, seconds=60)


async def test_routes_have_reached_both_edges_when_they_are_set() -> None:
    async with nodes() as both, both.followed():
        await _join(both)
        assert await both.there.ask() == ("serve", f"/app-m{CHAT}")
        for turn in range(5):
            await both.edges.set_routes({"m": f"app-{turn}", "n": "app-n"})
            for home in (both.here, both.there):
                assert await home.ask() == ("serve", f"/app-{turn}{CHAT}")
            assert await both.known()
        assert await both.edges.routes() == {"m": "app-4", "n": "app-n"}


async def test_a_stream_on_either_edge_is_in_flight_and_the_last_use_of_both_counts() -> None:
    async with nodes() as both, both.followed():
        await _join(both)
        async with (
            both.there.client.post(CHAT, json={"model": "m", "do": "stream"}) as one,
            both.here.client.post(CHAT, json={"model": "m", "do": "stream"}) as other,
        ):
            await one.content.readuntil(b"\n\n")
            await other.content.readuntil(b"\n\n")
            await eventually(lambda: _in_flight(both, "app-m", 2))
            both.here.serve.gate.set()
            await other.read()
            await eventually(lambda: _in_flight(both, "app-m", 1))
            # Routed away, it is in flight at once: what is said from now on was looked at afterwards.
            await both.edges.set_routes({})
            assert (await both.usage())["app-m"] == Usage(1, 0.0)
            both.there.serve.gate.set()
            await one.read()
        await eventually(lambda: _in_flight(both, "app-m", 0))
        idle = (await both.usage())["app-m"].idle_seconds
        assert idle is not None
        assert idle < 60


async def _in_flight(both: Nodes, application: str, count: int) -> bool:
    return (await both.usage())[application].in_flight == count


async def test_what_began_before_the_routes_were_taken_away_is_never_overlooked() -> None:
    async with nodes() as both, both.followed():
        await _join(both)
        for turn in range(5):
            async with both.there.client.post(CHAT, json={"model": "m", "do": "stream"}) as stream:
                await stream.content.readuntil(b"\n\n")
                await both.edges.set_routes({})
                assert (await both.usage())["app-m"].in_flight == 1, turn
                both.there.serve.gate.set()
                await stream.read()
            both.there.serve.gate.clear()
            await both.edges.set_routes({"m": "app-m"})


async def test_a_killed_agent_makes_usage_unknown_and_a_new_one_known_again() -> None:
    async with nodes() as both:
        with capture_logs() as logs:
            agent = await _agent_process(both)
            await _join(both)
            agent.kill()
            await agent.wait()
            killed = time.monotonic()
            await eventually(both.unknown)
            assert time.monotonic() - killed < 8
            with pytest.raises(EdgeUnreachableError, match="the edge b has not reported"):
                await both.edges.usage()
            began = time.monotonic()
            await both.edges.set_routes({"m": "app-2"})
            assert time.monotonic() - began < 4  # one that is silent is not waited for
            assert await both.there.ask() == ("serve", f"/app-m{CHAT}")  # by the routes that it had
            agent = await _agent_process(both)
            await _join(both)
            assert await both.there.ask() == ("serve", f"/app-2{CHAT}")
            agent.kill()
            await agent.wait()
        events = [log["event"] for log in logs if log.get("edge") == "b"]
        assert events[::2] == ["edge.joined"] * 2  # once for each change
        assert events[1::2] == ["edge.silent"]
        assert both.token_file.read_text() not in str(logs)


async def _agent_process(both: Nodes) -> asyncio.subprocess.Process:
    options = both.there.options
    ports = (options.listen_port, options.serve_port, options.activator_port)
    arguments = (options.folder, *ports, TEMPLATE_FILE, both.url, both.token_file)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _FOLLOW, *map(str, arguments)),
        stderr=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )


async def test_a_restarted_reconciler_does_not_know_usage_until_every_edge_has_reported() -> None:
    async with nodes() as both:
        async with both.followed():
            await _join(both)
            await both.edges.set_routes({"m": "app-2"})
            await both.stop()
            assert await both.there.ask() == ("serve", f"/app-2{CHAT}")
        await both.start()
        assert json.loads((both.state_dir / "edges.json").read_text()) == {"edges": ["b"]}
        with pytest.raises(EdgeUnreachableError, match="the edge b has not reported"):
            await both.edges.usage()
        assert await both.there.ask() == ("serve", f"/app-2{CHAT}")
        async with both.followed():
            await eventually(both.known)
            assert await both.there.edge.routes() == {"m": "app-2"} == await both.edges.routes()


async def test_an_agent_that_goes_on_finds_a_restarted_reconciler_by_itself() -> None:
    async with nodes() as both, both.followed():
        await _join(both)
        with capture_logs() as logs:
            await both.stop()
            await asyncio.sleep(1.5)
            await both.start()
            await both.edges.set_routes({"m": "app-2"})
            await _join(both)
        events = [log["event"] for log in logs]
        assert events.index("follow.lost") < events.index("follow.connected")
        assert "edge.joined" in events
        assert await both.there.ask() == ("serve", f"/app-2{CHAT}")


async def test_an_edge_that_is_behind_or_lost_its_routes_is_brought_to_the_newest() -> None:
    async with nodes() as both:
        await both.there.edge.set_routes({"m": "app-old", "gone": "app-gone"})
        async with both.followed():
            await _join(both)
            assert await both.there.ask() == ("serve", f"/app-m{CHAT}")
            await both.there.edge.set_routes({"m": "of-somebody-else"})
            await eventually(lambda: _routed(both, {"m": "app-m"}))
            await both.there.edge.stop(grace_seconds=0)
            (both.there.options.folder / "routes.map").unlink()
            await eventually(lambda: _routed(both, {"m": "app-m"}))
            await eventually(both.there.edge.is_running)


async def _routed(both: Nodes, routes: dict[str, str]) -> bool:
    return await both.there.edge.routes() == routes


async def test_the_second_edge_is_kept_running_and_without_a_reconciler_too() -> None:
    async with nodes() as both, both.followed():
        await _join(both)
        await both.stop()
        await both.there.edge.stop(grace_seconds=0)
        await eventually(both.there.edge.is_running)
        assert await both.there.ask() == ("serve", f"/app-m{CHAT}")


async def test_only_the_token_opens_it_and_everything_else_is_the_activators() -> None:
    async with nodes() as both:
        assert stat.S_IMODE(both.token_file.stat().st_mode) == 0o600
        report = json.dumps({"edge": "x", "agent": "a", "version": None, "usage": {}})
        for wrong in ("0" * 64, "ü", both.token_file.read_text()[:-1]):
            assert (await both.sync(report, wrong))[0] == 401
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{both.url}{SYNC_PATH}", data=report) as response:
                assert response.status == 401
            async with session.get(f"{both.url}/v1/models") as response:
                assert await response.text() == "the activator"
            headers = {"Authorization": f"Bearer {both.token_file.read_text()}"}
            async with session.get(f"{both.url}{SYNC_PATH}", headers=headers) as response:
                assert response.status == 405
        assert await both.known()
        status, answer = await both.sync(report)
        assert (status, answer["routes"]) == (200, {"m": "app-m"})


async def test_an_agent_with_a_wrong_token_or_none_says_so_and_not_which(tmp_path: Path) -> None:
    async with nodes() as both:
        for content, reason in (("1" * 64, "it answered 401"), ("secretsecret", "holds no token")):
            (tmp_path / "token").write_text(content)
            with capture_logs() as logs:
                async with both.followed(tmp_path / "token"):
                    await asyncio.sleep(0.5)
            assert [log["event"] for log in logs] == ["follow.lost"]
            assert reason in logs[0]["reason"]
            assert content not in str(logs)
        assert await both.known()


async def test_two_agents_cannot_speak_for_one_edge() -> None:
    async with nodes() as both, both.followed():
        await _join(both)
        status, _ = await both.sync(json.dumps({"edge": "b", "agent": "other", "version": None, "usage": {}}))
        assert status == 409
        assert await both.known()


async def test_what_is_no_report_is_refused() -> None:
    async with nodes() as both:
        good = {"edge": "x", "agent": "a", "version": None, "usage": {"app": {"in_flight": 0, "idle_seconds": 1}}}
        bad: list[object] = [b"", b"[" * 100_000, b"\xff", b"[]", b" " * (2**20 + 1)]
        bad += [json.dumps({**good, "edge": name}) for name in ("", "a b", "a\n", "x" * 129, 3)]
        bad += [
            json.dumps({**good, "usage": {"app": {"in_flight": count, "idle_seconds": idle}}})
            for count, idle in ((-1, None), (True, None), (1.5, None), (0, -1), (0, float("nan")), (10**30, None))
        ]
        for data in bad:
            status, answer = await both.sync(data)
            assert status == 400, data
            assert answer["error"].startswith("no report")
        assert await both.known()
        assert not (both.state_dir / "edges.json").exists()


async def test_keys_reach_the_other_edge_by_their_digests_and_a_revoked_one_ends_there_too() -> None:
    secret = secret_from("a" * 43)
    mine = Key("k", digest_of(secret), frozenset({Scope.INFERENCE}), created=0.0, models=frozenset({"m"}))
    every = replace(mine, name="every", digest=digest_of("every"), models=None)

    async def asked(home: House, model: str, key: str) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key}"}
        async with home.client.post(CHAT, json={"model": model}, headers=headers) as answer:
            return answer.status, (await answer.json()).get("server", "")

    async with nodes() as both, both.followed():
        await both.edges.set_routes({"m": "app-m", "n": "app-n"})
        await _join(both)
        await both.edges.set_keys(KeyRing((mine, every)), time.time())

        async def taken() -> bool:
            return await asked(both.there, "m", "wrong") == (401, "")

        started = time.monotonic()
        await eventually(taken)
        assert time.monotonic() - started < 10
        for home in (both.here, both.there):
            assert await asked(home, "m", secret) == (200, "serve")
            assert await asked(home, "n", secret) == (200, "activator")
            assert await asked(home, "n", "every") == (200, "serve")

        async def counted() -> bool:
            return await both.edges.key_usage() == {mine.fingerprint: 4, every.fingerprint: 2}

        await eventually(counted)
        assert secret not in "".join(file.read_text() for file in both.there.options.folder.glob("*.map"))
        await both.edges.set_keys(KeyRing((replace(mine, revoked=1.0), every)), time.time())

        async def ended() -> bool:
            return await asked(both.there, "m", secret) == (401, "")

        await eventually(ended)
        assert await asked(both.here, "m", secret) == (401, "")
        # A reconciler that knows no keys yet takes none away.
        await both.stop()
        both.ring = None
        await both.start()
        report: dict[str, Any] = {"edge": "c", "agent": "c", "version": None, "usage": {}, "key_usage": {}}
        assert (await both.sync(json.dumps(report)))[0] == 503
        assert await asked(both.there, "m", "wrong") == (401, "")
        assert await asked(both.there, "n", "every") == (200, "serve")


async def test_a_revoked_key_ends_at_the_other_edge_though_this_one_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = Key("k", digest_of("secret"), frozenset({Scope.INFERENCE}), created=0.0)
    async with nodes() as both, both.followed():
        await _join(both)

        async def deaf(access: Access) -> None:
            raise EdgeUnreachableError("it does not take its keys.map")

        monkeypatch.setattr(both.here.edge, "set_access", deaf)
        with pytest.raises(EdgeUnreachableError):
            await both.edges.set_keys(KeyRing((replace(mine, revoked=1.0),)), time.time())

        async def ended() -> bool:
            async with both.there.client.post(CHAT, json={"model": "m"}) as answer:
                return answer.status == 401

        await eventually(ended)


async def test_revisions_reach_the_other_edge() -> None:
    async with nodes() as both:
        both.there.edge = both.there.another(revision_header=True)
        await both.there.edge.ensure_running()
        async with both.followed():
            await both.edges.set_revisions({"app-m": "a" * 40})
            await _join(both)

            async def said() -> bool:
                async with both.there.client.post(CHAT, json={"model": "m"}) as answer:
                    return answer.headers.get("X-Reconcile-Revision") == "a" * 40

            await eventually(said)


async def test_an_edge_that_strangers_reach_runs_only_where_keys_are_asked_for() -> None:
    async with nodes() as both:
        await both.there.edge.stop(grace_seconds=0)
        stop = asyncio.Event()
        agent = asyncio.create_task(follow(both.there.edge, both.url, both.token_file, "b", stop, exposed=True))
        try:
            await asyncio.sleep(2.5)
            assert not await both.there.edge.is_running()
            mine = Key("k", digest_of("secret"), frozenset({Scope.INFERENCE}), created=0.0)
            await both.edges.set_keys(KeyRing((mine,)), time.time())
            await eventually(both.there.edge.is_running, seconds=20)
            await both.edges.set_keys(KeyRing(), time.time())

            async def is_down() -> bool:
                return not await both.there.edge.is_running()

            await eventually(is_down, seconds=20)
        finally:
            stop.set()
            await agent
