"""Weights beside the loop: which commit a revision is, how far each copy is, and downloads as tasks of their own.

Nothing here waits for the hub inside a turn: the loop asks what is known, says what it wants, and is woken when
that changes.
"""

import asyncio
import functools
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import TypeAdapter, ValidationError

from reconciler.core.backoff import delay
from reconciler.core.weights import Copy, CopyState, Phase, Resolution, Wanted, in_words
from reconciler.host.files import write_atomic
from reconciler.host.log import get_logger
from reconciler.weights.cache import HubCache, is_commit
from reconciler.weights.errors import CancelledError, Trouble, WeightsError, scrub
from reconciler.weights.fetch import Fetcher, Limits
from reconciler.weights.garbage import Garbage
from reconciler.weights.hub import Hub
from reconciler.weights.manifest import Manifests, is_intact
from reconciler.weights.progress import Progress

log = get_logger()

_P = ParamSpec("_P")
_T = TypeVar("_T")
_LOG_SECONDS = 15.0
_RECHECK_SECONDS = 2.0
_LOOKS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Pin:
    """Which commit a model's revision was when it was first seen, or when it was last followed."""

    model: str
    repo: str
    revision: str
    commit: str


@dataclass(slots=True)
class _Job:
    """A download that is under way."""

    progress: Progress
    cancel: threading.Event
    task: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    attempts: int
    retry_at: float


