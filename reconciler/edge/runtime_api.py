"""The edge's admin socket: HAProxy's runtime API, through its master.

The master keeps one socket while workers come and go. `@1` before a command is for the worker that accepts
connections, `@!<pid>` for one that is finishing its last requests after a reload.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.edge import maps
from reconciler.edge.errors import EdgeUnreachableError
from reconciler.edge.usage import KEY_TABLE, TABLE, KeyCount, Usage, parse_key_table, parse_table

CURRENT = "@1"
"""The worker that accepts connections."""

_PROCESS = re.compile(r"^(?P<pid>\d+)\s+(?P<kind>master|worker)\s")
_DESCRIPTION = re.compile(r"^description: (\S+)$", re.MULTILINE)
_NO_SUCH_WORKER = "Can't find the target"
_LINE_BYTES = 8192
"""Of commands sent in one line, which has to fit HAProxy's buffer: 16 KiB at the least."""


@dataclass(frozen=True)
class Processes:
    """HAProxy's processes.

    Attributes:
        master: The one that owns the socket and reloads.
        worker: The one that accepts connections; None for a moment during a start.
        leaving: Those that a reload replaced and that still have requests in flight.
    """

    master: int
    worker: int | None
    leaving: tuple[int, ...]


class RuntimeApi:
    """A client of one edge's socket. Each call is a connection of its own.

    Every method raises `EdgeUnreachableError` where nothing answers, in time and as expected.
    """

    def __init__(self, socket_file: Path, *, timeout_seconds: float = 10.0) -> None:
        self._socket_file = socket_file
        self._timeout = timeout_seconds

    async def ask(self, command: str) -> str:
        """HAProxy's answer to one line of commands."""
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._ask(command)
        except TimeoutError as error:
            raise EdgeUnreachableError(f"the edge did not answer within {self._timeout} seconds") from error
        except (OSError, UnicodeDecodeError) as error:
            raise EdgeUnreachableError(f"the edge cannot be reached at {self._socket_file}: {error}") from error
        if not answer or answer.startswith(_NO_SUCH_WORKER):
            raise EdgeUnreachableError("the edge has no such process at this moment")
        return answer

    async def _ask(self, command: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(self._socket_file))
        try:
            writer.write(f"{command}\n".encode())
            await writer.drain()
            # The master hangs up after its answer only where nothing more can come.
            writer.write_eof()
            return (await reader.read()).decode()
        finally:
            writer.close()

    async def processes(self) -> Processes:
        """Which processes there are."""
        master = worker = None
        leaving: list[int] = []
        old = False
        for line in (await self.ask("show proc")).splitlines():
            old = line.startswith("# old workers") or (old and not line.startswith("#"))
            found = _PROCESS.match(line)
            if found is None:
                continue
            pid = int(found["pid"])
            if found["kind"] == "master":
                master = pid
            elif old:
                leaving.append(pid)
            else:
                worker = pid
        if master is None:
            raise EdgeUnreachableError("the edge's socket names no master process")
        return Processes(master, worker, tuple(leaving))

    async def fingerprint(self) -> str:
        """The fingerprint of the configuration that accepts connections; empty if it carries none."""
        found = _DESCRIPTION.search(await self.ask(f"{CURRENT} show info"))
        return found[1] if found else ""

    async def reload(self) -> str | None:
        """Replace the worker by one that reads the files anew; requests in flight go on in the old one.

        Returns:
            None, or HAProxy's complaint about the files; the old worker then stays.
        """
        answer = await self.ask("reload")
        return None if answer.startswith("Success=1") else answer

    async def entries(self, name: str, worker: str = CURRENT) -> dict[str, str]:
        """The map of that name, as that worker has it."""
        return maps.parse_entries(await self.ask(f"{worker} show map {name}"))

    async def tell(self, commands: Iterable[str], worker: str = CURRENT) -> None:
        """Send commands to one worker, many at a time. What became of them has to be read back."""
        line = ""
        for command in commands:
            addition = f"{worker} {command}; "
            if line and len(line) + len(addition) > _LINE_BYTES:
                await self.ask(line)
                line = ""
            line += addition
        if line:
            await self.ask(line)

    async def usage(self, worker: str = CURRENT) -> dict[str, Usage]:
        """What that worker has counted, by application."""
        return parse_table(await self.ask(f"{worker} show table {TABLE}"))

    async def touch(self, applications: Iterable[str]) -> None:
        """Make these applications used at this moment, in the worker that accepts connections."""
        await self.tell(f"set table {TABLE} key {name}" for name in applications)

    async def key_counts(self) -> dict[str, KeyCount]:
        """What the worker that accepts connections has counted, by a key's fingerprint."""
        return parse_key_table(await self.ask(f"{CURRENT} show table {KEY_TABLE}"))

    async def set_key_counts(self, counts: Mapping[str, KeyCount]) -> None:
        """Make that worker go on from these."""
        await self.tell(
            f"set table {KEY_TABLE} key {key} data.http_req_cnt {count.requests} data.http_req_rate {count.rate}"
            for key, count in counts.items()
        )
