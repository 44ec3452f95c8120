"""Downloads as a person watches them: live bars on a terminal, nothing in a pipe (events tell it there)."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

from reconciler.core.weights import Copy, CopyState, FileState, Phase

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LARGE_FILE = 64 * 2**20
"""Bytes. A smaller file is gone before anybody reads its bar."""
_MOST_FILES = 8

Show: TypeAlias = Callable[[Mapping[Copy, CopyState]], None]


@contextlib.contextmanager
def download_bars() -> Iterator[Show]:
    """A function that shows how far downloads are, while the block runs.

    What is written to `sys.stderr` meanwhile appears above the bars, so configure logging inside the block.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    # Only here: a pipe has no use for them, and they take a while to import.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[phase]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars).show


class _Bars:
    """One bar for each copy that is under way, and one for each large file of it that is just coming."""

    def __init__(self, bars: "Progress") -> None:
        self._bars = bars
        self._tasks: dict[tuple[Copy, str], TaskID] = {}

    def show(self, states: Mapping[Copy, CopyState]) -> None:
        """Bring the bars up to date."""
        wanted: dict[tuple[Copy, str], tuple[str, CopyState | FileState]] = {}
        for copy, state in states.items():
            wanted[copy, ""] = (str(copy), state)
            coming = [file for file in state.files if file.phase is Phase.FETCHING and file.size >= _LARGE_FILE]
            wanted |= {(copy, file.path): (f"  {file.path[-40:]}", file) for file in coming[:_MOST_FILES]}
        for key in self._tasks.keys() - wanted.keys():
            self._bars.remove_task(self._tasks.pop(key))
        for key, (name, shown) in wanted.items():
            if key not in self._tasks:
                self._tasks[key] = self._bars.add_task(name, total=None, phase="")
            total = shown.size if isinstance(shown, FileState) else shown.total
            phase: str = shown.phase.value
            if isinstance(shown, CopyState) and shown.phase is Phase.WAITING:
                phase = shown.reason
            self._bars.update(self._tasks[key], total=total, completed=shown.done, phase=phase)
