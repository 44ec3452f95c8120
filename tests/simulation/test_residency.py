"""Models that come and go by policy, traffic and hand: one story each."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import pytest

from reconciler.activator.directory import ModelState
from reconciler.core import residency
from reconciler.core.overrides import Kind, Override, give
from reconciler.core.plan import Action, HeldKind, Plan
from reconciler.core.sleep import Footprint
from reconciler.core.spec import Policy
from reconciler.core.turn import Options
from reconciler.core.windows import Window

from .world import REASON, REPLICA, World, model_file, show

MakeWorld: TypeAlias = Callable[..., World]


def on_demand(
    share: float | None = None, *, idle: str = "10m", stay: str = "1m", more: str = "", **rest: int
) -> str:
    lifecycle = f"idle_timeout: {idle}, min_stay: {stay}" + (f", {more}" if more else "")
    return model_file(share=share, policy="on_demand", lifecycle=lifecycle, **rest)  # type: ignore[arg-type]


def spend(world: World, seconds: float, step: float = 1.0) -> None:
    """Turns for a while."""
    until = world.now + seconds
    while world.now < until:
        world.turn()
        assert not world.violations, world.violations
        world.tick(step)


def served(world: World, *requests: object) -> None:
    """Turns until all of these were passed on to their models."""
    world.until(lambda: all(request.began for request in requests), turns=400)  # type: ignore[attr-defined]


def causes(plan: Plan, action: Action) -> dict[str, str]:
    return {change.model: change.cause for change in plan.changes if change.action is action}


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """One GPU; a and b each take most of it, neither is up."""
    world = make_world(gpus=1)
    world.edit(a=on_demand(0.7), b=on_demand(0.7))
    world.settle()
    return world


def test_on_demand_models_are_at_rest_until_a_request_comes(world: World) -> None:
    plan = world.settle()
    assert plan.converged
    assert [(each.model, each.reason) for each in plan.resting] == [
        ("a", "on demand: a request loads it"),
        ("b", "on demand: a request loads it"),
    ]
    assert not world.puts
    request = world.ask("a")
    assert not request.over
    plan = world.plan()
    assert show(plan) == ["▲ a"]
    assert plan.changes[0].cause == "1 request waits for it"
    served(world, request)
    assert world.serves("a")


def test_many_requests_at_once_cause_one_load(world: World) -> None:
    requests = [world.ask("a") for _ in range(500)]
    served(world, *requests)
    assert len([names for names in world.puts if names]) == 1


def test_an_idle_model_is_unloaded_and_stays_so(world: World) -> None:
    served(world, world.ask("a"))
    spend(world, 590)
    assert world.serves("a")
    spend(world, 30)
    assert not world.versions("a")
    assert world.plan().converged
    puts = len(world.puts)
    spend(world, 100)
    assert len(world.puts) == puts


def test_a_stream_keeps_its_model_however_long_it_is(world: World) -> None:
    served(world, world.ask("a", 3600))
    spend(world, 3500, step=5)
    assert world.serves("a")
    assert world.cut == 0


def test_usage_that_nobody_can_tell_counts_as_in_use(world: World) -> None:
    served(world, world.ask("a"))
    world.edge_counts = False
    spend(world, 1000, step=5)
    assert world.serves("a")
    world.edge_counts = True
    spend(world, 500, step=5)
    assert world.serves("a")
    spend(world, 200, step=5)
    assert not world.versions("a")


def test_an_edge_that_forgets_unloads_nothing_early(world: World) -> None:
    served(world, world.ask("a"))
    spend(world, 500, step=5)
    world._ended.clear()
    spend(world, 590, step=5)
    assert world.serves("a")


def test_a_restarted_reconciler_unloads_nothing_early(world: World) -> None:
    served(world, world.ask("a"))
    spend(world, 500, step=5)
    world.start_process()
    spend(world, 60, step=5)
    assert world.serves("a")
    spend(world, 60, step=5)
    assert not world.versions("a")


def test_a_request_that_comes_during_the_unload_is_served(world: World) -> None:
    served(world, world.ask("a"))
    world.until(lambda: "a" not in world.routes, turns=700)
    request = world.ask("a")
    assert not request.over
    served(world, request)


def test_an_idle_model_makes_room_and_the_plan_says_why(world: World) -> None:
    served(world, world.ask("a"))
    spend(world, 120)
    request = world.ask("b")
    plan = world.plan()
    assert show(plan) == ["▲ b", "▼ a"]
    assert causes(plan, Action.UNLOAD) == {"a": "idle 1 min, priority 50, to make 0.7 GPU for b"}
    served(world, request)
    assert world.cut == 0


def test_nobody_leaves_before_its_minimum_stay(world: World) -> None:
    served(world, world.ask("a", 1))
    request = world.ask("b")
    spend(world, 30)
    assert world.serves("a")
    assert not request.over
    assert "waits for room: a has to leave first" in world.directory.find("b").reason  # type: ignore[union-attr]
    served(world, request)


def test_a_model_in_use_has_its_turn_and_then_answers_to_the_last_byte(world: World) -> None:
    served(world, world.ask("a", 300))
    request, began = world.ask("b"), world.now
    spend(world, 30)
    assert "waits for room: a has to leave first" in world.directory.find("b").reason  # type: ignore[union-attr]
    later = []
    while not request.over:
        later.append(world.ask("a", 300))
        spend(world, 5)
    assert world.cut == 0
    # The turn, its last stream, and the load.
    assert world.now - began < 60 + 300 + 60
    served(world, *(each for each in later if not each.over))


def test_two_models_that_fight_take_turns(world: World) -> None:
    requests = []
    for _ in range(120):
        requests += [world.ask("a", 3), world.ask("b", 3)]
        spend(world, 5)
    loads = len([line for line in world.log if line.startswith("routes")])
    assert loads < 2 * 600 / 60
    spend(world, 200)
    assert all(request.began for request in requests)


def test_pinned_models_never_leave_and_what_they_leave_no_room_for_is_told_so(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.7), b=on_demand(0.7))
    world.settle()
    request = world.ask("b")
    world.turn()
    world.turn()
    assert request.refused == "no room: it needs 0.7 GPU; 0.30 GPU free; a may not leave"


def test_the_smallest_sufficient_set_leaves_the_least_important_first(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(
        a=on_demand(0.25, priority=10), b=on_demand(0.25, priority=10), c=on_demand(0.4, priority=10),
        d=on_demand(0.4), e=on_demand(0.9),
    )  # fmt: skip
    served(world, *[world.ask(name) for name in "abc"])
    spend(world, 100)
    world.ask("d")
    # a or b alone would be too little, c alone is enough; both together go by when they were used.
    assert causes(world.plan(), Action.UNLOAD).keys() == {"c"}
    world.queue.clear()
    world.ask("e")
    assert causes(world.plan(), Action.UNLOAD).keys() == {"a", "b", "c"}


def test_the_longest_unused_leaves_first(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=on_demand(0.4), b=on_demand(0.4), c=on_demand(0.4))
    served(world, world.ask("a"), world.ask("b"))
    spend(world, 60)
    world.ask("a")
    spend(world, 60)
    world.ask("c")
    assert causes(world.plan(), Action.UNLOAD).keys() == {"b"}


def test_models_of_a_group_are_never_up_together(make_world: MakeWorld) -> None:
    world = make_world()
    world.edit(a=on_demand(more="group: g"), b=on_demand(more="group: g"), c=on_demand())
    served(world, world.ask("a"), world.ask("c"))
    spend(world, 100)
    request = world.ask("b")
    while not request.over:
        spend(world, 1)
        assert not (world.versions("a") and world.versions("b"))
    assert world.serves("c")


def test_models_of_a_group_do_not_start_in_one_turn(make_world: MakeWorld) -> None:
    world = make_world(options=Options(max_loads=2))
    world.edit(a=on_demand(more="group: g"), b=on_demand(more="group: g"))
    first, second = world.ask("a"), world.ask("b")
    world.turn()
    assert len(world.apps) == 1
    served(world, first, second)


def test_a_large_model_is_not_starved_by_small_ones(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=on_demand(0.9), **{name: on_demand(0.4) for name in "bcdef"})
    small = [world.ask(name) for name in "bcdef"]
    spend(world, 30)
    large = world.ask("a")
    since = world.now
    while not large.over:
        small += [world.ask(name) for name in "bcdef"]
        spend(world, 5)
    # d, e and f waited before it did: two turns, its own wait for the second of them, and the loads.
    assert world.now - since < 3 * 60 + 60


def test_a_broken_model_fails_its_waiters_with_the_reason_and_is_not_tried_for_every_request(world: World) -> None:
    world.faults["a"] = REPLICA
    first = world.ask("a")
    world.until(lambda: first.over)
    assert REASON in first.refused
    puts = len(world.puts)
    second = world.ask("a")
    assert REASON in second.refused
    world.settle()
    assert not world.versions("a")
    held = world.plan().held
    assert [each.kind for each in held] == [HeldKind.FAILED]
    world.faults.clear()
    spend(world, 60)
    assert len(world.puts) == puts  # it is not started again by itself
    third = world.ask("a")
    assert not third.over
    served(world, third)


def test_pinned_models_come_first_after_everything_was_lost(make_world: MakeWorld) -> None:
    world = make_world(gpus=1, options=Options(max_loads=1))
    world.edit(a=on_demand(0.4, priority=90), z=model_file(share=0.4, priority=1))
    request = world.ask("a")
    world.turn()
    assert [app.name[0] for app in world.apps.values()] == ["z"]
    served(world, request)


def test_a_pinned_model_takes_the_room_of_one_on_demand(world: World) -> None:
    served(world, world.ask("a"))
    world.edit(c=model_file(share=0.7))
    spend(world, 120)
    assert world.serves("c")
    assert not world.versions("a")


def test_loading_by_hand(world: World) -> None:
    world.overrides["a"] = Override("a", Kind.LOAD, world.now, None)
    plan = world.plan()
    assert show(plan) == ["▲ a"]
    assert "by hand" in plan.changes[0].cause
    world.settle()
    assert world.serves("a")
    assert not world.overrides
    spend(world, 620)
    assert not world.versions("a")


def test_a_manual_model_stays_until_it_is_unloaded_by_hand(world: World) -> None:
    world.edit(m=model_file(policy="manual"))
    assert world.ask("m").refused or world.turn()
    world.overrides["m"] = Override("m", Kind.LOAD, world.now, None)
    world.settle()
    assert world.serves("m")
    spend(world, 4000, step=10)
    assert world.serves("m")
    world.overrides["m"] = Override("m", Kind.UNLOAD, world.now, None)
    world.settle()
    assert not world.versions("m")
    assert not world.overrides
    refused = world.ask("m")
    assert "by hand" in refused.refused or "manual" in refused.refused


def test_unloading_by_hand_keeps_it_away_as_long_as_was_said(world: World) -> None:
    served(world, world.ask("a"))
    world.overrides["a"] = Override("a", Kind.UNLOAD, world.now, world.now + 600)
    world.settle()
    assert not world.versions("a")
    refused = world.ask("a")
    assert "kept away by hand" in refused.refused
    spend(world, 610)
    served(world, world.ask("a"))


def test_what_is_pinned_by_hand_stays_until_the_end(world: World) -> None:
    world.overrides["a"] = Override("a", Kind.PIN, world.now, world.now + 3600)
    world.settle()
    spend(world, 3500, step=5)
    assert world.serves("a")
    spend(world, 800, step=5)
    assert not world.versions("a")


def test_a_window_pins_and_is_loaded_ahead(world: World) -> None:
    world.load_seconds["a"] = 100.0
    world.windows["a"] = Window(open=False, opens_in=300.0, closes_in=None, words="opens 08:00 UTC")
    assert world.plan().converged
    world.windows["a"] = Window(open=False, opens_in=120.0, closes_in=None, words="opens 08:00 UTC")
    assert causes(world.plan(), Action.LOAD) == {"a": "its schedule: opens 08:00 UTC"}
    world.settle()
    world.windows["a"] = Window(open=True, opens_in=None, closes_in=9000.0, words="open until 18:00 UTC")
    spend(world, 3000, step=10)
    assert world.serves("a")
    del world.windows["a"]
    spend(world, 620)
    assert not world.versions("a")


def test_a_changed_file_of_a_model_at_rest_starts_nothing(world: World) -> None:
    served(world, world.ask("a"))
    spend(world, 620)
    world.edit(a=on_demand(0.6))
    assert world.plan().converged
    served(world, world.ask("a"))
    assert world.serves("a")


def test_an_invalid_file_of_a_model_at_rest_is_no_unknown_model(world: World) -> None:
    world.edit(a="sourc: {repo: o/m}\n")
    world.settle()
    assert world.ask("a").refused == "models.d/a.yaml is invalid"


@pytest.fixture
def sleepers(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The first model may sleep, and is up."""
    monkeypatch.setattr(residency, "footprint_of", lambda target: Footprint(4, 4))
    world.sleep_left = 100
    world.edit(a=on_demand(0.7, more="sleep_after: 2m"))
    served(world, world.ask("a"))
    return world


