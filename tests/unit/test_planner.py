"""Laws of the planner that hold whatever was observed. The stories are in tests/simulation."""

import copy
import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.overrides import Kind, Override
from reconciler.core.placement import Ledger
from reconciler.core.plan import Action, Do, HeldKind, Plan
from reconciler.core.plan_json import plan_to_json
from reconciler.core.planner import make_plan, observed_digest
from reconciler.core.render import Renderer
from reconciler.core.spec import Policy
from reconciler.core.state import Application, Failure, Node, Observed, Record, Replica, Status, Waiting
from reconciler.core.target import Platform, Target
from reconciler.core.turn import Options
from reconciler.core.windows import Window

T = TypeVar("T")

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
RENDERER = Renderer(TEMPLATE, Platform(simulate_gpus=True))
SHARES = {"a": 0.5, "b": 0.5, "c": 0.9, "d": 0.3}
NAMES = "abc"
NOW = 100.0
MIN_STAY, IDLE_TIMEOUT, AHEAD = 60.0, 1800.0, 15.0
"""Seconds: the defaults of model files, and how long before a window a model of unknown load time is loaded."""


class File(NamedTuple):
    """What a model file says."""

    length: int
    policy: Policy = Policy.PINNED
    group: str = ""


Wanted: TypeAlias = Mapping[str, File | None]


def desired(files: Wanted, *, share: float = 0.5) -> Desired:
    """Model files by name; None is an invalid one."""
    contents = {f"m/{name}.yaml": text_of(name, file, share).encode() for name, file in files.items()}
    return compile_desired(Snapshot("r", contents, "/m"), RENDERER)


def text_of(name: str, file: File | None, share: float) -> str:
    if file is None:
        return "{"
    group = f", group: {file.group}" if file.group else ""
    return (
        f"source: {{repo: o/m}}\nlifecycle: {{policy: {file.policy}{group}}}\n"
        f"engine: {{max_model_len: {file.length}, gpu_memory_utilization: {SHARES.get(name, share)}}}\n"
    )


LIKELY = 1000
"""States that are tried of those that histories lead to."""
FACTS_BY_NAME = (
    "applications", "up_seconds", "idle_seconds", "in_flight", "records", "routes", "draining", "failures",
    "waiting", "overrides", "windows", "load_seconds",
)  # fmt: skip
STATUSES = {
    "up": Status.RUNNING,
    "loading": Status.DEPLOYING,
    "draining": Status.RUNNING,
    "deleting": Status.DELETING,
    "failed": Status.DEPLOY_FAILED,
}

VERSIONS = {(name, length): desired({name: File(length)}).targets[name] for name in SHARES for length in (1, 2, 3)}
FILES = st.builds(File, st.sampled_from([1, 2, 3]), st.sampled_from(Policy), st.sampled_from(["", "", "g"]))
WANTED = st.dictionaries(st.sampled_from(NAMES), st.one_of(FILES, FILES, FILES, st.none()), max_size=3)
WINDOWS = st.builds(
    lambda is_open, opens_in: Window(is_open, None if is_open else opens_in, 60.0 if is_open else None, "w"),
    st.booleans(),
    st.sampled_from([None, 10.0, 1000.0]),
)


def some_of(values: st.SearchStrategy[T], keys: Iterable[str]) -> st.SearchStrategy[dict[str, T]]:
    """Values for some of the keys."""
    keys = sorted(keys)
    return st.dictionaries(st.sampled_from(keys), values) if keys else st.just({})


def overrides() -> st.SearchStrategy[dict[str, Override]]:
    given_by_hand = st.tuples(st.sampled_from(Kind), st.sampled_from([50.0, 95.0]), st.sampled_from([None, 200.0]))
    return some_of(given_by_hand, NAMES).map(
        lambda found: {name: Override(name, *values) for name, values in found.items()}
    )


