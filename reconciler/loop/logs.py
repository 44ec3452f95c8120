"""The logs of a model, or of all, merged by time: the reconciler's own, the edge's, Ray Serve's and vLLM's.

Asked by `reconcile logs` and by the API. Files of this machine are read; those of other nodes come through Ray's
dashboard, while it answers. `core.log_lines` reads the lines.
"""

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from reconciler.core.log_lines import LEVELS, ORIGINS, About, LineReader, LogLine
from reconciler.core.log_origins import Of
from reconciler.loop.log_files import FollowedFile, LogPlaces, tail_of
from reconciler.loop.remote_logs import RemoteLogs
from reconciler.ray_serve.client import ServeRefusedError, ServeUnreachableError

_POLL_SECONDS = 0.5
_LOOK_SECONDS = 2.0
"""Seconds between two looks for new files."""
_MOST_LINES = 10_000
_READERS = 2
_RAYS = {"serve", "vllm"}
_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines.

    Attributes:
        origins: Of `core.log_lines.ORIGINS`.
        level: The least severe one.
        since: Not before that time, in seconds since the epoch.
    """

    origins: Collection[str] = ORIGINS
    level: str = "debug"
    since: float | None = None

    def has(self, line: LogLine) -> bool:
        """Whether the line is one of them."""
        if line.origin not in self.origins or LEVELS.index(line.level) < LEVELS.index(self.level):
            return False
        return self.since is None or line.at is None or line.at >= self.since


class Logs:
    """Reads logs; nothing has to run for it.

    Args:
        state_dir: The reconciler's own folder.
        dashboard: URL of Ray's dashboard; empty: only files of this machine.
        token_path: File with its token.
        repos: The repositories that a model is made of, whose downloads are its business too.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        dashboard: str = "",
        token_path: Path | None = None,
        repos: Callable[[str], Collection[str]] = lambda _model: (),
    ) -> None:
        self._places = LogPlaces(state_dir)
        self._dashboard = dashboard
        self._token_path = token_path
        self._repos = repos
        self._names: dict[str, str] = {}
        # Apart from the event loop's own, which the turns need: who follows logs comes here twice a second.
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="logs")
        self.missing: list[str] = []
        """What could not be looked at the last time, in words."""

    async def tail(self, model: str | None, lines: int = 200, *, wanted: Wanted | None = None) -> list[LogLine]:
        """The newest lines, oldest first, in the order of their times.

        Args:
            model: Whose; None: all there are.
            lines: How many at most.
            wanted: Which of them.
        """
        return await self._tail(model, lines, wanted or Wanted())

    async def follow(
        self, model: str | None, lines: int = 0, *, wanted: Wanted | None = None
    ) -> AsyncIterator[LogLine]:
        """The newest lines as `tail` gives them, then each as it is written; never ends by itself.

        Lines that are found in one look, every half second, are in the order of their times. Of other nodes only
        processes that run are followed, and looked at every 2 seconds.
        """
        wanted = wanted or Wanted()
        # Where to go on is noted first, so that no line is lost in between, or shown twice.
        followed: dict[Path, FollowedFile] = {}
        await self._apart(self._look, model, wanted, followed, at_end=True)
        remote = RemoteLogs(self._dashboard, self._token_path)
        await self._news(remote, model, wanted)
        if lines > 0:
            ends = {path: each.offset for path, each in followed.items()}
            for line in await self._tail(model, lines, wanted, ends):
                yield line
        looked = time.monotonic()
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            fresh = await self._apart(_polled, followed)
            if time.monotonic() - looked >= _LOOK_SECONDS:
                await self._apart(self._look, model, wanted, followed, at_end=False)
                fresh += await self._news(remote, model, wanted)
                looked = time.monotonic()
            for line in sorted((line for line in fresh if wanted.has(line)), key=_time):
                yield line

    async def _tail(
        self, model: str | None, lines: int, wanted: Wanted, ends: dict[Path, int] | None = None
    ) -> list[LogLine]:
        lines = min(max(lines, 0), _MOST_LINES)
        self.missing = self._places.missing(wanted.origins)
        if not lines:
            return []
        found = await self._apart(self._local, model, lines, wanted, ends)
        found += await self._elsewhere(model, lines, wanted)
        return list(heapq.merge(*(sorted(each, key=_time) for each in found), key=_time))[-lines:]

    async def _apart(self, read: Callable[_Given, _Found], *args: _Given.args, **more: _Given.kwargs) -> _Found:
        """Read in a thread of ours."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, partial(read, *args, **more))

    def _about(self, model: str | None) -> About | None:
        return About(model, self._repos(model)) if model is not None else None

    def _make_reader(self, of: Of, about: About | None) -> LineReader:
        now = datetime.now()  # noqa: DTZ005 -- Ray's lines are in local time
        return LineReader(of, about=about, now=now, epoch=datetime.timestamp, names=self._names)

    def _local(
        self, model: str | None, lines: int, wanted: Wanted, ends: dict[Path, int] | None
    ) -> list[list[LogLine]]:
        """The newest lines of each file; files that can add nothing are not opened."""
        about = self._about(model)
        newest: list[float] = []  # a heap of the times of the newest lines so far
        found: list[list[LogLine]] = []
        for place in self._places.files(about, wanted.origins, rotated=True):
            if ends is not None and place.path not in ends and not _is_rotated(place.path):
                continue  # It came a moment ago, and all of it is to follow.
            enough = len(newest) >= lines and place.changed < newest[0]
            if enough or (wanted.since is not None and place.changed < wanted.since):
                continue
            part = tail_of(
                place,
                partial(self._make_reader, place.of, about),
                wanted.has,
                lines,
                since=wanted.since,
                limit=None if ends is None else ends.get(place.path),
            )
            found.append(part)
            for line in part:
                if len(newest) < lines:
                    heapq.heappush(newest, _time(line))
                else:
                    heapq.heappushpop(newest, _time(line))
        return found

    def _look(
        self, model: str | None, wanted: Wanted, followed: dict[Path, FollowedFile], *, at_end: bool
    ) -> None:
        """Take up new files, and let go of those that are gone."""
        about = self._about(model)
        for path in [path for path, each in followed.items() if each.gone]:
            del followed[path]
        for place in self._places.files(about, wanted.origins, rotated=False):
            if place.path not in followed:
                followed[place.path] = FollowedFile(place, self._make_reader(place.of, about), at_end=at_end)

    async def _elsewhere(self, model: str | None, lines: int, wanted: Wanted) -> list[list[LogLine]]:
        if not self._dashboard or not _RAYS & set(wanted.origins):
            return []
        about = self._about(model)
        try:
            here = await self._apart(self._places.names)
            parts = await RemoteLogs(self._dashboard, self._token_path).tails(
                about, lambda of: self._make_reader(of, about), here, lines
            )
        except (ServeUnreachableError, ServeRefusedError) as error:
            self.missing.append(f"what is not on this machine: {error}")
            return []
        return [[line for line in part if wanted.has(line)] for part in parts]

    async def _news(self, remote: RemoteLogs, model: str | None, wanted: Wanted) -> list[LogLine]:
        if not self._dashboard or not _RAYS & set(wanted.origins):
            return []
        about = self._about(model)
        try:
            here = await self._apart(self._places.names)
            return await remote.news(about, lambda of: self._make_reader(of, about), here)
        except (ServeUnreachableError, ServeRefusedError):
            return []  # It is asked again; files of this machine go on.


def _polled(followed: dict[Path, FollowedFile]) -> list[LogLine]:
    return [line for each in followed.values() for line in each.poll()]


def _is_rotated(path: Path) -> bool:
    return path.suffix[1:].isdigit()


def _time(line: LogLine) -> float:
    return line.at if line.at is not None else 0.0
