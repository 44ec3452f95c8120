"""Beside the loop: what each model did over the last hour, kept in memory for the page.

    the last look (which replicas there are) -> ray_serve.engine_metrics -> core.series -> `LastHour.of`

A sample every 15 seconds, and engines are asked only while there are any. A restart begins anew.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Protocol

from reconciler.core.series import STEP_SECONDS, Hour, Meter, Reading, Series
from reconciler.core.state import Observed
from reconciler.host.log import get_logger
from reconciler.loop.loop import Look
from reconciler.ray_serve.client import ServeUnreachableError

log = get_logger()

_OLD_SECONDS = 60.0
"""A look that is older says nothing of now."""
_MEMORY_STEPS = 4
_MEMORY_SECONDS = 10.0


class Engines(Protocol):
    """Who knows what engines measure of themselves."""

    async def read(self, replicas: Collection[str]) -> Mapping[str, Reading]:
        """What these replicas' engines say, by replica.

        Raises:
            ServeUnreachableError: Nobody can tell.
        """
        ...


class LastHour:
    """The last hour of every model.

    Args:
        look: What the loop saw last; None before it saw anything.
        engines: What engines measure.
        held: Bytes that an application's processes have on GPUs now, or None where nobody can tell; None where no
            engine computes on one.
        wall_clock: Seconds since the epoch.
    """

    def __init__(
        self,
        look: Callable[[], Look | None],
        engines: Engines,
        held: Callable[[str], Awaitable[int | None]] | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._look = look
        self._engines = engines
        self._held = held
        self._wall_clock = wall_clock
        self._meter = Meter()
        self._hours: dict[str, Hour] = {}
        self._complaint = ""
        self._memory: Mapping[str, int] = {}

    def of(self, model: str) -> tuple[Series, ...]:
        """The last hour of a model; empty where nothing was measured of it."""
        hour = self._hours.get(model)
        return hour.series(self._tick()) if hour is not None else ()

    def memory(self) -> Mapping[str, int]:
        """Bytes that each application's processes had on GPUs a minute ago or less, where somebody can tell."""
        return self._memory

    async def watch(self) -> None:
        """Take a sample at every step, for ever; never raises."""
        while True:
            await asyncio.sleep(STEP_SECONDS - self._wall_clock() % STEP_SECONDS)
            try:
                await self.sample()
            except Exception as error:  # whatever it is: nobody needs this to be served
                log.exception("metrics.crashed", reason=repr(error))

    async def sample(self) -> None:
        """Take one sample of everything."""
        tick, now, look = self._tick(), self._wall_clock(), self._look()
        self._hours = {model: hour for model, hour in self._hours.items() if not hour.is_over(tick)}
        if look is None or now - look.observed.now > _OLD_SECONDS:
            return
        models = _replicas(look.observed)
        replicas = {replica for each in models.values() for replica in each}
        self._meter.see(replicas, now)
        found = await self._read(replicas) if replicas else {}
        at_the_door = _at_the_door(look.observed)
        for model in models.keys() | at_the_door.keys():
            engines = {each: found[each] for each in models.get(model, ()) if each in found}
            values = {**self._meter.measure(engines), **at_the_door.get(model, {})}
            self._hours.setdefault(model, Hour()).put(tick, values)
        if self._held is not None and tick % _MEMORY_STEPS == 0:
            self._memory = await self._memory_of(look.observed, self._held)

    async def _read(self, replicas: Collection[str]) -> Mapping[str, Reading]:
        try:
            found = await self._engines.read(replicas)
        except ServeUnreachableError as error:
            if str(error) != self._complaint:
                log.warning("metrics.unread", reason=str(error))
            self._complaint = str(error)
            return {}
        self._complaint = ""
        return found

    async def _memory_of(
        self, observed: Observed, held: Callable[[str], Awaitable[int | None]]
    ) -> Mapping[str, int]:
        found: dict[str, int] = {}
        names = [app.name for app in observed.applications.values() if app.model is not None and app.demand.gpus]
        # One after the other, each with a question to Ray: whoever is not reached in time is asked the next time.
        with contextlib.suppress(TimeoutError, ServeUnreachableError):
            async with asyncio.timeout(_MEMORY_SECONDS):
                for name in names:
                    size = await held(name)
                    if size is not None:
                        found[name] = size
        kept = {name: size for name, size in self._memory.items() if name in names}
        return {**kept, **found}

    def _tick(self) -> int:
        return int(self._wall_clock() // STEP_SECONDS)


def _replicas(observed: Observed) -> dict[str, list[str]]:
    """The replicas of every model that is up, or comes up."""
    found: dict[str, list[str]] = {}
    for app in observed.applications.values():
        ids = [replica.id for replica in app.replicas if replica.id]
        if app.model is not None and ids:
            found.setdefault(app.model, []).extend(ids)
    return found


def _at_the_door(observed: Observed) -> dict[str, dict[str, float]]:
    """What the front door has of each model that is up or waited for."""
    found: dict[str, dict[str, float]] = {}
    for app in observed.applications.values():
        if app.model is not None and observed.in_flight is not None:
            values = found.setdefault(app.model, {"in_flight": 0.0, "held": 0.0})
            values["in_flight"] += observed.in_flight.get(app.name, 0)
    for model, waiting in observed.waiting.items():
        found.setdefault(model, {})["held"] = float(waiting.count)
    return found
