"""The facts of models beside the loop: read off the disk, or off the hub's files by their headers alone.

As with `weights.revisions`, nothing here waits inside a turn: the loop asks what is known, and is woken when there
is more. What a commit holds never changes, so it is found out once and kept in a file of the state directory. A
local folder can change, so each look starts another glance at what its files look like.
"""

import asyncio
import contextlib
import functools
import json
import os
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from reconciler.core.backoff import delay
from reconciler.core.choose_files import (
    CONFIG,
    INDEX,
    RepoFile,
    Rules,
    WeightsRefusedError,
    choose_files,
    indexes_to_read,
    is_weights_at_the_root,
)
from reconciler.core.fit.facts import Facts, FactsState, Place, facts_from_json, facts_to_json
from reconciler.core.fit.tensors import Tensor
from reconciler.core.state import Json
from reconciler.core.weights import Copy, Role
from reconciler.host.files import write_atomic
from reconciler.host.log import get_logger
from reconciler.weights.cache import HubCache
from reconciler.weights.choosing import read_to_choose
from reconciler.weights.errors import StoppedError, Trouble, WeightsError, describe, tried
from reconciler.weights.headers import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    LENGTH_BYTES,
    SINGLE,
    Allowance,
    FolderLook,
    ModelFilesError,
    check_count,
    facts_of,
    header_length,
    look_of_folder,
    names_in,
    parse_header,
    parse_json,
    read_folder,
)
from reconciler.weights.hub import Hub
from reconciler.weights.revisions import Problem

log = get_logger()

_DISK_AT_ONCE, _HUB_AT_ONCE = 4, 8
_FIRST_BYTES = 64 * 2**10
"""Of a file of weights: all of the header of most, in one request."""
_LONGEST_READ_SECONDS = 120.0
_MAX_REMEMBERED = 256 * 2**20
_Found = TypeVar("_Found")