def test_an_idle_model_goes_to_sleep_and_a_request_wakes_it(sleepers: World) -> None:
    world, app = sleepers, sleepers.target("a")
    spend(world, 115)
    assert world.routes
    spend(world, 10)
    assert world.asleep == {app}
    assert world.directory.find("a").state is ModelState.SLEEPING  # type: ignore[union-attr]
    assert world.plan().converged
    puts = len(world.puts)
    request = world.ask("a")
    served(world, request)
    assert world.serves("a")
    assert not world.asleep
    assert len(world.puts) == puts


def test_one_that_is_drained_for_its_sleep_is_not_called_unloading(sleepers: World) -> None:
    seen = []
    for _ in range(200):
        spend(sleepers, 1, step=1)
        entry = sleepers.directory.find("a")
        assert entry is not None
        seen.append(entry.state)
        if sleepers.asleep:
            break
    assert set(seen) == {ModelState.LOADED, ModelState.SLEEPING}


def test_a_sleeper_that_nobody_wakes_is_unloaded_at_last(sleepers: World) -> None:
    spend(sleepers, 590, step=2)
    assert sleepers.asleep
    spend(sleepers, 30)
    assert not sleepers.versions("a")


def test_a_sleeper_leaves_first_when_room_is_needed(sleepers: World) -> None:
    spend(sleepers, 130)
    assert sleepers.asleep
    served(sleepers, sleepers.ask("b"))
    assert not sleepers.versions("a")


