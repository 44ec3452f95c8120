"""The process that stays, put together for real over a Ray dashboard of ours: measures, API, signs of life."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families

from reconciler.core.journal_entry import ACTIONS, Entry, Outcome, iso_of
from reconciler.core.keys import Scope
from reconciler.core.turn import Options
from reconciler.daemon import watch as watching
from reconciler.daemon.management import management_app
from reconciler.daemon.measures import Measures
from reconciler.host.event_feed import EventFeed
from reconciler.host.key_file import KeyFile
from reconciler.host.notify import Heartbeat, Notifier
from reconciler.host.settings import Settings
from reconciler.loop.assemble import Parts, assembled, make_edge
from reconciler.loop.metrics import Feeds
from reconciler.ray_serve.client import ServeUnreachableError


class Dashboard:
    """Ray's, of a cluster with no node and a Serve that has nothing, as long as it answers."""

    def __init__(self) -> None:
        self.answers = True
        self.url = ""

    async def asked(self, request: web.Request) -> web.Response:
        if not self.answers:
            raise web.HTTPServiceUnavailable
        if request.path == "/api/serve/applications/":
            return web.json_response({"controller_info": {}, "applications": {}})
        return web.json_response({"data": {}})


@pytest.fixture
async def dashboard() -> AsyncIterator[Dashboard]:
    board, app = Dashboard(), web.Application()
    app.router.add_route("*", "/{path:.*}", board.asked)
    async with TestServer(app) as server:
        board.url = str(server.make_url("")).rstrip("/")
        yield board


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def settings_of(folder: Path, board: Dashboard, engine: str = "cpu") -> Settings:
    (folder / "state").mkdir(mode=0o700)
    (folder / "models.d").mkdir()
    ports = {name: free_port() for name in ("listen_port", "activator_port", "api_port", "serve_port")}
    return Settings.model_validate(
        {
            **ports,
            "state_dir": folder / "state",
            "models_dir": folder / "models.d",
            "hub_cache": folder / "hub",
            "engine": engine,
            "ray_dashboard": board.url,
            "ray_token_path": None,
            "lease": False,
            "fast_start": False,
        }
    )


@contextlib.asynccontextmanager
async def measured(settings: Settings) -> AsyncIterator[tuple[Parts, Measures]]:
    async with assembled(settings, Options(max_loads=1), with_activator=True) as parts:
        yield parts, Measures(parts, settings)


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        await asyncio.sleep(0.02)


# --- measures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["cpu", "cuda"])
async def test_every_feed_is_fed(tmp_path: Path, dashboard: Dashboard, engine: str) -> None:
    async with measured(settings_of(tmp_path, dashboard, engine)) as (parts, measures):
        feeds = measures.metrics._feeds
        unfed = {each.name for each in dataclasses.fields(Feeds) if getattr(feeds, each.name) is each.default}
        assert not unfed
        assert feeds.look() is parts.loop.last is None
        assert feeds.directory() is parts.activator.directory
        assert feeds.holds_lease() is parts.lease.holds() is True
        measures.key_usage.note({"aaaaaaaaaaaa": 3})
        measures.key_usage.note({"aaaaaaaaaaaa": 5})
        counted = measures.key_usage.usage()["aaaaaaaaaaaa"].requests
        assert feeds.key_requests() == {"aaaaaaaaaaaa": counted}
        for feed in (feeds.downloads, feeds.received, feeds.model_memory, feeds.gpu_used):
            assert dict(feed()) == {}
        await measures.metrics.look_at_disks()
        found = samples(measures.metrics.text())
        assert found["reconcile_lease_held",] == 1
        assert found["reconcile_key_requests_total", "aaaaaaaaaaaa"] == counted
        assert found["reconcile_disk_free_bytes", "state"] > 0


async def test_every_hook_counts(tmp_path: Path, dashboard: Dashboard) -> None:
    settings = settings_of(tmp_path, dashboard, "cuda")
    (settings.models_dir / "qwen.yaml").write_text("source: {repo: o/q}\n")
    async with measured(settings) as (parts, measures):
        assert parts.sleeping is not None, "engines on GPUs can sleep"
        # What is counted of a model is shown while there is one.
        parts.loop.last = await parts.loop.look_apart()
        before = samples(measures.metrics.text())
        # As loop, actor and sleeping call them.
        parts.loop.loaded("qwen", {"weights": 2.0, "start": 3.0})
        parts.actor.evicted("qwen")
        parts.sleeping.woke("qwen", 1.5)
        action = min(ACTIONS)
        parts.journal._write([Entry(iso_of(time.time()), "qwen", action, Outcome.DONE)])
        after = samples(measures.metrics.text())
        for name in (
            ("reconcile_model_load_seconds_count", "qwen"),
            ("reconcile_model_evictions_total", "qwen"),
            ("reconcile_model_wake_seconds_count", "qwen"),
            ("reconcile_changes_total", action, Outcome.DONE.value),
        ):
            assert (before.get(name, 0.0), after.get(name)) == (0.0, 1.0), name
        assert after["reconcile_model_last_load_seconds", "qwen", "start"] == 3.0


