"""Make one file of a copy whole: verify what is there, or fetch it from where it stands.

A file grows under a name of its own beside the blobs, is hashed as it comes, and gets its blob's name only when
the hash is the one that the hub listed.
"""

import errno
import threading
import time
from pathlib import Path
from typing import Any

from reconciler.core.weights import Copy, Phase
from reconciler.weights.cache import HubCache
from reconciler.weights.errors import CancelledError, Trouble, WeightsError
from reconciler.weights.hashing import ContentHash
from reconciler.weights.hub import Hub
from reconciler.weights.manifest import Seen, look_of
from reconciler.weights.progress import Progress

_TRIES_WITHOUT_PROGRESS = 6
_CORRUPT_TRIES = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_LONGEST_WAIT_FOR_HUB = 300.0


class Stop:
    """Says when to stop: because nobody wants the copy any more, or because another file of it failed."""

    def __init__(self, cancel: threading.Event) -> None:
        self._cancel = cancel
        self._failed = threading.Event()

    def set(self) -> None:
        """Stop all files of this copy."""
        self._failed.set()

    def check(self) -> None:
        """Go on, or raise `CancelledError`."""
        if self._cancel.is_set() or self._failed.is_set():
            raise CancelledError

    def wait(self, seconds: float) -> None:
        """Wait so long, or raise `CancelledError`."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.check()
            self._cancel.wait(min(left, 0.25))
        self.check()


def wait_for_hub(error: WeightsError, tries: int, progress: Progress, stop: Stop) -> None:
    """Wait as long as the hub asked for, or longer each time.

    Raises:
        WeightsError: The hub asked for more than a pause; the loop's own backoff takes over.
        CancelledError: Told to stop.
    """
    seconds = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (tries - 1))
    if error.retry_after is not None:
        if error.retry_after > _LONGEST_WAIT_FOR_HUB:
            raise error
        seconds = max(error.retry_after, 0.1)
    progress.wait(f"{error}; goes on in {seconds:.0f} s")
    stop.wait(seconds)
    progress.phase(Phase.FETCHING)


class FileFetch:
    """One file of one copy.

    Args:
        hub: Where it comes from.
        cache: Where it goes.
        copy: What it is part of.
        seen: The file, and what it looked like when it was verified last.
        progress: Told how far it is.
        stop: Says when to stop.
    """

    def __init__(
        self, hub: Hub, cache: HubCache, copy: Copy, seen: Seen, *, progress: Progress, stop: Stop
    ) -> None:
        self._hub, self._cache, self._copy = hub, cache, copy
        self._file, self._look = seen.file, seen.look
        self._progress, self._stop = progress, stop
        self._blob = cache.blob(copy.repo, seen.file.etag)
        self._partial = cache.partial(copy.repo, seen.file.etag)

    def run(self) -> None:
        """Make it whole, and link it into the snapshot.

        Raises:
            WeightsError: It cannot be had now.
            CancelledError: Told to stop.
            OSError: The disk has a fault.
        """
        self._stop.check()
        path, repo, etag = self._file.path, self._copy.repo, self._file.etag
        if self._blob.exists() and not self._is_unchanged():
            self._progress.file(path, Phase.VERIFYING, 0)
            if not self._is_whole():
                self._progress.corrupt(path)
                self._blob.unlink(missing_ok=True)
        if not self._blob.exists():
            with self._cache.lock(repo, etag, self._stop.check):
                if not self._blob.exists():
                    self._download()
        self._cache.link(repo, self._copy.commit, self._file)
        self._progress.file(path, Phase.READY, self._file.size)

    def _is_unchanged(self) -> bool:
        return self._look is not None and look_of(self._blob) == tuple(self._look)

    def _is_whole(self) -> bool:
        with ContentHash(self._file.etag, self._file.size) as found:
            return found.update_from(self._blob, self._verified) == self._file.size and found.matches()

    def _verified(self, size: int) -> None:
        self._stop.check()
        self._progress.advance(self._file.path, size)

    def _download(self) -> None:
        """Fetch it until it is whole and its hash is right."""
        self._blob.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(_CORRUPT_TRIES):
            if self._fill():
                self._partial.replace(self._blob)
                return
            self._progress.corrupt(self._file.path)
            self._partial.unlink(missing_ok=True)
            self._progress.file(self._file.path, Phase.FETCHING, 0)
            self._stop.wait(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt))
        raise WeightsError(
            Trouble.CORRUPT,
            f"{self._copy}: {self._file.path} came {_CORRUPT_TRIES} times with other content than the hub "
            "listed; the hub, a mirror or a proxy on the way changes it",
        )

    def _fill(self) -> bool:
        """Append to the partial file until it has its size; says whether its content is right."""
        path, size = self._file.path, self._file.size
        # Unbuffered: what was received is the kernel's at once, and survives our being killed.
        with self._partial.open("ab", buffering=0) as out, ContentHash(self._file.etag, size) as found:
            if out.tell() > size:
                out.truncate(0)
            self._progress.file(path, Phase.VERIFYING, 0)
            have = found.update_from(self._partial, self._verified)
            self._progress.file(path, Phase.FETCHING, have)
            tries = 0
            while have < size:
                before = have
                try:
                    self._receive(out, found, have)
                    have = size
                except WeightsError as error:
                    have = out.tell()
                    tries = 1 if have > before else tries + 1
                    if not error.passes or tries >= _TRIES_WITHOUT_PROGRESS:
                        raise
                    wait_for_hub(error, tries, self._progress, self._stop)
            return found.matches()

    def _receive(self, out: Any, found: ContentHash, have: int) -> None:  # noqa: ANN401 -- a raw file
        """Read one answer to its end."""
        copy, file = self._copy, self._file
        with self._hub.open(copy.repo, copy.commit, file.path, have) as body:
            if body.start > have:
                raise WeightsError(Trouble.UNREACHABLE, f"{copy}: the hub left out bytes of {file.path}")
            skip = have - body.start  # A server that knows no ranges sends the beginning again.
            for received in body.chunks:
                self._stop.check()
                chunk = received[skip:]
                skip = max(0, skip - len(received))
                if have + len(chunk) > file.size:
                    out.truncate(0)
                    raise WeightsError(
                        Trouble.CORRUPT,
                        f"{copy}: {file.path} has more than the {file.size} bytes that the hub listed",
                    )
                _write(out, chunk, self._cache.root)
                found.update(chunk)
                have += len(chunk)
                self._progress.advance(file.path, len(chunk))
        if have < file.size:
            raise WeightsError(Trouble.UNREACHABLE, f"the hub ended {file.path} early")


def _write(out: Any, chunk: bytes, root: Path) -> None:  # noqa: ANN401 -- a raw file
    view = memoryview(chunk)
    try:
        while view:
            view = view[out.write(view) :]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(
                Trouble.NO_SPACE,
                f"the disk at {root} is full; the download goes on from here when there is room (`reconcile gc` "
                "removes what is not needed)",
            ) from error
        raise
