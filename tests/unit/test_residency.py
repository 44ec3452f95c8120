"""Who should be up, as a table: policy, what was asked for by hand, windows, requests that wait, and use."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.overrides import Kind, Override
from reconciler.core.render import Renderer
from reconciler.core.residency import finished, last_serving, want_of
from reconciler.core.state import Application, Failure, Observed, Record, Replica, Status, Waiting
from reconciler.core.target import Platform, Target
from reconciler.core.turn import Options, Turn
from reconciler.core.want import Want, Wish
from reconciler.core.windows import Window
from reconciler.core.words import in_time

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
RENDERER = Renderer(TEMPLATE, Platform())
NOW = 1000.0
UP, STAY, REST = Wish.UP, Wish.STAY, Wish.REST
OPEN = Window(open=True, opens_in=None, closes_in=60.0, words="open until 18:00")
POLICIES = ("pinned", "on_demand", "manual")


def desired(lifecycle: str, *, length: int = 1) -> Desired:
    text = f"source: {{path: /w}}\nengine: {{max_model_len: {length}}}\nlifecycle: {{{lifecycle}}}\n"
    return compile_desired(Snapshot("r", {"m/m.yaml": text.encode()}, "/m"), RENDERER)


def app_of(target: Target, status: Status = Status.RUNNING) -> Application:
    config = None if status is Status.DELETING else target.config
    replicas = (Replica("r", "RUNNING"),) if status is Status.RUNNING else ()
    return Application(target.application, status, config, "m", replicas=replicas)


def turn_of(wanted: Desired, *apps: Application, **facts: Any) -> Turn:
    seen = {app.name: app for app in apps}
    return Turn(wanted, Observed(applications=seen, now=NOW, **facts), Options())


def by_hand(kind: Kind, *, until: float | None = None, ago: float = 10.0) -> dict[str, Override]:
    return {"m": Override("m", kind, NOW - ago, until)}


Facts: TypeAlias = dict[str, Any]
NONE: Facts = {}
LOAD, LOAD_FOR = {"overrides": by_hand(Kind.LOAD)}, {"overrides": by_hand(Kind.LOAD, until=NOW + 60)}
UNLOAD, UNLOAD_FOR = {"overrides": by_hand(Kind.UNLOAD)}, {"overrides": by_hand(Kind.UNLOAD, until=NOW + 60)}
PIN, UNPIN = {"overrides": by_hand(Kind.PIN, until=NOW + 60)}, {"overrides": by_hand(Kind.UNPIN, until=NOW + 60)}
WAITING: Facts = {"waiting": {"m": Waiting(3, 7.0)}}
WINDOW: Facts = {"windows": {"m": OPEN}}


def down(policy: str, **facts: Any) -> Want:
    """Of a model of which nothing is there."""
    wanted = desired(f"policy: {policy}")
    return want_of(turn_of(wanted, **facts), wanted.targets["m"])


def idle(policy: str, *, more: str = "", **facts: Any) -> Want:
    """Of a model that has the traffic and was last used a day ago, unless `facts` say otherwise."""
    wanted = desired(f"policy: {policy}{more}")
    name = wanted.targets["m"].application
    usual: Facts = {"routes": {"m": name}, "idle_seconds": {name: 86400.0}, "up_seconds": {name: 90000.0}}
    return want_of(turn_of(wanted, app_of(wanted.targets["m"]), **usual | facts), wanted.targets["m"])


# --- policy and hand ----------------------------------------------------------------------------------------

BY_HAND: list[tuple[str, Facts, Wish, Wish, bool]] = [
    # policy, by hand; wish while it is down, wish while it is up and idle, does not make room for others
    ("pinned", NONE, UP, UP, True),
    ("pinned", LOAD, UP, UP, True),
    ("pinned", LOAD_FOR, UP, UP, True),
    ("pinned", UNLOAD, REST, REST, False),
    ("pinned", UNLOAD_FOR, REST, REST, False),
    ("pinned", PIN, UP, UP, True),
    ("pinned", UNPIN, REST, REST, False),
    ("on_demand", NONE, REST, REST, False),
    ("on_demand", LOAD, UP, UP, False),
    ("on_demand", LOAD_FOR, UP, UP, True),
    ("on_demand", UNLOAD, REST, REST, False),
    ("on_demand", UNLOAD_FOR, REST, REST, False),
    ("on_demand", PIN, UP, UP, True),
    ("on_demand", UNPIN, REST, REST, False),
    ("manual", NONE, REST, STAY, True),
    ("manual", LOAD, UP, UP, True),
    ("manual", LOAD_FOR, UP, UP, True),
    ("manual", UNLOAD, REST, REST, False),
    ("manual", UNLOAD_FOR, REST, REST, False),
    ("manual", PIN, UP, UP, True),
    ("manual", UNPIN, REST, STAY, True),
]


@pytest.mark.parametrize(("policy", "facts", "when_down", "when_up", "pinned"), BY_HAND)
def test_policy_and_hand(policy: str, facts: Facts, when_down: Wish, when_up: Wish, pinned: bool) -> None:
    below, above = down(policy, **facts), idle(policy, **facts)
    assert (below.wish, above.wish, above.pinned) == (when_down, when_up, pinned)
    assert below.pinned is (pinned and when_down is not REST)
    assert below.why
    assert above.why
    # Somebody asked for it, unless there is nothing but its file, and what is unpinned is as it would be without.
    assert below.asked is (facts not in (NONE, UNPIN))


ON_REQUEST: list[tuple[str, Facts, bool]] = [
    ("pinned", UNLOAD, True),
    ("pinned", UNLOAD_FOR, False),
    ("pinned", UNPIN, True),
    ("on_demand", NONE, True),
    ("on_demand", UNLOAD, True),
    ("on_demand", UNLOAD_FOR, False),
    ("manual", NONE, False),
    ("manual", UNLOAD, False),
    ("manual", UNLOAD_FOR, False),
    ("manual", UNPIN, False),
]


@pytest.mark.parametrize(("policy", "facts", "on_request"), ON_REQUEST)
def test_at_rest_a_request_is_enough_or_not(policy: str, facts: Facts, on_request: bool) -> None:
    want = down(policy, **facts)
    assert (want.wish, want.on_request) == (REST, on_request)
    # And where it is, a request that waits is what brings it up once the unload is done.
    if facts not in (UNLOAD, UNLOAD_FOR):
        assert down(policy, **facts, **WAITING).wish is (UP if on_request else REST)


def test_whoever_asks_by_hand_queues_from_then_on() -> None:
    assert down("on_demand", overrides=by_hand(Kind.LOAD, ago=40.0)).since == 40.0
    # The wall clock was set back: it does not count less than nothing.
    assert down("on_demand", overrides=by_hand(Kind.LOAD, ago=-5000.0)).since == 0.0


# --- windows ------------------------------------------------------------------------------------------------

WINDOWS: list[tuple[str, Facts, Wish, bool]] = [
    ("pinned", NONE, UP, True),
    ("pinned", UNPIN, REST, False),
    ("on_demand", NONE, UP, True),
    ("on_demand", LOAD, UP, True),
    ("on_demand", UNLOAD, REST, False),
    ("on_demand", UNLOAD_FOR, REST, False),
    ("on_demand", PIN, UP, True),
    ("on_demand", WAITING, UP, True),
    ("manual", NONE, UP, True),
    ("manual", UNLOAD_FOR, REST, False),
]


@pytest.mark.parametrize(("policy", "facts", "wish", "pinned"), WINDOWS)
def test_in_an_open_window_a_model_is_pinned_unless_a_hand_says_otherwise(
    policy: str, facts: Facts, wish: Wish, pinned: bool
) -> None:
    for want in (down(policy, **WINDOW, **facts), idle(policy, **WINDOW, **facts)):
        assert (want.wish, want.pinned) == (wish, pinned)


@pytest.mark.parametrize(
    ("opens_in", "load_seconds", "wish"),
    [
        (15.0, None, UP),
        (15.1, None, REST),
        (65.0, 40.0, UP),
        (65.1, 40.0, REST),
        (None, 40.0, REST),
    ],
)
def test_it_is_loaded_ahead_of_its_window(opens_in: float | None, load_seconds: float | None, wish: Wish) -> None:
    window = Window(open=False, opens_in=opens_in, closes_in=None, words="opens 08:00")
    loads = {} if load_seconds is None else {"m": load_seconds}
    want = down("on_demand", windows={"m": window}, load_seconds=loads)
    assert want.wish is wish
    assert ("opens 08:00" in want.why) is (wish is UP)


def test_after_its_window_it_goes_when_it_is_idle() -> None:
    closed = Window(open=False, opens_in=3600.0, closes_in=None, words="opens 08:00")
    assert idle("on_demand", windows={"m": closed}).wish is REST
    assert idle("on_demand", windows={"m": closed}, idle_seconds={}).wish is STAY


# --- requests that wait -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "facts", "wish", "pinned", "since"),
    [
        ("on_demand", NONE, UP, False, 7.0),
        ("pinned", UNPIN, UP, False, 7.0),
        ("pinned", NONE, UP, True, 0.0),
        ("on_demand", UNLOAD, REST, False, 0.0),
        ("on_demand", UNLOAD_FOR, REST, False, 0.0),
        ("on_demand", PIN, UP, True, 10.0),
        ("manual", NONE, REST, False, 0.0),
        ("manual", LOAD, UP, True, 10.0),
    ],
)
def test_requests_that_wait(policy: str, facts: Facts, wish: Wish, pinned: bool, since: float) -> None:
    want = down(policy, **WAITING, **facts)
    assert (want.wish, want.pinned, want.since) == (wish, pinned, since)


def test_how_many_wait_is_said() -> None:
    assert down("on_demand", **WAITING).why == "3 requests wait for it"
    assert down("on_demand", waiting={"m": Waiting(1, 0.0)}).why == "1 request waits for it"
    assert down("on_demand", waiting={"other": Waiting(1, 0.0)}).wish is REST


def test_a_manual_model_that_is_up_stays_whatever_its_use() -> None:
    for facts in (NONE, WAITING, {"in_flight": None}):
        want = idle("manual", **facts)
        assert (want.wish, want.pinned) == (STAY, True)


def test_the_version_that_made_way_is_owed_a_successor() -> None:
    wanted = desired("policy: on_demand")
    target = wanted.targets["m"]
    record = Record("m", target.file, "m-old", target.fields, previous={"name": "m-old"})
    assert want_of(turn_of(wanted, records={"m": record}), target).wish is UP
    done = dataclasses.replace(record, previous=None)
    assert want_of(turn_of(wanted, records={"m": done}), target).wish is REST


# --- use ----------------------------------------------------------------------------------------------------

USE: list[tuple[int | None, float | None, float | None, Wish]] = [
    # in flight, idle seconds (limit 60), seconds up (at least 300)
    (0, 60.0, 300.0, REST),
    (0, 59.9, 300.0, STAY),
    (0, 60.0, 299.9, STAY),
    (0, None, 300.0, STAY),
    (0, 60.0, None, STAY),
    (1, 60.0, 300.0, STAY),
    (2, 9e9, 9e9, STAY),
    (None, 60.0, 300.0, STAY),
    (None, 9e9, 9e9, STAY),
]


@pytest.mark.parametrize(("in_flight", "idle_for", "up_for", "wish"), USE)
@pytest.mark.parametrize("declared", [("on_demand", NONE), ("pinned", UNPIN), ("on_demand", UNPIN)])
def test_use(
    in_flight: int | None, idle_for: float | None, up_for: float | None, wish: Wish, declared: tuple[str, Facts]
) -> None:
    policy, facts = declared
    more = ", idle_timeout: 60s, min_stay: 5m"
    name = desired(f"policy: {policy}{more}").targets["m"].application
    want = idle(
        policy,
        more=more,
        in_flight=None if in_flight is None else {name: in_flight},
        idle_seconds={} if idle_for is None else {name: idle_for},
        up_seconds={} if up_for is None else {name: up_for},
        **facts,
    )
    assert (want.wish, want.pinned, want.on_request, want.asked) == (wish, False, True, False)
    if wish is REST:
        assert want.why == "idle 1 min (idle_timeout 60s)"


def test_no_jump_of_the_wall_clock_changes_a_wish() -> None:
    wanted = desired("policy: on_demand")
    target = wanted.targets["m"]
    name, apps = target.application, {target.application: app_of(target)}
    for idle_for, now in itertools.product((10.0, 9999.0), (0.0, 1e6, 4e9)):
        observed = Observed(
            applications=apps,
            routes={"m": name},
            idle_seconds={name: idle_for},
            up_seconds={name: 9999.0},
            now=now,
        )
        want = want_of(Turn(wanted, observed, Options()), target)
        assert want.wish is (REST if idle_for > 1800 else STAY)


@pytest.mark.parametrize("status", [Status.DEPLOYING, Status.NOT_STARTED, Status.RUNNING, Status.DEPLOY_FAILED])
def test_what_has_not_served_yet_is_not_idle(status: Status) -> None:
    wanted = desired("policy: on_demand")
    target = wanted.targets["m"]
    assert want_of(turn_of(wanted, app_of(target, status)), target).wish is STAY
    # Not even by what is left of a use before.
    quiet = turn_of(wanted, app_of(target, status), idle_seconds={target.application: 9e9})
    assert want_of(quiet, target).wish is STAY


def test_what_is_being_deleted_is_gone() -> None:
    wanted = desired("policy: on_demand")
    deleting = app_of(wanted.targets["m"], Status.DELETING)
    want = want_of(turn_of(wanted, deleting), wanted.targets["m"])
    assert (want.wish, want.why) == (REST, "on demand: a request loads it")


def test_an_old_version_that_serves_is_in_use_while_its_successor_comes() -> None:
    old, new = desired("policy: on_demand"), desired("policy: on_demand", length=2)
    before, after = old.targets["m"], new.targets["m"]
    apps = (app_of(before), app_of(after, Status.DEPLOYING))
    facts: Facts = {"routes": {"m": before.application}, "up_seconds": {before.application: 9e9}}
    busy = turn_of(new, *apps, **facts, in_flight={before.application: 1})
    quiet = turn_of(new, *apps, **facts, idle_seconds={before.application: 9e9})
    assert (want_of(busy, after).wish, want_of(quiet, after).wish) == (STAY, REST)


def test_the_version_that_serves_is_the_routed_one_or_else_the_last_that_was() -> None:
    old, new = desired("policy: on_demand"), desired("policy: on_demand", length=2)
    before, after = app_of(old.targets["m"]), app_of(new.targets["m"])
    served = {before.name: 50.0, after.name: 5.0}
    assert last_serving(turn_of(new, before, after, up_seconds=served), "m") == after
    assert last_serving(turn_of(new, before, after, up_seconds=served, routes={"m": before.name}), "m") == before
    assert last_serving(turn_of(new, before, after, up_seconds={before.name: 50.0}), "m") == before
    assert last_serving(turn_of(new, before, after), "m") is None
    assert last_serving(turn_of(new), "m") is None


# --- when what was asked for by hand is done ----------------------------------------------------------------

FINISHED: list[tuple[str, Facts, str, str, str]] = [
    # policy, by hand; once it is down, coming up, and routed
    ("on_demand", NONE, "", "", ""),
    ("on_demand", LOAD, "", "", "it is loaded"),
    ("on_demand", LOAD_FOR, "", "", ""),
    ("on_demand", UNLOAD, "it is unloaded", "", ""),
    ("on_demand", UNLOAD_FOR, "", "", ""),
    ("pinned", LOAD, "", "", "it is loaded"),
    ("pinned", UNPIN, "", "", ""),
    ("manual", LOAD, "", "", ""),
    ("manual", UNLOAD, "it is unloaded", "", ""),
    ("manual", PIN, "", "", ""),
]


@pytest.mark.parametrize(("policy", "facts", "when_down", "coming", "when_up"), FINISHED)
def test_when_it_is_done(policy: str, facts: Facts, when_down: str, coming: str, when_up: str) -> None:
    wanted = desired(f"policy: {policy}")
    target = wanted.targets["m"]
    states = (
        turn_of(wanted, **facts),
        turn_of(wanted, app_of(target, Status.DEPLOYING), **facts),
        turn_of(wanted, app_of(target), routes={"m": target.application}, **facts),
    )
    assert tuple(finished(turn, target) for turn in states) == (when_down, coming, when_up)
    # Its memory is not free before its processes are gone.
    assert finished(turn_of(wanted, app_of(target, Status.DELETING), **facts), target) == ""


def test_a_load_that_failed_since_is_done_and_an_older_failure_says_nothing() -> None:
    wanted = desired("policy: on_demand")
    target = wanted.targets["m"]
    for at, done in ((NOW - 11, ""), (NOW - 9, "the load failed")):
        failure = Failure("m", target.application, "no", 1, at, NOW + 60)
        turn = turn_of(wanted, failures={target.application: failure}, **LOAD)
        assert finished(turn, target) == done


@pytest.mark.parametrize(
    ("asked", "failed", "done"),
    [
        # Both by the clock of before it was set back: the order of the two still counts.
        (NOW + 50, NOW + 60, True),
        (NOW + 60, NOW + 50, False),
        # Set back between the two.
        (NOW + 50, NOW - 5, True),
        (NOW - 5, NOW + 50, False),
    ],
)
def test_a_clock_that_was_set_back_makes_no_load_fail(asked: float, failed: float, done: bool) -> None:
    wanted = desired("policy: on_demand")
    target = wanted.targets["m"]
    failures = {target.application: Failure("m", target.application, "no", 1, failed, failed + 30)}
    overrides = {"m": Override("m", Kind.LOAD, asked)}
    turn = turn_of(wanted, failures=failures, overrides=overrides)
    assert finished(turn, target) == ("the load failed" if done else "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 s"),
        (40.4, "41 s"),
        (99.0, "1 min"),
        (720.0, "12 min"),
        (5940.0, "1 h 39 min"),
        (12000.0, "3 h 20 min"),
    ],
)
def test_lengths_of_time_in_words(seconds: float, words: str) -> None:
    assert in_time(seconds) == words
