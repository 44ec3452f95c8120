"""A reconciler in this process for the API to operate: everything is real but Serve, its GPUs and the clock.

Files, keys, the journal, overrides, suspensions, rollbacks, edits, logs and events are real ones.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from simulation.world import TEMPLATE, World, model_file, renderer
from starlette.types import ASGIApp

from reconciler.activator.server import listen_tcp, serve_on
from reconciler.api.app import api_app
from reconciler.api.context import Access, Context, Place
from reconciler.api.schemas import ModelMetrics, SeriesView
from reconciler.api.sessions import Sessions
from reconciler.core.keys import Key, Scope
from reconciler.core.plan import Plan
from reconciler.core.planner import make_plan
from reconciler.core.turn import Options
from reconciler.host.event_feed import EventFeed
from reconciler.host.key_file import KeyFile
from reconciler.loop.by_hand import ByHand
from reconciler.loop.edits import Edits
from reconciler.loop.journal import Journal, Versions
from reconciler.loop.lease import Keeper
from reconciler.loop.logs import Logs
from reconciler.loop.loop import Look
from reconciler.loop.operations import Operations
from reconciler.loop.overrides import OverrideStore
from reconciler.loop.rollbacks import RollbackHand, RollbackStore
from reconciler.loop.suspensions import SuspensionStore
from reconciler.sources.edit_folder import FolderEdits
from reconciler.sources.folder import FolderSource
from reconciler.weights.cache import HubCache
from reconciler.weights.hub import Hub
from reconciler.weights.store import Limits, WeightStore

FILES = {
    "qwen": model_file(share=0.5, policy="on_demand", aliases="chat"),
    "base": model_file(share=0.5),
    "big": model_file(share=0.9, policy="manual", name="org/big"),
}


class SimulatedLoop:
    """`loop.Loop` as the operations know it, over a simulated world."""

    def __init__(self, world: World, models: Path, state: Path) -> None:
        self.world = world
        self.source = FolderSource(models)
        self.overrides = OverrideStore(state, wall_clock=lambda: world.now)
        self.suspensions = SuspensionStore(state, wall_clock=lambda: world.now)
        self.rollbacks = RollbackStore(state)
        self.journal = Journal(state)
        self.options = Options(max_loads=4)
        self.last: Look | None = None
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1

    async def look_apart(self) -> Look:
        await self._take_in()
        desired = self.world.desired
        observed = self.world.observe(desired)
        return Look(desired, observed, make_plan(desired, observed, self.options))

    async def turn(self) -> Plan:
        await self._take_in()
        given = dict(self.world.overrides)
        plan = self.world.turn()
        for model in given.keys() - self.world.overrides.keys():
            self.overrides.end(given[model], "done")
        self.last = await self.look_apart()
        self.journal.note(self.last.desired, self.last.observed, self.last.plan, await self.source.read())
        self.world.tick()
        return plan

    async def reconcile_now(self, options: Options) -> Look:
        self.world.options = options
        for _ in range(200):
            if (await self.turn()).done:
                assert self.last is not None
                return self.last
            await asyncio.sleep(0)
        raise AssertionError("it does not settle")

    async def _take_in(self) -> None:
        snapshot = self.rollbacks.apply(await self.source.read())
        self.world.files = {path: content.decode() for path, content in snapshot.files.items()}
        self.world.overrides = self.overrides.active()
        self.world.suspensions = {each.model: each for each in self.suspensions.active()}


class Here:
    """A reconciler, its keys and its API."""

    def __init__(
        self,
        folder: Path,
        *,
        access: Access = Access(),  # noqa: B008 -- frozen
        page: ASGIApp | None = None,
        feed: EventFeed | None = None,
        logs: Any = None,
    ) -> None:
        state, models = folder / "state", folder / "models.d"
        state.mkdir()
        models.mkdir()
        self.state, self.models = state, models
        for stem, text in FILES.items():
            (models / f"{stem}.yaml").write_text(text)
        self.loop = SimulatedLoop(World(state, gpus=2, now=time.time()), models, state)
        loop: Any = self.loop
        self.by_hand = ByHand(loop, self.loop.overrides, self.loop.suspensions, lambda: self.loop.world.directory)
        self.weights = WeightStore(
            state, Hub("http://127.0.0.1:9"), HubCache(folder / "hub"), Limits(offline=True)
        )
        self.lease = Keeper(None, "", "", "test", off="a test")
        self.operations = Operations(
            loop,
            self.weights,
            self.by_hand,
            rollback=RollbackHand(self.loop.rollbacks, Versions(state), self.loop.source.read),
            sync=self._sync,
            lease=self.lease,
            journal=self.loop.journal,
        )
        self.keys = KeyFile(state)
        self.feed = feed or EventFeed(keep=100)
        self.context = Context(
            operations=self.operations,
            keys=self.keys,
            sessions=Sessions(self.keys.ring),
            state_dir=state,
            source=Place("folder", str(models)),
            feed=self.feed,
            logs=logs or Logs(state),
            edits=Edits(self.loop.source, renderer(TEMPLATE), FolderEdits(models, state)),
            serve=self._serve,
            metrics_text=lambda: b"reconciler_up 1\n",
            model_metrics=self._metrics,
            access=access,
        )
        self.admin = self.key("admin", Scope.ADMIN)
        self.app = api_app(self.context, page)

    def key(self, name: str, *scopes: Scope, expires: float | None = None) -> str:
        return self.keys.add(name, scopes, expires=expires)[1]

    def kept(self, secret: str) -> Key:
        found = self.keys.ring().find(secret, time.time())
        assert found is not None
        return found

    def client(self, secret: str | None = None, *, peer: str = "127.0.0.1") -> httpx.AsyncClient:
        """In process, for what does not stream."""
        headers = {"Authorization": f"Bearer {self.admin if secret is None else secret}"} if secret != "" else {}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(peer, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4002", headers=headers)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Over real HTTP; gives the address."""
        listener = listen_tcp("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        task = asyncio.create_task(serve_on(self.app, listener, grace_seconds=1))
        try:
            yield url
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _sync(self) -> dict[str, object]:
        return {"source": "folder"}

    async def _serve(self) -> dict[str, Any]:
        return self.loop.world.serve.describe()

    def _metrics(self, model: str) -> ModelMetrics | None:
        if model == "org/big":
            return None
        series = SeriesView(name="requests", unit="1/s", start=0.0, step=60.0, points=(1.0, None))
        return ModelMetrics(model=model, series=(series,))
