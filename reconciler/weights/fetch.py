"""Make one copy: choose, check the room, fetch what is missing, verify every byte. Runs in a thread of its own.

Whatever ends a download, the next one goes on at the byte where this one stopped.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from reconciler.core.weights import Copy, Phase
from reconciler.weights.cache import HubCache
from reconciler.weights.choosing import Chooser, Chosen
from reconciler.weights.errors import StoppedError, WeightsError
from reconciler.weights.fetch_file import FileFetch, Stop, wait_for_hub
from reconciler.weights.hub import Hub
from reconciler.weights.manifest import Manifest, Manifests, Seen
from reconciler.weights.progress import Progress
from reconciler.weights.room import Room

_TRIES = 6


class Fetcher:
    """Makes copies.

    Args:
        hub: Where they come from.
        cache: Where they go.
        manifests: Where it is noted.
        chooser: Says what a copy consists of.
        room: Says whether there is room.
        files_at_once: Files of one copy that are fetched side by side.
        clock: Seconds since the epoch, for notes.
    """

    def __init__(
        self,
        hub: Hub,
        cache: HubCache,
        manifests: Manifests,
        *,
        chooser: Chooser,
        room: Room,
        files_at_once: int = 8,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._hub = hub
        self._cache = cache
        self._manifests = manifests
        self._chooser = chooser
        self._room = room
        self._files_at_once = files_at_once
        self._clock = clock

    def fetch(
        self, copy: Copy, revision: str, progress: Progress, cancel: threading.Event, *, is_head: bool = False
    ) -> None:
        """Make the copy whole and verified.

        Args:
            copy: Which one.
            revision: The branch or tag that it was asked for by.
            progress: Told how far it is.
            cancel: Set to stop it.
            is_head: The revision is this commit on the hub, so other tools may be told so.

        Raises:
            WeightsError: It cannot be made now.
            StoppedError: `cancel` was set.
            OSError: The disk or the state directory has a fault.
        """
        stop = Stop(cancel)
        stop.check()
        progress.phase(Phase.LISTING)
        # It is ours to remove where nobody had anything of it before.
        before, noted = self._manifests.load(copy), self._chooser.noted(copy)
        ours = before.fetched if before is not None else not self._cache.snapshot(copy.repo, copy.commit).exists()
        chosen = self._patiently(copy, progress, stop)
        looks = {seen.file: seen.look for seen in noted.files} if noted is not None else {}
        seen = tuple(Seen(file, looks.get(file)) for file in chosen.files)
        manifest = Manifest(copy, seen, ours, revision, chosen.rules, self._clock())
        progress.start({file.path: (self._cache.bytes_there(copy.repo, file), file.size) for file in chosen.files})
        # Before the room is made: what is noted is not removed for it.
        self._manifests.save(manifest)
        self._room.claim(copy, chosen.files)
        try:
            verified = self._all_files(manifest, progress, stop)
        finally:
            self._room.release(copy)
        if is_head or not self._cache.commit_of(copy.repo, revision):
            self._cache.write_ref(copy.repo, revision, copy.commit)
        self._manifests.save(Manifest(copy, verified, ours, revision, chosen.rules, self._clock()))

    def _all_files(self, manifest: Manifest, progress: Progress, stop: Stop) -> tuple[Seen, ...]:
        """Fetch files side by side. The first that fails stops the others; all of them have ended afterwards."""
        copy = manifest.copy
        with ThreadPoolExecutor(max(1, self._files_at_once), "fetch") as pool:
            futures = [
                pool.submit(FileFetch(self._hub, self._cache, copy, seen, progress=progress, stop=stop).run)
                for seen in manifest.files
            ]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            if any(future.exception() is not None for future in done):
                stop.set()
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, StoppedError)), errors[0])
        return tuple(future.result() for future in futures)

    def _patiently(self, copy: Copy, progress: Progress, stop: Stop) -> Chosen:
        tries = 0
        while True:
            stop.check()
            try:
                return self._chooser.choose(copy)
            except WeightsError as error:
                tries += 1
                if not error.passes or tries >= _TRIES:
                    raise
                wait_for_hub(error, tries, progress, stop)
                progress.phase(Phase.LISTING)
