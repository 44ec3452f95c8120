"""Changes of model files, whoever asks for them: the API, the page, a command.

Each is checked against all files as they are and against what its author saw. Then the source that the files come
from carries it out in its own way: a folder's file is written, a repository gets a branch or its owner a patch.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from reconciler.core.desired import Snapshot
from reconciler.core.edit import (
    Change,
    Edit,
    EditError,
    File,
    NoFileError,
    bytes_of,
    check_seen,
    file_name,
    file_of,
    problems_of,
    unified,
)
from reconciler.core.git_names import GitError, printable
from reconciler.core.render import Renderer
from reconciler.host.log import get_logger
from reconciler.host.settings import Settings
from reconciler.loop.source import SourceSettingsError, git_options
from reconciler.sources import Source
from reconciler.sources.edit_folder import FolderEdits
from reconciler.sources.edit_git import GitEdits

log = get_logger()


class Place(Protocol):
    """Where changes go: a folder, or a repository."""

    writes: bool
    """A change is carried out at once; else it is only proposed, as a patch."""

    @property
    def name(self) -> str:
        """What the source calls the folder of model files."""

    async def check(self, name: str) -> None:
        """Raise EditError where a file of this name cannot be changed, whatever it holds."""

    async def apply(self, edit: Edit, change: Change) -> Edit:
        """Carry out a change that was checked; raises EditError."""


class Edits:
    """Reads and changes the model files of one source."""

    def __init__(self, source: Source, renderer: Renderer, place: Place) -> None:
        self._source, self._renderer, self._place = source, renderer, place
        self._one_at_a_time = asyncio.Lock()

    @property
    def writes(self) -> bool:
        """Whether `apply` carries a change out; else it only gives a patch."""
        return self._place.writes

    async def files(self) -> list[File]:
        """All files that can be read, by path.

        Raises:
            EditError: The source cannot be read.
        """
        snapshot = await self._snapshot()
        return [file_of(path, content) for path, content in sorted(snapshot.files.items())]

    async def read(self, path: str) -> File:
        """One file.

        Args:
            path: As the source names it, or the file's name alone.

        Raises:
            FileNameError: It is no name of a model file.
            NoFileError: There is none of this name.
            EditError: It cannot be read.
        """
        path = self._path(path)
        content = _content(await self._snapshot(), path)
        if content is None:
            raise NoFileError(f"there is no {path}")
        return file_of(path, content)

    async def preview(self, path: str, text: str | None, seen_digest: str | None) -> Edit:
        """What a change would be; nothing is written.

        Args:
            path: As the source names it, or the file's name alone.
            text: The new content; None: the file is removed.
            seen_digest: The digest of the file that the change is made of; None: there must be none yet.

        Raises:
            FileNameError: It is no name of a model file.
            NoFileError: There is none to remove.
            ConflictError: The file is not the one that was seen.
            EditError: It cannot be changed; the message says why.
        """
        return (await self._checked(path, text, seen_digest))[0]

    async def apply(
        self, path: str, text: str | None, seen_digest: str | None, *, message: str, author: str
    ) -> Edit:
        """Carry out a change where it is valid; else, and where it changes nothing, only say what it would be.

        Args:
            path: As the source names it, or the file's name alone.
            text: The new content; None: the file is removed.
            seen_digest: The digest of the file that the change is made of; None: there must be none yet.
            message: Why, for the commit; empty for a usual one.
            author: Who: `Name <mail address>`, or a name.

        Raises:
            FileNameError: It is no name of a model file.
            NoFileError: There is none to remove.
            ConflictError: The file is not the one that was seen.
            EditError: It cannot be changed; the message says why. Nothing is written then.
        """
        async with self._one_at_a_time:
            edit, name, snapshot = await self._checked(path, text, seen_digest)
            before, after = snapshot.files.get(edit.path), None if text is None else bytes_of(text)
            if edit.problems or before == after:
                return edit
            change = Change(name, before, after, snapshot, message, author)
            edit = await self._place.apply(edit, change)
        if edit.written:
            log.info(
                "file.changed",
                path=edit.path,
                by=printable(author),
                change=change.verb,
                backup=edit.backup or "",
                commit=edit.commit or "",
            )
        return edit

    async def _checked(self, path: str, text: str | None, seen: str | None) -> tuple[Edit, str, Snapshot]:
        path = self._path(path)
        name = path.rpartition("/")[2]
        snapshot = await self._snapshot()
        before, after = _content(snapshot, path), None if text is None else bytes_of(text)
        if before is None and after is None:
            raise NoFileError(f"there is no {path}")
        check_seen(path, before, seen)
        await self._place.check(name)
        # Much work where there are many files, and a text may be made to be slow to compare.
        problems = await asyncio.to_thread(problems_of, snapshot, path, after, self._renderer)
        diff = await asyncio.to_thread(unified, path, before, after)
        return Edit(path, diff, problems), name, snapshot

    def _path(self, path: str) -> str:
        return f"{self._place.name}/{file_name(path, self._place.name)}"

    async def _snapshot(self) -> Snapshot:
        snapshot = await self._source.read()
        if snapshot.unreadable:
            raise EditError(snapshot.unreadable)
        return snapshot


def make_edits(settings: Settings, source: Source, renderer: Renderer) -> Edits:
    """Changes of the files of the source that the settings name.

    Raises:
        SourceSettingsError: The branch that changes are pushed to cannot be meant so.
    """
    if settings.source == "folder":
        return Edits(source, renderer, FolderEdits(settings.models_dir, settings.state_dir))
    try:
        place = GitEdits(
            git_options(settings),
            push_branch=settings.git_push_branch,
            push_token=_token(settings.git_push_token_path),
        )
    except GitError as error:
        raise SourceSettingsError(f"git_push_branch: {error}") from error
    return Edits(source, renderer, place)


def _token(path: Path | None) -> Callable[[], str] | None:
    """The token for pushing, read anew at each use; None where it is the source's own."""
    return None if path is None else lambda: path.read_text(encoding="utf-8")


def _content(snapshot: Snapshot, path: str) -> bytes | None:
    for problem in snapshot.problems:
        if problem.path == path:
            raise EditError(f"{path} {problem.message}")
    return snapshot.files.get(path)
