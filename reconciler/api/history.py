"""The journal as the API answers it; read anew only when it has grown."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from reconciler.api.schemas import HistoryView
from reconciler.core.journal_entry import ACTIONS, By, Entry
from reconciler.core.rollback import ALL, short
from reconciler.core.words import in_time
from reconciler.loop import journal
from reconciler.loop.by_hand import FAULT, CommandRefusedError

_Stamp = tuple[tuple[int, int], ...]


class History:
    """The journal of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        """Read nothing yet."""
        self._state_dir = state_dir
        self._read: tuple[_Stamp, Sequence[Entry]] | None = None

    async def entries(self) -> Sequence[Entry]:
        """All lines, the oldest first.

        Raises:
            CommandRefusedError: They cannot be read.
        """
        return await asyncio.to_thread(self._entries)

    async def about(self, model: str | None, limit: int) -> list[HistoryView]:
        """The newest lines that concern a model, or with None all; the newest first."""
        entries = await self.entries()
        if model is not None:
            entries = [each for each in entries if each.model in (model, ALL) or model in each.models]
        return [view_of(entry) for entry in entries[: -limit - 1 : -1]]

    async def newest(self) -> dict[str, Entry]:
        """The newest line about each model."""
        return {entry.model: entry for entry in await self.entries()}

    def _entries(self) -> Sequence[Entry]:
        try:
            stamp = self._stamp()
            if self._read is None or self._read[0] != stamp:
                self._read = (stamp, journal.read(self._state_dir))
        except OSError as error:
            raise CommandRefusedError(FAULT, f"the journal cannot be read: {error.strerror or error}") from error
        return self._read[1]

    def _stamp(self) -> _Stamp:
        folder = self._state_dir / journal.FOLDER
        stamp: list[tuple[int, int]] = []
        for name in (journal.NEWEST, journal.OLDER):
            with contextlib.suppress(FileNotFoundError):
                state = (folder / name).stat()
                stamp.append((state.st_ino, state.st_size))
        return tuple(stamp)


def view_of(entry: Entry) -> HistoryView:
    """A line with its words."""
    return HistoryView(**asdict(entry), text=_in_words(entry))


def _in_words(entry: Entry) -> str:
    """The columns of `reconcile history`, but for the time."""
    who = entry.model or (entry.models[0] if len(entry.models) == 1 else f"{len(entry.models)} models")
    timed = entry.seconds is not None and entry.what in ACTIONS
    outcome = f"{entry.outcome} in {in_time(entry.seconds or 0.0)}" if timed else str(entry.outcome)
    by = f"{entry.by} ({entry.author})" if entry.author and entry.by == By.FILE else entry.by
    why = entry.cause
    if entry.reason and entry.reason != entry.cause:
        why = f"{entry.cause}; {entry.reason}" if entry.cause else entry.reason
    commit = entry.commit or short(entry.revision)
    details = ", ".join(filter(None, (commit, f"by {by}" if by else "")))
    return f"{who} {entry.what}: {outcome}" + (f" ({details})" if details else "") + (f": {why}" if why else "")