def test_nobody_asks_a_sleeper_after_a_restart(sleepers: World) -> None:
    spend(sleepers, 130)
    sleepers.start_process()
    spend(sleepers, 30)
    assert sleepers.asleep == {sleepers.target("a")}
    served(sleepers, sleepers.ask("a"))


def test_without_main_memory_for_it_nobody_sleeps(sleepers: World) -> None:
    sleepers.sleep_left = 3
    spend(sleepers, 300, step=2)
    assert not sleepers.asleep
    assert sleepers.serves("a")


def test_what_does_not_wake_well_is_loaded_anew_and_sleeps_no_more(sleepers: World) -> None:
    world, app = sleepers, sleepers.target("a")
    spend(world, 130)
    world.asleep.clear()
    world.broken[app] = "awake again it answers otherwise"
    request = world.ask("a")
    world.until(lambda: app not in world.apps or world.apps[app].status == "DELETING")
    world.broken.clear()
    served(world, request)
    assert world.serves("a")


def test_a_manual_model_leaves_when_its_time_is_over(world: World) -> None:
    world.edit(m=model_file(policy="manual"))
    given = give(Kind.LOAD, "m", Policy.MANUAL, None, now=world.now, for_seconds=600)
    assert given is not None
    world.overrides["m"] = given
    world.settle()
    assert world.serves("m")
    spend(world, 620)
    assert not world.versions("m")


