"""Log files of this machine: which there are, their ends, and what is added to them. For `loop.logs`.

Ray's folder of logs can be written by whoever runs an engine, so nothing in it is trusted: links and pipes are not
opened, and of each file only a part is read.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.core.log_lines import About, LineReader, LogLine, with_time
from reconciler.core.log_origins import Form, Of, of_printed, of_serve_file

_HEAD_BYTES = 65_536
_TAIL_BYTES = (65_536, 2**20, 2**24)
"""Of a file's end, until there are enough lines."""
_LONGEST_LINE = 2**18
_AT_ONCE_BYTES = 2**20
_MOST_HEADS = 20_000


@dataclass(frozen=True, slots=True)
class Place:
    """A log file.

    Attributes:
        path: Where it is.
        of: What it is.
        changed: When it was last written to, in seconds since the epoch.
    """

    path: Path
    of: Of
    changed: float


class LogPlaces:
    """Finds the log files of this machine.

    Args:
        state_dir: The reconciler's own folder. Where `start.sh` started Ray, `ray/session` in it leads to Ray's.
    """

    def __init__(self, state_dir: Path) -> None:
        self._own = state_dir / "logs"
        self._edge = state_dir / "edge" / "edge.log"
        self._ray = state_dir / "ray" / "session" / "logs"
        self._heads: dict[str, Of | None] = {}

    def files(self, about: About | None, origins: Collection[str], *, rotated: bool) -> list[Place]:
        """The files that may have lines of a model, or of any; newest first, but the reconciler's before all.

        Args:
            about: Whose; None: all.
            origins: Of `core.log_lines.ORIGINS`.
            rotated: Those that nobody writes to any more as well.
        """
        found = [
            place
            for place in self._all(rotated=rotated)
            if place.of.origin in origins
            and (about is None or place.of.application is None or about.has(place.of.application))
        ]
        return sorted(found, key=lambda place: (place.of.form is not Form.RECONCILER, -place.changed))

    def names(self) -> set[str]:
        """The names of the files that are read here, so that they are not asked for elsewhere once more."""
        return {place.path.name for place in self._all(rotated=True)}

    def missing(self, origins: Collection[str]) -> list[str]:
        """What is not there, in words."""
        notes: list[str] = []
        if "reconciler" in origins and not (self._own / "reconciler.log").exists():
            notes.append(f"no reconciler has written to {self._own / 'reconciler.log'} yet")
        if "edge" in origins and not self._edge.exists():
            notes.append("no edge has run here")
        if {"serve", "vllm"} & set(origins) and not self._ray.is_dir():
            notes.append("Ray was not started here, or its files are gone")
        return notes

    def _all(self, *, rotated: bool) -> Iterator[Place]:
        for entry in _entries(self._own):
            if entry.name == "reconciler.log" or (rotated and entry.name.startswith("reconciler.log.")):
                yield from _place(entry, Of(Form.RECONCILER, "reconciler"))
        for entry in _entries(self._edge.parent):
            if entry.name == self._edge.name:
                yield from _place(entry, Of(Form.EDGE, "edge"))
        for entry in _entries(self._ray / "serve"):
            of = of_serve_file(entry.name)
            if of is not None and (rotated or entry.name.endswith(".log")):
                yield from _place(entry, of)
        for entry in _entries(self._ray):
            if entry.name.startswith("worker-") and entry.name.endswith((".out", ".err")):
                of = self._printed(entry)
                if of is not None:
                    yield from _place(entry, of)

    def _printed(self, entry: "os.DirEntry[str]") -> Of | None:
        known = self._heads.get(entry.name)
        if known is not None or entry.name in self._heads:
            return known
        data = read_part(Path(entry.path), 0, _HEAD_BYTES)
        found = of_printed(data.decode(errors="replace"))
        # A process that waits for its actor is nobody's yet.
        if len(self._heads) < _MOST_HEADS and (found is not None or len(data) == _HEAD_BYTES):
            self._heads[entry.name] = found
        return found


