"""The front door as the loop sees it: an edge that must run, and a directory that must be current."""

import contextlib
import re
import time
from dataclasses import replace

from reconciler.activator.app import Activator
from reconciler.activator.directory import Directory, ModelState
from reconciler.core.desired import Desired
from reconciler.core.plan import Plan
from reconciler.core.state import Observed
from reconciler.edge.edge import Edge, EdgeStartError, EdgeUnreachableError
from reconciler.host.key_file import KeyFile, KeyFileError
from reconciler.host.log import get_logger
from reconciler.loop.directory import build_directory
from reconciler.loop.edges import Edges

log = get_logger()

_REVISION = re.compile(r"[0-9a-f]{12,40}")


class FrontDoor:
    """Both halves of the front door, and its keys.

    Args:
        edge: All edges, or on another node the one there.
        activator: Absent in a reconciler that does not stay.
        keys: Who may infer; None where an edge hears of that from elsewhere.
    """

    def __init__(
        self, edge: Edge | Edges, activator: Activator | None = None, keys: KeyFile | None = None
    ) -> None:
        self._edge = edge
        self._activator = activator
        self._keys = keys
        self._keys_complaint = ""
        self._revisions: dict[str, str] = {}
        self._created = int(time.time())
        self._complaint = ""
        self._noted = time.monotonic()

    async def ensure_running(self) -> None:
        """Start the edge where it does not run, and give it the keys of now. A failure is logged once, and tried
        again on the next turn.
        """
        if not await self._give_keys():
            return
        try:
            if await self._edge.ensure_running():
                log.info("edge.started")
            self._complaint = ""
        except EdgeStartError as error:
            if str(error) != self._complaint:
                log.error("edge.failed", reason=str(error))  # noqa: TRY400 -- HAProxy's reason, not our trace
            self._complaint = str(error)

    async def _give_keys(self) -> bool:
        """Whether the edge may be started: not while nobody knows which keys there are. One that runs keeps those
        that it has.
        """
        if self._keys is None:
            return True
        complaint, known = "", True
        try:
            ring = self._keys.ring()
            try:
                await self._edge.set_keys(ring, time.time())
            except EdgeUnreachableError as error:
                complaint = str(error)
            except (OSError, ValueError) as error:
                # One that is started now would have other keys than these.
                complaint, known = str(error), await self._edge.is_running()
        except KeyFileError as error:
            complaint, known = str(error), False
        if complaint and complaint != self._keys_complaint:
            log.error("edge.keys_not_taken", reason=complaint)
        self._keys_complaint = complaint
        return known

    async def tell_revisions(self, desired: Desired, observed: Observed) -> None:
        """Tell the edge which revision of the source each version stands for, as far as that is known."""
        current = {target.application: desired.revision_of(target.file) for target in desired.targets.values()}
        live = observed.applications.keys()
        known = {name: said for name, said in {**self._revisions, **current}.items() if name in live}
        known = {name: said for name, said in known.items() if _REVISION.fullmatch(said)}
        if known == self._revisions:
            return
        with contextlib.suppress(EdgeUnreachableError, OSError):  # The next turn tries again.
            await self._edge.set_revisions(known)
            self._revisions = known

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
