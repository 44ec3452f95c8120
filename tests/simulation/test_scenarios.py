"""One story each: what a change means, what is done about it in which order, and what is left alone."""

from collections.abc import Callable
from typing import TypeAlias

import pytest

from reconciler.core.plan import Do
from reconciler.core.state import Json
from reconciler.core.turn import Options

from .world import BUILD, MUTE, NO_ROOM, REASON, REPLICA, TEMPLATE, World, model_file, show

MakeWorld: TypeAlias = Callable[..., World]
INVALID = "sourc: {repo: o/m}\n"
FOREIGN: Json = {"name": "theirs", "route_prefix": "/t", "import_path": "m:app", "args": {"x": [1, {"y": None}]}}


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """Models a, b and c are served."""
    world = make_world(options=Options(max_loads=3))
    world.edit(a=model_file(), b=model_file(), c=model_file())
    world.settle()
    return world


def converged(world: World) -> bool:
    """Nothing to say, and nothing is done: rule 5."""
    plan, writes = world.settle(), world.writes
    for _ in range(2):
        world.turn()
        world.tick()
    return plan.converged and show(plan) == [] and world.writes == writes


def test_the_first_load_is_an_add_that_ends_with_traffic(make_world: MakeWorld) -> None:
    world = make_world()
    world.edit(a=model_file())
    plan = world.plan()
    assert show(plan) == ["+ a"]
    assert plan.changes[0].cause == "models.d/a.yaml declares it"
    world.settle()
    assert world.serves("a")
    assert converged(world)
    assert world.plan().unchanged == ("a",)


def test_no_file_at_all_is_refused_even_where_nothing_runs_and_nothing_is_done(make_world: MakeWorld) -> None:
    world = make_world()
    assert show(world.settle()) == ["refused "]
    assert world.writes == 0


def test_a_new_engine_comes_beside_and_the_old_one_goes_when_its_last_request_ended(world: World) -> None:
    old = world.target("a")
    assert world.stream("a", 60)
    world.edit(a=model_file(2048))
    plan = world.plan()
    assert show(plan) == ["± a beside [engine.max_model_len 1024 -> 2048]"]
    assert plan.changes[0].cause == "models.d/a.yaml changed"
    world.until(lambda: world.serves("a"))
    assert old in world.apps
    world.until(lambda: not world.streams)
    assert old in world.apps
    world.settle()
    assert old not in world.versions("a")
    assert world.cut == 0
    assert converged(world)


def test_the_old_version_is_cut_only_after_the_drain_limit(world: World) -> None:
    world.stream("a", 5000)
    world.edit(a=model_file(2048, drain="30s"))
    world.until(lambda: world.serves("a"))
    switched = world.now
    world.until(lambda: len(world.versions("a")) == 1)
    assert 30 <= world.now - switched <= 34


def test_what_serve_can_change_on_the_spot_is_changed_on_the_spot(world: World) -> None:
    app, puts = world.target("a"), len(world.puts)
    world.edit(a=model_file(replicas=3))
    assert world.target("a") == app
    assert show(world.plan()) == ["~ a [resources.replicas.max 1 -> 3]"]
    world.settle()
    assert len(world.puts) == puts + 1
    config = world.apps[app].config or {}
    assert config["deployments"][0]["autoscaling_config"]["max_replicas"] == 3
    assert converged(world)


def test_a_setting_that_is_taken_out_of_the_file_is_taken_out_of_serve(world: World) -> None:
    text = model_file().replace("max: 1}", "max: 1, target_ongoing_requests: 5}")
    world.edit(a=text)
    world.settle()
    world.edit(a=model_file())
    assert show(world.plan()) == ["~ a [resources.replicas.target_ongoing_requests 5 -> None]"]
    world.settle()
    config = world.apps[world.target("a")].config or {}
    assert "target_ongoing_requests" not in config["deployments"][0]["autoscaling_config"]
    assert converged(world)


def test_an_alias_concerns_only_the_front_door(world: World) -> None:
    puts = len(world.puts)
    world.edit(a=model_file(aliases="x"))
    assert show(world.plan()) == ["» a [aliases [] -> ['x']]"]
    assert converged(world)
    assert len(world.puts) == puts