@st.composite
def worlds(draw: st.DrawFn) -> Observed:
    """Any state at all, also those that no history leads to."""
    apps: dict[str, Application] = {}
    records: dict[str, Record] = {}
    failures: dict[str, Failure] = {}
    routes: dict[str, str] = {}
    for (name, _), target in VERSIONS.items():
        if name not in NAMES:
            continue
        app = target.application
        if draw(st.booleans()):
            status = draw(st.sampled_from(Status))
            state = draw(st.sampled_from([None, "STARTING", "RUNNING"]))
            apps[app] = Application(
                app,
                status,
                None if status is Status.DELETING else target.config,
                name,
                building=status is Status.DEPLOYING and draw(st.booleans()),
                failure=draw(st.sampled_from(["", "", "broken"])),
                replicas=(Replica("r", state),) if state else (),
                demand=target.demand,
            )
        if draw(st.integers(0, 3)) == 0:
            failures[app] = Failure(name, app, "r", 1, 90.0, draw(st.sampled_from([95.0, 150.0])))
        if draw(st.integers(0, 2)) == 0:
            previous = draw(st.sampled_from([None, VERSIONS[name, 1].config]))
            records[name] = Record(name, f"m/{name}.yaml", app, target.fields, previous)
        if draw(st.integers(0, 2)) == 0:
            routes[name] = app
    names = sorted(apps)
    some = st.sets(st.sampled_from(names)) if names else st.just(set[str]())
    apps["theirs"] = Application("theirs", Status.RUNNING, {"name": "theirs"})
    return Observed(
        applications=apps,
        nodes=draw(st.sampled_from([(), (Node("n", 1),), (Node("n", 2, 0.5),)])),
        routes=routes,
        in_flight=draw(st.sampled_from([None, {}, dict.fromkeys(names, 1)])),
        ready=frozenset(draw(some)),
        probing=frozenset(draw(some)),
        unanswered=dict.fromkeys(draw(some), "500"),
        ages=dict.fromkeys(names, 9.0),
        draining={
            name: draw(st.sampled_from([0.0, 5.0, 5000.0])) for name in names if name not in routes.values()
        },
        records=records,
        failures=failures,
        waiting=draw(some_of(st.builds(Waiting, st.integers(1, 3), st.sampled_from([1.0, 5.0, 50.0])), NAMES)),
        overrides=draw(overrides()),
        windows=draw(some_of(WINDOWS, NAMES)),
        up_seconds=draw(some_of(st.sampled_from([0.0, 59.0, 61.0, 5000.0]), names)),
        idle_seconds=draw(some_of(st.sampled_from([0.0, 60.0, 5000.0]), names)),
        load_seconds=draw(some_of(st.sampled_from([20.0, 600.0]), NAMES)),
        now=NOW,
    )


def plan_of(wanted: Wanted, observed: Observed, **options: bool) -> Plan:
    return make_plan(desired(wanted), observed, Options(max_loads=2, **options))


def models(plan: Plan, do: Do) -> list[str]:
    return [step.model for step in plan.steps if step.do is do]


def unloads(plan: Plan) -> dict[str, str]:
    """The causes of unloads."""
    return {change.model: change.cause for change in plan.changes if change.action is Action.UNLOAD}


def sent_away(plan: Plan) -> set[str]:
    """Models that leave for another one."""
    return {model for model, cause in unloads(plan).items() if " to make " in cause}


def is_pinned(model: str, file: File, observed: Observed) -> bool:
    """Its file, a hand or a window keeps it where it is, and no hand says otherwise."""
    override, window = observed.overrides.get(model), observed.windows.get(model)
    if override is not None and override.kind in (Kind.UNPIN, Kind.UNLOAD):
        return override.kind is Kind.UNPIN and file.policy is Policy.MANUAL
    held_by_hand = override is not None and (override.kind is Kind.PIN or override.until is not None)
    ahead = observed.load_seconds.get(model, 0.0) * 1.25 + AHEAD
    in_window = window is not None and (window.open or (window.opens_in or math.inf) <= ahead)
    return file.policy is not Policy.ON_DEMAND or held_by_hand or in_window


@settings(deadline=None, max_examples=60)
@given(WANTED, worlds())
def test_the_same_inputs_give_the_same_plan(wanted: Wanted, observed: Observed) -> None:
    assert plan_of(wanted, observed) == plan_of(dict(wanted), copy.deepcopy(observed))


