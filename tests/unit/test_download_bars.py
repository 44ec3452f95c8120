"""The bars of a terminal: one for a repository, one for each large file that is just coming, none that is over."""

import io

from rich.console import Console
from rich.progress import Progress, TextColumn

from reconciler.cli.progress import _Bars
from reconciler.core.weights import Copy, CopyState, FileState, Phase

COPY = Copy("org/model", "3fa9" * 10)
GIB = 2**30


def shown(bars: Progress) -> list[tuple[str, float, float | None, str]]:
    return [(task.description, task.completed, task.total, task.fields["phase"]) for task in bars.tasks]


def test_the_bars_follow_what_is_under_way() -> None:
    bars = Progress(TextColumn("{task.description}"), console=Console(file=io.StringIO()))
    rows = _Bars(bars)
    rows.show({COPY: CopyState(Phase.LISTING)})
    assert shown(bars) == [("org/model@3fa93fa9", 0, None, "listing")]
    files = (
        FileState("a.safetensors", Phase.FETCHING, GIB, 4 * GIB, 1e6),
        FileState("b.safetensors", Phase.READY, GIB, GIB),
        FileState("config.json", Phase.FETCHING, 1, 500),
    )
    rows.show({COPY: CopyState(Phase.FETCHING, 5 * GIB + 500, 2 * GIB + 1, files=files)})
    assert shown(bars) == [
        ("org/model@3fa93fa9", 2 * GIB + 1, 5 * GIB + 500, "downloading"),
        ("  a.safetensors", GIB, 4 * GIB, "downloading"),
    ]
    rows.show({COPY: CopyState(Phase.WAITING, reason="the hub limits how often we ask; goes on in 9 s")})
    assert [row[3] for row in shown(bars)] == ["the hub limits how often we ask; goes on in 9 s"]
    rows.show({})
    assert shown(bars) == []


def test_a_file_says_how_long_it_will_take() -> None:
    assert FileState("a", Phase.FETCHING, 40, 100, 10.0).seconds_left == 6.0
    assert FileState("a", Phase.FETCHING, 40, 100).seconds_left is None
