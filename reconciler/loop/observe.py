"""Look at everything once: Serve, the GPUs, the edge, local weights, our own memory -> `core.state.Observed`.

Looking changes nothing outside this process. A look that failed raises; it never returns half a picture, because
a missing application would read as one to be started.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from reconciler.core.desired import Desired
from reconciler.core.state import Application, Node, Observed
from reconciler.edge.edge import Edge, EdgeUnreachableError
from reconciler.loop.memory import Memory
from reconciler.ray_serve.client import ServeClient
from reconciler.ray_serve.observed import applications, nodes, serve_settings


class InFlightCounter(Protocol):
    """Something that passes requests on and knows how many are under way."""

    def in_flight(self) -> Mapping[str, int]:
        """Requests in flight by application."""

    def idle_seconds(self) -> Mapping[str, float]:
        """Seconds since the last request ended, by application."""


class Observer:
    """Looks at the world.

    Args:
        serve: An open client.
        edge: The front door's first half.
        memory: What was remembered.
        activator: The front door's second half, where it runs in this process.
        with_gpus: Read the cluster's GPUs; False where no model can reserve any.
        wall_clock: Seconds since the epoch.
    """

    def __init__(
        self,
        serve: ServeClient,
        edge: Edge,
        memory: Memory,
        *,
        activator: InFlightCounter | None = None,
        with_gpus: bool = False,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._serve = serve
        self._edge = edge
        self._memory = memory
        self._activator = activator
        self._with_gpus = with_gpus
        self._wall_clock = wall_clock

    async def observe(self, desired: Desired) -> Observed:
        """Everything at one time.

        Raises:
            ServeUnreachableError: Ray's dashboard or Serve's controller did not answer.
        """
        instance = await self._serve.instance()
        routes = await self._edge.routes()
        apps = self._memory.see(applications(instance), routes)
        in_flight, idle = await self._usage()
        return Observed(
            applications=apps,
            serve=serve_settings(instance),
            nodes=await self._nodes(apps),
            routes=routes,
            in_flight=in_flight,
            idle_seconds=idle,
            ready=frozenset(self._memory.ready),
            probing=frozenset(self._memory.probing),
            unanswered=dict(self._memory.unanswered),
            ages=self._memory.ages(),
            draining=self._memory.draining(),
            records=dict(self._memory.records),
            failures=dict(self._memory.failures),
            missing_paths=_missing_paths(desired),
            now=self._wall_clock(),
        )

    async def _nodes(self, apps: Mapping[str, Application]) -> tuple[Node, ...]:
        if not self._with_gpus:
            return ()
        ours = sum(app.demand.ranks * app.demand.gpus for app in apps.values() if app.model is not None)
        found = nodes(await self._serve.nodes(), await self._serve.gpu_usage(), ours)
        foreign = sum(node.gpus_foreign for node in found)
        settled = self._memory.settle_foreign(foreign)
        scale = settled / foreign if foreign else 0.0
        return tuple(dataclasses.replace(node, gpus_foreign=node.gpus_foreign * scale) for node in found)

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


def _missing_paths(desired: Desired) -> dict[str, str]:
    missing: dict[str, str] = {}
    for target in desired.targets.values():
        if target.path is None:
            continue
        folder = Path(target.path)
        if not folder.is_dir():
            missing[target.path] = f"source.path {target.path} is not a folder"
        elif not os.access(folder, os.R_OK | os.X_OK):
            missing[target.path] = f"source.path {target.path} cannot be read"
        elif not (folder / "config.json").is_file():
            missing[target.path] = f"source.path {target.path} holds no config.json, so it is no model folder"
    return missing
