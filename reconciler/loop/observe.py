"""Look at everything once: Serve, the GPUs, the edge, local weights, our own memory -> `core.state.Observed`.

Looking changes nothing outside this process. A look that failed raises; it never returns half a picture, because
a missing application would read as one to be started.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypedDict

from reconciler.core.application import adapter_names
from reconciler.core.desired import Desired
from reconciler.core.fitting import Cluster
from reconciler.core.main_memory import source_of
from reconciler.core.sleep import sleep_left
from reconciler.core.state import Application, Observed, Waiting
from reconciler.core.weights import Copy, CopyState, Role
from reconciler.core.windows import Window, window_of
from reconciler.edge.errors import EdgeUnreachableError
from reconciler.loop.edges import Edges
from reconciler.loop.gpus import GpuObserver
from reconciler.loop.load_times import LoadTimes
from reconciler.loop.memory import Memory
from reconciler.loop.overrides import OverrideStore
from reconciler.loop.sleeping import Sleeping
from reconciler.loop.suspensions import SuspensionStore
from reconciler.ray_serve.client import ServeClient
from reconciler.ray_serve.observed import applications, serve_settings
from reconciler.weights.store import WeightStore

_MARKS = {Role.MODEL: "config.json", Role.ADAPTER: "adapter_config.json", Role.TOKENIZER: ""}
_FIELDS = {Role.MODEL: "source.path", Role.ADAPTER: "adapters.path", Role.TOKENIZER: "source.tokenizer"}


class _Sleepers(TypedDict, total=False):
    asleep: frozenset[str]
    turning: frozenset[str]
    insomniac: Mapping[str, str]
    broken: Mapping[str, str]
    sleep_left: int


class InFlightCounter(Protocol):
    """Something that passes requests on and knows how many are under way."""

    def in_flight(self) -> Mapping[str, int]:
        """Requests in flight by application."""

    def idle_seconds(self) -> Mapping[str, float]:
        """Seconds since the last request ended, by application."""

    def waiting(self) -> Mapping[str, Waiting]:
        """Requests that wait for a model to come up, by model."""


class Observer:
    """Looks at the world.

    Args:
        serve: An open client.
        edge: The front door's first half, on every node that has one.
        memory: What was remembered.
        overrides: What was asked for by hand.
        suspensions: What is to be left as it is.
        load_times: How long loads took.
        sleeping: Who sleeps; None where no engine can.
        sleep_budget: Bytes of main memory that sleepers may take together.
        weights: The weights on disk, and on their way.
        activator: The front door's second half, where it runs in this process.
        gpus: Looks at the cluster's GPUs; None where no model can reserve any.
        main_memory: Gives the bytes of main memory that are free where engines run; None where that is elsewhere.
        wall_clock: Seconds since the epoch.
    """

    def __init__(
        self,
        serve: ServeClient,
        edge: Edges,
        memory: Memory,
        weights: WeightStore,
        *,
        overrides: OverrideStore,
        suspensions: SuspensionStore,
        load_times: LoadTimes,
        sleeping: Sleeping | None = None,
        sleep_budget: int = 0,
        activator: InFlightCounter | None = None,
        gpus: GpuObserver | None = None,
        main_memory: Callable[[], int | None] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._serve = serve
        self._edge = edge
        self._memory = memory
        self._weights = weights
        self._overrides = overrides
        self._suspensions = suspensions
        self._load_times = load_times
        self._sleeping = sleeping
        self._sleep_budget = sleep_budget
        self._activator = activator
        self._gpus = gpus
        self._main_memory = main_memory
        self._wall_clock = wall_clock

    async def cluster(self) -> Cluster:
        """The applications, the GPUs and the routes: what sizes are decided from.

        Raises:
            ServeUnreachableError: Ray's dashboard or Serve's controller did not answer.
        """
        instance = await self._serve.instance()
        found = applications(instance)
        # An adapter has a route of its own to its model's application.
        adapters = {name for app in found.values() for name in adapter_names(app.config or {})}
        routes = {model: name for model, name in (await self._edge.routes()).items() if model not in adapters}
        apps = self._memory.see(found, routes)
        nodes = await self._gpus.nodes(apps) if self._gpus is not None else ()
        return Cluster(apps, nodes, routes, serve_settings(instance), dict(self._memory.records))

    async def observe(self, desired: Desired, cluster: Cluster, *, sizes: bool = False) -> Observed:
        """Everything else, for the versions that are wanted.

        Args:
            desired: The model files, with every size decided: what they need is looked for.
            cluster: What was seen a moment ago.
            sizes: Find out how large downloads would be, which takes a request to the hub for each.
        """
        apps = cluster.applications
        in_flight, idle = await self._usage()
        now = self._wall_clock()
        return Observed(
            applications=apps,
            serve=cluster.serve,
            nodes=cluster.nodes,
            routes=cluster.routes,
            in_flight=in_flight,
            idle_seconds=self._memory.use(in_flight, idle),
            up_seconds=self._memory.up_seconds(),
            waiting=self._activator.waiting() if self._activator is not None else {},
            load_seconds=self._load_times.expected(),
            **self._sleepers(),
            overrides=self._overrides.active(),
            windows=_windows(desired, now),
            suspensions=self._suspensions.active(),
            declared=dict(self._memory.declared),
            left=dict(self._memory.left),
            ready=frozenset(self._memory.ready),
            probing=frozenset(self._memory.probing),
            unanswered=dict(self._memory.unanswered),
            ages=self._memory.ages(),
            draining=self._memory.draining(),
            records=dict(self._memory.records),
            failures=dict(self._memory.failures),
            missing_paths=_missing_paths(desired),
            main_memory=self._main_memory() if self._main_memory is not None else None,
            folder_bytes=await self._folder_bytes(desired, apps),
            weights=await self._weights_for(desired, apps, sizes=sizes),
            now=now,
        )

    def _sleepers(self) -> "_Sleepers":
        sleeping = self._sleeping
        if sleeping is None:
            return {}
        free = self._main_memory() if self._main_memory is not None else None
        return {
            "asleep": sleeping.asleep,
            "turning": sleeping.going_to_sleep | sleeping.waking,
            "insomniac": sleeping.demoted,
            "broken": sleeping.failed,
            "sleep_left": sleep_left(free, self._sleep_budget, sum(sleeping.main_memory.values())),
        }

    async def _weights_for(
        self, desired: Desired, apps: Mapping[str, Application], *, sizes: bool
    ) -> dict[Copy, CopyState]:
        # What is up has read its weights.
        waiting = [target for target in desired.targets.values() if target.application not in apps]
        copies = {copy for target in waiting for copy in target.copies}
        return await self._weights.states(copies, sizes=sizes) if copies else {}

    async def _folder_bytes(self, desired: Desired, apps: Mapping[str, Application]) -> dict[str, int]:
        """Bytes of weights, by the folder that they are read from: of what is to start, and of what is there."""
        if self._main_memory is None:
            return {}
        waiting = [each for each in desired.targets.values() if each.application not in apps]
        known = {
            source_of(each.config): each.fit.sized.found.weights.expected
            for each in waiting
            if each.fit is not None
        }
        configs = [each.config for each in waiting]
        configs += [app.config for app in apps.values() if app.model is not None and app.config is not None]
        folders = {source_of(config) for config in configs} - {""} - known.keys()
        return known | await asyncio.to_thread(lambda: {folder: _weights_in(Path(folder)) for folder in folders})

    async def _usage(self) -> tuple[dict[str, int] | None, dict[str, float]]:
        """Requests in flight and seconds since the last, by application, over both halves of the front door."""
        try:
            usage = await self._edge.usage()
        except EdgeUnreachableError:
            return None, {}
        counts = {name: use.in_flight for name, use in usage.items()}
        idle = {name: use.idle_seconds for name, use in usage.items() if use.idle_seconds is not None}
        if self._activator is not None:
            for name, count in self._activator.in_flight().items():
                counts[name] = counts.get(name, 0) + count
            for name, seconds in self._activator.idle_seconds().items():
                idle[name] = min(seconds, idle.get(name, seconds))
        return counts, idle


def _windows(desired: Desired, now: float) -> dict[str, Window]:
    schedules = {model: target.spec.lifecycle.schedule for model, target in desired.targets.items()}
    found = {model: window_of(schedule, now) for model, schedule in schedules.items() if schedule}
    return {model: window for model, window in found.items() if window is not None}


def _weights_in(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _missing_paths(desired: Desired) -> dict[str, str]:
    missing: dict[str, str] = {}
    for target in desired.targets.values():
        for path, role in target.paths.items():
            folder, needed = Path(path), _MARKS[role]
            if not folder.is_dir():
                missing[path] = f"{_FIELDS[role]} {path} is not a folder"
            elif not os.access(folder, os.R_OK | os.X_OK):
                missing[path] = f"{_FIELDS[role]} {path} cannot be read"
            elif needed and not (folder / needed).is_file():
                kind = "LoRA adapter" if role is Role.ADAPTER else "model folder"
                missing[path] = f"{_FIELDS[role]} {path} holds no {needed}, so it is no {kind}"
    return missing
