"""Tasks beside the loop: that the processes of a version that was removed are gone, and with them its memory."""

import asyncio
import time
from collections.abc import Callable

from reconciler.core.state import Application
from reconciler.host.log import get_logger
from reconciler.host.processes import Process, alive, family

log = get_logger()

_POLL_SECONDS = 0.2
_LONG_SECONDS = 30.0
"""Serve asks a replica to end and kills it after 20 s; what is there after this long stays."""


class AfterStop:
    """Follows versions that are removed to their end.

    Args:
        here: Engines run on this machine, so their processes can be looked at.
        processes: The family of some processes; another one for tests.
    """

    def __init__(self, *, here: bool, processes: Callable[..., frozenset[Process]] = family) -> None:
        self._here = here
        self._processes = processes
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, app: Application) -> None:
        """Watch a version whose removal is about to be sent, beside the loop."""
        pids = [replica.pid for replica in app.replicas if replica.pid is not None]
        if not self._here or not pids:
            return
        task = asyncio.create_task(self._follow(app, self._processes(pids)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, app: Application, processes: frozenset[Process]) -> None:
        began = time.monotonic()
        left = processes
        while left and time.monotonic() - began < _LONG_SECONDS:
            await asyncio.sleep(_POLL_SECONDS)
            left = alive(left)
        if left:
            pids = sorted(each.pid for each in left)
            log.warning("model.lingers", model=app.model, application=app.name, pids=pids)
        while left:
            await asyncio.sleep(_LONG_SECONDS)
            left = alive(left)
        log.info(
            "model.unloaded",
            model=app.model,
            application=app.name,
            seconds=round(time.monotonic() - began, 1),
            processes=len(processes),
            resident=sum(each.resident for each in processes),
        )
