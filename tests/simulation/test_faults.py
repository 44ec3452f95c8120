"""What fails on the way: lost answers, a full disk, a new controller, a lost head, a repository nobody reaches."""

from collections.abc import Callable
from typing import TypeAlias

import pytest

from .fake_source import FakeGit
from .faults import Call, When
from .world import FAILED_TURN, World, model_file

MakeWorld: TypeAlias = Callable[..., World]


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("call", [Call.GET, Call.SECOND_LOOK, Call.PUT, Call.ROUTES, Call.WRITE])
def test_a_call_that_fails_costs_a_turn_and_no_second_load(make_world: MakeWorld, call: Call, when: When) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.5))
    world.calls.arm(call, when)
    world.settle()
    assert world.calls.happened == [f"{call.value} failed {when.value}"]
    assert world.serves("a")
    assert world.serve.builds[world.target("a")] == 1
    assert world.memory.records["a"].application == world.target("a")


def test_a_new_controller_is_waited_for_and_nothing_is_done_meanwhile(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.5))
    world.settle()
    puts, writes, routes = len(world.puts), world.writes, dict(world.routes)
    world.serve.restart_controller()
    assert world.turn() is FAILED_TURN
    assert world.stream("a", 1.0), "what serves goes on serving"
    world.settle()
    assert (len(world.puts), world.writes, world.routes) == (puts, writes, routes)


def test_a_lost_head_brings_everything_back_by_itself(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.3), b=model_file(2048, share=0.3))
    world.settle()
    world.lose_head()
    assert world.turn() is FAILED_TURN
    assert not world.stream("a", 1.0)
    world.until(lambda: world.serves("a") and world.serves("b"), turns=60)
    world.settle()
    assert world.serve.builds[world.target("a")] == 2


def test_what_was_fetched_last_is_served_while_nobody_answers(make_world: MakeWorld) -> None:
    git = FakeGit()
    world = make_world(gpus=1, git=git)
    world.edit(a=model_file(share=0.3))
    first = git.push(world.files)
    world.settle()
    served = world.routes["a"]
    git.reachable = False
    world.edit(a=None, b=model_file(share=0.3))
    git.push(world.files)
    plan = world.settle()
    assert (plan.revision, world.routes) == (first, {"a": served})
    git.reachable = True
    git.force_push(1)
    plan = world.settle()
    assert (plan.revision, world.routes) == (first, {"a": served})


def test_what_the_activator_passed_on_may_finish_though_the_edge_never_had_the_route(
    make_world: MakeWorld,
) -> None:
    world = make_world(gpus=1)
    quick = "idle_timeout: 10m, min_stay: 1s, wait_timeout: 1h"
    world.edit(
        a=model_file(share=0.8, policy="on_demand", drain="20s", lifecycle=quick),
        b=model_file(2048, share=0.8, policy="on_demand", lifecycle=quick),
    )
    world.start_seconds["a"] = 30.0  # Longer than its requests may take once it is to leave.
    asked = world.ask("a", 15.0)
    world.until(lambda: any(app.up for app in world.apps.values()))
    world.ask("b")
    world.calls.arm(Call.ROUTES, When.BEFORE)
    world.until(lambda: asked.over)
    world.until(lambda: world.serves("b"))
    assert world.cut == 0