class WeightStore:
    """All weights of one state directory.

    Args:
        folder: The state directory.
        hub: The hub.
        cache: The cache.
        limits: What the operator set.
        downloads_at_once: Copies that are fetched side by side.
        check_seconds: How often a branch is looked at again.
        offline: The hub is never asked, because the operator says so.
        ask_hub: The hub may be asked; else what is known has to do.
        read_only: Nothing is written: a dry run.
        wake: Called when something changed that the loop should see.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path,
        hub: Hub,
        cache: HubCache,
        limits: Limits,
        *,
        downloads_at_once: int = 2,
        check_seconds: float = 300.0,
        offline: bool = False,
        ask_hub: bool = True,
        read_only: bool = False,
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pins_file = folder / "revisions.json"
        self._hub = hub
        self.cache = cache
        self.manifests = Manifests(folder / "weights")
        self.garbage = Garbage(cache, self.manifests)
        self._needed: frozenset[Copy] = frozenset()
        self._fetcher = Fetcher(
            hub,
            cache,
            self.manifests,
            limits,
            clock=clock,
            make_room=lambda size: self.garbage.make_room(self._needed, size),
        )
        # Threads of their own: a hub that hangs must not take those that the loop reads its files with.
        self._downloading = ThreadPoolExecutor(downloads_at_once, "download")
        self._asking = ThreadPoolExecutor(_LOOKS_AT_ONCE, "hub")
        self._check_seconds = check_seconds
        self._offline = offline
        self._ask_hub = ask_hub and not offline
        self._read_only = read_only
        self.wake = wake
        self._clock = clock
        self._pins = {(pin.model, pin.repo, pin.revision): pin for pin in _read_pins(self._pins_file)}
        self._heads: dict[tuple[str, str], str] = {}
        self._head_problems: dict[tuple[str, str], _Failure] = {}
        self._looked_at: dict[tuple[str, str], float] = {}
        self._looking: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._jobs: dict[Copy, _Job] = {}
        self._failures: dict[Copy, _Failure] = {}
        self._ready: dict[Copy, float] = {}
        self._sizes: dict[Copy, CopyState] = {}
        self._changed = asyncio.Condition()

    # --- revisions ----------------------------------------------------------------------------------------

    async def resolve(self, wanted: Collection[Wanted], *, patience: float = 0.0) -> dict[Wanted, Resolution]:
        """Which commit each is, as far as it is known now; what is not known is being found out.

        Args:
            wanted: Everything that model files ask for.
            patience: Seconds to wait for the hub, for one who looks only once.
        """
        due = {(each.repo, each.revision) for each in wanted if self._is_due(each)}
        for key in due:
            if key not in self._looking:
                self._looking[key] = asyncio.create_task(self._look(*key))
        if patience and self._looking:
            await asyncio.wait(list(self._looking.values()), timeout=patience)
        found = {each: self._resolution(each) for each in wanted}
        self._pin(wanted, found)
        return found

    def _is_due(self, wanted: Wanted) -> bool:
        if not self._ask_hub or is_commit(wanted.revision):
            return False
        key = (wanted.repo, wanted.revision)
        problem = self._head_problems.get(key)
        if problem is not None:
            return self._clock() >= problem.retry_at
        return time.monotonic() - self._looked_at.get(key, -self._check_seconds) >= self._check_seconds

    async def _look(self, repo: str, revision: str) -> None:
        """Ask the hub which commit a revision is."""
        key = (repo, revision)
        try:
            listing = await self._in(self._asking, self._hub.listing, repo, revision)
        except (WeightsError, OSError) as error:
            before = self._head_problems.get(key)
            attempts = before.attempts + 1 if before is not None else 1
            self._head_problems[key] = _Failure(scrub(str(error)), attempts, self._clock() + delay(attempts))
        else:
            self._head_problems.pop(key, None)
            self._heads[key] = listing.commit
        finally:
            self._looked_at[key] = time.monotonic()
            self._looking.pop(key, None)
            self.wake()

    def _resolution(self, wanted: Wanted) -> Resolution:  # noqa: PLR0911 -- a list of cases, the best first
        if is_commit(wanted.revision):
            return Resolution(wanted.revision)
        key = (wanted.repo, wanted.revision)
        pin = self._pins.get((wanted.model, *key))
        head, problem = self._heads.get(key, ""), self._head_problems.get(key)
        note = f"{problem.reason}; planned with the commit that is known" if problem is not None else ""
        if pin is not None and not (wanted.track and head):
            return Resolution(pin.commit, moved_to=head if head != pin.commit else "", note=note)
        if head:
            return Resolution(head)
        cached = self.cache.commit_of(*key) if self._offline or problem is not None else ""
        if cached:
            return Resolution(cached, note=note or "offline: planned with the commit in the cache")
        if self._offline:
            return Resolution(
                problem=f"{wanted.repo}@{wanted.revision} is not in the cache, and HF_HUB_OFFLINE is set: "
                "fetch it where the hub can be reached (`reconcile pull`), or give a path"
            )
        if problem is not None:
            return Resolution(problem=problem.reason, retry_at=problem.retry_at)
        return Resolution()

    def _pin(self, wanted: Iterable[Wanted], found: Mapping[Wanted, Resolution]) -> None:
        pins = {
            (each.model, each.repo, each.revision): Pin(each.model, each.repo, each.revision, found[each].commit)
            for each in wanted
            if found[each].commit and not is_commit(each.revision)
        }
        # Those of models whose file is invalid for the moment are kept; `forget_models` drops what is gone.
        merged = {**self._pins, **pins}
        if merged != self._pins:
            self._pins = merged
            self._save_pins()

    def forget_models(self, declared: Collection[str | None]) -> None:
        """Drop what is remembered about models that no file declares any more."""
        kept = {key: pin for key, pin in self._pins.items() if pin.model in declared}
        if kept != self._pins:
            self._pins = kept
            self._save_pins()

    def pinned(self, models: Collection[str] | None = None) -> frozenset[Copy]:
        """The copies that these models, or all that are remembered, were found to be."""
        pins = self._pins.values()
        return frozenset(Copy(pin.repo, pin.commit) for pin in pins if models is None or pin.model in models)

    def forgive(self) -> None:
        """Whatever failed may be tried again at once."""
        self._failures.clear()
        self._head_problems.clear()

    def _save_pins(self) -> None:
        if not self._read_only:
            rows = [asdict(pin) for pin in sorted(self._pins.values(), key=str)]
            write_atomic(self._pins_file, json.dumps(rows, indent=1))

    # --- copies -------------------------------------------------------------------------------------------

    async def states(self, copies: Collection[Copy], *, sizes: bool = False) -> dict[Copy, CopyState]:
        """How far each copy is.

        Args:
            copies: Which ones.
            sizes: Ask the hub how large those are that are not there, for one who looks only once.
        """
        found = await asyncio.to_thread(lambda: {copy: self._state(copy) for copy in copies})
        if sizes and self._ask_hub:
            unknown = [
                copy for copy, state in found.items() if state.phase is Phase.ABSENT and state.total is None
            ]
            for copy, state in zip(unknown, await asyncio.gather(*map(self._size, unknown)), strict=True):
                found[copy] = state
        return found

    def _state(self, copy: Copy) -> CopyState:
        job = self._jobs.get(copy)
        if job is not None:
            return job.progress.state()
        checked = self._ready.get(copy)
        if checked is not None and time.monotonic() - checked < _RECHECK_SECONDS:
            return CopyState(Phase.READY)
        self._ready.pop(copy, None)
        manifest = self.manifests.load(copy)
        if manifest is not None and is_intact(manifest, self.cache):
            self._ready[copy] = time.monotonic()
            return CopyState(Phase.READY, manifest.total, manifest.total)
        free = self.cache.free()
        state = CopyState(free=free)
        if manifest is not None:
            there = sum(self.cache.bytes_there(copy.repo, seen.file) for seen in manifest.files)
            state = CopyState(total=manifest.total, done=there, free=free)
        failure = self._failures.get(copy)
        if failure is not None and self._clock() < failure.retry_at:
            return replace(state, phase=Phase.FAILED, reason=failure.reason, retry_at=failure.retry_at)
        return state

    async def _size(self, copy: Copy) -> CopyState:
        if copy not in self._sizes:
            try:
                files = await self._in(self._asking, self._fetcher.choose, copy)
            except WeightsError as error:
                if not error.passes:
                    return CopyState(Phase.FAILED, free=self.cache.free(), reason=str(error))
                return CopyState(free=self.cache.free(), reason=str(error))
            there = sum(self.cache.bytes_there(copy.repo, file) for file in files)
            self._sizes[copy] = CopyState(
                total=sum(file.size for file in files), done=there, free=self.cache.free()
            )
        return self._sizes[copy]

    def fetch_only(self, wanted: Mapping[Copy, str], needed: Iterable[Copy] = ()) -> None:
        """Let exactly these downloads be under way: the missing ones are started, all others are stopped.

        Args:
            wanted: Copies to fetch, with the revision that each was asked for by.
            needed: Copies that somebody needs, fetched or not: they are never removed to make room.
        """
        self._needed = frozenset(needed) | frozenset(wanted) | self.pinned()
        for copy, job in self._jobs.items():
            if copy not in wanted:
                job.cancel.set()
        for copy, revision in wanted.items():
            if copy not in self._jobs:
                cancel, progress = threading.Event(), Progress()
                task = asyncio.create_task(self._run(copy, revision, progress, cancel))
                self._jobs[copy] = _Job(progress, cancel, task)

    async def _run(self, copy: Copy, revision: str, progress: Progress, cancel: threading.Event) -> None:
        began = time.monotonic()
        reporter = asyncio.create_task(self._report(copy, progress))
        try:
            log.info("download.started", repo=copy.repo, commit=copy.commit, revision=revision)
            await self._in(self._downloading, self._fetcher.fetch, copy, revision, progress, cancel)
        except CancelledError:
            log.info("download.stopped", repo=copy.repo, commit=copy.commit, note="nobody wants it any more")
        except (WeightsError, OSError) as error:
            self._fail(copy, error)
        else:
            self._failures.pop(copy, None)
            self._sizes.pop(copy, None)
            state = progress.state()
            log.info(
                "download.finished",
                repo=copy.repo,
                commit=copy.commit,
                bytes=state.total,
                seconds=round(time.monotonic() - began, 1),
                corrupted=progress.corrupted or None,
            )
        finally:
            reporter.cancel()
            self._jobs.pop(copy, None)
            self.wake()

    def _fail(self, copy: Copy, error: WeightsError | OSError) -> None:
        before = self._failures.get(copy)
        attempts = before.attempts + 1 if before is not None else 1
        pause = delay(attempts)
        if isinstance(error, WeightsError):
            pause = max(pause, error.retry_after or 0.0)
        reason = (
            str(error)
            if isinstance(error, WeightsError)
            else scrub(f"{error.filename or ''} {error.strerror or error}")
        )
        self._failures[copy] = _Failure(reason, attempts, self._clock() + pause)
        trouble = error.trouble if isinstance(error, WeightsError) else Trouble.REFUSED
        log.error(
            "download.failed",
            repo=copy.repo,
            commit=copy.commit,
            kind=trouble.name.lower(),
            reason=reason,
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

    # --- for those who watch ------------------------------------------------------------------------------

    def under_way(self) -> dict[Copy, CopyState]:
        """The downloads that are under way, now."""
        return {copy: job.progress.state() for copy, job in self._jobs.items()}

    async def subscribe(self, *, every: float = 0.5) -> AsyncIterator[dict[Copy, CopyState]]:
        """The downloads that are under way, whenever they changed, at most so often in seconds; for ever."""
        before: dict[Copy, CopyState] | None = None
        while True:
            now = self.under_way()
            if now != before:
                yield now
            before = now
            await asyncio.sleep(every)

    async def finished(self, copies: Collection[Copy]) -> dict[Copy, CopyState]:
        """Wait until none of these is under way; gives how far they came."""
        while tasks := [job.task for copy, job in self._jobs.items() if copy in copies]:
            await asyncio.wait(tasks)
        return await self.states(copies)

    async def close(self) -> None:
        """Stop everything; what is on disk stays, and the next start goes on from there."""
        for job in self._jobs.values():
            job.cancel.set()
        tasks = [*(job.task for job in self._jobs.values()), *self._looking.values()]
        for task in self._looking.values():
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pool in (self._downloading, self._asking):
            pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(pool, functools.partial(work, *args, **kwargs))


def _read_pins(file: Path) -> list[Pin]:
    try:
        rows: Any = json.loads(file.read_text(encoding="utf-8"))
        return TypeAdapter(list[Pin]).validate_python(rows)
    except (OSError, ValueError, ValidationError):
        return []
