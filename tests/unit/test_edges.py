"""Whose usage is known, and for how long an edge that says nothing is waited for."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message
from structlog.testing import capture_logs

from reconciler.edge.access import Access
from reconciler.edge.edge import Edge, EdgeUnreachableError, Usage
from reconciler.loop.edges import Edges


class Local:
    """The edge of this machine, that can fail."""

    def __init__(self) -> None:
        self.set: dict[str, str] = {"m": "app"}
        self.used = {"app": Usage(0, 40.0)}
        self.touched: list[str] = []
        self.fails = False

    async def ensure_running(self) -> bool:
        return False

    async def routes(self) -> dict[str, str]:
        return self.set

    async def set_routes(self, routes: Mapping[str, str]) -> None:
        if self.fails:
            raise EdgeUnreachableError("it does not take its routes")
        self.set = dict(routes)

    async def usage(self) -> dict[str, Usage]:
        if self.fails:
            raise EdgeUnreachableError("it is down")
        return self.used

    async def touch(self, applications: Iterable[str]) -> None:
        self.touched += applications


class Reconciler:
    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.local = Local()
        self.folder = folder
        self.edges = self.restarted()

    def restarted(self) -> Edges:
        self.edges = Edges(cast("Edge", self.local), self.folder, lease_seconds=600, clock=lambda: self.now)
        self.edges._access = Access(required=False, keys=())
        return self.edges

    async def report(self, version: str | None, edge: str = "b", agent: str = "1", **usage: object) -> Any:
        """The answer to a report, and its status where that is not 200."""
        report = {"edge": edge, "agent": agent, "version": version, "usage": usage}
        app = self.edges.asgi(PlainTextResponse("other"))
        token = (self.folder / "edge-token").read_text()
        received = [{"type": "http.request", "body": json.dumps(report).encode(), "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            return received.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {token}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/_edges/sync", "headers": headers, "query_string": b""}
        await app(scope, receive, send)
        return json.loads(sent[1]["body"]) if sent[0]["status"] == 200 else sent[0]["status"]

    async def join(self, edge: str = "b", **usage: object) -> str:
        version = str((await self.report(None, edge))["version"])
        await self.report(version, edge, "1", **usage)
        return version


@pytest.fixture
def reconciler(tmp_path: Path) -> Reconciler:
    return Reconciler(tmp_path)


async def test_without_followers_it_is_the_local_edge(reconciler: Reconciler) -> None:
    edges = reconciler.edges
    await edges.set_routes({"m": "new"})
    await edges.touch(["app"])
    assert await edges.routes() == {"m": "new"}
    assert await edges.usage() == {"app": Usage(0, 40.0)}
    assert reconciler.local.touched == ["app"]
    assert list(reconciler.folder.iterdir()) == []  # looking writes nothing


async def test_usage_is_added_up(reconciler: Reconciler) -> None:
    await reconciler.join(
        app={"in_flight": 2, "idle_seconds": 0}, other={"in_flight": 0, "idle_seconds": 7.5}, new=_NEVER
    )
    await reconciler.join("c", app={"in_flight": 1, "idle_seconds": 0}, other={"in_flight": 0, "idle_seconds": 3})
    assert await reconciler.edges.usage() == {
        "app": Usage(3, 0.0),
        "other": Usage(0, 3.0),
        "new": Usage(0, None),
    }


_NEVER = {"in_flight": 0, "idle_seconds": None}


async def test_a_follower_that_has_not_the_newest_routes_makes_usage_unknown(reconciler: Reconciler) -> None:
    old = await reconciler.join()
    setting = asyncio.create_task(reconciler.edges.set_routes({"m": "new"}))
    await asyncio.sleep(0.05)
    assert not setting.done()
    with pytest.raises(EdgeUnreachableError, match="the edge b has not taken the newest routes"):
        await reconciler.edges.usage()
    answer = await reconciler.report(old)
    assert answer["routes"] == {"m": "new"}
    assert answer["version"] != old
    assert not setting.done()
    holding = asyncio.create_task(reconciler.report(answer["version"]))
    await asyncio.wait_for(setting, 0.5)
    await reconciler.edges.usage()
    assert (await holding)["routes"] is None


async def test_one_that_does_not_acknowledge_is_waited_for_a_bounded_time(
    reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.loop.edges._ACKNOWLEDGE_SECONDS", 0.2)
    await reconciler.join()
    await asyncio.wait_for(reconciler.edges.set_routes({"m": "new"}), 1)
    with pytest.raises(EdgeUnreachableError):
        await reconciler.edges.usage()


async def test_a_call_is_held_until_there_are_other_routes(reconciler: Reconciler) -> None:
    version = await reconciler.join()
    held = asyncio.create_task(reconciler.report(version))
    await asyncio.sleep(0.05)
    assert not held.done()
    setting = asyncio.create_task(reconciler.edges.set_routes({}))
    assert (await asyncio.wait_for(held, 0.5))["routes"] == {}
    setting.cancel()


async def test_the_same_routes_again_are_no_news(reconciler: Reconciler) -> None:
    version = await reconciler.join()
    await asyncio.wait_for(reconciler.edges.set_routes({"m": "app"}), 0.5)
    assert (await reconciler.report(version))["version"] == version


async def test_routes_that_the_local_edge_does_not_take_reach_no_follower(reconciler: Reconciler) -> None:
    version = await reconciler.join()
    reconciler.local.fails = True
    with pytest.raises(EdgeUnreachableError):
        await reconciler.edges.set_routes({"m": "new"})
    assert await reconciler.report(version) == {"version": version, "routes": None, "wait": 1.0}
    with pytest.raises(EdgeUnreachableError, match="it is down"):
        await reconciler.edges.usage()


async def test_silence_is_unknown_and_after_the_lease_it_is_gone(reconciler: Reconciler) -> None:
    with capture_logs() as logs:
        version = await reconciler.join()
        reconciler.now = 3.0
        await reconciler.edges.usage()
        reconciler.now = 3.5
        for _ in range(2):
            with pytest.raises(EdgeUnreachableError, match="b has not reported for 4 seconds"):
                await reconciler.edges.usage()
        await reconciler.report(version)
        await reconciler.edges.usage()
        reconciler.now = 603.0
        with pytest.raises(EdgeUnreachableError):
            await reconciler.edges.usage()
        reconciler.now = 604.0
        await reconciler.edges.ensure_running()
        assert await reconciler.edges.usage() == {"app": Usage(0, 40.0)}
    assert [(log["event"], log["log_level"]) for log in logs] == [
        ("edge.joined", "info"),
        ("edge.silent", "warning"),
        ("edge.joined", "info"),
        ("edge.silent", "warning"),
        ("edge.forgotten", "warning"),
    ]
    assert json.loads((reconciler.folder / "edges.json").read_text()) == {"edges": []}


async def test_after_a_restart_the_known_ones_are_unknown_until_they_report(reconciler: Reconciler) -> None:
    old = await reconciler.join()
    edges = reconciler.restarted()
    with pytest.raises(EdgeUnreachableError, match="the edge b has not reported"):
        await edges.usage()
    # What a version meant before the restart says nothing now.
    answer = await reconciler.report(old)
    assert answer["routes"] == {"m": "app"}
    with pytest.raises(EdgeUnreachableError, match="the edge b has not taken"):
        await edges.usage()
    await reconciler.report(answer["version"])
    await edges.usage()
    reconciler.now = 1000.0
    assert reconciler.restarted()
    reconciler.now = 1601.0
    assert await reconciler.edges.usage() == {"app": Usage(0, 40.0)}


@pytest.mark.parametrize("content", ["", "nonsense", '{"edges": ["a b"]}', '{"edges": 3}', "[" * 10000])
async def test_a_damaged_list_of_followers_is_not_an_empty_one(reconciler: Reconciler, content: str) -> None:
    (reconciler.folder / "edges.json").write_text(content)
    edges = reconciler.restarted()
    with pytest.raises(EdgeUnreachableError, match=r"edges\.json lost"):
        await edges.usage()
    await reconciler.join()
    assert json.loads((reconciler.folder / "edges.json").read_text()) == {"edges": ["b"]}
    reconciler.now = 601.0
    await reconciler.report(None)
    with pytest.raises(EdgeUnreachableError, match="the edge b"):  # and no longer the other
        await edges.usage()


async def test_another_agent_takes_an_edge_over_when_the_first_is_silent(reconciler: Reconciler) -> None:
    version = await reconciler.join()
    assert await reconciler.report(version, agent="2") == 409
    reconciler.now = 3.1
    assert (await reconciler.report(version, agent="2"))["version"] == version
    assert await reconciler.report(version, agent="1") == 409


async def test_there_are_not_more_followers_than_a_bound(
    reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.loop.edges._MOST_FOLLOWERS", 2)
    assert (await reconciler.report(None, "a"))["routes"] == {"m": "app"}
    assert (await reconciler.report(None, "b"))["routes"] == {"m": "app"}
    assert await reconciler.report(None, "c") == 429


async def test_names_that_cannot_be_written_down_are_reported_and_go_on(
    reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    await reconciler.report(None, "a")
    monkeypatch.setattr("reconciler.loop.edges.write_atomic", full)
    with capture_logs() as logs:
        version = (await reconciler.report(None, "b"))["version"]
        await reconciler.report(version, "a")
        await reconciler.report(version, "b")
    assert [log["event"] for log in logs] == ["edges.unsaved", "edge.joined"]
    await reconciler.edges.usage()


@pytest.mark.parametrize("content", ["", "short", "ü" * 40, "a b" * 20])
async def test_a_token_file_without_a_token_is_an_error_that_does_not_show_it(
    reconciler: Reconciler, content: str
) -> None:
    (reconciler.folder / "edge-token").write_text(content)
    with pytest.raises(ValueError, match="holds no token") as caught:
        reconciler.edges.asgi(PlainTextResponse("other"))
    assert not content or content not in str(caught.value)


async def test_nobody_is_told_routes_before_it_is_known_who_may_infer(reconciler: Reconciler) -> None:
    reconciler.edges._access = None
    assert await reconciler.report(None) == 503
