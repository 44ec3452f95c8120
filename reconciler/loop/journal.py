"""The journal as the loop keeps it: lines of `journal/` in the state directory, and the versions that served.

Only the process that acts writes; `reconcile history` reads while it does. What cannot be written costs a warning,
never a turn.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter, ValidationError

from reconciler.core.desired import Desired, Snapshot
from reconciler.core.journal import Book
from reconciler.core.journal_entry import By, Entry, Outcome, cleaned, is_sound, iso_of, looks_secret
from reconciler.core.plan import Plan
from reconciler.core.rollback import Rollback, Version, is_revision, version_of
from reconciler.core.state import Observed, Record
from reconciler.host.files import write_atomic
from reconciler.host.log import get_logger
from reconciler.host.nobody import nobody

log = get_logger()

FOLDER, VERSIONS_FOLDER = "journal", "versions"
NEWEST, OLDER = "journal.jsonl", "journal.1.jsonl"
MAX_BYTES = 4 * 1024 * 1024
"""Of each of the two files."""
KEPT_VERSIONS, KEPT_REVISIONS = 10, 10
MAX_TEXT_BYTES = 256 * 1024
MAX_REVISION_BYTES = 16 * 1024 * 1024
_ALWAYS = ("at", "model", "what", "outcome")
_MAX_LINE = 256 * 1024
_MAX_PENDING = 1000
_VERSIONS_A_TURN = 20
"""Each is flushed to the disk; after an upgrade a thousand are new at once."""
_REVISION = re.compile(r"[0-9A-Za-z]{7,64}")
_ENTRY, _VERSIONS = TypeAdapter(Entry), TypeAdapter(list[Version])
_FILES = TypeAdapter(dict[str, str])


class Journal:
    """The journal of one state directory, for the one process that acts."""

    def __init__(
        self, state_dir: Path, *, max_bytes: int = MAX_BYTES, wall_clock: Callable[[], float] = time.time
    ) -> None:
        """Read what is there; write nothing.

        Args:
            state_dir: The state directory.
            max_bytes: Of each of the two files.
            wall_clock: Seconds since the epoch, for commands.
        """
        self._folder = state_dir / FOLDER
        self._max_bytes = max_bytes
        self._wall_clock = wall_clock
        self._versions = Versions(state_dir)
        self._noted: dict[str, Record] = {}
        self._revision = ""
        self._pending: list[Entry] = []
        self._complained = False
        self.told: Callable[[Sequence[Entry]], None] = nobody
        """Called with what happened, as it is written down."""
        entries: list[Entry] = []
        try:
            entries = read(state_dir, max_bytes=max_bytes)
        except OSError as error:
            self._complain(error)
        self._book = Book(entries)

    def note(
        self,
        desired: Desired,
        observed: Observed,
        plan: Plan,
        snapshot: Snapshot,
        rollbacks: Sequence[Rollback] = (),
    ) -> None:
        """Write down what is new in this turn. Never raises for what the disk says.

        Args:
            desired: What is wanted.
            observed: What is there.
            plan: What was made of both.
            snapshot: What `desired` was made of, with the rollbacks laid over it.
            rollbacks: What holds by hand.
        """
        found = self._book.turn(desired, observed, plan, provenance=snapshot.provenance, rollbacks=rollbacks)
        self._write(found)
        try:
            self._keep(desired, observed, snapshot, rollbacks)
        except OSError as error:
            self._complain(error)

    def command(self, what: str, model: str, cause: str, revision: str = "") -> None:
        """Write down a command by hand that is carried out at once: a sync, the apply of a saved plan.

        What holds for a time (load, pin, suspend, rollback) is seen by `note`.
        """
        now = iso_of(self._wall_clock())
        cause = cleaned(cause)
        self._write([Entry(now, model, what, Outcome.DONE, cause=cause, by=By.HAND, revision=revision)])

    def _write(self, entries: Sequence[Entry]) -> None:
        self.told(entries)
        self._pending += entries
        if not self._pending:
            return
        try:
            _append(self._folder, self._pending, self._max_bytes)
        except OSError as error:
            # The next turn tries again; what has gone before matters less than what comes.
            del self._pending[:-_MAX_PENDING]
            self._complain(error)
        else:
            self._pending.clear()
            self._complained = False

    def _keep(
        self, desired: Desired, observed: Observed, snapshot: Snapshot, rollbacks: Sequence[Rollback]
    ) -> None:
        """Keep the texts of what serves, for `rollback` to come back to."""
        if desired.unreadable:
            return
        left = _VERSIONS_A_TURN
        for model, target in desired.targets.items():
            record = observed.records.get(model)
            if record is None or self._noted.get(model) is record:
                continue
            # What was gone back to is kept where it was.
            rolled_back = any(each.covers(target.file) for each in rollbacks)
            version = version_of(
                model, desired, observed, snapshot.files, snapshot.provenance, objects=snapshot.objects
            )
            if version is not None and not rolled_back:
                self._versions.add(version)
                left -= 1
            if version is not None or rolled_back:
                self._noted[model] = record
            if left <= 0:
                break
        valid = desired.targets and not desired.invalid and not rollbacks
        # Git remembers by itself.
        if valid and snapshot.provenance is None and snapshot.revision != self._revision:
            self._versions.add_revision(snapshot)
            self._revision = snapshot.revision

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            log.warning("journal.unsaved", folder=str(self._folder), reason=str(error))
        self._complained = True


class Versions:
    """The texts that served, by model, and whole revisions of a folder. Read anew each time."""

    def __init__(self, state_dir: Path) -> None:
        """Read nothing yet.

        Args:
            state_dir: The state directory.
        """
        self._models = state_dir / VERSIONS_FOLDER / "models"
        self._revisions = state_dir / VERSIONS_FOLDER / "revisions"

    def of(self, model: str) -> list[Version]:
        """Those of a model, the newest first."""
        return [each for each in _read_versions(self._file(model)) if each.model == model]

    def all(self) -> dict[str, list[Version]]:
        """Those of every model, the newest of each first."""
        found = (_read_versions(file) for file in sorted(_entries(self._models, ".json")))
        return {versions[0].model: versions for versions in found if versions}

    def add(self, version: Version) -> bool:
        """Note a version that came to serve; gives whether something was written.

        Raises:
            OSError: It cannot be written.
        """
        versions = self.of(version.model)
        newest = versions[0] if versions else None
        if newest is not None and newest.digest == version.digest and newest.file == version.file:
            return False
        text = version.text
        if len(text.encode()) > MAX_TEXT_BYTES or looks_secret(text):
            return False
        rows = [asdict(each) for each in (version, *versions)][:KEPT_VERSIONS]
        write_atomic(self._file(version.model), json.dumps(rows, indent=1))
        return True

    def add_revision(self, snapshot: Snapshot) -> None:
        """Note all files of a revision, for a source that keeps none itself.

        Raises:
            OSError: They cannot be written.
        """
        if not _REVISION.fullmatch(snapshot.revision):
            return
        if sum(map(len, snapshot.files.values())) > MAX_REVISION_BYTES:
            return
        try:
            texts = {path: content.decode() for path, content in snapshot.files.items()}
        except UnicodeDecodeError:
            return
        if any(looks_secret(text) for text in texts.values()):
            return
        file = self._revisions / f"{snapshot.revision}.json"
        if file.exists():
            file.touch()  # It is the newest again.
        else:
            write_atomic(file, json.dumps(texts))
        for old in self._kept_revisions()[KEPT_REVISIONS:]:
            old.unlink(missing_ok=True)

    def revision(self, asked: str) -> tuple[str, dict[str, str]] | None:
        """A revision by its name or the beginning of it, with the text of each file; None where it is not kept."""
        for file in self._kept_revisions():
            if is_revision(asked, file.stem):
                with contextlib.suppress(ValidationError, OSError):
                    return file.stem, _FILES.validate_json(file.read_bytes())
        return None

    def revisions(self) -> list[str]:
        """The revisions that are kept, the newest first."""
        return [file.stem for file in self._kept_revisions()]

    def _kept_revisions(self) -> list[Path]:
        found: list[tuple[float, Path]] = []
        for file in _entries(self._revisions, ".json"):
            with contextlib.suppress(OSError):
                found.append((file.stat().st_mtime, file))
        return [file for _, file in sorted(found, reverse=True)]

    def _file(self, model: str) -> Path:
        # A model's name may have slashes.
        return self._models / f"{hashlib.sha256(model.encode()).hexdigest()[:32]}.json"


def read(state_dir: Path, *, max_bytes: int = MAX_BYTES) -> list[Entry]:
    """What the journal says, the oldest first. A line that is torn or foreign is left out.

    Raises:
        OSError: A file of it is there and cannot be read.
    """
    folder = state_dir / FOLDER
    with contextlib.ExitStack() as stack:
        # The newest first: should the files be rotated meanwhile, both are the same.
        newest, older = (_open(stack, folder / name) for name in (NEWEST, OLDER))
        if newest is not None and older is not None and os.path.sameopenfile(newest.fileno(), older.fileno()):
            older = None
        return [entry for file in (older, newest) if file is not None for entry in _entries_in(file, max_bytes)]


def _entries_in(file: IO[bytes], max_bytes: int) -> Iterator[Entry]:
    # Whatever made it longer than we do, its end counts.
    file.seek(max(0, os.fstat(file.fileno()).st_size - 2 * max_bytes))
    for line in file.read(2 * max_bytes + _MAX_LINE).split(b"\n"):
        if not line.startswith(b"{") or len(line) > _MAX_LINE:
            continue
        with contextlib.suppress(ValidationError):
            entry = _ENTRY.validate_json(line)
            if is_sound(entry):
                yield entry


def _open(stack: contextlib.ExitStack, path: Path) -> IO[bytes] | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    file = stack.enter_context(os.fdopen(handle, "rb"))
    return file if stat.S_ISREG(os.fstat(handle).st_mode) else None


def _append(folder: Path, entries: Sequence[Entry], max_bytes: int) -> None:
    """Append lines, in the older file's place where the newest is full.

    Raises:
        OSError: They cannot be written, or not all of them.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = "".join(json.dumps(_row(entry), separators=(",", ":")) + "\n" for entry in entries).encode()
    path = folder / NEWEST
    with contextlib.suppress(FileNotFoundError):
        size = path.lstat().st_size
        if size and size + len(text) > max_bytes:
            path.replace(folder / OLDER)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path} is no regular file")
        size = os.fstat(handle).st_size
        # A crash may have left half a line; it must not spoil the next one.
        if size and os.pread(handle, 1, size - 1) != b"\n":
            text = b"\n" + text
        if os.write(handle, text) != len(text):
            os.ftruncate(handle, size)  # Else what got through would be there twice after the next try.
            raise OSError("the disk is full")
    finally:
        os.close(handle)


def _row(entry: Entry) -> dict[str, object]:
    """What it says, without what it does not; four fields are in each."""
    row = asdict(entry)
    return {key: value for key, value in row.items() if key in _ALWAYS or value not in ("", None, ())}


def _read_versions(file: Path) -> list[Version]:
    # A lost version costs a way back; a crash loop would cost more.
    try:
        return _VERSIONS.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return []


def _entries(folder: Path, suffix: str) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.suffix == suffix and not path.name.startswith(".")]
    except FileNotFoundError:
        return []
