"""Downloads as a person watches them: live bars on a terminal, nothing in a pipe (events tell it there)."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

from reconciler.core.weights import Copy, CopyState, Phase

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

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
    """One bar for each copy that is under way."""

    def __init__(self, bars: "Progress") -> None:
        self._bars = bars
        self._tasks: dict[Copy, TaskID] = {}

    def show(self, states: Mapping[Copy, CopyState]) -> None:
        for copy in self._tasks.keys() - states.keys():
            self._bars.remove_task(self._tasks.pop(copy))
        for copy, state in states.items():
            if copy not in self._tasks:
                self._tasks[copy] = self._bars.add_task(str(copy), total=None, phase="")
            phase = state.reason if state.phase is Phase.WAITING else state.phase.value
            self._bars.update(self._tasks[copy], total=state.total, completed=state.done, phase=phase)