class FollowedFile:
    """A file that is written to: gives what was added, also when it was rotated meanwhile.

    Args:
        place: The file.
        reader: Reads its lines.
        at_end: Only what comes from now on; else all of it.
    """

    def __init__(self, place: Place, reader: LineReader, *, at_end: bool) -> None:
        self._path = place.path
        self._reader = reader
        self._file: tuple[int, int] | None = None
        self.gone = False
        self.offset = 0
        """Up to where it was read."""
        status = _status(place.path)
        if status is not None:
            self._file = (status.st_dev, status.st_ino)
            self.offset = _end_of_lines(place.path, status.st_size) if at_end else 0

    def poll(self) -> list[LogLine]:
        """The lines that were finished since the last time; of very many only a part, the rest the next time."""
        status = _status(self._path)
        if status is None:
            self.gone = True
            return []
        lines: list[LogLine] = []
        if (status.st_dev, status.st_ino) != self._file:
            before = self._path.with_name(f"{self._path.name}.1")
            there = _status(before)
            if there is not None and (there.st_dev, there.st_ino) == self._file:
                lines = self._read(before, there)
            self._file, self.offset = (status.st_dev, status.st_ino), 0
        elif status.st_size < self.offset:
            self.offset = 0
        return lines + self._read(self._path, status)

    def _read(self, path: Path, status: os.stat_result) -> list[LogLine]:
        if status.st_size <= self.offset:
            return []
        data = read_part(path, self.offset, _AT_ONCE_BYTES)
        end = data.rfind(b"\n") + 1
        if not end:
            if len(data) < _LONGEST_LINE:
                return []  # The line is not finished.
            end = len(data)
        self.offset += end
        return _lines_in(data[:end], self._reader, status.st_mtime)


def tail_of(
    place: Place,
    make_reader: Callable[[], LineReader],
    has: Callable[[LogLine], bool],
    lines: int,
    *,
    since: float | None = None,
    limit: int | None = None,
) -> list[LogLine]:
    """The newest lines of a file, oldest first.

    Args:
        place: The file.
        make_reader: Reads its lines from some place on; is asked for anew where that was not far enough back.
        has: Which lines count.
        lines: How many at most.
        since: Nothing before that time counts, in seconds since the epoch.
        limit: Byte where it ends for us; None: all of it.
    """
    status = _status(place.path)
    if status is None or lines <= 0:
        return []
    end = status.st_size if limit is None else min(limit, status.st_size)
    found: list[LogLine] = []
    for most in _TAIL_BYTES:
        start = max(0, end - most)
        data = read_part(place.path, start, end - start)
        if start:
            data = data[data.find(b"\n") + 1 :]
        read = _lines_in(data, make_reader(), status.st_mtime)
        found = [line for line in read if has(line)]
        old = since is not None and bool(read) and (read[0].at or 0.0) < since
        if not start or len(found) >= lines or old:
            break
    return found[-lines:]


def read_part(path: Path, start: int, most: int) -> bytes:
    """A part of a regular file; empty where it is none, or cannot be read."""
    try:
        # Neither through a link nor waiting for the other end of a pipe.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return b""
        return os.pread(handle, most, start)
    except OSError:
        return b""
    finally:
        os.close(handle)


def lines_in(text: str, reader: LineReader, at: float) -> list[LogLine]:
    """The lines of a text. Where it names no time at all, `at` is theirs."""
    return [with_time(line, at) for raw in text.split("\n") for line in reader.read(raw[:_LONGEST_LINE])]


def _lines_in(data: bytes, reader: LineReader, at: float) -> list[LogLine]:
    return lines_in(data.decode(errors="replace"), reader, at)


def _end_of_lines(path: Path, size: int) -> int:
    start = max(0, size - _LONGEST_LINE)
    end = read_part(path, start, size - start).rfind(b"\n") + 1
    return start + end if end else size


def _status(path: Path) -> os.stat_result | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return list(entries)
    return []


def _place(entry: "os.DirEntry[str]", of: Of) -> Iterator[Place]:
    with contextlib.suppress(OSError):
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            yield Place(Path(entry.path), of, status.st_mtime)