def test_add_and_remove_touch_nobody_else(world: World) -> None:
    world.edit(c=None, d=model_file())
    plan = world.plan()
    assert show(plan) == ["+ d", "- c"]
    assert next(change for change in plan.changes if change.model == "c").cause == "models.d/c.yaml is gone"
    a, b = world.apps[world.target("a")], world.apps[world.target("b")]
    world.settle()
    assert world.apps[a.name] is a
    assert world.apps[b.name] is b
    assert sorted(world.routes) == ["a", "b", "d"]
    assert converged(world)
    assert sorted(world.memory.records) == ["a", "b", "d"]


def test_a_removed_model_serves_out_its_requests(world: World) -> None:
    world.stream("c", 40)
    old = world.target("c")
    world.edit(c=None)
    world.until(lambda: not world.streams)
    assert old in world.apps
    world.settle()
    assert world.cut == 0


def test_a_broken_path_is_held_and_nobody_else_waits_for_it(world: World) -> None:
    world.edit(d=model_file(path="/absent"), a=model_file(path="/absent"), e=model_file())
    assert show(world.plan()) == ["! a missing weights", "! d missing weights", "+ e"]
    old = world.routes["a"]
    world.settle()
    assert world.routes["a"] == old
    assert world.serves("e")


def test_an_invalid_file_holds_its_model(world: World) -> None:
    routes = dict(world.routes)
    world.edit(a=INVALID)
    assert show(world.plan()) == ["! a invalid file"]
    assert world.settle().held
    assert world.routes == routes
    world.edit(a=model_file())
    assert converged(world)


def test_an_invalid_file_that_names_another_model_holds_what_it_served(world: World) -> None:
    """Known by the record: the file served `a` before it was renamed and broken in one go."""
    world.edit(a="name: z\n" + INVALID)
    assert show(world.plan()) == ["! a invalid file"]
    assert "a" in world.routes
    world.settle()
    assert "a" in world.routes


def test_an_invalid_file_of_unknown_name_holds_what_nobody_remembers(world: World) -> None:
    (world.folder / "records.json").unlink()
    world.start_process()
    world.edit(a=None, x="{")
    assert world.desired.invalid[0].claims is None
    assert "! a invalid file" in show(world.plan())
    world.settle()
    assert "a" in world.routes


def test_a_renamed_file_changes_the_front_door_only(world: World) -> None:
    world.edit(a=None, a2=model_file(name="a"))
    plan = world.plan()
    assert show(plan) == ["» a"]
    assert plan.changes[0].cause == "declared in models.d/a2.yaml, no longer in models.d/a.yaml"
    puts = len(world.puts)
    assert converged(world)
    assert len(world.puts) == puts


@pytest.mark.parametrize("fault", [BUILD, REPLICA, MUTE])
def test_a_new_version_that_fails_leaves_the_old_one_its_traffic(world: World, fault: str) -> None:
    old = world.target("a")
    world.edit(a=model_file(2048))
    bad = world.target("a")
    world.faults[bad] = fault
    plan = world.settle()
    assert world.routes["a"] == old
    assert world.versions("a") == [old]
    assert show(plan) == ["! a failed"]
    reason = plan.held[0].reason
    assert ("HTTP 500" if fault == MUTE else REASON) in reason
    assert world.memory.failures[bad].attempts == 1
    assert plan.held[0].retry_at == world.memory.failures[bad].at + 30


def test_backoff_belongs_to_the_version(world: World) -> None:
    old = world.target("a")
    world.edit(a=model_file(2048))
    bad = world.target("a")
    world.faults[bad] = REPLICA
    world.settle()
    for attempts, delay in ((2, 60), (3, 120)):
        world.now = world.memory.failures[bad].retry_at
        world.settle()
        failure = world.memory.failures[bad]
        assert (failure.attempts, failure.retry_at - failure.at) == (attempts, delay)
    assert world.routes["a"] == old
    # Another version gets a try at once, and so does the first one after a revert.
    world.edit(a=model_file(4096))
    world.settle()
    assert world.serves("a")
    world.faults.clear()
    world.edit(a=model_file(2048))
    world.settle()
    assert world.serves("a")
    assert not world.memory.failures


