"""A folder of model files, read whole each time.

Files are compared by content, never by time stamps, so editor temporaries, atomic renames, symlinked folders and
ConfigMap-style swaps do no harm. A file that is being written is waited for, for a moment.
"""

import asyncio
import errno
import os
import stat
import time
from pathlib import Path

from reconciler.core.desired import Snapshot, revision_of
from reconciler.core.parse import SUFFIXES, Problem
from reconciler.core.yaml_reader import MAX_BYTES

MAX_FILES = 10_000
_SETTLE_SECONDS = 0.2
_SETTLE_TRIES = 10


class FolderSource:
    """Model files directly inside one folder: `*.yaml` and `*.yml`, hidden names left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.folder)

    async def read(self) -> Snapshot:
        """All model files as they are now. Never raises: what cannot be read is said in the snapshot."""
        return await asyncio.to_thread(self._read_settled)

    def _read_settled(self) -> Snapshot:
        # An editor that truncates and then writes leaves, for a moment, a file that may even be valid. A file
        # touched just now is therefore read again until two readings agree.
        snapshot, fresh = self._read_once()
        for _ in range(_SETTLE_TRIES):
            if not fresh:
                break
            time.sleep(_SETTLE_SECONDS)
            again, fresh = self._read_once()
            if again == snapshot:
                break
            snapshot = again
        return snapshot

    def _read_once(self) -> tuple[Snapshot, bool]:
        files: dict[str, bytes] = {}
        problems: list[Problem] = []
        try:
            # Not `Path.resolve`: before Python 3.13 that raises RuntimeError for a link that leads to itself.
            folder = Path(os.path.realpath(self.folder, strict=True))
            # An editor that saves by renaming leaves, for a moment, a folder without the file.
            fresh = _is_fresh(folder.stat().st_mtime)
            entries = sorted(folder.iterdir())
        except OSError as error:
            reason = f"{self.folder}: {error.strerror or error}"
            return Snapshot(revision="", files={}, folder=str(self.folder), unreadable=reason), False
        chosen = [
            entry for entry in entries if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".")
        ]
        for index, entry in enumerate(chosen):
            written = f"{self.folder.name}/{entry.name}"
            path = written.encode("utf-8", "backslashreplace").decode()
            if index >= MAX_FILES:
                # Each is named, because a file that is only left out would count as removed.
                problems.append(Problem(path, 1, 1, f"not read: there are more than {MAX_FILES} model files"))
                continue
            if path != written:
                problems.append(Problem(path, 1, 1, "the file's name is not UTF-8"))
                continue
            try:
                files[path], touched = read_file(entry)
            except FileNotFoundError:
                # Removed, or a link in the middle of a swap: look again.
                fresh = True
                if entry.is_symlink():
                    problems.append(Problem(path, 1, 1, "the link leads nowhere"))
            except OSError as error:
                problems.append(Problem(path, 1, 1, f"cannot be read: {error.strerror or error}"))
            else:
                fresh = fresh or _is_fresh(touched)
        snapshot = Snapshot(revision=revision_of(files), files=files, folder=str(folder), problems=tuple(problems))
        return snapshot, fresh


def read_file(file: Path) -> tuple[bytes, float]:
    """Content and time of last change of a regular file of bounded size.

    Raises:
        OSError: It cannot be read, or is something else.
    """
    info, content = _content_of(file)
    after = file.stat()
    if (after.st_ino, after.st_size, after.st_mtime_ns) != (info.st_ino, info.st_size, info.st_mtime_ns):
        return content, time.time()  # Written between our look at it and the reading.
    return content, after.st_mtime


def _content_of(file: Path) -> tuple[os.stat_result, bytes]:
    # A look first, because opening alone does something to some devices. Then what was opened is looked at,
    # without waiting: the name may lead to a pipe by now, and some of the kernel's files have no size and no end.
    _check(file.stat())
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(handle, "rb", buffering=0) as opened:  # noqa: PTH123 -- by its handle
        info = os.fstat(handle)
        _check(info)
        content = bytearray()
        while len(content) <= MAX_BYTES and (piece := opened.read(MAX_BYTES + 1 - len(content))):
            content += piece
    _check(info, len(content))
    return info, bytes(content)


def _check(info: os.stat_result, size: int = 0) -> None:
    """Whether this is a regular file of bounded size, and so is what was read of it.

    Raises:
        OSError: It is not.
    """
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if max(info.st_size, size) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_BYTES // 1024} KiB")


def _is_fresh(touched: float) -> bool:
    return 0 <= time.time() - touched < _SETTLE_SECONDS