def test_a_replacement_that_needs_room_sends_others_away_whatever_their_names(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=on_demand(0.4), b=on_demand(0.3))
    served(world, world.ask("a"), world.ask("b"))
    spend(world, 100)
    world.edit(b=on_demand(0.9))
    world.until(lambda: world.serves("b"), turns=200)
    assert not world.versions("a")


def test_a_restart_while_a_version_is_deleted_refuses_nobody(world: World) -> None:
    served(world, world.ask("a"))
    spend(world, 100)
    request = world.ask("b")
    world.until(lambda: any(app.status == "DELETING" for app in world.apps.values()))
    world.start_process()
    served(world, request)


def test_an_unloaded_model_does_not_come_back_because_it_made_way(world: World) -> None:
    served(world, world.ask("a"))
    world.settle()
    world.edit(a=on_demand(0.8))
    world.until(lambda: world.memory.records["a"].previous is not None)
    world.overrides["a"] = Override("a", Kind.UNLOAD, world.now, None)
    world.settle()
    assert not world.versions("a")
    assert not world.overrides
    assert world.plan().converged


def test_a_load_by_hand_that_finds_no_room_is_over(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.7), b=on_demand(0.7))
    world.settle()
    world.overrides["b"] = Override("b", Kind.LOAD, world.now, None)
    world.settle()
    assert not world.overrides


