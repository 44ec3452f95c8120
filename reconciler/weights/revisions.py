"""Which commit a branch or tag is: found out beside the loop, remembered for each model, followed on request."""

import asyncio
import contextlib
import fcntl
import functools
import json
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from reconciler.core.backoff import delay, is_due
from reconciler.core.weights import Resolution, Wanted, is_commit
from reconciler.host.files import write_atomic
from reconciler.host.log import get_logger
from reconciler.weights.cache import HubCache
from reconciler.weights.errors import describe, tried
from reconciler.weights.hub import Hub

log = get_logger()

_LOOKS_AT_ONCE = 8
_Key: TypeAlias = tuple[str, str, str]
"""Model, repository, revision."""


class PinsUnreadableError(Exception):
    """The file of remembered commits is there and cannot be read, so nobody can tell which commits are needed."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Which commit a model's revision was when it was first seen, or when it was last followed."""

    model: str
    repo: str
    revision: str
    commit: str

    @property
    def key(self) -> _Key:
        """What it is about."""
        return self.model, self.repo, self.revision


_PINS = TypeAdapter(list[Pin])


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something could not be had, and for how often; times are seconds since the epoch.

    Attributes:
        retry_at: When it is tried again.
        at: When it failed; 0 where that is not known.
    """

    reason: str
    attempts: int
    retry_at: float
    at: float = 0.0

    def is_due(self, now: float) -> bool:
        """It may be tried again."""
        return is_due(self.at, self.retry_at, now)


class Revisions:
    """The commits of one state directory.

    Args:
        file: Where commits are remembered.
        hub: The hub.
        cache: The cache, whose refs are believed where the hub does not answer.
        check_seconds: How often a branch is looked at again.
        offline: The operator says that the hub is not to be asked.
        ask_hub: The hub may be asked; else what is known has to do.
        read_only: Nothing is written.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        file: Path,
        hub: Hub,
        cache: HubCache,
        *,
        check_seconds: float,
        offline: bool,
        ask_hub: bool,
        read_only: bool,
        clock: Callable[[], float],
    ) -> None:
        self._file = file
        self._hub = hub
        self._cache = cache
        self._check_seconds = check_seconds
        self._offline = offline
        self._ask_hub = ask_hub and not offline
        self._read_only = read_only
        self._clock = clock
        self._pins = self._read()
        self._heads: dict[tuple[str, str], str] = {}
        self.problems: dict[tuple[str, str], Problem] = {}
        self._due_at: dict[tuple[str, str], float] = {}
        self._looking: dict[tuple[str, str], asyncio.Task[None]] = {}
        # Threads of their own: a hub that hangs must not take those that the loop reads its files with.
        self._pool = ThreadPoolExecutor(_LOOKS_AT_ONCE, "revision")
        self.wake: Callable[[], None] = lambda: None

    async def resolve(self, wanted: Collection[Wanted], *, patience: float = 0.0) -> dict[Wanted, Resolution]:
        """Which commit each is, as far as it is known now; what is not known is being found out.

        Args:
            wanted: Everything that model files ask for.
            patience: Seconds to wait for the hub, for one who looks only once.
        """
        for key in {(each.repo, each.revision) for each in wanted if self._is_due(each)}:
            if key not in self._looking:
                self._looking[key] = asyncio.create_task(self._look(*key))
        if patience and self._looking:
            await asyncio.wait(list(self._looking.values()), timeout=patience)
        found = {each: self._resolution(each) for each in wanted}
        self._remember(found)
        return found

    def forget(self, wanted: Collection[Wanted], others: Collection[str]) -> None:
        """Drop what nobody asks for any more.

        Args:
            wanted: What valid files ask for.
            others: Models that may be meant by files that are not valid; what is remembered of them stays.
        """
        keys = {(each.model, each.repo, each.revision) for each in wanted}
        self._change({key: None for key, pin in self._pins.items() if key not in keys and pin.model not in others})
        looked = {(repo, revision) for _, repo, revision in self._pins} | {key[1:] for key in keys}
        for known in (self._heads, self.problems, self._due_at):
            for head in known.keys() - looked:
                known.pop(head)

    def is_head(self, repo: str, revision: str, commit: str) -> bool:
        """The hub said, since we run, that the revision is this commit."""
        return self._heads.get((repo, revision)) == commit

    def forgive(self) -> None:
        """Whatever failed may be tried again at once."""
        self.problems.clear()

    def learn(self, problems: Mapping[tuple[str, str], Problem]) -> None:
        """Take over what the reconciler that runs found out."""
        self.problems.update(problems)

    async def close(self) -> None:
        """Stop looking."""
        for task in self._looking.values():
            task.cancel()
        await asyncio.gather(*self._looking.values(), return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- looking ------------------------------------------------------------------------------------------

    def _is_due(self, wanted: Wanted) -> bool:
        if not self._ask_hub or is_commit(wanted.revision):
            return False
        key = (wanted.repo, wanted.revision)
        problem = self.problems.get(key)
        if problem is not None:
            return problem.is_due(self._clock())
        return time.monotonic() >= self._due_at.get(key, 0.0)

    async def _look(self, repo: str, revision: str) -> None:
        """Ask the hub which commit a revision is."""
        key = (repo, revision)
        loop = asyncio.get_running_loop()
        try:
            self._heads[key] = await loop.run_in_executor(
                self._pool,
                functools.partial(tried, functools.partial(self._hub.commit_of, repo, revision), time.sleep),
            )
            self.problems.pop(key, None)
        except Exception as error:  # noqa: BLE001 -- whatever a hub answers must not be asked for again at once
            before = self.problems.get(key)
            attempts = before.attempts + 1 if before is not None else 1
            pause = max(delay(attempts), getattr(error, "retry_after", None) or 0.0)
            now = self._clock()
            self.problems[key] = Problem(describe(error), attempts, now + pause, now)
        finally:
            # Not all at the same moment.
            self._due_at[key] = time.monotonic() + self._check_seconds * random.uniform(0.9, 1.1)  # noqa: S311
            self._looking.pop(key, None)
            self.wake()

    def _resolution(self, wanted: Wanted) -> Resolution:  # noqa: PLR0911 -- a list of cases, the best first
        if is_commit(wanted.revision):
            return Resolution(wanted.revision)
        key = (wanted.repo, wanted.revision)
        pin = self._pins.get((wanted.model, *key))
        head, problem = self._heads.get(key, ""), self.problems.get(key)
        note = f"{problem.reason}; planned with the commit that is known" if problem is not None else ""
        if pin is not None and not (wanted.track and head):
            return Resolution(pin.commit, moved_to=head if head != pin.commit else "", note=note)
        if head:
            return Resolution(head)
        cached = self._cache.commit_of(*key) if self._offline or problem is not None else ""
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

    # --- remembering --------------------------------------------------------------------------------------

    def _remember(self, found: Mapping[Wanted, Resolution]) -> None:
        pins: dict[_Key, Pin | None] = {}
        for each, resolution in found.items():
            # A commit that only the cache knows is a guess, unless nobody is to know better.
            known = self._offline or self.is_head(each.repo, each.revision, resolution.commit)
            if resolution.commit and known and not is_commit(each.revision):
                pin = Pin(each.model, each.repo, each.revision, resolution.commit)
                if self._pins.get(pin.key) != pin:
                    pins[pin.key] = pin
        self._change(pins)

    def _change(self, pins: Mapping[_Key, Pin | None]) -> None:
        """Change what is remembered; another process may have changed other parts of it meanwhile."""
        if not pins:
            return
        try:
            with self._locked():
                merged = {**self._read(), **pins}
                self._pins = {key: pin for key, pin in merged.items() if pin is not None}
                if not self._read_only:
                    rows = [asdict(pin) for pin in sorted(self._pins.values(), key=str)]
                    write_atomic(self._file, json.dumps(rows, indent=1))
        except (OSError, PinsUnreadableError) as error:
            # What is up goes on; the next turn writes it again.
            log.warning("revisions.unsaved", file=str(self._file), reason=describe(error))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._read_only:
            yield
            return
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[_Key, Pin]:
        try:
            pins = _PINS.validate_python(json.loads(self._file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, ValidationError) as error:
            raise PinsUnreadableError(
                f"{self._file} cannot be read ({describe(error)}): mend it, or remove it to resolve branches anew"
            ) from error
        return {pin.key: pin for pin in pins if is_commit(pin.commit)}