def test_a_failure_is_noted_once_however_long_serve_takes_to_let_it_go(world: World) -> None:
    """While another application builds no PUT is sent, and the failed one stays there for a while."""
    world.edit(a=model_file(2048))
    bad = world.target("a")
    world.faults[bad] = BUILD
    world.until(lambda: bad in world.apps and world.apps[bad].stage == "broken")
    other = world.add("other", FOREIGN | {"name": "other"})
    other.until = world.now + 30
    for _ in range(20):
        world.turn()
        world.tick()
    assert bad in world.apps
    assert world.memory.failures[bad].attempts == 1


def test_a_revert_of_the_file_returns_at_once(world: World) -> None:
    old = world.target("a")
    world.edit(a=model_file(2048))
    world.faults[world.target("a")] = REPLICA
    world.settle()
    world.edit(a=model_file())
    assert show(world.plan()) == []
    assert converged(world)
    assert world.target("a") == old


@pytest.mark.parametrize("at_once", [1, 2])
def test_only_so_many_models_come_up_at_a_time_the_important_ones_first(
    make_world: MakeWorld, at_once: int
) -> None:
    world = make_world(options=Options(max_loads=at_once))
    world.edit(
        a=model_file(priority=10),
        b=model_file(priority=90),
        c=model_file(),
        d=model_file(priority=1),
    )
    order: list[str] = []
    for _ in range(60):
        world.turn()
        world.tick(0.5)
        loading = [app for app in world.apps.values() if not app.up]
        assert len(loading) <= at_once
        order += [model for app in loading if (model := app.name[0]) not in order]
    assert order == ["b", "c", "a", "d"] if at_once == 1 else order[:2] == ["b", "c"]
    assert converged(world)


def test_a_load_that_is_superseded_is_cancelled(world: World) -> None:
    world.edit(a=model_file(2048))
    superseded = world.target("a")
    world.until(lambda: superseded in world.apps and world.apps[superseded].stage == "starting")
    world.edit(a=model_file(4096))
    world.until(lambda: superseded not in world.versions("a"))
    assert not world.serves("a")
    world.settle()
    assert world.serves("a")
    assert superseded not in world.memory.failures
    assert converged(world)


def test_without_room_for_both_the_old_one_goes_first(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.7))
    world.settle()
    world.stream("a", 20)
    world.edit(a=model_file(2048, share=0.7))
    assert show(world.plan()) == ["± a in turn [engine.max_model_len 1024 -> 2048]"]
    world.settle()
    assert world.serves("a")
    assert world.cut == 0
    assert world.memory.records["a"].previous is None
    assert converged(world)


@pytest.mark.parametrize("fault", [BUILD, REPLICA, MUTE])
def test_in_turn_the_old_version_comes_back_when_the_new_one_fails_and_that_is_the_end(
    make_world: MakeWorld, fault: str
) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.7))
    world.settle()
    old = world.target("a")
    world.edit(a=model_file(2048, share=0.7))
    bad = world.target("a")
    world.faults[bad] = fault
    plan = world.settle()
    assert world.routes == {"a": old}
    assert show(plan) == ["! a failed"]
    assert plan.held[0].retry_at is None
    puts = len(world.puts)
    for _ in range(100):
        world.turn()
        world.tick(100)
    assert len(world.puts) == puts
    # A new commit is tried again.
    world.edit(a=model_file(4096, share=0.7))
    world.settle()
    assert world.serves("a")
    assert converged(world)


def test_a_revert_while_the_old_version_drains_gives_it_back_its_traffic(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.7))
    world.settle()
    world.stream("a", 100)
    world.edit(a=model_file(2048, share=0.7))
    world.until(lambda: not world.routes)
    world.edit(a=model_file(share=0.7))
    assert converged(world)
    assert world.serves("a")
    assert world.streams


def test_where_both_versions_fail_both_are_tried_again_later(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.7))
    world.settle()
    old = world.target("a")
    world.edit(a=model_file(2048, share=0.7))
    world.faults = {"a": REPLICA}
    plan = world.settle()
    assert show(plan) == ["! a failed"]
    assert plan.held[0].retry_at is not None
    world.faults = {world.target("a"): REPLICA}
    world.now += 2000
    world.settle()
    assert world.routes == {"a": old}


