"""The rules that the core holds, each by its number in the design, in the simulated world.

1. An invalid file holds its model. 2. What looks like a mistake removes nothing. 3. One declarative writer.
4. A stale plan is not applied. 5. Every change has a cause, and planning again after it gives nothing. 6. Backoff
belongs to a model and a version. 7. A change that arrives while the loop works is seen. 8. Secrets go no further.
"""

import json
from collections.abc import Callable
from typing import TypeAlias

import pytest

from reconciler.core.plan import HeldKind
from reconciler.core.plan_json import plan_to_json
from reconciler.core.state import Json
from reconciler.core.turn import Options

from . import secrets
from .faults import Call, When
from .world import BUILD, World, model_file

MakeWorld: TypeAlias = Callable[..., World]
FOREIGN: Json = {"name": "theirs", "route_prefix": "/t", "import_path": "m:app", "args": {"x": [1, {"y": None}]}}


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """Models a, b and c are served, beside an application that is not ours."""
    world = make_world(options=Options(max_loads=3))
    world.add("theirs", dict(FOREIGN))
    world.edit(a=model_file(), b=model_file(), c=model_file())
    world.settle()
    return world


@pytest.mark.parametrize(
    "text", ["{", "sourc: {}\n", "name: other\nsource: {}\n", "\x00", "source: {repo: '../x'}\n"]
)
def test_rule_1_a_file_that_is_invalid_holds_its_live_model_as_it_is(world: World, text: str) -> None:
    config = dict(world.apps[world.target("a")].config or {})
    name = world.target("a")
    world.edit(a=text)
    plan = world.settle()
    assert [(held.model, held.kind) for held in plan.held] == [("a", HeldKind.INVALID)]
    assert plan.held[0].file == "models.d/a.yaml"
    assert world.apps[name].config == config
    assert world.routes["a"] == name
    (problem, *_) = world.desired.problems
    assert (problem.path, problem.line >= 1, problem.column >= 1) == ("models.d/a.yaml", True, True)


@pytest.mark.parametrize("mistake", ["no file", "unreadable", "more than half"])
def test_rule_2_what_looks_like_a_mistake_removes_nothing_without_the_flag(world: World, mistake: str) -> None:
    before = set(world.apps)
    if mistake == "unreadable":
        world.unreadable = "permission denied"
    else:
        world.edit(a=None, b=None, **({"c": None} if mistake == "no file" else {}))
    plan = world.settle()
    assert plan.refused
    assert set(world.apps) == before
    assert bool(plan.refused[0].flag) is (mistake != "unreadable"), (
        "no flag helps where nobody knows what is wanted"
    )
    if plan.refused[0].flag:
        world.options = Options(allow_removals=True, max_loads=3)
        world.settle()
        assert "a" not in world.routes


def test_rule_2_an_observation_that_failed_deletes_nothing(world: World) -> None:
    before = set(world.apps)
    world.edit(a=None)
    world.calls.arm(Call.GET, When.BEFORE, 3)
    for _ in range(3):
        world.turn()
        assert set(world.apps) == before


def test_rule_3_every_put_carries_what_should_live_and_none_is_sent_where_nothing_differs(world: World) -> None:
    puts = len(world.puts)
    for _ in range(5):
        world.turn()
        world.tick()
    assert len(world.puts) == puts
    world.edit(d=model_file())
    world.settle()
    for put in world.puts[puts:]:
        assert {"theirs", *(world.target(model) for model in "abc")} <= set(put)
    assert world.apps["theirs"].config == FOREIGN


def test_rule_4_a_plan_that_is_stale_is_not_applied(world: World) -> None:
    """Somebody adds an application between the look and the PUT: it survives, and the next plan counts it in."""
    world.edit(d=model_file())
    theirs = {**FOREIGN, "name": "theirs-too", "route_prefix": "/u"}
    world.race = lambda: world.add("theirs-too", theirs)
    puts = len(world.puts)
    world.turn()
    assert len(world.puts) == puts
    world.settle()
    assert world.apps["theirs-too"].config == theirs
    assert world.serves("d")


def test_rule_5_every_change_has_a_cause_and_carried_out_it_leaves_nothing_to_do(world: World) -> None:
    world.edit(a=model_file(2048), b=None, d=model_file())
    plan = world.plan()
    assert {change.model: bool(change.cause) for change in plan.changes} == {"a": True, "b": True, "d": True}
    world.settle()
    writes = world.writes
    for _ in range(3):
        plan = world.turn()
        world.tick()
        assert (plan.changes, plan.steps) == ((), ())
    assert world.writes == writes


def test_rule_6_backoff_belongs_to_a_version_and_a_new_one_is_tried_at_once(world: World) -> None:
    world.faults["d"] = BUILD
    world.edit(d=model_file())
    world.settle()
    (failure,) = world.memory.failures.values()
    puts = len(world.puts)
    for _ in range(10):
        world.turn()
        world.tick()
    assert len(world.puts) == puts, "the same version does not loop"
    world.faults.clear()
    world.edit(d=model_file(2048))
    assert world.now < failure.retry_at
    world.settle()
    assert world.serves("d")


def test_rule_7_a_change_that_arrives_in_the_middle_is_seen_on_the_next_turn(world: World) -> None:
    world.edit(a=model_file(2048))
    world.turn()
    world.edit(a=model_file(4096), b=model_file(2048))
    world.settle()
    assert all(world.versions(model) == [world.target(model)] for model in "abc")


def test_rule_8_a_secret_goes_no_further(world: World) -> None:
    """Serve quotes a token in a failure: it is in no plan, no log and no record."""
    world.serve.reason = secrets.TELLTALE
    world.faults["d"] = BUILD
    world.edit(d=model_file())
    plan = world.settle()
    found = secrets.leaks(
        plan=json.dumps(plan_to_json(plan)), log="\n".join(world.log), records=secrets.on_disk(world.folder)
    )
    assert not found
    assert "***" in plan.held[0].reason
