"""The edge's maps, changed where they are: in their files, and in the process by the differences alone."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from reconciler.edge.access import LOCKED
from reconciler.edge.errors import EdgeUnreachableError
from reconciler.edge.maps import KEY_MODELS, KEYS, Map
from reconciler.edge.runtime_api import CURRENT, RuntimeApi
from reconciler.host.files import write_atomic

_ATTEMPTS: Final = 3


class LiveMaps:
    """The maps of one edge.

    Args:
        folder: Where their files are.
        api: The edge's socket.
        locked: A key is required, whatever anybody says: strangers reach it.
    """

    def __init__(self, folder: Path, api: RuntimeApi, *, locked: bool = False) -> None:
        self._folder = folder
        self._api = api
        self._locked = locked

    def on_file(self, which: Map) -> dict[str, str]:
        """What the edge would start with. What is no entry is left out.

        Raises:
            OSError: The file is there and cannot be read.
        """
        try:
            text = (self._folder / which.name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        entries = which.parse(text)
        # Who may pass is not known of a file that is damaged.
        if which is KEYS and (self._locked or len(entries) != len(text.splitlines())):
            entries |= LOCKED
        return entries

    def mend(self, which: Map) -> None:
        """Make the file one that HAProxy can start with: lines that are no entry would keep it from that.

        Raises:
            OSError: It cannot be read or written.
        """
        write_atomic(self._folder / which.name, which.format(self.on_file(which)))

    async def put(self, which: Map, entries: Mapping[str, str]) -> None:
        """Make these the entries. An edge that is down will start with them.

        Raises:
            ValueError: One cannot be an entry of this map; nothing was changed.
            OSError: The file cannot be written. Of keys alone the edge has them nevertheless: one that was revoked
                must not go on because a disk is full.
            EdgeUnreachableError: The edge answers and yet does not take them; the file has them.
        """
        if which is KEYS and self._locked:
            entries = {**entries, **LOCKED}
        text, file = which.format(entries), self._folder / which.name
        try:
            if not _holds(file, text):
                write_atomic(file, text)
        except OSError:
            if which in (KEYS, KEY_MODELS):
                await self._apply_if_up(which, entries)
            raise
        await self._apply_if_up(which, entries)

    async def _apply_if_up(self, which: Map, entries: Mapping[str, str]) -> None:
        try:
            await self._apply(which, entries)
        except EdgeUnreachableError:
            # Where it is down, the file is all that is wanted. Where it is not, models would be taken away that it
            # still sends requests to, and keys that it still takes.
            if await self._accepts():
                raise

    async def _apply(self, which: Map, entries: Mapping[str, str]) -> None:
        for pid in (await self._api.processes()).leaving:
            # A request whose body was still arriving when its worker was replaced is routed by that worker.
            with contextlib.suppress(EdgeUnreachableError):
                await self._apply_once(which, entries, f"@!{pid}")
        # Not what was sent counts but what is there afterwards.
        for _ in range(_ATTEMPTS):
            if await self._apply_once(which, entries):
                return
        raise EdgeUnreachableError(f"the edge does not take its {which.name}")

    async def _apply_once(self, which: Map, entries: Mapping[str, str], worker: str = CURRENT) -> bool:
        commands = which.commands(await self._api.entries(which.name, worker), entries)
        await self._api.tell(commands, worker)
        return not commands

    async def _accepts(self) -> bool:
        try:
            return (await self._api.processes()).worker is not None
        except EdgeUnreachableError:
            return False


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False
