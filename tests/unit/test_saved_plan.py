"""A saved plan: what makes it stale and what does not; and what is no plan."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.diff import Effect, FieldChange
from reconciler.core.plan import Action, Change, Held, HeldKind, Memory, Note, Order, Plan, Resting
from reconciler.core.plan_json import plan_to_json
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.saved_plan import SavedPlan, SavedPlanError, saved_from_text, saved_to_text, stale
from reconciler.core.state import Application, Json, Node, Observed, Record, Replica, Status
from reconciler.core.target import Platform
from reconciler.core.weights import CopyPlan

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
RENDERER = Renderer(TEMPLATE, Platform(simulate_gpus=True))
MEMORY = Memory("h100", 80, 1, 1.0, 70, 75, 60, 5, 12345, 8192, "tensors", fits_safely=True)
CHANGE = Change(
    "a",
    Action.REPLACE,
    "m/a.yaml changed",
    (
        FieldChange("engine.max_model_len", 4096, 8192, Effect.NEW_ENGINE),
        FieldChange("aliases", ["x"], [], Effect.FRONT_DOOR),
    ),
    old="a-1",
    new="a-2",
    order=Order.BESIDE,
    file="m/a.yaml",
    downloads=(CopyPlan("o/m", "main", "c" * 40, 100, 20, 500),),
    memory=MEMORY,
)  # fmt: skip
PLAN = Plan(changes=(CHANGE,), revision="r", desired_digest="d", observed_digest="o")


def saved(plan: Plan) -> SavedPlan:
    """As it comes back from a file."""
    return saved_from_text(saved_to_text(SavedPlan(1.5, "0.1.0", "c" * 40, plan_to_json(plan))))


def reasons(now: Plan, before: Plan = PLAN) -> tuple[str, ...]:
    return stale(saved(before), plan_to_json(now))


def with_change(**fields: Any) -> Plan:
    return replace(PLAN, changes=(replace(CHANGE, **fields),))


def test_a_plan_comes_back_as_it_was_saved() -> None:
    found = saved(PLAN)
    assert (found.created_at, found.program, found.commit) == (1.5, "0.1.0", "c" * 40)
    assert found.plan == json.loads(json.dumps(plan_to_json(PLAN)))


def test_the_file_says_what_it_was_made_from() -> None:
    document = json.loads(saved_to_text(SavedPlan(1.5, "0.1.0", "", plan_to_json(PLAN))))
    assert (document["format_version"], document["revision"]) == (1, "r")
    assert document["base"] == {"desired": "d", "observed": "o"}


def test_the_same_plan_is_not_stale() -> None:
    assert reasons(PLAN) == ()


@pytest.mark.parametrize(
    "now",
    [
        with_change(phase="loading the model"),
        with_change(cause="idle 12 min, priority 10, to make 14.2 GiB for b"),
        with_change(memory=None),
        with_change(memory=replace(MEMORY, kv_tokens=1)),
        with_change(downloads=()),
        with_change(downloads=(CopyPlan("o/m", "main", "c" * 40, 100, 80, 100),)),
        replace(PLAN, held=(Held("b", HeldKind.FAILED, "r", retry_at=5.0),)),
        replace(PLAN, resting=(Resting("b", "idle 3 min"),)),
        replace(PLAN, notes=(Note("b", "pinned by hand for another 3 min"),), unchanged=("c",)),
        replace(PLAN, revision="another one with the same files"),
    ],
    ids=[
        "phase",
        "cause",
        "no memory",
        "memory",
        "downloaded",
        "downloading",
        "held",
        "resting",
        "notes",
        "revision",
    ],
)
def test_what_moves_by_itself_does_not_make_a_plan_stale(now: Plan) -> None:
    assert reasons(now) == ()


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (replace(PLAN, changes=()), "a was to replace a-2, and now would stay as it is"),
        (with_change(action=Action.UPDATE), "a was to replace a-2, and now would update a-2"),
        (with_change(new="a-3"), "a was to replace a-2, and now would replace a-3"),
        (with_change(old="a-0"), "a to something else"),
        (with_change(order=Order.IN_TURN), "a to something else"),
        (with_change(file="m/z.yaml"), "a to something else"),
        (with_change(fields=()), "a to something else"),
        (
            with_change(fields=(replace(CHANGE.fields[0], new=8192.5), CHANGE.fields[1])),
            "a to something else",
        ),
        (
            replace(PLAN, changes=(CHANGE, Change("b", Action.UNLOAD, "idle", old="b-1"))),
            "b was to stay as it is, and now would unload b-1",
        ),
    ],
)  # fmt: skip
def test_another_change_makes_it_stale_and_the_model_is_named(now: Plan, said: str) -> None:
    (reason,) = reasons(now)
    assert reason.startswith("other changes would be made to ")
    assert reason.endswith(said)


def test_another_base_makes_it_stale_though_the_changes_are_the_same() -> None:
    assert reasons(replace(PLAN, desired_digest="x")) == (
        "the model files, or the commits that their revisions stand for, changed",
        "the changes would be the same",
    )
    assert reasons(replace(PLAN, observed_digest="x"))[0] == "the applications in Ray Serve changed"


def test_many_models_are_counted() -> None:
    now = replace(PLAN, changes=tuple(Change(f"m{i}", Action.ADD, "", new=f"m{i}-1") for i in range(9)))
    (reason,) = reasons(now)
    assert "made to a, m0, m1, m2, m3 and 5 more:" in reason


# --- against the real planner -----------------------------------------------------------------------------


def files(**lengths: int) -> Desired:
    contents = {
        f"m/{name}.yaml": "source: {repo: o/m}\nlifecycle: {policy: pinned}\n"
        f"engine: {{max_model_len: {length}, gpu_memory_utilization: 0.4}}\n".encode()
        for name, length in lengths.items()
    }
    return compile_desired(Snapshot("r", contents, "/m"), RENDERER)


def running(desired: Desired) -> Observed:
    targets = desired.targets.values()
    return Observed(
        applications={
            t.application: Application(
                t.application,
                Status.RUNNING,
                t.config,
                t.model,
                replicas=(Replica("r", "RUNNING"),),
                demand=t.demand,
            )
            for t in targets
        },
        routes={t.model: t.application for t in targets},
        records={t.model: Record(t.model, t.file, t.application, t.fields) for t in targets},
        nodes=(Node("n", 4),),
        now=100.0,
    )


def test_time_alone_makes_no_plan_stale() -> None:
    observed = running(files(a=1, b=1))
    before = make_plan(files(a=2, b=1), observed)
    assert [change.model for change in before.changes] == ["a"]
    assert reasons(make_plan(files(a=2, b=1), replace(observed, now=9000.0)), before) == ()


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (lambda: make_plan(files(a=3, b=1), running(files(a=1, b=1))), "the model files"),
        (lambda: make_plan(files(a=2, b=1), running(files(a=1))), "the applications in Ray Serve"),
        (lambda: make_plan(files(a=2, b=1), running(files(a=2, b=1))), "the applications in Ray Serve"),
        (lambda: make_plan(files(a=2), running(files(a=1, b=1))), "the model files"),
    ],
)
def test_an_edit_or_another_cluster_makes_it_stale(now: Callable[[], Plan], said: str) -> None:
    before = make_plan(files(a=2, b=1), running(files(a=1, b=1)))
    found = reasons(now(), before)
    assert found[0].startswith(said)
    assert "other changes would be made to" in found[1]


# --- what is no plan --------------------------------------------------------------------------------------


def edited(**fields: Any) -> str:
    document = json.loads(saved_to_text(SavedPlan(1.5, "0.1.0", "", plan_to_json(PLAN))))
    return json.dumps({**document, **fields})


def with_plan(**fields: Any) -> str:
    return edited(plan={**json.loads(json.dumps(plan_to_json(PLAN))), **fields})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it is no JSON"),
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("9" * 10_000, "it is no JSON"),
        ('{"format_version": NaN}', "NaN is no JSON number"),
        ("[]", "no plan that `reconcile plan --out` wrote"),
        ("{}", "no plan that `reconcile plan --out` wrote"),
        (edited(format_version=2), "its format is 2, and this program knows 1: plan again"),
        (edited(format_version=True), "its format is True"),
        (edited(created_at="now"), "'now' is of the wrong kind"),
        (edited(created_at=True), "True is of the wrong kind"),
        (edited(commit=None), "None is of the wrong kind"),
        (edited(plan=[]), "[] is of the wrong kind"),
        (edited(plan={}), "incomplete or damaged: 'base'"),
        (edited(base={"desired": "x", "observed": "o"}), "it was edited"),
        (edited(revision="x"), "it was edited"),
        (with_plan(changes={}), "{} is of the wrong kind"),
        (with_plan(changes=[1]), "1 is of the wrong kind"),
        (with_plan(changes=[{"model": []}]), "[] is of the wrong kind"),
        (with_plan(changes=[{"model": "a", "action": "add", "new": None}]), "incomplete or damaged: 'old'"),
        (with_plan(base={"desired": 1, "observed": "o"}), "1 is of the wrong kind"),
    ],
)  # fmt: skip
def test_what_is_no_saved_plan_is_refused_with_the_reason(content: str, said: str) -> None:
    with pytest.raises(SavedPlanError) as refused:
        saved_from_text(content)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(sorted(json.loads(edited()))), JSON), JSON, JSON)
def test_whatever_is_in_the_file_it_is_a_plan_or_is_refused(fields: Json, changes: Any, change: Any) -> None:
    for content in (edited(**fields), with_plan(changes=changes), with_plan(changes=[change])):
        try:
            found = saved_from_text(content)
        except SavedPlanError:
            continue
        stale(found, plan_to_json(PLAN))


@given(st.integers(0, 3000))
def test_a_truncated_plan_is_refused(length: int) -> None:
    content = edited()
    if length < len(content):
        with pytest.raises(SavedPlanError):
            saved_from_text(content[:length])