def test_a_file_that_breaks_while_its_model_makes_way_brings_the_old_version_back(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.7))
    world.settle()
    old = world.target("a")
    world.edit(a=model_file(2048, share=0.7))
    world.until(lambda: not world.versions("a"))
    world.edit(a=INVALID)
    world.settle()
    assert world.routes == {"a": old}


def test_in_turn_replacements_go_one_by_one(make_world: MakeWorld) -> None:
    """A change of the template must not take everything down at once."""
    world = make_world(gpus=1, options=Options(max_loads=1))
    names = ["a", "b", "c"]
    world.edit(**{name: model_file(share=0.33) for name in names})
    world.settle()
    world.template = TEMPLATE.replace('"num_cpus": 0', '"num_cpus": 0.5')
    for _ in range(100):
        world.turn()
        world.tick()
        assert len(world.routes) >= 2
    assert all(world.serves(name) for name in names)
    assert converged(world)


def test_a_status_that_flickers_does_not_cost_the_way_back(make_world: MakeWorld) -> None:
    """A PUT makes every application DEPLOYING for a moment, the draining one too."""
    world = make_world(gpus=1, options=Options(max_loads=2))
    world.edit(a=model_file(share=0.7), b=model_file(share=0.1))
    world.settle()
    old = world.target("a")
    world.edit(a=model_file(2048, share=0.7))
    world.faults[world.target("a")] = REPLICA
    world.until(lambda: "a" not in world.routes)
    for _ in range(3):
        world.apps[old].flips_until = world.now + 1.5
        world.turn()
        world.tick()
    world.settle()
    assert world.routes["a"] == old


def test_a_model_that_fits_nowhere_is_held(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.7), b=model_file(share=0.7, priority=10))
    plan = world.settle()
    assert show(plan) == ["! b no room"]
    assert plan.held[0].reason == "it needs 0.7 GPU; 0.30 GPU free; a may not leave"
    assert world.serves("a")


def test_a_neighbour_s_room_is_no_room(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.occupy(0.6)
    world.edit(a=model_file(share=0.5))
    assert show(world.settle()) == ["! a no room"]
    assert "stranger" in world.apps


def test_shares_that_lie_scattered_cost_a_load_timeout_and_no_model(make_world: MakeWorld) -> None:
    """Half of each of two GPUs is free, which nobody sees: a whole one is waited for in vain, not for ever."""
    world = make_world(gpus=2)
    world.edit(a=model_file(share=0.5), b=model_file(share=0.5), c=model_file(share=0.5), d=model_file(share=0.5))
    world.settle()
    holders = {app.gpu[0][0]: app.name[0] for app in world.apps.values() if app.gpu}
    world.edit(**dict.fromkeys(holders.values()))
    world.settle()
    rest = set(world.routes)
    world.edit(e=model_file(share=1.0))
    # While they go it is still known that the two lay on different GPUs.
    assert show(world.settle()) == ["! e no room"]
    world.tick(10)
    plan = world.settle(turns=3000)
    assert show(plan) == ["! e failed"]
    assert "not up within 1800 s" in plan.held[0].reason
    assert set(world.routes) == rest


def test_two_files_swap_one_gpu(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.9), z=model_file())
    world.settle()
    world.stream("a", 30)
    world.edit(a=None, b=model_file(share=0.9))
    assert show(world.plan()) == ["+ b", "- a"]
    world.settle()
    assert world.serves("b")
    assert world.cut == 0
    assert converged(world)


def test_a_neighbour_keeps_serving_until_what_leaves_has_left(make_world: MakeWorld) -> None:
    """`a` grows into the room of `b`, which still drains: `a` serves on until then."""
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.5), b=model_file(share=0.5), z=model_file())
    world.settle()
    world.stream("b", 60)
    world.edit(a=model_file(share=0.9), b=None)
    for _ in range(50):
        world.turn()
        world.tick()
        assert "a" in world.routes
    world.settle()
    assert world.serves("a")


def test_a_removal_beside_a_replacement_in_turn_is_not_more_than_half(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.5), b=model_file(share=0.3))
    world.settle()
    world.stream("b", 60)
    world.edit(a=model_file(2048, share=0.5), b=None)
    for _ in range(100):
        assert not world.turn().refused
        world.tick()
    assert world.serves("a")
    assert converged(world)