async def test_each_turn_of_the_loop_counts(tmp_path: Path, dashboard: Dashboard) -> None:
    async with measured(settings_of(tmp_path, dashboard)) as (parts, measures):
        dashboard.answers = False
        with pytest.raises(ServeUnreachableError):
            await parts.client.instance()
        turns = asyncio.create_task(
            parts.loop.watch(parts.actor, parts.front_door, parts.reporter, resync_seconds=60)
        )
        failed = ("reconcile_turns_total", "failed")
        await until(lambda: samples(measures.metrics.text())[failed] >= 1)
        turns.cancel()
        await asyncio.gather(turns, return_exceptions=True)
        found = samples(measures.metrics.text())
        assert parts.loop.laps in (found[failed], found[failed] + 1)
        assert found["reconcile_turn_duration_seconds_count",] == found[failed]
        assert ("reconcile_last_success_timestamp_seconds",) not in found


# --- management -------------------------------------------------------------------------------------------


async def test_the_management_answers_with_a_key(tmp_path: Path, dashboard: Dashboard) -> None:
    settings = settings_of(tmp_path, dashboard)
    secrets = {scope: KeyFile(settings.state_dir).add(scope.value, [scope])[1] for scope in Scope}
    async with measured(settings) as (parts, measures):
        operations = watching._operations(parts, settings, None)
        app = management_app(parts, settings, operations, EventFeed(), measures)
        here = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=here, base_url=f"http://127.0.0.1:{settings.api_port}") as client:

            async def status(path: str, scope: Scope | None) -> int:
                headers = {"Authorization": f"Bearer {secrets[scope]}"} if scope is not None else {}
                return (await client.get(path, headers=headers)).status_code

            for path, allowed in (
                ("/api/v1/source", {Scope.ADMIN: 503}),  # Nobody has looked yet.
                ("/api/v1/history", {Scope.ADMIN: 200}),
                ("/api/v1/serve", {Scope.ADMIN: 200}),
                ("/api/v1/files", {Scope.ADMIN: 200}),
                ("/api/v1/keys", {Scope.ADMIN: 200}),
                ("/metrics", {Scope.ADMIN: 200, Scope.METRICS: 200}),
            ):
                for scope in (None, *Scope):
                    expected = {allowed.get(scope)} if scope in allowed else {401, 403}
                    assert await status(path, scope) in expected, (path, scope)
            assert await status("/login", None) == 200
            text = await client.get("/metrics", headers={"Authorization": f"Bearer {secrets[Scope.METRICS]}"})
            assert b"reconcile_lease_held 1.0" in text.content


# --- the whole process ------------------------------------------------------------------------------------


class Watched(Heartbeat):
    """A heart that can be looked into."""

    made: "list[Watched]" = []  # noqa: RUF012 -- emptied by the test

    def __init__(self, notifier: Notifier, laps: Callable[[], int], **more: Any) -> None:
        super().__init__(notifier, laps, **more)
        self.laps = laps
        self.made.append(self)


async def test_the_process_that_stays(
    tmp_path: Path, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, dashboard)
    _, secret = KeyFile(settings.state_dir).add("admin", [Scope.ADMIN])
    monkeypatch.setattr(watching, "Heartbeat", Watched)
    monkeypatch.setattr(watching, "prepare", lambda: None)  # Imports Ray Serve, for the first load.
    Watched.made.clear()
    told: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "600000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        process = asyncio.create_task(watching.watch(settings, Options(max_loads=1), EventFeed()))

        def heard(line: bytes) -> int:
            with contextlib.suppress(BlockingIOError):
                while True:
                    told.extend(supervisor.recv(4096).splitlines())
            return told.count(line)

        try:
            await until(lambda: bool(Watched.made) and Watched.made[0].laps() >= 2)
            assert heard(b"READY=1") == 1
            headers = {"Authorization": f"Bearer {secret}"}
            async with aiohttp.ClientSession(f"http://127.0.0.1:{settings.api_port}", headers=headers) as http:
                async with http.get("/metrics") as answer:
                    assert answer.status == 200
                    counted = samples(await answer.read())
                turns = sum(counted["reconcile_turns_total", result] for result in ("ok", "failed", "crashed"))
                # The heart sees the very laps whose turns are counted.
                assert 0 <= Watched.made[0].laps() - turns <= 2
                assert counted["reconcile_turns_total", "crashed"] == 0
            alive = heard(b"WATCHDOG=1")
            await until(lambda: heard(b"WATCHDOG=1") >= alive + 2)
            # A loop that comes round no more is given up; this one does.
            heart = Watched.made[0]
            now = time.monotonic()
            monkeypatch.setattr(heart, "_monotonic", lambda: now + 1e6)
            monkeypatch.setattr(heart, "_seen", heart.laps())
            assert not heart.gets_on()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(process, 30)
            assert heard(b"STOPPING=1") >= 1
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().remove_signal_handler(number)
            # It outlives the process, as models do.
            edge = make_edge(settings, settings.serve_port)
            assert await edge.is_running()
            await edge.stop()