@settings(deadline=None, max_examples=120)
@given(WANTED, worlds(), st.booleans())
def test_no_state_breaks_a_rule(wanted: Wanted, observed: Observed, allow: bool) -> None:
    plan = plan_of(wanted, observed, allow_removals=allow)
    json.dumps(plan_to_json(plan))
    for change in plan.changes:
        assert change.cause
    routed = set(observed.routes.values())
    if plan.applications is not None:
        assert plan.applications["theirs"] == {"name": "theirs"}
        assert not any(
            observed.applications[name].building for name in plan.applications.keys() & observed.applications
        )
        for name, app in observed.applications.items():
            gone = app.config is not None and app.status is not Status.DELETING and name not in plan.applications
            if gone and app.status is not Status.DEPLOY_FAILED:
                assert name not in routed
                up = any(replica.state == "RUNNING" for replica in app.replicas)
                if up and (observed.in_flight is None or observed.in_flight.get(name)):
                    assert observed.draining[name] > 600
            if app.status is Status.DELETING:
                assert name not in plan.applications
    for step in plan.steps:
        if step.do is Do.ROUTE:
            assert step.application in observed.ready
        if step.do is Do.REMOVE:
            assert step.application in observed.applications
        if step.do is Do.START:
            assert step.application not in observed.applications
    touched = [step.model for step in plan.steps if step.do in (Do.ROUTE, Do.UNROUTE)]
    assert len(touched) == len(set(touched))
    spoken_for = (
        {change.model for change in plan.changes}
        | {held.model for held in plan.held}
        | {resting.model for resting in plan.resting}
        | set(plan.unchanged)
    )
    stepping = {step.model for step in plan.steps}
    assert {name for name, file in wanted.items() if file is not None} <= spoken_for | stepping


def no_pinned_model_leaves_for_another_one(wanted: Wanted, observed: Observed, plan: Plan) -> None:
    leaving = sent_away(plan)
    for model, file in wanted.items():
        if file is None:
            assert model not in unloads(plan)
        elif is_pinned(model, file, observed):
            assert model not in leaving
            # And it does not go for any other reason but its own next version.
            assert model not in unloads(plan)
            for step in plan.steps:
                if step.do is Do.UNROUTE and step.model == model:
                    assert step.why in ("no room for two versions at once", "its application is gone")
    assert leaving <= {model for model, file in wanted.items() if file is not None}


def who_leaves_had_its_time(wanted: Wanted, observed: Observed, plan: Plan) -> None:
    """And nobody that serves is told to go unless it is known whether it is in use."""
    for model, cause in unloads(plan).items():
        override = observed.overrides.get(model)
        name = observed.routes.get(model)
        app = observed.applications.get(name or "")
        serves = app is not None and app.status is not Status.DELETING
        if name is None or not serves or (override is not None and override.kind is Kind.UNLOAD):
            continue
        assert observed.in_flight is not None
        assert observed.up_seconds[name] >= MIN_STAY
        if model not in sent_away(plan):
            assert cause.startswith("idle ")
            assert observed.idle_seconds[name] >= IDLE_TIMEOUT
            assert not observed.in_flight.get(name)
            assert model not in observed.waiting


def a_plan_does_not_contradict_itself(wanted: Wanted, observed: Observed, plan: Plan) -> None:
    starting = models(plan, Do.START)
    assert len(starting) == len(set(starting))
    going = unloads(plan).keys()
    assert not going & set(starting)
    assert not going & (set(models(plan, Do.ROUTE)) | set(models(plan, Do.PROBE)) | set(models(plan, Do.UPDATE)))
    assert not {resting.model for resting in plan.resting} & set(starting)
    # Who is said to make room does so in this very plan.
    for step in plan.steps:
        if step.do is Do.AWAIT and step.why.endswith(" made room") and "what leaves" not in step.why:
            assert set(step.why.removeprefix("waits until ").removesuffix(" made room").split(", ")) <= going


def what_starts_has_room_and_was_asked_for(wanted: Wanted, observed: Observed, plan: Plan) -> None:
    apps = {app.name: app.demand for app in observed.applications.values() if app.model is not None}
    ledger = Ledger(observed.nodes, apps)
    assert len(models(plan, Do.START)) <= 2
    for step in plan.steps:
        if step.do is Do.START:
            demand = next(each.demand for each in VERSIONS.values() if each.application == step.application)
            assert ledger.take(demand, step.application)
    for model, file in wanted.items():
        record, override = observed.records.get(model), observed.overrides.get(model)
        if file is None or (record is not None and record.previous is not None):
            continue
        asked = override is not None and override.kind in (Kind.LOAD, Kind.PIN)
        asked = asked or (model in observed.waiting and file.policy is not Policy.MANUAL)
        # What is there follows its file, whoever asks for it.
        there = any(app.status is not Status.DELETING for app in observed.of_model(model))
        if not asked and not there and not is_pinned(model, file, observed):
            assert model not in models(plan, Do.START)


