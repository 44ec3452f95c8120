"""Make one file of a copy whole: verify what is there, or fetch it from where it stands.

A file grows under a name of its own beside the blobs, is hashed as it comes, and gets its blob's name only when
the hash is the one that the hub listed.
"""

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

from reconciler.core.weights import Copy, Phase
from reconciler.weights.cache import HubCache
from reconciler.weights.errors import StoppedError, Trouble, WeightsError
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
        """Go on, or raise `StoppedError`."""
        if self._cancel.is_set() or self._failed.is_set():
            raise StoppedError

    def wait(self, seconds: float) -> None:
        """Wait so long, or raise `StoppedError`."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.check()
            self._cancel.wait(min(left, 0.25))
        self.check()


def wait_for_hub(error: WeightsError, tries: int, progress: Progress, stop: Stop) -> None:
    """Wait as long as the hub asked for, or longer each time.

    Raises:
        WeightsError: The hub asked for more than a pause; the loop's own backoff takes over.
        StoppedError: Told to stop.
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

    def run(self) -> Seen:
        """Make it whole, and link it into the snapshot.

        Returns:
            The file, with what it looked like when its content had its hash.

        Raises:
            WeightsError: It cannot be had now.
            StoppedError: Told to stop.
            OSError: The disk has a fault.
        """
        self._stop.check()
        repo = self._copy.repo
        if not self._is_unchanged():
            # Under the lock, or a copy that shares the blob could throw away what was just mended.
            with self._cache.lock(repo, self._file.etag, self._stop.check):
                if not self._verify():
                    self._download()
        self._cache.link(repo, self._copy.commit, self._file)
        self._progress.file(self._file.path, Phase.READY, self._file.size)
        return Seen(self._file, self._look)

    def _is_unchanged(self) -> bool:
        return self._look is not None and look_of(self._blob) == tuple(self._look)

    def _verify(self) -> bool:
        """What is there has its hash; what has not is thrown away."""
        before = look_of(self._blob)
        if before is None:
            return False
        self._progress.file(self._file.path, Phase.VERIFYING, 0)
        with ContentHash(self._file.etag, self._file.size) as found:
            whole = found.update_from(self._blob, self._verified) == self._file.size and found.matches()
        if whole and look_of(self._blob) == before:
            self._look = before
            return True
        self._progress.corrupt(self._file.path)
        self._blob.unlink(missing_ok=True)
        return False

    def _verified(self, size: int) -> None:
        self._stop.check()
        self._progress.advance(self._file.path, size)

    def _download(self) -> None:
        """Fetch it until it is whole and its hash is right."""
        self._blob.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(_CORRUPT_TRIES):
            written = self._fill()
            if written is not None:
                self._partial.replace(self._blob)
                look = look_of(self._blob)
                # Renaming changes only the third number: the rest must be as when the last byte was written.
                if look is not None and (look[0], look[1], look[3]) == written:
                    self._look = look
                    return
                self._blob.unlink(missing_ok=True)
            self._progress.corrupt(self._file.path)
            self._partial.unlink(missing_ok=True)
            self._progress.file(self._file.path, Phase.FETCHING, 0)
            self._stop.wait(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt))
        raise WeightsError(
            Trouble.CORRUPT,
            f"{self._copy}: {self._file.path} came {_CORRUPT_TRIES} times with other content than the hub "
            "listed; the hub, a mirror or a proxy on the way changes it",
        )

    def _fill(self) -> tuple[int, int, int] | None:
        """Append to the partial file until it has its size.

        Returns:
            Size, time of change and inode when the last byte was written; None where the content is wrong.
        """
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
            info = os.fstat(out.fileno())
            return (info.st_size, info.st_mtime_ns, info.st_ino) if found.matches() else None

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
