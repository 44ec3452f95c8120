"""The front door as the loop sees it: an edge that must run, and a directory that must be current."""

import contextlib
import time
from dataclasses import replace

from reconciler.activator.app import Activator
from reconciler.activator.directory import Directory, ModelState
from reconciler.core.desired import Desired
from reconciler.core.plan import Plan
from reconciler.core.state import Observed
from reconciler.edge.edge import Edge, EdgeStartError, EdgeUnreachableError
from reconciler.host.log import get_logger
from reconciler.loop.directory import build_directory
from reconciler.loop.edges import Edges

log = get_logger()


class FrontDoor:
    """Both halves of the front door; the activator is absent in a reconciler that does not stay."""

    def __init__(self, edge: Edge | Edges, activator: Activator | None = None) -> None:
        self._edge = edge
        self._activator = activator
        self._created = int(time.time())
        self._complaint = ""
        self._noted = time.monotonic()

    async def ensure_running(self) -> None:
        """Start the edge where it does not run. A failure is logged once, and tried again on the next turn."""
        try:
            if await self._edge.ensure_running():
                log.info("edge.started")
            self._complaint = ""
        except EdgeStartError as error:
            if str(error) != self._complaint:
                log.error("edge.failed", reason=str(error))  # noqa: TRY400 -- HAProxy's reason, not our trace
            self._complaint = str(error)

    async def note_use(self) -> None:
        """Tell the edge, which outlives this process, what the activator has served since this was last called."""
        if self._activator is None:
            return
        now = time.monotonic()
        since, self._noted = now - self._noted, now
        used = [name for name, idle in self._activator.idle_seconds().items() if idle <= since]
        if used:
            with contextlib.suppress(EdgeUnreachableError):
                await self._edge.touch(used)

    def publish(self, desired: Desired, observed: Observed, plan: Plan) -> None:
        """Tell the activator what there is, as it will be once this turn's steps are done."""
        if self._activator is None:
            return
        self._activator.forget_others(observed.applications)
        directory = build_directory(desired, observed, plan, created=self._created)
        if desired.unreadable:
            directory = _with_those_of(self._activator.directory, directory, desired.unreadable)
        self._activator.directory = directory


def _with_those_of(before: Directory, now: Directory, unreadable: str) -> Directory:
    """The models that were known before the source became unreadable are no less declared: requests may wait."""
    reason = f"the model files cannot be read: {unreadable}"
    lost = [entry for entry in before.entries if now.find(entry.name) is None]
    kept = [replace(each, application=None, state=ModelState.UNLOADED, reason=reason, holds=True) for each in lost]
    return Directory([*now.entries, *kept], settled=before.settled)