def models_of_a_group_do_not_start_beside_each_other(wanted: Wanted, observed: Observed, plan: Plan) -> None:
    mates = {model for model, file in wanted.items() if file is not None and file.group}
    starting = mates & set(models(plan, Do.START))
    assert len(starting) <= 1
    for model in starting:
        assert not any(app.model in mates - {model} for app in observed.applications.values())


LAWS: tuple[Callable[[Wanted, Observed, Plan], None], ...] = (
    no_pinned_model_leaves_for_another_one,
    who_leaves_had_its_time,
    a_plan_does_not_contradict_itself,
    what_starts_has_room_and_was_asked_for,
    models_of_a_group_do_not_start_beside_each_other,
)


@settings(deadline=None, max_examples=120)
@given(WANTED, worlds())
def test_no_state_breaks_a_law_of_residency(wanted: Wanted, observed: Observed) -> None:
    plan = plan_of(wanted, observed)
    for law in LAWS:
        law(wanted, observed, plan)


def likely(seed: int) -> tuple[Wanted, Observed]:
    """A state such as histories lead to, in which much is asked for and little room is left."""
    dice = random.Random(seed)
    nodes = tuple(Node(f"n{at}", dice.choice((1, 1, 2))) for at in range(dice.choice((1, 1, 2))))
    ledger = Ledger(nodes)
    wanted: dict[str, File | None] = {}
    facts: dict[str, dict[str, Any]] = {name: {} for name in FACTS_BY_NAME}
    ready: set[str] = set()
    for name in SHARES:
        policy = dice.choices(tuple(Policy), (2, 7, 1))[0]
        wanted[name] = File(dice.choice((1, 1, 2)), policy, dice.choice(("", "", "g")))
        target = VERSIONS[name, 1]
        app = target.application
        state = dice.choice(("down", "down", "up", "up", "up", "loading", "draining", "deleting", "failed"))
        if state != "down" and ledger.take(target.demand, app):
            facts["applications"][app] = application_of(target, STATUSES[state])
        if state in ("up", "draining"):
            facts["up_seconds"][app] = dice.choice((10.0, 61.0, 61.0, 5000.0))
            facts["idle_seconds"][app] = dice.choice((0.0, 11.0, 60.0, 2000.0, 5000.0))
            facts["in_flight"][app] = dice.choice((0, 0, 1))
            facts["records"][name] = Record(name, target.file, app, VERSIONS[name, 1].fields)
            ready.add(app)
        if state == "up" and app in facts["applications"]:
            facts["routes"][name] = app
        if state == "draining":
            facts["draining"][app] = dice.choice((0.0, 5.0, 700.0))
        if state == "failed" or dice.random() < 0.1:
            facts["failures"][app] = Failure(name, app, "r", 1, 90.0, dice.choice((95.0, 150.0)), target.basis)
        if dice.random() < 0.05:
            facts["records"][name] = Record(name, target.file, app, target.fields, VERSIONS[name, 3].config)
        if dice.random() < (0.1 if state == "up" else 0.6):
            facts["waiting"][name] = Waiting(1, dice.choice((1.0, 5.0, 5.0, 50.0)))
        if dice.random() < 0.15:
            kind, until = dice.choice(tuple(Kind)), dice.choice((None, 200.0))
            facts["overrides"][name] = Override(name, kind, dice.choice((50.0, 95.0)), until)
        if dice.random() < 0.1:
            facts["windows"][name] = Window(True, None, 60.0, "open until then")
        if dice.random() < 0.5:
            facts["load_seconds"][name] = dice.choice((20.0, 600.0))
    known: dict[str, Any] = facts if dice.random() < 0.9 else {**facts, "in_flight": None}
    return wanted, Observed(nodes=nodes, ready=frozenset(ready), now=NOW, **known)


