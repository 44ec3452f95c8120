"""Changes of model files in a folder source: the last step of an edit, after it was checked.

A file is replaced in one rename or removed, the file as it was is kept before that, and whoever writes the same
file meanwhile is not overwritten. Nothing outside the folder is written, and no link is followed.
"""

import asyncio
import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from reconciler.core.edit import Change, ConflictError, Edit, EditError, file_name
from reconciler.core.parse import SUFFIXES
from reconciler.core.yaml_reader import MAX_BYTES
from reconciler.host.files import write_atomic

BACKUPS = "backups"
_KEPT = 20
_SWAPPED = "..data"
"""Kubernetes' link to the files of a mounted ConfigMap, all of which it replaces at once."""


class FolderEdits:
    """Writes the model files of one folder.

    Attributes:
        writes: A change is carried out at once.
    """

    writes = True

    def __init__(self, folder: Path, state_dir: Path) -> None:
        self._folder, self._state_dir = folder, state_dir

    @property
    def name(self) -> str:
        """What the source calls the folder."""
        return self._folder.name

    async def check(self, name: str) -> None:
        """Raise EditError where a file of this name cannot be written or removed, whatever it holds."""
        await asyncio.to_thread(self._check, name)

    async def apply(self, edit: Edit, change: Change) -> Edit:
        """Carry out a change that was checked; gives the edit with where the file as it was is kept.

        Raises:
            ConflictError: The file is not what the change was checked against.
            EditError: It cannot be written; it is then as it was.
        """
        backup = await asyncio.to_thread(self.write, change.name, change.after, before=change.before)
        return replace(edit, written=True, backup=backup)

    def read(self, name: str) -> bytes | None:
        """A file's content; None where there is none.

        Raises:
            EditError: It is a link, no regular file, too large, or cannot be read.
        """
        with _as_edit_error(self._shown(name)):
            try:
                handle = os.open(
                    self._real() / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                )
            except FileNotFoundError:
                return None
            with open(handle, "rb") as file:  # noqa: PTH123 -- by its handle
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise EditError(f"{self._shown(name)} is larger than {MAX_BYTES // 1024} KiB")
        return content

    def write(self, name: str, after: bytes | None, *, before: bytes | None) -> str | None:
        """Replace, write or remove a file; gives where it is kept as it was, relative to the state directory.

        Args:
            name: The file's name.
            after: Its new content, UTF-8; None removes it.
            before: What it must be; None: there must be no such file.

        Raises:
            ConflictError: It is something else.
            EditError: It cannot be written; it is then as it was.
        """
        file_name(name, self.name)
        self._check(name)
        with _as_edit_error(self._shown(name)), contextlib.ExitStack() as undo:
            self._check_still(name, before)
            backup = None if before is None else self._keep(name, before)
            if backup is not None:
                undo.callback(backup.unlink, missing_ok=True)
            self._replace(name, after, before)
            undo.pop_all()
        if backup is None:
            return None
        self._forget_old(name)
        return f"{BACKUPS}/{backup.name}"

    def _replace(self, name: str, after: bytes | None, before: bytes | None) -> None:
        # Model files are for everybody to read, and so is a folder of them that is not there yet.
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._real() / name
        if after is None:
            self._check_still(name, before)
            file.unlink()
            return
        mode = 0o644 if before is None else stat.S_IMODE(file.lstat().st_mode) & 0o777
        # Whole and on disk under a name that no source reads; so that between the last look and the rename there
        # is no time that counts.
        made = file.with_name(f".{name}.{secrets.token_hex(4)}.edit")
        try:
            write_atomic(made, after.decode(), mode=mode)
            self._check_still(name, before)
            made.replace(file)
        finally:
            made.unlink(missing_ok=True)

    def _check(self, name: str) -> None:
        folder = self._real()
        if not folder.is_dir():
            if os.path.lexists(folder):
                raise EditError(f"{self._folder} is no folder")
            return
        if os.path.lexists(folder / _SWAPPED):
            raise EditError(
                f"{self._folder} is mounted from a Kubernetes ConfigMap or Secret: change that, the files follow"
            )
        with _as_edit_error(str(self._folder)):
            links = [each.is_symlink() for each in folder.iterdir() if _is_read(each.name)]
        if (folder / name).is_symlink() or (links and all(links)):
            which = self._shown(name) if (folder / name).is_symlink() else f"each file in {self._folder}"
            raise EditError(f"{which} is a link: change the file where it comes from")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise EditError(f"{self._folder} is read-only for this user: change the files where they come from")

    def _check_still(self, name: str, before: bytes | None) -> None:
        if self.read(name) != before:
            raise ConflictError(f"{self._shown(name)} was changed by somebody else meanwhile; nothing was written")

    def _keep(self, name: str, content: bytes) -> Path:
        folder = self._state_dir / BACKUPS
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        at = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 -- a name, no path
        backup = folder / f"{stem}.{at}{suffix}"
        handle = os.open(backup, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as file:  # noqa: PTH123 -- by its handle
            file.write(content)
            file.flush()
            os.fsync(handle)
        return backup

    def _forget_old(self, name: str) -> None:
        stem, suffix = (re.escape(part) for part in os.path.splitext(name))  # noqa: PTH122 -- a name, no path
        own = re.compile(rf"{stem}\.\d{{8}}T\d{{6}}\.\d{{6}}Z{suffix}")
        with contextlib.suppress(OSError):  # What could not be removed is removed the next time.
            kept = sorted(each for each in (self._state_dir / BACKUPS).iterdir() if own.fullmatch(each.name))
            for each in kept[:-_KEPT]:
                each.unlink()

    def _real(self) -> Path:
        return Path(os.path.realpath(self._folder))

    def _shown(self, name: str) -> str:
        return f"{self.name}/{name}"


def _is_read(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


@contextlib.contextmanager
def _as_edit_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EditError(f"{what}: {error.strerror or error}") from error