def test_a_model_that_returns_while_it_is_deleted_waits_for_its_old_self(world: World) -> None:
    app = world.target("c")
    world.edit(c=None)
    world.until(lambda: world.apps[app].status == "DELETING")
    world.edit(c=model_file())
    plan = world.plan()
    assert show(plan) == ["+ c"]
    assert any(step.do is Do.AWAIT and "same name" in step.why for step in plan.steps)
    assert converged(world)
    assert world.serves("c")


def test_a_model_that_returns_while_it_drains_gets_its_traffic_back(world: World) -> None:
    world.stream("c", 50)
    app = world.apps[world.target("c")]
    world.edit(c=None)
    world.until(lambda: "c" not in world.routes)
    world.edit(c=model_file())
    assert converged(world)
    assert world.apps[world.routes["c"]] is app


def test_foreign_applications_are_in_every_put_verbatim_and_imperative_ones_in_none(make_world: MakeWorld) -> None:
    world = make_world()
    world.add("theirs", FOREIGN)
    world.add("by-hand", None, imperative=True)
    world.edit(a=model_file(), b=model_file())
    world.settle()
    world.edit(a=model_file(2048), b=None)
    world.settle()
    assert world.puts
    assert all("theirs" in names and "by-hand" not in names for names in world.puts)
    assert world.apps["theirs"].config == FOREIGN
    assert "by-hand" in world.apps
    assert converged(world)


def test_a_foreign_application_alone_is_no_reason_to_put(make_world: MakeWorld) -> None:
    world = make_world()
    world.add("theirs", FOREIGN)
    world.settle()
    assert world.puts == []


def test_an_application_that_was_deleted_behind_our_back_is_healed(world: World) -> None:
    world.delete(world.target("a"))
    world.tick()
    assert show(world.plan()) == ["+ a"]
    assert "is gone from Ray Serve, and the reconciler did not remove it" in world.plan().changes[0].cause
    assert converged(world)
    assert world.serves("a")


def test_an_application_of_ours_that_nobody_declares_is_removed(world: World) -> None:
    config = dict(world.apps[world.target("c")].config or {})
    world.add("c-00000000", config | {"name": "c-00000000", "route_prefix": "/c-00000000"})
    world.settle()
    assert world.versions("c") == [world.target("c")]
    world.edit(c=None)
    del world.memory.records["c"]
    plan = world.plan()
    assert show(plan) == ["- c"]
    assert plan.changes[0].cause == "no model file declares it"
    assert converged(world)


def test_a_version_that_breaks_while_it_serves_is_replaced_by_itself(world: World) -> None:
    app = world.target("a")
    world.fail_running(app)
    world.until(lambda: app in world.memory.failures)
    plan = world.settle()
    assert show(plan) == ["! a failed"]
    assert "a" not in world.routes
    world.now += 31
    assert converged(world)
    assert world.serves("a")


def test_an_empty_folder_removes_nothing_without_the_flag(world: World) -> None:
    world.files.clear()
    plan = world.settle()
    assert show(plan) == ["refused a, b, c"]
    assert plan.refused[0].flag == "--dangerous-allow-removals"
    assert sorted(world.routes) == ["a", "b", "c"]
    world.options = Options(allow_removals=True)
    assert show(world.plan()) == ["- a", "- b", "- c"]
    assert converged(world)
    assert not world.apps


def test_an_unreadable_folder_removes_nothing_flag_or_not(world: World) -> None:
    world.unreadable = "models.d: Permission denied"
    world.options = Options(allow_removals=True)
    plan = world.settle()
    assert show(plan) == ["refused a, b, c"]
    assert plan.refused[0].flag == ""
    assert sorted(world.routes) == ["a", "b", "c"]


def test_an_unreadable_folder_brings_back_what_made_way(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.7))
    world.settle()
    world.edit(a=model_file(2048, share=0.7))
    world.until(lambda: not world.versions("a"))
    world.unreadable = "gone"
    world.settle()
    assert "a" in world.routes