def test_what_holds_by_hand_is_told_in_the_plan(world: World) -> None:
    world.overrides["a"] = Override("a", Kind.PIN, world.now, world.now + 7200)
    plan = world.settle()
    assert [(note.model, note.text) for note in plan.notes] == [
        ("a", "pinned by hand for another 1 h 59 min; its file says on_demand")
    ]


def test_a_new_version_that_nobody_waits_for_interrupts_nobody_and_gets_its_room_at_last(
    make_world: MakeWorld,
) -> None:
    world = make_world(gpus=1)
    world.edit(a=on_demand(0.3), b=on_demand(0.6))
    served(world, world.ask("a"), world.ask("b"))
    spend(world, 100)
    world.edit(a=on_demand(0.5))
    puts = len(world.puts)
    for _ in range(100):
        assert world.ask("b").began
        spend(world, 4)
    assert len(world.puts) == puts
    world.until(lambda: world.serves("a"))


def test_nobody_is_sent_away_for_a_model_that_cannot_be_loaded_yet(make_world: MakeWorld) -> None:
    world = make_world(gpus=2, options=Options(max_loads=1))
    world.edit(**{name: on_demand(1.0) for name in "abcd"})
    served(world, world.ask("a"), world.ask("b"))
    spend(world, 100)
    world.ask("c")
    world.ask("d")
    world.turn()
    assert len(causes(world.plan(), Action.UNLOAD)) == 1


# --- what hangs, and what somebody left behind --------------------------------------------------------------


def hang_build(world: World, name: str) -> None:
    """The build of an application never ends, however often it is begun."""
    progress = world.serve.progress

    def without_it() -> None:
        app = world.apps.get(name)
        if app is not None and app.stage == "building":
            app.until = world.now + 1000.0
        progress()

    world.serve.progress = without_it  # type: ignore[method-assign]


def test_a_build_that_hangs_is_given_up_and_stops_nobody(make_world: MakeWorld) -> None:
    world = make_world(gpus=2, options=Options(max_loads=2))
    world.edit(a=on_demand(0.9, more="load_timeout: 5m"), b=on_demand(0.9))
    hang_build(world, world.target("a"))
    first, began = world.ask("a"), world.now
    spend(world, 5)
    second = world.ask("b")
    world.until(lambda: first.over and second.over, turns=400)
    assert "not up within 300 s" in first.refused
    assert second.began
    assert second.began - began < 330


