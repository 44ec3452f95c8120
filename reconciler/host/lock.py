"""One writer per state directory."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_TRIES = 5
_PAUSE_SECONDS = 0.02


class AlreadyRunningError(Exception):
    """Another process holds the lock; `pid` is its process id, 0 where it could not be read."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"a reconciler is running already (process {pid})")
        self.pid = pid


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Be the one reconciler of a state directory while the block runs.

    The lock is the kernel's: it goes with the process, however that ends.

    Raises:
        AlreadyRunningError: Another process is.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "reconciler.pid"
    with path.open("a+", encoding="utf-8") as file:
        if not _lock(file):
            file.seek(0)
            text = file.read().strip()
            raise AlreadyRunningError(int(text) if text.isdigit() else 0)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _lock(file: IO[str]) -> bool:
    # Another command that only asks who runs holds it for an instant.
    for _ in range(_TRIES):
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_PAUSE_SECONDS)
    return False


def holder(folder: Path) -> int | None:
    """The process id of the reconciler that runs in a state directory, or None where none does."""
    try:
        with exclusive_probe(folder / "reconciler.pid"):
            return None
    except AlreadyRunningError as error:
        return error.pid
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def exclusive_probe(path: Path) -> Iterator[None]:
    """Find out whether the lock is held, without making the file."""
    with path.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            text = file.read().strip()
            raise AlreadyRunningError(int(text) if text.isdigit() else 0) from None
        yield
