"""When a git source looks at its repository: at its interval, and at once when somebody asks.

A push that is announced (`hooks.py`) and `reconcile sync` ask. Each look that finds something new wakes the loop.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from apscheduler.job import Job
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from reconciler.core.desired import Snapshot
from reconciler.host.log import get_logger
from reconciler.host.nobody import nobody

LONGEST_PAUSE_SECONDS = 600.0
"""Between two looks at a repository that does not answer, unless the interval is longer."""
LEAST_PAUSE_SECONDS = 2.0
"""Between the beginnings of two looks, however often somebody asks."""
_MOST_DOUBLINGS = 20

log = get_logger()


@dataclass(frozen=True, slots=True)
class LastLook:
    """How the last look went.

    Attributes:
        at: Seconds since the epoch at which it began.
        seconds: How long it took.
        new: It took over a new revision.
        unreachable: Why the repository did not answer; empty where it did.
        failures: How many looks in a row had no answer.
    """

    at: float
    seconds: float
    new: bool
    unreachable: str
    failures: int


class Polling:
    """Looks at a repository, never twice at a time.

    Attributes:
        last: How the last look went; None before the first one ended.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bool]],
        wake: Callable[[], None],
        unreachable: Callable[[], str],
        *,
        interval: float,
        jitter: float = 0.1,
        least_pause: float = LEAST_PAUSE_SECONDS,
        forgive: Callable[[], None] = nobody,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at nothing yet.

        Args:
            fetch: Looks, takes over what is new, and says whether there was anything.
            wake: Called when there was.
            unreachable: Why the last `fetch` had no answer from the repository; empty where it had one, whatever
                that was.
            interval: Seconds between two looks.
            jitter: By which share of the interval a look comes later, at most, so that many reconcilers do not ask
                one server at the same moment.
            least_pause: Seconds between the beginnings of two looks.
            forgive: Called when somebody asks: what was refused may have been put right since.
            clock: Monotonic seconds.
        """
        self._fetch = fetch
        self._wake = wake
        self._unreachable = unreachable
        self._interval = interval
        self._jitter = jitter
        self._least_pause = least_pause
        self._forgive = forgive
        self._clock = clock
        self._began: float | None = None
        self._failures = 0
        self._looking = asyncio.Lock()
        self._next: asyncio.Task[bool] | None = None
        self._tasks: set[asyncio.Task[bool]] = set()
        self._job: Job | None = None
        self.last: LastLook | None = None

    @property
    def pause(self) -> float:
        """Seconds until the next look by itself: the interval, doubled with each look that had no answer."""
        longest = max(self._interval, LONGEST_PAUSE_SECONDS)
        return float(min(self._interval * 2.0 ** min(self._failures, _MOST_DOUBLINGS), longest))

    def add_to(self, scheduler: AsyncIOScheduler) -> None:
        """Look now and at the interval, for as long as the scheduler runs."""
        self._job = scheduler.add_job(
            self._ask_and_wait,
            self._trigger(),
            next_run_time=datetime.now(UTC),
            max_instances=1,
            coalesce=True,
            # A look that comes late is still wanted; by default one that is a second late is left out.
            misfire_grace_time=None,
        )

    async def sync(self) -> bool:
        """Look at once, and say whether a new revision was taken over.

        A look that began before this call may have missed what it is about; then another one follows it, for all
        who asked meanwhile. Who stops waiting does not stop the look.
        """
        self._forgive()
        return await self._ask_and_wait()

    def look_soon(self) -> None:
        """As `sync`, for one who does not wait: something was announced."""
        # It was the server that announced it, so it is there again.
        self._failures = 0
        self._forgive()
        self._ask()

    async def close(self) -> None:
        """Give up what is under way. Call it before the scheduler is shut down."""
        self._job = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask_and_wait(self) -> bool:
        return await asyncio.shield(self._ask())

    def _ask(self) -> asyncio.Task[bool]:
        if self._next is None:
            self._next = asyncio.create_task(self._take_turn())
            self._tasks.add(self._next)
            self._next.add_done_callback(self._tasks.discard)
        return self._next

    async def _take_turn(self) -> bool:
        try:
            async with self._looking:
                if self._began is not None:
                    await asyncio.sleep(self._began + self._least_pause - self._clock())
                # Who asks from now on may know of something that this look misses.
                self._next = None
                return await self._look()
        finally:
            if self._next is asyncio.current_task():
                self._next = None

    async def _look(self) -> bool:
        self._began, at = self._clock(), time.time()
        new, unreachable = False, ""
        try:
            new = await self._fetch()
            unreachable = self._unreachable()
        except Exception as error:  # a fault of ours must not end the looking
            log.exception("sync.crashed", reason=repr(error))
            unreachable = f"a fault of the reconciler: {error!r}"
        self._failures = self._failures + 1 if unreachable else 0
        self.last = LastLook(at, self._clock() - self._began, new, unreachable, self._failures)
        if self._job is not None:
            with contextlib.suppress(JobLookupError):  # the scheduler has been shut down
                self._job.reschedule(self._trigger())
        if new:
            self._wake()
        return new

    def _trigger(self) -> IntervalTrigger:
        return IntervalTrigger(seconds=self.pause, jitter=self.pause * self._jitter, timezone=UTC)


async def answer_sync(polling: Polling | None, read: Callable[[], Awaitable[Snapshot]]) -> dict[str, object]:
    """The answer to `reconcile sync`, after a look.

    Args:
        polling: Of the git source; None where the source is a folder, which is watched.
        read: Gives what the source has taken over.
    """
    if polling is None:
        return {"source": "folder"}
    new = await polling.sync()
    snapshot = await read()
    given = snapshot.provenance
    unreachable = polling.last.unreachable if polling.last is not None else ""
    return {
        "source": "git",
        "new": new,
        "ref": given.ref if given is not None else "",
        "commit": given.commit.id if given is not None else "",
        "author": given.commit.author if given is not None else "",
        "subject": given.commit.subject if given is not None else "",
        "problem": unreachable or (given.problem if given is not None else snapshot.unreadable),
    }
