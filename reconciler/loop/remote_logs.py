"""Logs of Ray's nodes whose files are not on this machine, through Ray's dashboard. For `loop.logs`.

Which processes were a model's is known from Ray's list of actors, which remembers dead ones for a while. A node's
clock is taken for ours, and its time zone as well.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from reconciler.core.log_lines import About, LineReader, LogLine
from reconciler.core.log_origins import Form, Of, of_serve_file
from reconciler.loop.log_files import lines_in
from reconciler.ray_serve.node_logs import EngineProcess, NodeLogs

_MOST_FILES = 60
_PATIENCE_SECONDS = 10.0
_FOLLOWED_LINES = 400
_CONTEXT = 3
"""Lines before it that have to be the same, too, for a line to be known again."""


@dataclass(frozen=True, slots=True)
class _File:
    node: str
    name: str
    of: Of


class RemoteLogs:
    """Reads log files through the dashboard. All of it raises what `ray_serve.client` does.

    Args:
        dashboard: Its URL.
        token_path: File with its token.
    """

    def __init__(self, dashboard: str, token_path: Path | None) -> None:
        self._dashboard = dashboard
        self._token_path = token_path
        self._first = True
        self._seen: dict[_File, tuple[LineReader, list[str]]] = {}

    async def tails(
        self,
        about: About | None,
        make_reader: Callable[[Of], LineReader],
        here: Collection[str],
        lines: int,
    ) -> list[list[LogLine]]:
        """The newest lines of each file.

        Args:
            about: Whose; None: all.
            make_reader: Reads the lines of a file.
            here: Names of files that are on this machine.
            lines: How many of each file.
        """
        async with self._client() as client:
            files = await _files(client, about, here, alive=False)
            return [
                lines_in(await client.end_of(each.node, each.name, lines), make_reader(each.of), time.time())
                for each in files
            ]

    async def news(
        self, about: About | None, make_reader: Callable[[Of], LineReader], here: Collection[str]
    ) -> list[LogLine]:
        """What was added, since the last time, to the files of processes that run; at first nothing."""
        fresh: list[LogLine] = []
        async with self._client() as client:
            files = await _files(client, about, here, alive=True)
            seen, self._seen = self._seen, {}
            for each in files:
                text = await client.end_of(each.node, each.name, _FOLLOWED_LINES)
                lines = text.split("\n")[:-1]
                reader, before = seen.get(each) or (make_reader(each.of), lines if self._first else [])
                # Nothing where there was something is an answer that failed.
                lines = lines or before
                self._seen[each] = (reader, lines)
                added = lines[_known(before, lines) :]
                fresh += lines_in("\n".join(added), reader, time.time())
            self._first = False
        return fresh

    def _client(self) -> NodeLogs:
        return NodeLogs(self._dashboard, self._token_path, timeout=_PATIENCE_SECONDS)


async def _files(client: NodeLogs, about: About | None, here: Collection[str], *, alive: bool) -> list[_File]:
    """Files of engines' processes, those that run first, and of Serve."""
    processes = sorted(await client.engine_processes(), key=lambda each: not each.alive)
    wanted = [
        each for each in processes if (about is None or about.has(each.application)) and (each.alive or not alive)
    ]
    found: list[_File] = []
    for node in [str(row["node_id"]) for row in await client.nodes()]:
        for name in await client.files(node, "serve/*.log"):
            of = of_serve_file(name.removeprefix("serve/"))
            if of is not None and _counts(of, about):
                found.append(_File(node, name, of))
        of_node = [each for each in wanted if each.node == node]
        names = await client.files(node, "worker-*") if of_node else []
        found += [_File(node, name, of) for each in of_node for name, of in _printed(names, each)]
    fresh = [each for each in found if each.name.removeprefix("serve/") not in here]
    running = {each.application for each in wanted if each.alive}
    fresh.sort(key=lambda each: each.of.application is not None and each.of.application not in running)
    if alive:
        fresh = [each for each in fresh if each.of.application is None or each.of.application in running]
    return fresh[:_MOST_FILES]


def _counts(of: Of, about: About | None) -> bool:
    return about is None or of.application is None or about.has(of.application)


def _printed(names: Collection[str], process: EngineProcess) -> list[tuple[str, Of]]:
    """A process prints to `worker-ID-JOB-PID.out` and `.err`."""
    ends = (f"-{process.pid}.out", f"-{process.pid}.err")
    of = Of(Form.PRINTED, "vllm", process.application)
    return [(name, of) for name in names if name.endswith(ends)]


def _known(before: list[str], lines: list[str]) -> int:
    """How many of `lines` were there before; both are ends of the same log."""
    if not before:
        return 0
    last = before[-_CONTEXT:]
    for end in range(len(lines), 0, -1):
        if lines[max(0, end - len(last)) : end] == last[-min(end, len(last)) :]:
            return end
    return 0
