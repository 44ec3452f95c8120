"""Laws of the planner that hold whatever was observed. The stories are in tests/simulation."""

import copy
import dataclasses
import json
import random
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.plan import Action, Do, HeldKind, Plan
from reconciler.core.plan_json import plan_to_json
from reconciler.core.planner import make_plan, observed_digest
from reconciler.core.render import Renderer
from reconciler.core.state import Application, Failure, Node, Observed, Record, Replica, Status
from reconciler.core.target import Platform
from reconciler.core.turn import Options

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
RENDERER = Renderer(TEMPLATE, Platform(simulate_gpus=True))
NAMES = "abc"


def desired(lengths: dict[str, int | None], *, share: float = 0.5) -> Desired:
    """Model files by name and context length; None is an invalid file."""
    files = {
        f"m/{name}.yaml": (
            f"source: {{repo: o/m}}\nengine: {{max_model_len: {length}, gpu_memory_utilization: {share}}}\n"
            if length
            else "{"
        ).encode()
        for name, length in lengths.items()
    }
    return compile_desired(Snapshot("r", files, "/m"), RENDERER)


VERSIONS = {(name, length): desired({name: length}).targets[name] for name in NAMES for length in (1, 2, 3)}
WANTED = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([1, 2, 3, None]), max_size=3)


@st.composite
def worlds(draw: st.DrawFn) -> Observed:
    """Any state at all, also those that no history leads to."""
    apps: dict[str, Application] = {}
    records: dict[str, Record] = {}
    failures: dict[str, Failure] = {}
    routes: dict[str, str] = {}
    for (name, _), target in VERSIONS.items():
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
        now=100.0,
    )


def plan_of(wanted: dict[str, int | None], observed: Observed, **options: bool) -> Plan:
    return make_plan(desired(wanted), observed, Options(max_loads=2, **options))


@settings(deadline=None, max_examples=60)
@given(WANTED, worlds())
def test_the_same_inputs_give_the_same_plan(wanted: dict[str, int | None], observed: Observed) -> None:
    assert plan_of(wanted, observed) == plan_of(dict(wanted), copy.deepcopy(observed))


@settings(deadline=None, max_examples=120)
@given(WANTED, worlds(), st.booleans())
def test_no_state_breaks_a_rule(wanted: dict[str, int | None], observed: Observed, allow: bool) -> None:
    plan = plan_of(wanted, observed, allow_removals=allow)
    json.dumps(plan_to_json(plan))
    for change in plan.changes:
        assert change.cause
    routed = set(observed.routes.values())
    if plan.applications is not None:
        assert plan.applications["theirs"] == {"name": "theirs"}
        assert not any(app.building for app in observed.applications.values())
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
        {change.model for change in plan.changes} | {held.model for held in plan.held} | set(plan.unchanged)
    )
    stepping = {step.model for step in plan.steps}
    assert {name for name, length in wanted.items() if length} <= spoken_for | stepping


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
    assert desired({"a": 1}).digest != desired({"a": 2}).digest


def test_held_models_and_changes_are_told_apart() -> None:
    plan = plan_of({"a": 1, "b": None}, Observed(nodes=(Node("n", 1, 0.8),)))
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
    wanted = desired(dict.fromkeys(names, 1))
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
