"""How long loads take: what the stopwatch sees, and what is remembered of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.loop.load_times import LoadTimes, Stopwatch


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


# --- the stopwatch ----------------------------------------------------------------------------------------


class Turns:
    """A stopwatch of a process that has been running for a turn, and turns of one second."""

    def __init__(self, *, at_start: str = "") -> None:
        self.clock = Clock()
        self.watch = Stopwatch(monotonic=self.clock)
        self.see(at_start)

    def see(self, *apps: str) -> None:
        """One turn; `a-1:load` is an application and its phase."""
        self.clock.now += 1
        parts = (app.partition(":") for app in apps if app)
        self.watch.see({name: (name.partition("-")[0], phase) for name, _, phase in parts})


def test_seconds_by_phase() -> None:
    turns = Turns()
    for phase in ("queued", "build", "build", "load", "load", "load", "probe"):
        turns.see(f"a-1:{phase}", "b-1:load")
    turns.clock.now += 0.25
    assert turns.watch.done("a-1") == {"queued": 1.0, "build": 2.0, "load": 3.0, "probe": 0.25}
    assert turns.watch.done("a-1") is None
    turns.see("b-1:load")
    assert turns.watch.done("b-1") == {"load": 7.25}


def test_it_has_the_traffic_already_when_it_is_seen_no_more() -> None:
    turns = Turns()
    turns.see("a-1:load")
    turns.see("a-1:probe")
    turns.see()
    turns.clock.now += 10
    assert turns.watch.done("a-1") == {"load": 1.0, "probe": 1.0}
    assert turns.watch.done("a-1") is None


def test_what_was_coming_up_when_the_process_started_has_no_time() -> None:
    turns = Turns(at_start="a-1:load")
    turns.see("a-1:probe", "b-1:build")
    turns.see("b-1:build")
    assert turns.watch.done("a-1") is None
    assert turns.watch.done("b-1") == {"build": 1.0}
    # Its next load is seen whole.
    turns.see()
    turns.see("a-1:load")
    turns.see("a-1:load")
    assert turns.watch.done("a-1") == {"load": 1.0}


def test_what_vanishes_is_forgotten() -> None:
    turns = Turns()
    for _ in range(5):
        turns.see("a-1:load")
    turns.see()
    turns.see()
    assert turns.watch.done("a-1") is None
    turns.see("a-1:load")
    turns.see("a-1:load")
    assert turns.watch.done("a-1") == {"load": 1.0}


def test_a_phase_that_comes_again_goes_on() -> None:
    turns = Turns()
    for phase in ("load", "queued", "load"):
        turns.see(f"a-1:{phase}")
    turns.see("a-1:load")
    assert turns.watch.done("a-1") == {"load": 2.0, "queued": 1.0}


def test_what_was_never_seen_has_no_time() -> None:
    assert Turns().watch.done("a-1") is None


@given(
    st.lists(st.tuples(st.sampled_from(["queued", "build", "load", "probe"]), st.integers(1, 1000)), min_size=1)
)
def test_the_phases_add_up_to_the_whole(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    watch = Stopwatch(monotonic=clock)
    watch.see({})
    for phase, seconds in steps:
        watch.see({"a-1": ("a", phase)})
        clock.now += seconds
    found = watch.done("a-1")
    assert found is not None
    wanted: dict[str, float] = {}
    for phase, seconds in steps:
        wanted[phase] = wanted.get(phase, 0.0) + seconds
    assert found == wanted


# --- what is remembered -----------------------------------------------------------------------------------


def note(times: LoadTimes, application: str, *seconds: float) -> None:
    for each in seconds:
        times.note(application.partition("-")[0], application, {"build": 1.0, "load": each - 1.0})


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ([("a-1", 10.0)], 10.0),
        ([("a-1", 10.0), ("a-1", 40.0), ("a-1", 11.0)], 11.0),
        ([("a-1", 10.0), ("a-1", 20.0)], 15.0),
        # Of the last five.
        ([("a-1", 99.0)] * 3 + [("a-1", 10.0)] * 3 + [("a-1", 99.0)] * 2, 10.0),
        # The newest version says more than those before.
        ([("a-1", 99.0), ("a-1", 99.0), ("a-2", 10.0)], 10.0),
        # A rollback makes the old one the newest.
        ([("a-1", 10.0), ("a-2", 99.0), ("a-1", 12.0)], 11.0),
    ],
)
def test_the_next_load_takes_what_the_last_ones_did(
    tmp_path: Path, loads: list[tuple[str, float]], expected: float
) -> None:
    times = LoadTimes(tmp_path)
    for application, seconds in loads:
        note(times, application, seconds)
    note(times, "b-1", 5.0)
    assert times.expected() == {"a": expected, "b": 5.0}
    assert LoadTimes(tmp_path).expected() == times.expected()


def test_the_file_is_bounded_by_five_loads_of_each_model_that_is_kept(tmp_path: Path) -> None:
    times = LoadTimes(tmp_path)
    for number in range(50):
        note(times, f"a-{number}", 10.0)
        note(times, f"m{number}-1", 10.0)
    times.keep(["a", "m7", "unknown"])
    assert times.expected() == {"a": 10.0, "m7": 10.0}
    rows = json.loads((tmp_path / "load_times.json").read_text())
    assert [row["application"] for row in rows] == [*(f"a-{number}" for number in range(45, 50)), "m7-1"]
    before = (tmp_path / "load_times.json").stat()
    times.keep(["a", "m7"])
    assert (tmp_path / "load_times.json").stat().st_ino == before.st_ino, "nothing changed, nothing was written"


def test_reading_writes_nothing(tmp_path: Path) -> None:
    times = LoadTimes(tmp_path / "absent")
    times.keep([])
    assert times.expected() == {}
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_private(tmp_path: Path) -> None:
    note(LoadTimes(tmp_path), "a-1", 10.0)
    assert [oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()] == ["0o600"]


GOOD: dict[str, Any] = {"model": "a", "application": "a-1", "phases": {"load": 10.0}}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        "[1, null, []]",
        "[" * 100_000,
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        json.dumps([{"model": "a"}]),
        json.dumps([GOOD | {"phases": {"load": float("nan")}}]),
        json.dumps([GOOD | {"phases": {"load": float("inf")}}]),
        json.dumps([GOOD | {"phases": {"load": -1.0}}]),
        json.dumps([GOOD | {"phases": {"load": 1e300}}]),
        json.dumps([GOOD | {"phases": {str(number): 1.0 for number in range(1000)}}]),
        json.dumps([GOOD])[:-1],
    ],
)
def test_a_damaged_file_costs_estimates_and_nothing_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "load_times.json").write_bytes(content.encode("latin-1"))
    times = LoadTimes(tmp_path)
    assert times.expected() == {}
    note(times, "b-1", 5.0)
    assert LoadTimes(tmp_path).expected() == {"b": 5.0}


def test_a_damaged_row_costs_that_row(tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"phases": 7}, GOOD | {"model": "b", "more": 1}]
    (tmp_path / "load_times.json").write_text(json.dumps(rows))
    assert LoadTimes(tmp_path).expected() == {"a": 10.0, "b": 10.0}


def test_a_folder_in_place_of_the_file_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "load_times.json").mkdir()
    times = LoadTimes(tmp_path)
    with pytest.raises(OSError):
        note(times, "a-1", 10.0)
    assert times.expected() == {"a": 10.0}
