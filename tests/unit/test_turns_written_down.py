"""A turn is written down before it does anything, so that nothing which ends it half way is missing afterwards."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from reconciler.core.journal_entry import Entry
from reconciler.core.state import Json, Record
from reconciler.core.turn import Options
from reconciler.host.settings import Settings
from reconciler.loop.assemble import Parts, assembled
from reconciler.loop.journal import read
from reconciler.ray_serve.client import ServeRefusedError


class Dashboard:
    """Ray's, over a Serve that says what runs and refuses every PUT."""

    def __init__(self) -> None:
        self.applications: dict[str, Json] = {}
        self.url = ""
        self.puts = 0

    async def asked(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            self.puts += 1
            return web.json_response({"error": "not today"}, status=400)
        if request.path == "/api/serve/applications/":
            return web.json_response({"controller_info": {"id": "c"}, "applications": self.applications})
        return web.json_response({"data": {}})

    def runs(self, config: Json) -> None:
        replica = {"replica_id": "r", "state": "RUNNING", "pid": 1}
        deployments = {"LLMServer": {"status": "HEALTHY", "replicas": [replica]}}
        self.applications[config["name"]] = {
            "status": "RUNNING",
            "deployed_app_config": config,
            "deployments": deployments,
        }


@pytest.fixture
async def dashboard() -> AsyncIterator[Dashboard]:
    board, app = Dashboard(), web.Application()
    app.router.add_route("*", "/{path:.*}", board.asked)
    async with TestServer(app) as server:
        board.url = str(server.make_url("")).rstrip("/")
        yield board


@pytest.fixture
def settings(tmp_path: Path, dashboard: Dashboard) -> Settings:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "models.d").mkdir()
    return Settings.model_validate(
        {
            "state_dir": tmp_path / "state",
            "models_dir": tmp_path / "models.d",
            "hub_cache": tmp_path / "hub",
            "engine": "cpu",
            "ray_dashboard": dashboard.url,
            "ray_token_path": None,
            "lease": False,
            "fast_start": False,
        }
    )


def declare(settings: Settings, model: str, more: str = "") -> None:
    weights = settings.state_dir.parent / model
    weights.mkdir(exist_ok=True)
    (weights / "config.json").write_text(json.dumps({"model_type": "llama"}))
    text = f"source: {{path: {weights}}}\nlifecycle: {{policy: pinned}}\n{more}"
    (settings.models_dir / f"{model}.yaml").write_text(text)


async def bring_up(parts: Parts, dashboard: Dashboard) -> None:
    """As if all that is declared had been brought up long ago."""
    desired = (await parts.loop.look(patience=5)).desired
    memory: Any = parts.loop._memory
    for target in desired.targets.values():
        dashboard.runs(target.config)
        memory.record(Record(target.model, target.file, target.application, target.fields, basis=target.basis))
        memory.answered(target.application)
    await parts.edge.set_routes({target.model: target.application for target in desired.targets.values()})


@contextlib.asynccontextmanager
async def one_of_two_is_new(settings: Settings, dashboard: Dashboard) -> AsyncIterator[Parts]:
    """`a`, which is up, gets another description by the same push as the new `b`, which no PUT brings up."""
    declare(settings, "a")
    async with assembled(settings, Options(max_loads=1), ask_hub=False) as parts:
        await bring_up(parts, dashboard)
        declare(settings, "a", "description: new\n")
        declare(settings, "b")
        await parts.loop.look(patience=20)  # A turn does not wait until it is known what `b` is made of.
        yield parts


def told(settings: Settings) -> list[tuple[str, str, str]]:
    entries: list[Entry] = read(settings.state_dir)
    return [(each.model, str(each.what), str(each.outcome)) for each in entries]


async def test_what_a_turn_finished_before_a_put_failed_is_in_the_journal(
    settings: Settings, dashboard: Dashboard
) -> None:
    async with one_of_two_is_new(settings, dashboard) as parts:
        seen: list[str] = []
        parts.loop.seen = lambda desired, plan: seen.append(desired.revision)
        for _ in range(2):
            with pytest.raises(ServeRefusedError, match="not today"):
                await parts.loop.turn(parts.actor, parts.front_door, parts.reporter)
        assert dashboard.puts == 2
        assert told(settings) == [
            ("a", "front door", "started"),
            ("b", "add", "started"),
            ("a", "front door", "done"),
        ]
        assert parts.loop.last is not None
        assert len(seen) == 2
        assert set(seen) == {parts.loop.last.desired.revision}
        assert "b" in parts.loop.last.desired.targets


async def test_what_a_process_did_that_was_killed_in_the_middle_is_in_the_journal(
    settings: Settings, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one_of_two_is_new(settings, dashboard) as parts:
        there = asyncio.Event()

        async def stop_here(_: Json) -> None:
            there.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(parts.client, "put", stop_here)
        turn = asyncio.create_task(parts.loop.turn(parts.actor, parts.front_door, parts.reporter))
        await asyncio.wait_for(there.wait(), 30)
        # What a kill would leave on the disk; nothing of this process is asked any more.
        assert told(settings) == [("a", "front door", "started"), ("b", "add", "started")]
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)
    monkeypatch.undo()
    async with assembled(settings, Options(max_loads=1), ask_hub=False) as parts:
        await parts.loop.turn(parts.actor, parts.front_door, parts.reporter)
    assert told(settings)[2:] == [("a", "front door", "done")]
