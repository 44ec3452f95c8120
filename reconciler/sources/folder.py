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
from reconciler.core.parse import Problem

SUFFIXES = (".yaml", ".yml")
MAX_FILE_BYTES = 256 * 1024
MAX_FILES = 10_000
_SETTLE_SECONDS = 0.2
_SETTLE_TRIES = 10


class FolderSource:
    """Model files directly inside one folder: `*.yaml` and `*.yml`, hidden names left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
        for entry in chosen[:MAX_FILES]:
            path = f"{self.folder.name}/{entry.name}"
            try:
                files[path], touched = _read_file(entry)
            except FileNotFoundError:
                # Removed, or a link in the middle of a swap: look again.
                fresh = True
                if entry.is_symlink():
                    problems.append(Problem(path, 1, 1, "the link leads nowhere"))
            except OSError as error:
                problems.append(Problem(path, 1, 1, f"cannot be read: {error.strerror or error}"))
            else:
                fresh = fresh or _is_fresh(touched)
        if len(chosen) > MAX_FILES:
            problems.append(Problem(self.folder.name, 1, 1, f"more than {MAX_FILES} model files"))
        snapshot = Snapshot(revision=revision_of(files), files=files, folder=str(folder), problems=tuple(problems))
        return snapshot, fresh


def _read_file(file: Path) -> tuple[bytes, float]:
    """Content and time of last change of a regular file of bounded size.

    Raises:
        OSError: It cannot be read, or is something else.
    """
    info = file.stat()
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if info.st_size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_FILE_BYTES // 1024} KiB")
    content = file.read_bytes()
    after = file.stat()
    if (after.st_ino, after.st_size, after.st_mtime_ns) != (info.st_ino, info.st_size, info.st_mtime_ns):
        return content, time.time()  # Written between our look at it and the reading.
    return content, after.st_mtime


def _is_fresh(touched: float) -> bool:
    return 0 <= time.time() - touched < _SETTLE_SECONDS