def application_of(target: Target, status: Status) -> Application:
    return Application(
        target.application,
        status,
        None if status is Status.DELETING else target.config,
        target.model,
        replicas=(Replica("r", "RUNNING"),) if status is Status.RUNNING else (),
        demand=target.demand,
    )


@pytest.fixture(scope="module")
def likely_plans() -> list[tuple[Wanted, Observed, Plan]]:
    states = (likely(seed) for seed in range(LIKELY))
    return [(wanted, observed, plan_of(wanted, observed)) for wanted, observed in states]


@pytest.mark.parametrize("law", LAWS)
def test_no_likely_state_breaks_a_law_of_residency(
    law: Callable[[Wanted, Observed, Plan], None], likely_plans: list[tuple[Wanted, Observed, Plan]]
) -> None:
    for seed, (wanted, observed, plan) in enumerate(likely_plans):
        try:
            law(wanted, observed, plan)
        except AssertionError as error:
            raise AssertionError(f"likely({seed})") from error


def test_in_likely_states_all_of_it_happens(likely_plans: list[tuple[Wanted, Observed, Plan]]) -> None:
    """Or else the laws would hold of nothing."""
    often = LIKELY // 50
    assert sum(bool(sent_away(plan)) for _, _, plan in likely_plans) > often
    assert sum(unloads(plan).keys() > sent_away(plan) for _, _, plan in likely_plans) > often
    assert sum(len(models(plan, Do.START)) > 1 for _, _, plan in likely_plans) > often
    assert sum(any(step.why.startswith("queued behind") for step in plan.steps) for _, _, plan in likely_plans) > 9
    assert sum("g" in {file.group for file in wanted.values() if file} for wanted, _, _ in likely_plans) > often


@settings(deadline=None, max_examples=60)
@given(worlds(), st.booleans())
def test_an_unreadable_source_starts_and_removes_no_model(observed: Observed, allow: bool) -> None:
    plan = make_plan(Desired(unreadable="gone"), observed, Options(allow_removals=allow))
    assert plan.refused
    assert all(change.action is Action.RESTORE for change in plan.changes)
    routed = {app for app in observed.routes.values() if observed.applications.get(app) is not None}
    kept = plan.applications
    for name in routed if kept is not None else ():
        assert kept is not None
        assert name in kept or observed.applications[name].status is Status.DELETING


def test_the_base_of_a_plan_changes_with_what_it_was_made_from() -> None:
    app = Application("x", Status.RUNNING, {"a": 1})
    digests = {
        observed_digest({"x": app}),
        observed_digest({}),
        observed_digest({"x": dataclasses.replace(app, config={"a": 2})}),
        observed_digest({"y": app}),
    }
    assert len(digests) == 4
    assert observed_digest({"x": dataclasses.replace(app, message="m")}) == observed_digest({"x": app})
    assert desired({"a": File(1)}).digest != desired({"a": File(2)}).digest


def test_held_models_and_changes_are_told_apart() -> None:
    plan = plan_of({"a": File(1), "b": None}, Observed(nodes=(Node("n", 1, 0.8),)))
    assert [(held.model, held.kind) for held in plan.held] == [
        ("m/b.yaml", HeldKind.INVALID),
        ("a", HeldKind.NO_ROOM),
    ] or {held.kind for held in plan.held} == {HeldKind.INVALID, HeldKind.NO_ROOM}
    assert plan.changes == ()
    assert plan.settled
    assert not plan.converged


def test_a_thousand_models_are_planned_in_a_second() -> None:
    names = [f"m{number}" for number in range(1000)]
    random.Random(1).shuffle(names)
    wanted = desired(dict.fromkeys(names, File(1)))
    apps = {
        target.application: Application(
            target.application,
            Status.RUNNING,
            target.config,
            target.model,
            replicas=(Replica("r", "RUNNING"),),
        )
        for target in wanted.targets.values()
    }
    observed = Observed(
        applications=apps,
        routes={target.model: target.application for target in wanted.targets.values()},
        records={
            target.model: Record(target.model, target.file, target.application, target.fields)
            for target in wanted.targets.values()
        },
    )
    begin = time.process_time()
    plan = make_plan(wanted, observed)
    assert time.process_time() - begin < 1.0
    assert plan.converged
    assert len(plan.unchanged) == 1000
