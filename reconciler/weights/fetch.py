"""Make one copy: list, choose, check the room, fetch what is missing, verify every byte. Runs in a thread.

Whatever ends a download, the next one goes on at the byte where this one stopped.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from reconciler.core.choose_files import (
    Listing,
    RepoFile,
    Rules,
    WeightsRefusedError,
    choose_files,
    indexes_to_read,
)
from reconciler.core.weights import Copy, Phase, in_words
from reconciler.weights.cache import HubCache
from reconciler.weights.errors import CancelledError, Trouble, WeightsError
from reconciler.weights.fetch_file import FileFetch, Stop, wait_for_hub
from reconciler.weights.hub import Hub
from reconciler.weights.manifest import Manifest, Manifests, Seen, look_of
from reconciler.weights.progress import Progress

_TRIES = 6


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator set.

    Attributes:
        reserve: Bytes of the disk that stay free.
        cache_limit: Bytes that the cache may have at most; None is no limit.
        files_at_once: Files of one copy that are fetched side by side.
    """

    rules: Rules = field(default_factory=Rules)
    reserve: int = 0
    cache_limit: int | None = None
    files_at_once: int = 8


class Fetcher:
    """Makes copies.

    Args:
        hub: Where they come from.
        cache: Where they go.
        manifests: Where it is noted.
        limits: What the operator set.
        make_room: Called with a number of bytes to remove unused copies of ours; gives the bytes it removed.
        clock: Seconds since the epoch, for notes.
    """

    def __init__(
        self,
        hub: Hub,
        cache: HubCache,
        manifests: Manifests,
        limits: Limits,
        *,
        make_room: Callable[[int], int] = lambda _: 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._hub = hub
        self._cache = cache
        self._manifests = manifests
        self._limits = limits
        self._make_room = make_room
        self._clock = clock

    def choose(self, copy: Copy) -> tuple[RepoFile, ...]:
        """What the copy consists of: as noted before, or as the hub says. Writes nothing.

        Raises:
            WeightsError: The hub cannot be asked, or the repository is refused.
        """
        noted = self._manifests.load(copy)
        if noted is not None:
            return tuple(seen.file for seen in noted.files)
        listing = self._hub.listing(copy.repo, copy.commit)
        return self._choose(copy, listing)

    def fetch(self, copy: Copy, revision: str, progress: Progress, cancel: threading.Event) -> None:
        """Make the copy whole and verified.

        Args:
            copy: Which one.
            revision: The branch or tag that it was asked for by.
            progress: Told how far it is.
            cancel: Set to stop it.

        Raises:
            WeightsError: It cannot be made now.
            CancelledError: `cancel` was set.
            OSError: The disk or the state directory has a fault.
        """
        Stop(cancel).check()
        progress.phase(Phase.LISTING)
        files = self._patiently(lambda: self.choose(copy), progress, cancel)
        noted = self._manifests.load(copy)
        known = {seen.file: seen.look for seen in noted.files} if noted is not None else {}
        progress.start({file.path: (self._cache.bytes_there(copy.repo, file), file.size) for file in files})
        missing = [file for file in files if not self._cache.blob(copy.repo, file.etag).exists()]
        self._preflight(copy, missing)
        manifest = Manifest(
            copy,
            tuple(Seen(file, known.get(file)) for file in files),
            fetched=bool(missing) or (noted is not None and noted.fetched),
            revision=revision,
            at=self._clock(),
        )
        self._manifests.save(manifest)
        self._all_files(copy, manifest, progress, cancel)
        done = replace(manifest, files=tuple(self._seen(copy, file) for file in files), at=self._clock())
        self._cache.write_ref(copy.repo, revision, copy.commit)
        self._manifests.save(done)

    def _choose(self, copy: Copy, listing: Listing) -> tuple[RepoFile, ...]:
        contents: dict[str, bytes] = {}
        for name in indexes_to_read(listing, copy.role):
            file = listing.find(name)
            assert file is not None
            contents[name] = self._hub.read(copy.repo, listing.commit, file)
        try:
            return choose_files(listing, copy.role, contents, self._limits.rules)
        except WeightsRefusedError as error:
            raise WeightsError(Trouble.REFUSED, str(error)) from error

    def _preflight(self, copy: Copy, missing: list[RepoFile]) -> None:
        """Refuse before the first byte what has no room."""
        partial = sum(self._cache.bytes_there(copy.repo, file) for file in missing)
        needed = sum(file.size for file in missing) - partial
        if needed <= 0:
            return
        reserve, limit = self._limits.reserve, self._limits.cache_limit
        if (
            limit is not None
            and (over := self._cache.size() + needed - limit) > 0
            and self._make_room(over) < over
        ):
            raise WeightsError(
                Trouble.NO_SPACE,
                f"{copy} needs {in_words(needed)} more, and the cache may have {in_words(limit)} "
                "(cache_limit_gib): remove model files that are not needed, or raise the limit",
            )
        free = self._cache.free()
        if needed + reserve > free and self._make_room(needed + reserve - free) < needed + reserve - free:
            raise WeightsError(
                Trouble.NO_SPACE,
                f"{copy} needs {in_words(needed)} more, and of the {in_words(free)} free at {self._cache.root} "
                f"{in_words(reserve)} stay free (disk_reserve_gib): `reconcile gc` removes what is not needed",
            )

    def _all_files(self, copy: Copy, manifest: Manifest, progress: Progress, cancel: threading.Event) -> None:
        """Fetch files side by side. The first that fails stops the others; all of them have ended afterwards."""
        stop = Stop(cancel)
        with ThreadPoolExecutor(
            max_workers=max(1, self._limits.files_at_once), thread_name_prefix="fetch"
        ) as pool:
            futures: list[Future[None]] = [
                pool.submit(FileFetch(self._hub, self._cache, copy, seen, progress=progress, stop=stop).run)
                for seen in manifest.files
            ]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            if any(future.exception() is not None for future in done):
                stop.set()
        errors = [error for future in futures if (error := future.exception()) is not None]
        real = [error for error in errors if not isinstance(error, CancelledError)]
        if real or errors:
            raise (real or errors)[0]

    def _patiently(
        self, ask: Callable[[], tuple[RepoFile, ...]], progress: Progress, cancel: threading.Event
    ) -> tuple[RepoFile, ...]:
        stop, tries = Stop(cancel), 0
        while True:
            stop.check()
            try:
                return ask()
            except WeightsError as error:
                tries += 1
                if not error.passes or tries >= _TRIES:
                    raise
                wait_for_hub(error, tries, progress, stop)
                progress.phase(Phase.LISTING)

    def _seen(self, copy: Copy, file: RepoFile) -> Seen:
        return Seen(file, look_of(self._cache.snapshot(copy.repo, copy.commit) / file.path))
