"""What the loop remembers, and what a damaged file costs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.state import Application, Demand, Record, Status
from reconciler.loop.memory import Memory

RECORD = Record("a", "models.d/a.yaml", "a-1", {"task": "generate", "aliases": ["x"]}, {"name": "a-0"})


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def app(name: str, *, model: str | None = "a", config: bool = True, gpus: float = 0.5) -> Application:
    settings = {"name": name} if config else None
    return Application(name, Status.RUNNING, settings, model if config else None, demand=Demand(gpus=gpus))


def test_records_and_failures_outlive_the_process(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.record(RECORD)
    first = memory.fail("a", "a-2", "broken", 1000.0)
    second = memory.fail("a", "a-2", "broken still", 1030.0)
    assert (first.retry_at, second.retry_at, second.attempts) == (1030.0, 1090.0, 2)
    again = Memory(tmp_path)
    assert again.records == {"a": RECORD}
    assert again.failures == {"a-2": second}
    assert again.ready == set()


def test_reading_writes_nothing(tmp_path: Path) -> None:
    Memory(tmp_path / "absent").see({}, {})
    assert list(tmp_path.iterdir()) == []


def test_files_are_private(tmp_path: Path) -> None:
    Memory(tmp_path).record(RECORD)
    assert [oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()] == ["0o600"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        "{}",
        "[1, null, []]",
        '[{"model": "a"}]',
        '[{"model": 1, "application": [], "reason": null}]',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        "[" * 100_000,
    ],
)
def test_a_damaged_file_costs_no_start(tmp_path: Path, content: str) -> None:
    for name in ("records.json", "failures.json"):
        (tmp_path / name).write_text(content, encoding="latin-1")
    memory = Memory(tmp_path)
    assert memory.records == {}
    assert memory.failures == {}
    memory.record(RECORD)
    assert Memory(tmp_path).records == {"a": RECORD}


def test_of_a_file_with_one_bad_row_the_others_stay(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.record(RECORD)
    file = tmp_path / "records.json"
    rows: list[Any] = json.loads(file.read_text())
    file.write_text(json.dumps([{"from": "another version"}, *rows]))
    assert Memory(tmp_path).records == {"a": RECORD}


def test_the_way_back_is_noted_beside_the_record(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.keep_previous("b", {"name": "b-1"})
    assert memory.records["b"].previous == {"name": "b-1"}
    memory.record(Record("a", "f", "a-1", {"x": 1}))
    memory.keep_previous("a", {"name": "a-1"})
    assert memory.records["a"] == Record("a", "f", "a-1", {"x": 1}, {"name": "a-1"})


def test_what_is_forgotten_is_forgotten_on_disk(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.record(RECORD)
    memory.fail("a", "a-2", "r", 0.0)
    memory.fail("a", "a-3", "r", 0.0)
    memory.forget_failures(["a-3"])
    memory.forget_models(["a", "never"])
    again = Memory(tmp_path)
    assert again.records == {}
    assert list(again.failures) == ["a-3"]
    memory.forgive("a-3")
    assert Memory(tmp_path).failures == {}


def test_clocks_start_with_sight_and_stop_with_traffic(tmp_path: Path) -> None:
    clock = Clock()
    memory = Memory(tmp_path, monotonic=clock)
    memory.see({"a-1": app("a-1"), "a-2": app("a-2")}, {"a": "a-1"})
    clock.now += 5
    assert memory.ages() == {"a-1": 5.0, "a-2": 5.0}
    assert memory.draining() == {"a-2": 5.0}
    memory.see({"a-1": app("a-1"), "a-2": app("a-2")}, {"a": "a-2"})
    clock.now += 2
    assert memory.draining() == {"a-1": 2.0}
    memory.see({"a-2": app("a-2")}, {"a": "a-2"})
    memory.see({"a-1": app("a-1"), "a-2": app("a-2")}, {"a": "a-2"})
    assert memory.ages()["a-1"] == 0.0


def test_what_has_traffic_is_ready_and_what_is_gone_is_not(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.unanswered["a-2"] = "500"
    memory.see({"a-1": app("a-1"), "a-2": app("a-2")}, {"a": "a-1", "b": "b-gone"})
    assert memory.ready == {"a-1"}
    assert memory.unanswered == {"a-2": "500"}
    memory.see({}, {})
    assert memory.ready == set()
    assert memory.unanswered == {}


def test_what_is_being_deleted_is_still_ours_and_still_takes_its_room(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.see({"a-1": app("a-1"), "x": app("x", config=False)}, {})
    seen = memory.see({"a-1": app("a-1", config=False, gpus=0), "x": app("x", config=False)}, {})
    assert (seen["a-1"].model, seen["a-1"].demand.gpus) == ("a", 0.5)
    assert seen["x"].model is None


def test_what_others_reserve_is_the_least_of_the_last_seconds(tmp_path: Path) -> None:
    clock = Clock()
    memory = Memory(tmp_path, monotonic=clock)
    assert memory.settle("gpus", 0.0) == 0.0
    clock.now += 5
    assert memory.settle("gpus", 0.8) == 0.0
    clock.now += 8
    assert memory.settle("gpus", 0.8) == 0.8


def test_a_version_without_a_route_drains_from_the_first_request_that_it_got(tmp_path: Path) -> None:
    """Requests that the activator passed on, and the edge was never told of."""
    clock = Clock()
    memory = Memory(tmp_path, monotonic=clock)
    memory.see({"m-1": app("m-1")}, {})
    clock.now += 500
    memory.use({"m-1": 1}, {"m-1": 0.0})
    assert memory.draining() == {"m-1": 0.0}
    clock.now += 5
    memory.use({"m-1": 2}, {"m-1": 0.0})
    assert memory.draining() == {"m-1": 5.0}


def test_a_build_starts_the_clock_of_its_age_anew(tmp_path: Path) -> None:
    clock = Clock()
    memory = Memory(tmp_path, monotonic=clock)
    building = dataclasses.replace(app("a-1"), building=True)
    for seen, age in ((app("a-1"), 0.0), (building, 0.0), (building, 7.0), (app("a-1"), 14.0), (building, 0.0)):
        memory.see({"a-1": seen}, {})
        assert memory.ages() == {"a-1": age}
        clock.now += 7


def test_one_that_was_woken_counts_as_up_from_its_traffic_on(tmp_path: Path) -> None:
    clock = Clock()
    memory = Memory(tmp_path, monotonic=clock)
    memory.see({"a-1": app("a-1")}, {"a": "a-1"})
    clock.now += 500
    memory.see({"a-1": app("a-1")}, {})
    memory.wakes("a-1")
    memory.see({"a-1": app("a-1")}, {})
    assert memory.up_seconds() == {"a-1": 500.0}, "it had the traffic last, and has it not yet again"
    memory.see({"a-1": app("a-1")}, {"a": "a-1"})
    clock.now += 3
    memory.see({"a-1": app("a-1")}, {"a": "a-1"})
    assert memory.up_seconds() == {"a-1": 3.0}


def test_what_comes_up_for_requests_is_in_use(tmp_path: Path) -> None:
    clock = Clock()
    memory = Memory(tmp_path, monotonic=clock)
    memory.see({"a-1": app("a-1"), "b-1": app("b-1", model="b")}, {})
    clock.now += 50
    memory.awaited(["a"])
    clock.now += 2
    assert memory.use({}, {}) == {"a-1": 2.0, "b-1": 52.0}