def test_more_than_half_is_refused_and_exactly_half_is_not(world: World) -> None:
    world.edit(a=None, b=None)
    assert show(world.settle()) == ["refused a, b"]
    assert sorted(world.routes) == ["a", "b", "c"]
    world.edit(b=model_file(), d=model_file())
    world.settle()
    world.edit(b=None, c=None, a=model_file())
    world.settle()
    assert sorted(world.routes) == ["a", "d"]
    world.edit(a=None)
    assert show(world.plan()) == ["- a"]
    assert converged(world)


def test_a_refusal_holds_up_nobody_else(world: World) -> None:
    world.edit(a=None, b=None, c=model_file(2048), d=model_file())
    assert show(world.plan()) == ["+ d", "refused a, b", "± c beside [engine.max_model_len 1024 -> 2048]"]
    world.settle()
    assert world.serves("c")
    assert world.serves("d")


def test_unknown_use_counts_as_use_until_the_drain_limit(world: World) -> None:
    world.edge_counts = False
    old = world.target("a")
    world.edit(a=model_file(2048, drain="60s"))
    world.until(lambda: world.serves("a"))
    since = world.now
    assert any("unknown" in step.why for step in world.plan().steps)
    world.until(lambda: old not in world.versions("a"))
    assert world.now - since >= 60


def test_nothing_is_put_while_an_application_builds(world: World) -> None:
    app = world.add("theirs", FOREIGN)
    app.until = world.now + 50
    world.edit(a=model_file(2048))
    plan = world.plan()
    assert plan.applications is None
    assert any("has built theirs" in step.why for step in plan.steps)
    puts = len(world.puts)
    world.until(lambda: app.stage != "building")
    assert len(world.puts) <= puts + 1
    world.settle()
    assert world.serves("a")


def test_a_change_of_the_template_is_a_change_with_a_cause(world: World) -> None:
    world.template = TEMPLATE.replace('"num_cpus": 0', '"num_cpus": 0.5')
    plan = world.plan()
    assert show(plan) == [
        f"± {name} beside [deployment_config.ray_actor_options.num_cpus 0 -> 0.5]" for name in ("a", "b", "c")
    ]
    assert {change.cause for change in plan.changes} == {"the template or the settings of the reconciler changed"}
    assert converged(world)


def test_a_template_that_fails_holds_every_model(world: World) -> None:
    world.template = "{{ nothing }}"
    assert show(world.settle()) == ["! a invalid file", "! b invalid file", "! c invalid file"]
    assert sorted(world.routes) == ["a", "b", "c"]


def test_a_manual_model_is_not_loaded_and_not_unloaded(world: World) -> None:
    world.edit(d=model_file(policy="manual"), a=model_file(policy="manual"))
    plan = world.settle()
    assert show(plan) == []
    assert [(each.model, each.on_request) for each in plan.resting] == [("d", False)]
    assert plan.converged
    assert world.serves("a")


def test_a_lost_memory_costs_words_and_no_model(world: World) -> None:
    (world.folder / "records.json").write_text("{not json")
    world.start_process()
    apps = dict(world.apps)
    assert show(world.plan()) == []
    assert converged(world)
    assert world.apps == apps
    assert sorted(world.memory.records) == ["a", "b", "c"]


def test_lost_routes_are_set_again_after_a_probe(world: World) -> None:
    world.routes = {}
    world.start_process()
    puts = len(world.puts)
    assert converged(world)
    assert sorted(world.routes) == ["a", "b", "c"]
    assert len(world.puts) == puts


def test_retry_at_once_is_once(world: World) -> None:
    world.edit(a=model_file(2048))
    bad = world.target("a")
    world.faults[bad] = REPLICA
    world.settle()
    world.tick()
    world.options = Options(retry_failed=True, asked_at=world.now, max_loads=3)
    world.settle()
    assert world.memory.failures[bad].attempts == 2


def test_why_a_route_is_taken_is_said(make_world: MakeWorld) -> None:
    world = make_world(gpus=1)
    world.edit(a=model_file(share=0.7))
    world.settle()
    world.edit(a=model_file(2048, share=0.7))
    assert [(step.do, step.why) for step in world.plan().steps] == [(Do.UNROUTE, NO_ROOM)]
