"""Weights beside the loop: how far each copy is, and downloads as tasks of their own.

Nothing here waits for the hub inside a turn: the loop asks what is known, says what it wants, and is woken when
that changes. Which commit a revision is, is the business of `weights.revisions`.
"""

import asyncio
import functools
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.core.backoff import delay
from reconciler.core.choose_files import Rules
from reconciler.core.weights import Copy, CopyState, Keep, Phase, in_words
from reconciler.host.log import get_logger
from reconciler.weights.cache import HubCache
from reconciler.weights.choosing import Chooser
from reconciler.weights.errors import StoppedError, Trouble, WeightsError, describe
from reconciler.weights.fetch import Fetcher
from reconciler.weights.garbage import Garbage
from reconciler.weights.hub import Hub
from reconciler.weights.manifest import Manifests, is_intact
from reconciler.weights.progress import Progress
from reconciler.weights.revisions import Problem, Revisions
from reconciler.weights.room import Room

log = get_logger()

_LOG_SECONDS = 15.0
_RECHECK_SECONDS = 2.0
_SIZES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator set.

    Attributes:
        reserve: Bytes of the disk that stay free.
        cache_limit: Bytes that the cache may have at most; None is no limit.
        files_at_once: Files of one copy that are fetched side by side.
        downloads_at_once: Copies that are fetched side by side.
        check_seconds: How often a branch is looked at again.
        offline: The hub is never asked.
    """

    rules: Rules = field(default_factory=Rules)
    reserve: int = 0
    cache_limit: int | None = None
    files_at_once: int = 8
    downloads_at_once: int = 2
    check_seconds: float = 300.0
    offline: bool = False


@dataclass(slots=True)
class _Job:
    """A download that is under way."""

    progress: Progress
    cancel: threading.Event
    task: asyncio.Task[None]


class WeightStore:
    """All weights of one state directory.

    Args:
        folder: The state directory.
        hub: The hub.
        cache: The cache.
        limits: What the operator set.
        ask_hub: The hub may be asked; else what is known has to do.
        read_only: Nothing is written: a dry run.
        clock: Seconds since the epoch.

    Raises:
        PinsUnreadableError: The file of remembered commits is there and cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        hub: Hub,
        cache: HubCache,
        limits: Limits,
        *,
        ask_hub: bool = True,
        read_only: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.cache = cache
        self.manifests = Manifests(folder / "weights")
        self.garbage = Garbage(cache, self.manifests)
        self.revisions = Revisions(
            folder / "revisions.json",
            hub,
            cache,
            check_seconds=limits.check_seconds,
            offline=limits.offline,
            ask_hub=ask_hub,
            read_only=read_only,
            clock=clock,
        )
        self._chooser = Chooser(hub, cache, self.manifests, limits.rules)
        self._keep: Keep | None = None
        self._room = Room(cache, reserve=limits.reserve, limit=limits.cache_limit, make_room=self._make_room)
        self._fetcher = Fetcher(
            hub,
            cache,
            self.manifests,
            chooser=self._chooser,
            room=self._room,
            files_at_once=limits.files_at_once,
            clock=clock,
        )
        self._ask_hub = ask_hub and not limits.offline
        self._clock = clock
        self.wake: Callable[[], None] = lambda: None
        self._jobs: dict[Copy, _Job] = {}
        self._received: Counter[str] = Counter()
        self.failures: dict[Copy, Problem] = {}
        self._told: dict[Copy, CopyState] = {}
        self._ready: dict[Copy, tuple[float, CopyState]] = {}
        self._downloading = ThreadPoolExecutor(limits.downloads_at_once, "download")
        self._asking = ThreadPoolExecutor(_SIZES_AT_ONCE, "size")

    # --- looking ------------------------------------------------------------------------------------------

    async def states(self, copies: Collection[Copy], *, sizes: bool = False) -> dict[Copy, CopyState]:
        """How far each copy is.

        Args:
            copies: Which ones.
            sizes: Ask the hub how large those are that are not there, for one who looks only once.
        """
        found = await asyncio.to_thread(lambda: {copy: self._state(copy) for copy in copies})
        if sizes and self._ask_hub:
            absent = [copy for copy, state in found.items() if state.phase is Phase.ABSENT]
            loop = asyncio.get_running_loop()
            measured = await asyncio.gather(
                *(loop.run_in_executor(self._asking, self._measure, copy) for copy in absent)
            )
            found.update(zip(absent, measured, strict=True))
        return found

    def received(self) -> Mapping[str, int]:
        """Bytes that came over the network since this process began, by repository."""
        received = Counter(self._received)
        for copy, job in self._jobs.items():
            received[copy.repo] += job.progress.received
        return received

    def under_way(self) -> dict[Copy, CopyState]:
        """The downloads that are under way, now."""
        return {copy: job.progress.state() for copy, job in self._jobs.items()}

    def known(self) -> dict[Copy, CopyState]:
        """The downloads that are under way, and those that failed: what only this process can tell others."""
        failed = {
            copy: CopyState(Phase.FAILED, reason=failure.reason, retry_at=failure.retry_at)
            for copy, failure in self.failures.items()
        }
        return {**failed, **self.under_way()}

    def learn(self, states: Mapping[Copy, CopyState]) -> None:
        """Take over what the reconciler that runs knows."""
        self._told = dict(states)

    async def subscribe(self, *, every: float = 0.5) -> AsyncIterator[dict[Copy, CopyState]]:
        """The downloads that are under way, whenever they changed, at most so often in seconds; for ever."""
        before: dict[Copy, CopyState] | None = None
        while True:
            now = self.under_way()
            if now != before:
                yield now
            before = now
            await asyncio.sleep(every)

    def _state(self, copy: Copy) -> CopyState:
        job = self._jobs.get(copy)
        if job is not None:
            return job.progress.state()
        checked, ready = self._ready.get(copy, (0.0, None))
        if ready is not None and time.monotonic() - checked < _RECHECK_SECONDS:
            return ready
        manifest = self._chooser.noted(copy)
        if manifest is not None and is_intact(manifest, self.cache):
            ready = CopyState(Phase.READY, manifest.total, manifest.total)
            self._ready[copy] = (time.monotonic(), ready)
            return ready
        told = self._told.get(copy)
        if told is not None:
            return told
        state = CopyState(free=self.cache.free())
        if manifest is not None:
            there = sum(self.cache.bytes_there(copy.repo, seen.file) for seen in manifest.files)
            state = replace(state, total=manifest.total, done=there)
        failure = self.failures.get(copy)
        if failure is not None and not failure.is_due(self._clock()):
            return replace(state, phase=Phase.FAILED, reason=failure.reason, retry_at=failure.retry_at)
        return state

    def _measure(self, copy: Copy) -> CopyState:
        """How large a copy is that is not there, and whether it would be refused."""
        free = self.cache.free()
        try:
            files = self._chooser.choose(copy).files
        except (WeightsError, OSError) as error:
            passes = isinstance(error, WeightsError) and error.passes
            return CopyState(Phase.ABSENT if passes else Phase.FAILED, free=free, reason=describe(error))
        total = sum(file.size for file in files)
        there = sum(self.cache.bytes_there(copy.repo, file) for file in files)
        removable = sum(each.size for each in self.garbage.unneeded(self._keep)) if self._keep is not None else 0
        problem = self._room.problem(copy, files, removable=removable)
        return CopyState(Phase.FAILED if problem else Phase.ABSENT, total, there, free, reason=problem)

    # --- downloads ----------------------------------------------------------------------------------------

    def fetch(
        self, wanted: Mapping[Copy, str], *, still_wanted: Collection[Copy] | None, keep: Keep | None
    ) -> None:
        """Start the downloads of what is missing, and stop those that nobody wants any more.

        Args:
            wanted: Copies to fetch, with the revision that each was asked for by.
            still_wanted: Downloads of these go on; None: nobody can tell, so all go on.
            keep: What is never removed to make room; None: nobody can tell, so nothing is.
        """
        self._keep = None if keep is None else Keep(keep.copies | frozenset(wanted), keep.repos)
        for copy, job in self._jobs.items():
            if still_wanted is not None and copy not in wanted and copy not in still_wanted:
                job.cancel.set()
        for copy, revision in wanted.items():
            if copy not in self._jobs:
                cancel, progress = threading.Event(), Progress()
                task = asyncio.create_task(self._run(copy, revision, progress, cancel))
                self._jobs[copy] = _Job(progress, cancel, task)

    async def finished(self, copies: Collection[Copy]) -> dict[Copy, CopyState]:
        """Wait until none of these is under way; gives how far they came."""
        while tasks := [job.task for copy, job in self._jobs.items() if copy in copies]:
            await asyncio.wait(tasks)
        return await self.states(copies)

    def forgive(self) -> None:
        """Whatever failed may be tried again at once."""
        self.failures.clear()
        self.revisions.forgive()

    def forget(self, copies: Collection[Copy]) -> None:
        """Drop the failures of all but these copies."""
        for copy in self.failures.keys() - set(copies):
            del self.failures[copy]

    async def close(self) -> None:
        """Stop everything; what is on disk stays, and the next start goes on from there."""
        for job in self._jobs.values():
            job.cancel.set()
        await asyncio.gather(*(job.task for job in self._jobs.values()), return_exceptions=True)
        await self.revisions.close()
        for pool in (self._downloading, self._asking):
            pool.shutdown(wait=False, cancel_futures=True)

    def _make_room(self, size: int) -> int:
        return 0 if self._keep is None else self.garbage.make_room(self._keep, size)

    async def _run(self, copy: Copy, revision: str, progress: Progress, cancel: threading.Event) -> None:
        began = time.monotonic()
        reporter = asyncio.create_task(self._report(copy, progress))
        fetch = functools.partial(
            self._fetcher.fetch,
            copy,
            revision,
            progress,
            cancel,
            is_head=self.revisions.is_head(copy.repo, revision, copy.commit),
        )
        try:
            log.info("download.started", repo=copy.repo, commit=copy.commit, revision=revision)
            await asyncio.get_running_loop().run_in_executor(self._downloading, fetch)
        except StoppedError:
            log.info("download.stopped", repo=copy.repo, commit=copy.commit, note="nobody wants it any more")
        except Exception as error:  # noqa: BLE001 -- whatever it is, it must not be tried again in the next turn
            self._fail(copy, error)
        else:
            self.failures.pop(copy, None)
            log.info(
                "download.finished",
                repo=copy.repo,
                commit=copy.commit,
                bytes=progress.state().total,
                seconds=round(time.monotonic() - began, 1),
                corrupted=progress.corrupted or None,
            )
        finally:
            reporter.cancel()
            self._jobs.pop(copy, None)
            self._received[copy.repo] += progress.received
            self.wake()

    def _fail(self, copy: Copy, error: Exception) -> None:
        before = self.failures.get(copy)
        attempts = before.attempts + 1 if before is not None else 1
        trouble = error.trouble if isinstance(error, WeightsError) else Trouble.FAULT
        pause = max(delay(attempts), getattr(error, "retry_after", None) or 0.0)
        now = self._clock()
        self.failures[copy] = Problem(describe(error), attempts, now + pause, now)
        log.error(
            "download.failed",
            repo=copy.repo,
            commit=copy.commit,
            kind=trouble.name.lower(),
            reason=describe(error),
            attempts=attempts,
            retry_in_seconds=round(pause),
        )

    async def _report(self, copy: Copy, progress: Progress) -> None:
        while True:
            await asyncio.sleep(_LOG_SECONDS)
            state = progress.state()
            log.info(
                "download.progress",
                repo=copy.repo,
                commit=copy.commit,
                phase=state.phase.value,
                bytes=state.done,
                of=state.total,
                rate=f"{in_words(state.rate)}/s",
                seconds_left=None if state.seconds_left is None else round(state.seconds_left),
                reason=state.reason or None,
            )