class FactsStore:
    """The facts of one state directory.

    Args:
        folder: The state directory.
        hub: The hub.
        cache: The cache, whose snapshots are read where they are whole.
        rules: What the operator allows; decides which files of a repository are the model.
        ask_hub: The hub may be asked; else what is here has to do.
        offline: The operator says that the hub is not to be asked.
        read_only: Nothing is written.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path,
        hub: Hub,
        cache: HubCache,
        rules: Rules,
        *,
        ask_hub: bool = True,
        offline: bool = False,
        read_only: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder / "facts"
        self._hub = hub
        self._cache = cache
        self._rules = rules
        self._offline = offline
        self._ask_hub = ask_hub and not offline
        self._read_only = read_only
        self._clock = clock
        self._facts: dict[Place, Facts] = {}
        self._problems: dict[Place, Problem] = {}
        self._looks: dict[Place, FolderLook] = {}
        self._looking: dict[Place, asyncio.Task[None]] = {}
        self._closing = threading.Event()
        # Threads of their own, as for revisions; a hub that hangs must not take those that read the disk either.
        self._disk = ThreadPoolExecutor(_DISK_AT_ONCE, "facts-disk")
        self._asking = ThreadPoolExecutor(_HUB_AT_ONCE, "facts-hub")
        self.wake: Callable[[], None] = lambda: None

    async def look(self, places: Collection[Place], *, patience: float = 0.0) -> dict[Place, FactsState]:
        """The facts of each, as far as they are known now; what is not known is being found out.

        Of one place it is the same `Facts` each time, as long as nothing changed there.

        Args:
            places: Models and adapters.
            patience: Seconds to wait for the disk and the hub, for one who looks only once.
        """
        for place in places:
            if place not in self._looking and self._is_due(place):
                self._looking[place] = asyncio.create_task(self._find(place))
        under_way = [self._looking[place] for place in places if place in self._looking]
        if patience and under_way:
            await asyncio.wait(under_way, timeout=patience)
        return {place: self._state(place) for place in places}

    def forgive(self) -> None:
        """Whatever failed may be tried again at once."""
        self._problems.clear()

    def forget(self, places: Collection[Place]) -> None:
        """Drop what is held of all but these places; what is on disk stays."""
        keep = set(places)
        for known in (self._facts, self._problems, self._looks):
            for place in known.keys() - keep:
                known.pop(place)

    async def close(self) -> None:
        """Stop looking."""
        self._closing.set()
        for task in self._looking.values():
            task.cancel()
        await asyncio.gather(*self._looking.values(), return_exceptions=True)
        for pool in (self._disk, self._asking):
            pool.shutdown(wait=False, cancel_futures=True)

    # --- beside the loop ----------------------------------------------------------------------------------

    def _is_due(self, place: Place) -> bool:
        if isinstance(place, str):
            return True
        problem = self._problems.get(place)
        return place not in self._facts and (problem is None or problem.is_due(self._clock()))

    def _state(self, place: Place) -> FactsState:
        problem = self._problems.get(place)
        if problem is not None:
            return FactsState(problem=problem.reason, retry_at=problem.retry_at)
        return FactsState(self._facts.get(place))

    async def _find(self, place: Place) -> None:
        before = self._state(place)
        try:
            found = await (self._of_folder(place) if isinstance(place, str) else self._of_copy(place))
            if found is not None:
                self._facts[place] = found
                self._problems.pop(place, None)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it must not be tried again at once
            self._facts.pop(place, None)
            self._fail(place, error)
        finally:
            self._looking.pop(place, None)
            # Only when something is new: looking wakes nobody, or each turn would be followed by another.
            if self._state(place) != before:
                self.wake()

    def _fail(self, place: Place, error: Exception) -> None:
        before = self._problems.get(place)
        attempts = before.attempts + 1 if before is not None else 1
        pause = max(delay(attempts), getattr(error, "retry_after", None) or 0.0)
        reason = str(error) if isinstance(error, ModelFilesError) else describe(error)
        now = self._clock()
        self._problems[place] = Problem(reason, attempts, now + pause, now)
        log.warning(
            "facts.unknown", place=str(place), reason=reason, attempts=attempts, retry_in_seconds=round(pause)
        )

    async def _of_folder(self, folder: str) -> Facts | None:
        """None where nothing is new."""
        look = await self._in(self._disk, look_of_folder, Path(folder))
        problem = self._problems.get(folder)
        waits = problem is not None and not problem.is_due(self._clock())
        if self._looks.get(folder) == look and (folder in self._facts or waits):
            return None
        self._looks[folder] = look
        return await self._in(self._disk, read_folder, Path(folder))

    async def _of_copy(self, copy: Copy) -> Facts | None:
        """None where it is neither here nor to be asked for."""
        found = await self._in(self._disk, self._remembered, copy)
        if found is not None:
            return found
        found = await self._in(self._disk, self._on_disk, copy)
        if found is None and self._ask_hub:
            found = await self._on_hub(copy)
        if found is not None:
            await self._in(self._disk, self._remember, copy, found)
        elif self._offline:
            raise WeightsError(
                Trouble.OFFLINE,
                f"{copy} is not all in the cache, and HF_HUB_OFFLINE is set: fetch it where the hub can be "
                "reached (`reconcile pull`), or give a path",
            )
        return found

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[..., _Found], *args: object) -> _Found:
        return await asyncio.get_running_loop().run_in_executor(pool, functools.partial(work, *args))

    # --- remembered, and on disk --------------------------------------------------------------------------

    def _path(self, copy: Copy) -> Path:
        return self._folder / f"{copy.repo.replace('/', '--')}@{copy.commit}.{copy.role}.json"

    def _remembered(self, copy: Copy) -> Facts | None:
        """None where there is no file, or a damaged one."""
        try:
            with self._path(copy).open("rb") as file:
                return facts_from_json(json.loads(file.read(_MAX_REMEMBERED)))
        except (OSError, ValueError, RecursionError):
            return None

    def _remember(self, copy: Copy, facts: Facts) -> None:
        # Offline, what is here had to do, and may lack something that is there.
        if self._read_only or self._offline:
            return
        try:
            write_atomic(self._path(copy), json.dumps(facts_to_json(facts), separators=(",", ":")))
        except OSError as error:
            # The next start finds it out again.
            log.warning("facts.unsaved", place=str(copy), reason=describe(error))

    def _on_disk(self, copy: Copy) -> Facts | None:
        """None where the snapshot may lack something that the hub can be asked for."""
        folder = self._cache.snapshot(copy.repo, copy.commit)
        if not folder.is_dir():
            return None
        try:
            if not self._may_be_whole(copy.role, names_in(folder)):
                return None
            return read_folder(folder, adapter=copy.role is Role.ADAPTER)
        except ModelFilesError:
            if self._ask_hub:
                return None
            raise

    def _may_be_whole(self, role: Role, names: Collection[str]) -> bool:
        """Small files come first, so that a config alone says nothing; an index or the usual name does."""
        if role is Role.ADAPTER:
            return ADAPTER_CONFIG in names and ADAPTER_WEIGHTS in names
        if role is Role.MODEL and CONFIG in names:
            # Where nobody can be asked, an engine reads what is there.
            return INDEX in names or SINGLE in names or (self._offline and any(map(is_weights_at_the_root, names)))
        return False

    # --- on the hub ---------------------------------------------------------------------------------------

    async def _on_hub(self, copy: Copy) -> Facts:
        config, files = await self._in(self._asking, self._choose, copy)
        allowance = Allowance()
        loop = asyncio.get_running_loop()
        headers = [loop.run_in_executor(self._asking, self._header, copy, file, allowance) for file in files]
        try:
            found = await asyncio.gather(*headers)
        finally:
            # After one that failed, those that wait for a thread are of no use.
            for header in headers:
                header.cancel()
        return await self._in(self._disk, facts_of, config, found if files else None)

    def _choose(self, copy: Copy) -> tuple[Json, list[RepoFile]]:
        """The config, and the files of weights that an engine would load."""
        listing = self._tried(lambda: self._hub.listing(copy.repo, copy.commit))
        if listing.commit != copy.commit:
            raise WeightsError(
                Trouble.CORRUPT, f"{copy}: the hub answered for another commit ({listing.commit[:12]})"
            )
        name = ADAPTER_CONFIG if copy.role is Role.ADAPTER else CONFIG
        contents = {
            each: self._tried(functools.partial(read_to_choose, self._hub, listing, each))
            for each in {*indexes_to_read(listing, copy.role), name}
            if listing.find(each) is not None
        }
        try:
            chosen = choose_files(listing, copy.role, contents, self._rules)
        except WeightsRefusedError as error:
            raise WeightsError(Trouble.REFUSED, str(error)) from error
        if name not in contents:
            raise WeightsError(
                Trouble.REFUSED,
                f"{copy} has no {name}, so nobody can tell what it takes: use a repository with one",
            )
        files = [file for file in chosen if is_weights_at_the_root(file.path)]
        check_count(len(files), str(copy))
        return parse_json(contents[name], f"{copy}: {name}"), files

    def _header(self, copy: Copy, file: RepoFile, allowance: Allowance) -> tuple[Tensor, ...]:
        """The header of one file, in one request where it is short, else in two."""
        where = f"{copy}: {file.path}"
        read = functools.partial(self._bytes, copy, file)
        # Nothing is asked of a file that is too short, because a range beyond its end is an error.
        first = self._tried(functools.partial(read, 0, min(_FIRST_BYTES, file.size))) if file.size else b""
        length = header_length(first, file.size, where)
        allowance.take(length, where)
        end = LENGTH_BYTES + length
        if end > len(first):
            first += self._tried(functools.partial(read, len(first), end))
        return parse_header(first[LENGTH_BYTES:end], file.size, where)

    def _bytes(self, copy: Copy, file: RepoFile, start: int, stop: int) -> bytes:
        """These bytes, from disk where another commit brought the file. A server without ranges is cut off."""
        with contextlib.suppress(OSError), self._cache.blob(copy.repo, file.etag).open("rb") as blob:
            if os.fstat(blob.fileno()).st_size == file.size:
                blob.seek(start)
                return blob.read(stop - start)
        began = time.monotonic()
        content = bytearray()
        with self._hub.open(copy.repo, copy.commit, file.path, start, stop) as body:
            first, last = start - body.start, stop - body.start
            for chunk in body.chunks:
                content += chunk
                if self._closing.is_set():
                    raise StoppedError
                # At exactly the last byte the answer ends by itself, and the connection serves the next request.
                if len(content) > last:
                    break
                if time.monotonic() - began > _LONGEST_READ_SECONDS:
                    raise WeightsError(Trouble.UNREACHABLE, f"{copy}: {file.path} comes too slowly")
        if first < 0 or len(content) < last:
            raise WeightsError(
                Trouble.UNREACHABLE, f"{copy}: the hub sent other bytes of {file.path} than asked for"
            )
        return bytes(content[first:last])

    def _tried(self, ask: Callable[[], _Found]) -> _Found:
        return tried(ask, self._closing.wait)
