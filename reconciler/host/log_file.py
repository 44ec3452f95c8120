"""The log file of `host.log`: JSON lines, rotated by size, that never stands in the way of what is logged.

Whoever else rotates it may: a file that was moved or cut is noticed before the next line. What cannot be written,
because the disk is full, say, is counted, and said as soon as there is room.
"""

import contextlib
import json
import os
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

LARGEST_BYTES = 10_000_000
KEEP = 5
LOST = "log.lost"


class LogFile:
    """A file that lines are appended to; by one process at a time, from any thread.

    Args:
        path: The file. Rotated ones are beside it: `.1` is the newest of them.
        largest: Bytes that a file may have.
        keep: How many rotated files stay.
    """

    def __init__(self, path: Path, *, largest: int = LARGEST_BYTES, keep: int = KEEP) -> None:
        self._path = path
        self._largest = largest
        self._keep = keep
        self._handle: int | None = None
        self._torn = False
        self._lost = 0
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Append a line; its end is added. Raises nothing: what cannot be written is counted as lost."""
        with self._lock:
            try:
                if self._lost:
                    self._put(_loss(self._lost))
                    self._lost = 0
                self._put(line)
            except OSError:
                self._lost += 1

    def _put(self, line: str) -> None:
        data = line.encode(errors="replace") + b"\n"
        handle = self._open()
        size = os.fstat(handle).st_size
        if size and size + len(data) > self._largest:
            self._rotate()
            handle = self._open()
        if self._torn:
            data = b"\n" + data
        written = os.write(handle, data)
        self._torn = (self._torn and not written) or 0 < written < len(data)
        if written < len(data):
            raise OSError("there was room for a part only")

    def _open(self) -> int:
        if self._handle is not None and not _is_at(self._path, self._handle):
            self._close()
        if self._handle is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(self._path, flags, 0o600)
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                os.close(handle)
                raise OSError(f"{self._path} is not a regular file")
            with contextlib.suppress(PermissionError):  # it is somebody else's, who let us write
                os.fchmod(handle, 0o600)
            self._handle = handle
        return self._handle

    def _rotate(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._beside(number).replace(self._beside(number + 1))
        self._path.replace(self._beside(1))
        self._close()

    def _beside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle, self._torn = None, False


def _is_at(path: Path, handle: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        there = path.stat()
    except OSError:
        return False
    here = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _loss(lines: int) -> str:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"lines": lines, "event": LOST, "level": "warning", "timestamp": now})
