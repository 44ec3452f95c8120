"""What is asked for by hand: what each command means, how long it holds, and what survives of it."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from reconciler.core.overrides import (
    DEFAULT_SECONDS,
    LONGEST_SECONDS,
    Kind,
    Override,
    OverrideError,
    active,
    give,
    in_words,
    is_drift,
    is_sound,
)
from reconciler.core.spec import Policy
from reconciler.loop.overrides import OverrideStore

NOW = 1_790_000_000.0
HOUR = 3600.0
PINNED, ON_DEMAND, MANUAL = Policy.PINNED, Policy.ON_DEMAND, Policy.MANUAL
LOAD, UNLOAD, PIN, UNPIN = Kind.LOAD, Kind.UNLOAD, Kind.PIN, Kind.UNPIN


def held(kind: Kind, seconds: float | None = None) -> Override:
    """One that was given ten minutes ago and holds for `seconds` from now on."""
    return Override("m", kind, NOW - 600, None if seconds is None else NOW + seconds)


def asked(
    kind: Kind, policy: Policy, current: Override | None = None, for_seconds: float | None = None
) -> Override | None:
    return give(kind, "m", policy, current, now=NOW, for_seconds=for_seconds)


# --- what a command means ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [ON_DEMAND, MANUAL, PINNED])
@pytest.mark.parametrize("current", [None, held(UNLOAD), held(UNLOAD, HOUR), held(UNPIN, HOUR), held(LOAD)])
def test_a_load_holds_until_it_is_done_or_for_its_time(policy: Policy, current: Override | None) -> None:
    assert asked(LOAD, policy, current) == Override("m", LOAD, NOW, None)
    # A manual model that nobody has loaded for good would else stay for ever.
    leaves = policy is MANUAL and current != held(LOAD)
    assert asked(LOAD, policy, current, 2 * HOUR) == Override("m", LOAD, NOW, NOW + 2 * HOUR, leaves)


def test_a_manual_model_is_unloaded_when_its_time_is_over() -> None:
    given = asked(LOAD, MANUAL, None, 60)
    assert given is not None
    assert active({"m": given}, NOW + 59) == {"m": given}
    assert active({"m": given}, NOW + 60) == {"m": Override("m", UNLOAD, NOW + 60, None)}


@pytest.mark.parametrize("current", [held(PIN, HOUR), held(LOAD, HOUR)])
def test_a_load_without_an_end_does_not_shorten_what_keeps_the_model_up(current: Override) -> None:
    assert asked(LOAD, ON_DEMAND, current) is current
    assert asked(LOAD, ON_DEMAND, current, 60) == Override("m", LOAD, NOW, NOW + 60)
    # That of a manual model lasts until it is unloaded, which is longer.
    assert asked(LOAD, MANUAL, current) == Override("m", LOAD, NOW, None)


@pytest.mark.parametrize("policy", [ON_DEMAND, MANUAL])
@pytest.mark.parametrize("current", [None, held(LOAD), held(LOAD, HOUR), held(PIN, HOUR), held(UNLOAD)])
def test_an_unload_replaces_what_keeps_the_model_up(policy: Policy, current: Override | None) -> None:
    assert asked(UNLOAD, policy, current) == Override("m", UNLOAD, NOW, None)
    assert asked(UNLOAD, policy, current, HOUR) == Override("m", UNLOAD, NOW, NOW + HOUR)


def test_an_unload_without_an_end_does_not_shorten_what_keeps_the_model_away() -> None:
    current = held(UNLOAD, HOUR)
    assert asked(UNLOAD, ON_DEMAND, current) is current
    assert asked(UNLOAD, ON_DEMAND, current, 60) == Override("m", UNLOAD, NOW, NOW + 60)


def test_a_model_that_its_file_pins_is_unloaded_only_for_a_time() -> None:
    with pytest.raises(OverrideError, match=r"m is pinned by its file: unload m --for 2h .* unpin m lets it go"):
        asked(UNLOAD, PINNED)
    with pytest.raises(OverrideError, match="unpinned by hand, so it goes when it is idle"):
        asked(UNLOAD, PINNED, held(UNPIN, HOUR))
    assert asked(UNLOAD, PINNED, None, HOUR) == Override("m", UNLOAD, NOW, NOW + HOUR)


@pytest.mark.parametrize(
    ("kind", "policy", "current"),
    [
        (PIN, ON_DEMAND, None),
        (PIN, MANUAL, held(LOAD)),
        (PIN, ON_DEMAND, held(PIN, 60)),
        (UNPIN, PINNED, None),
        (UNPIN, PINNED, held(UNLOAD, HOUR)),
        (UNPIN, PINNED, held(PIN, HOUR)),
    ],
)
def test_pin_and_unpin_hold_for_an_hour_where_nothing_is_said(
    kind: Kind, policy: Policy, current: Override | None
) -> None:
    assert asked(kind, policy, current) == Override("m", kind, NOW, NOW + DEFAULT_SECONDS)
    assert asked(kind, policy, current, 90) == Override("m", kind, NOW, NOW + 90)


@pytest.mark.parametrize(
    ("kind", "policy", "current"),
    [
        (UNPIN, ON_DEMAND, held(PIN, HOUR)),
        (UNPIN, MANUAL, held(PIN, HOUR)),
        (PIN, PINNED, held(UNPIN, HOUR)),
        (PIN, PINNED, held(UNLOAD, HOUR)),
    ],
)
def test_the_opposite_only_ends_what_holds(kind: Kind, policy: Policy, current: Override) -> None:
    assert asked(kind, policy, current) is None
    assert asked(kind, policy, current, HOUR) is None


@pytest.mark.parametrize(
    ("kind", "policy", "current", "reason"),
    [
        (PIN, PINNED, None, "m is pinned by its file"),
        (PIN, PINNED, held(LOAD), "m is pinned by its file"),
        (PIN, PINNED, held(UNPIN, -1), "m is pinned by its file"),
        (UNPIN, ON_DEMAND, None, "m is not pinned: its file says on_demand"),
        (UNPIN, MANUAL, held(LOAD), "m is not pinned: its file says manual"),
        (UNPIN, ON_DEMAND, held(PIN, -1), "m is not pinned: its file says on_demand"),
        (UNPIN, ON_DEMAND, held(PIN, 0), "m is not pinned: its file says on_demand"),
    ],
)
def test_what_is_so_already_is_said(kind: Kind, policy: Policy, current: Override | None, reason: str) -> None:
    with pytest.raises(OverrideError) as error:
        asked(kind, policy, current)
    assert str(error.value) == reason


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.5, LONGEST_SECONDS + 1, float("inf"), float("nan")])
@pytest.mark.parametrize("kind", Kind)
def test_an_end_is_from_a_second_to_a_year_away(kind: Kind, seconds: float) -> None:
    with pytest.raises(OverrideError, match="holds from 1 s to 366 d"):
        asked(kind, PINNED if kind is UNPIN else ON_DEMAND, None, seconds)


overrides = st.builds(
    Override,
    st.just("m"),
    st.sampled_from(Kind),
    st.floats(NOW - 1e6, NOW),
    st.none() | st.floats(NOW - 1e5, NOW + 1e6),
)


@settings(deadline=None)
@given(
    st.sampled_from(Kind),
    st.sampled_from(Policy),
    st.none() | overrides,
    st.none() | st.floats(1, LONGEST_SECONDS),
)
def test_whatever_is_given_holds_is_sound_and_can_be_said(
    kind: Kind, policy: Policy, current: Override | None, seconds: float | None
) -> None:
    try:
        found = asked(kind, policy, current, seconds)
    except OverrideError:
        return
    if found is None:
        assert current is not None
        assert not current.ended(NOW)
        return
    assert not found.ended(NOW)
    assert found is current or is_sound(found)
    assert f"its file says {policy}" in in_words(found, policy, NOW)
    if seconds is not None:
        assert replace(found, leaves=False) == Override("m", kind, NOW, NOW + seconds)
        assert found.leaves <= (policy is MANUAL and kind is not UNLOAD)


def test_what_is_past_its_end_does_not_hold() -> None:
    kept = {"a": held(PIN, 1), "b": held(PIN, 0), "c": held(LOAD), "d": held(UNLOAD, -5)}
    assert list(active(kept, NOW)) == ["a", "c"]
    assert list(active(kept, NOW + 1)) == ["c"]


# --- in words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "policy", "words"),
    [
        (held(PIN, 7199), ON_DEMAND, "pinned by hand for another 1 h 59 min; its file says on_demand"),
        (held(UNPIN, 7199.1), PINNED, "unpinned by hand for another 2 h; its file says pinned"),
        (held(LOAD, 58.1), ON_DEMAND, "kept up by hand for another 59 s; its file says on_demand"),
        (held(UNLOAD, 3599), ON_DEMAND, "kept away by hand for another 59 min; its file says on_demand"),
        (held(UNLOAD, 273_600), PINNED, "kept away by hand for another 3 d 4 h; its file says pinned"),
        (held(PIN, 86_460), MANUAL, "pinned by hand for another 1 d; its file says manual"),
        (held(PIN, -5), ON_DEMAND, "pinned by hand for another 0 s; its file says on_demand"),
        (held(LOAD), MANUAL, "kept up by hand until it is unloaded; its file says manual"),
        (held(LOAD), ON_DEMAND, "load asked for by hand; its file says on_demand"),
        (held(UNLOAD), MANUAL, "unload asked for by hand; its file says manual"),
    ],
)
def test_in_words(override: Override, policy: Policy, words: str) -> None:
    assert in_words(override, policy, NOW) == words


@pytest.mark.parametrize(
    ("override", "drifts_under"),
    [
        (held(LOAD), set()),
        (held(LOAD, HOUR), {ON_DEMAND}),
        (held(UNLOAD), {PINNED}),
        (held(UNLOAD, HOUR), {PINNED, ON_DEMAND}),
        (held(PIN, HOUR), {ON_DEMAND, MANUAL}),
        (held(UNPIN, HOUR), {PINNED}),
    ],
)
def test_drift_is_what_the_file_would_not_have(override: Override, drifts_under: set[Policy]) -> None:
    assert {policy for policy in Policy if is_drift(override, policy)} == drifts_under


# --- the store --------------------------------------------------------------------------------------------


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


class Woken:
    times = 0

    def __call__(self) -> None:
        self.times += 1


def test_what_was_given_outlives_the_process(tmp_path: Path) -> None:
    store = OverrideStore(tmp_path, wall_clock=Clock())
    pinned = store.give(PIN, "a", ON_DEMAND, 2 * HOUR)
    loaded = store.give(LOAD, "org/b", MANUAL, None)
    assert pinned == Override("a", PIN, NOW, NOW + 2 * HOUR)
    assert OverrideStore(tmp_path, wall_clock=Clock()).active() == {"a": pinned, "org/b": loaded}
    assert [oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()] == ["0o600"]


def test_reading_writes_nothing(tmp_path: Path) -> None:
    store = OverrideStore(tmp_path / "absent", wall_clock=Clock())
    assert store.active() == {}
    store.end(held(PIN, HOUR), "it is over")
    store.forget(["m"])
    assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_the_end_and_leaves_the_file_to_its_writer(tmp_path: Path) -> None:
    clock = Clock()
    OverrideStore(tmp_path, wall_clock=clock).give(PIN, "a", ON_DEMAND, 60)
    before = (tmp_path / "overrides.json").read_bytes()
    reader = OverrideStore(tmp_path, wall_clock=clock)
    clock.now += 60
    assert reader.active() == {}
    assert (tmp_path / "overrides.json").read_bytes() == before


def test_changes_are_told_and_wake_the_loop(tmp_path: Path) -> None:
    clock, woken = Clock(), Woken()
    store = OverrideStore(tmp_path, wall_clock=clock, wake=woken)
    with capture_logs() as events:
        store.give(PIN, "a", ON_DEMAND, 60)
        store.give(UNPIN, "a", ON_DEMAND, None)
        loaded = store.give(LOAD, "a", ON_DEMAND, None)
        assert loaded is not None
        store.end(loaded, "it is loaded")
        store.give(PIN, "b", ON_DEMAND, 60)
        store.forget(["b", "b", "never"])
        store.give(PIN, "c", ON_DEMAND, 60)
        clock.now += 61
        store.give(PIN, "d", ON_DEMAND, 60)
    found = [(each["event"], each["model"], each["kind"], each.get("why", each.get("until"))) for each in events]
    assert found == [
        ("override.given", "a", "pin", "2026-09-21T14:14:20+00:00"),
        ("override.ended", "a", "pin", "unpin by hand"),
        ("override.given", "a", "load", None),
        ("override.ended", "a", "load", "it is loaded"),
        ("override.given", "b", "pin", "2026-09-21T14:14:20+00:00"),
        ("override.ended", "b", "pin", "the model is not declared any more"),
        ("override.given", "c", "pin", "2026-09-21T14:14:20+00:00"),
        ("override.ended", "c", "pin", "its time is over"),
        ("override.given", "d", "pin", "2026-09-21T14:15:21+00:00"),
    ]
    assert woken.times == len(events)
    assert list(OverrideStore(tmp_path, wall_clock=clock).active()) == ["d"]


def test_what_is_done_does_not_end_what_took_its_place(tmp_path: Path) -> None:
    clock = Clock()
    store = OverrideStore(tmp_path, wall_clock=clock)
    unload = store.give(UNLOAD, "a", ON_DEMAND, None)
    assert unload is not None
    clock.now += 1
    load = store.give(LOAD, "a", ON_DEMAND, None)
    store.end(unload, "it is unloaded")
    assert store.active() == {"a": load}


def test_what_makes_no_sense_changes_nothing(tmp_path: Path) -> None:
    woken = Woken()
    store = OverrideStore(tmp_path, wall_clock=Clock(), wake=woken)
    with pytest.raises(OverrideError):
        store.give(UNPIN, "a", ON_DEMAND, None)
    assert (store.active(), woken.times, list(tmp_path.iterdir())) == ({}, 0, [])


def test_what_cannot_be_written_down_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / "overrides.json").write_text("[]")
    store = OverrideStore(tmp_path, wall_clock=Clock())
    (tmp_path / "overrides.json").unlink()
    (tmp_path / "overrides.json").mkdir()
    (tmp_path / "overrides.json" / "in the way").touch()
    with pytest.raises(OSError):
        store.give(PIN, "a", ON_DEMAND, None)
    assert store.active() == {}


def test_what_is_over_is_over_although_that_cannot_be_written_down(tmp_path: Path) -> None:
    store = OverrideStore(tmp_path, wall_clock=Clock())
    load = store.give(LOAD, "a", ON_DEMAND, None)
    assert load is not None
    (tmp_path / "overrides.json").unlink()
    (tmp_path / "overrides.json").mkdir()
    with capture_logs() as events:
        store.end(load, "it is loaded")
    assert store.active() == {}
    assert [each["event"] for each in events] == ["override.ended", "overrides.unsaved"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        "{}",
        "[1, null, []]",
        '[{"model": "a"}]',
        '[{"model": "a", "kind": "explode", "since": 1, "until": 2}]',
        '[{"model": "a", "kind": "pin", "since": NaN, "until": null}]',
        '[{"model": "a", "kind": "pin", "since": 1e300, "until": null}]',
        '[{"model": "a", "kind": "pin", "since": 1790000000, "until": Infinity}]',
        '[{"model": "a", "kind": "pin", "since": 1790000000, "until": 1e300}]',
        '[{"model": "a", "kind": "pin", "since": 1790000000, "until": 1780000000}]',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        "[" * 100_000,
    ],
)
def test_a_damaged_file_costs_no_start(tmp_path: Path, content: str) -> None:
    (tmp_path / "overrides.json").write_text(content, encoding="latin-1")
    store = OverrideStore(tmp_path, wall_clock=Clock())
    assert store.active() == {}
    given = store.give(PIN, "a", ON_DEMAND, None)
    assert OverrideStore(tmp_path, wall_clock=Clock()).active() == {"a": given}


def test_of_a_file_with_one_bad_row_the_others_stay(tmp_path: Path) -> None:
    given = OverrideStore(tmp_path, wall_clock=Clock()).give(PIN, "a", ON_DEMAND, None)
    file = tmp_path / "overrides.json"
    file.write_text(json.dumps([{"from": "another version"}, *json.loads(file.read_text())]))
    assert OverrideStore(tmp_path, wall_clock=Clock()).active() == {"a": given}


@contextlib.asynccontextmanager
async def watched(store: OverrideStore) -> AsyncIterator[None]:
    task = asyncio.create_task(store.watch())
    try:
        yield
    finally:
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        await asyncio.sleep(0.01)


async def test_what_ends_wakes_the_loop_at_its_time(tmp_path: Path) -> None:
    """Also one that was given while the watch slept until the end of another."""
    woken = Woken()
    store = OverrideStore(tmp_path, wake=woken)
    later = store.give(PIN, "later", ON_DEMAND, 60.0)
    async with watched(store):
        await asyncio.sleep(0.05)
        given_at = time.time()
        store.give(PIN, "sooner", ON_DEMAND, 1.0)
        await until(lambda: woken.times == 3)
        assert time.time() - given_at >= 1.0
    assert OverrideStore(tmp_path).active() == {"later": later}
    assert [row["model"] for row in json.loads((tmp_path / "overrides.json").read_text())] == ["later"]


async def test_the_watch_goes_on_where_nothing_can_be_written(tmp_path: Path) -> None:
    clock = Clock()
    store = OverrideStore(tmp_path, wall_clock=clock)
    store.give(PIN, "a", ON_DEMAND, 60)
    store.give(LOAD, "b", ON_DEMAND, 120)
    (tmp_path / "overrides.json").unlink()
    (tmp_path / "overrides.json").mkdir()
    clock.now += 60
    with capture_logs() as events:
        async with watched(store):
            await until(lambda: len(events) == 2)
    assert list(store.active()) == ["b"]