def test_another_s_build_is_waited_for_a_while_and_not_for_ever(world: World) -> None:
    theirs = {"name": "theirs", "route_prefix": "/t", "import_path": "m:app", "args": {}}
    world.add("theirs", theirs)
    hang_build(world, "theirs")
    request, began = world.ask("a"), world.now
    spend(world, 590, step=2)
    assert not world.puts
    served(world, request)
    assert request.began
    assert request.began - began < 630
    assert world.apps["theirs"].config == theirs


def test_what_was_made_by_hand_has_no_build_to_be_waited_for(world: World) -> None:
    world.add("by-hand", None, imperative=True)
    hang_build(world, "by-hand")
    request, began = world.ask("a"), world.now
    served(world, request)
    assert request.began
    assert request.began - began < 30


def test_a_build_that_began_anew_is_waited_for_anew(world: World) -> None:
    theirs = {"name": "theirs", "route_prefix": "/t", "import_path": "m:app", "args": {}}
    world.occupy(0.1, "theirs")
    spend(world, 700, step=5)
    world.add("theirs", theirs).until = world.now + 60
    request = world.ask("a")
    spend(world, 55)
    assert not world.puts
    served(world, request)


def test_a_load_that_nobody_waits_for_gives_its_place_up(make_world: MakeWorld) -> None:
    world = make_world(gpus=2, options=Options(max_loads=1))
    world.edit(a=on_demand(0.9), b=on_demand(0.9))
    world.start_seconds["a"] = 1e9
    world.ask("a")
    spend(world, 20)
    request = world.ask("b")
    spend(world, 100)
    assert world.versions("a"), "somebody waits for it"
    world.queue = [each for each in world.queue if each.model != "a"]
    spend(world, 8)
    assert world.versions("a"), "who left may be about to ask again"
    served(world, request)
    assert not world.versions("a")
    assert not world.violations


def test_a_load_that_nobody_waits_for_goes_on_where_nobody_wants_its_place(world: World) -> None:
    world.start_seconds["a"] = 200.0
    world.ask("a")
    spend(world, 20)
    world.queue.clear()
    spend(world, 250)
    assert world.serves("a")


def test_a_woken_model_has_its_minimum_stay_again(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "footprint_of", lambda target: Footprint(4, 4))
    world = make_world(gpus=1)
    world.sleep_left = 100
    world.edit(a=on_demand(0.7, stay="5m", more="sleep_after: 6m"), b=on_demand(0.7, stay="5m"))
    served(world, world.ask("a"))
    spend(world, 400, step=5)
    assert world.asleep
    served(world, world.ask("a"))
    woken, request = world.now, world.ask("b")
    world.until(lambda: "a" not in world.routes, turns=400)
    assert 295 < world.now - woken < 320
    served(world, request)


@pytest.mark.parametrize("broken", [False, True])
def test_a_failure_of_a_time_to_come_is_tried_at_once_and_once(
    world: World, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    world.faults["a"] = REPLICA
    first = world.ask("a")
    world.until(lambda: first.over)
    world.settle()
    observe = world.observe
    monkeypatch.setattr(world, "observe", lambda desired: replace(seen := observe(desired), now=seen.now - 10_800))
    if not broken:
        world.faults.clear()
    puts = len(world.puts)
    world.turn()
    again = world.ask("a")
    world.until(lambda: again.over)
    if broken:
        assert REASON in again.refused
        world.settle()
        assert len([names for names in world.puts[puts:] if names]) == 1
        assert REASON in world.ask("a").refused
    else:
        assert again.began


def test_a_pin_that_ends_soon_is_waited_for(world: World) -> None:
    world.overrides["a"] = Override("a", Kind.PIN, world.now, world.now + 300)
    world.settle()
    spend(world, 100)
    request = world.ask("b")
    spend(world, 100)
    assert not request.over
    assert "waits for room: a has to leave first" in world.directory.find("b").reason  # type: ignore[union-attr]
    assert world.serves("a")
    served(world, request)
