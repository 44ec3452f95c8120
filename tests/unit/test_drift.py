"""What is done to applications behind our back is reported, and put right unless the file says otherwise."""

import copy
import json
from pathlib import Path

from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.drift import Deed, Drift, digest_of
from reconciler.core.plan import Action, Do, HeldKind, Plan
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.state import Application, Json, Observed, Record, Status, Waiting
from reconciler.core.target import Platform, Target
from reconciler.host.templates import read_template
from reconciler.loop.memory import Memory

RENDERER = Renderer(read_template("application.json.j2", None), Platform())


def desired(policy: str = "pinned", heal: str = "on") -> Desired:
    text = f"source: {{repo: o/a}}\nlifecycle: {{policy: {policy}, heal: '{heal}'}}\n"
    return compile_desired(Snapshot("r", {"m/a.yaml": text.encode()}, "/m"), RENDERER)


def app_of(target: Target, config: Json | None = None, status: Status = Status.RUNNING) -> Application:
    return Application(target.application, status, config or target.config, target.model)


def plan(files: Desired, app: Application | None, *, waiting: bool = False) -> Plan:
    target = files.targets["a"]
    apps = {app.name: app} if app is not None else {}
    observed = Observed(
        applications=apps,
        routes={"a": app.name} if app is not None else {},
        records={"a": Record("a", target.file, target.application, target.fields)},
        left={target.application: digest_of(target.config)},
        ready=frozenset(apps),
        waiting={"a": Waiting(1, 1.0)} if waiting else {},
        now=1000.0,
    )
    return make_plan(files, observed)


def changed(target: Target) -> Json:
    config = copy.deepcopy(target.config)
    config["args"]["llm_configs"][0]["engine_kwargs"]["max_num_seqs"] = 3
    return config


def test_what_is_as_we_left_it_is_no_drift() -> None:
    files = desired()
    found = plan(files, app_of(files.targets["a"]))
    assert found.drift == ()
    assert found.unchanged == ("a",)


def test_an_application_that_was_deleted_comes_back_and_the_plan_says_why() -> None:
    files = desired()
    found, name = plan(files, None), files.targets["a"].application
    assert found.drift == (Drift("a", name, Deed.DELETED, healed=True),)
    assert f"{name} is gone from Ray Serve" in found.changes[0].cause
    assert Do.START in {step.do for step in found.steps}


def test_with_heal_off_it_is_reported_and_stays_away() -> None:
    files = desired(heal="off")
    found = plan(files, None)
    assert [(each.deed, each.healed) for each in found.drift] == [(Deed.DELETED, False)]
    assert [(held.model, held.kind) for held in found.held] == [("a", HeldKind.DRIFT)]
    assert not found.steps


def test_what_rests_anyhow_is_not_missed() -> None:
    files = desired(policy="on_demand")
    found = plan(files, None)
    assert [(each.healed, each.over) for each in found.drift] == [(False, True)]
    assert not found.held


def test_a_request_brings_it_back_also_with_heal_off() -> None:
    files = desired(policy="on_demand", heal="off")
    assert Do.START in {step.do for step in plan(files, None, waiting=True).steps}


def test_an_application_that_was_changed_is_put_right() -> None:
    files = desired()
    target = files.targets["a"]
    found = plan(files, app_of(target, changed(target)))
    assert [(each.deed, each.healed) for each in found.drift] == [(Deed.CHANGED, True)]
    assert found.applications == {target.application: target.config}
    change = found.changes[0]
    assert (change.action, change.new) == (Action.RESTORE, target.application)
    assert [field.path.rsplit(".", 1)[-1] for field in change.fields] == ["max_num_seqs"]


def test_with_heal_off_it_stays_changed() -> None:
    files = desired(heal="off")
    target = files.targets["a"]
    found = plan(files, app_of(target, changed(target)))
    assert [(each.deed, each.healed) for each in found.drift] == [(Deed.CHANGED, False)]
    assert found.applications is None
    assert not found.changes


# --- what is remembered -----------------------------------------------------------------------------------------


def test_what_we_do_ourselves_is_no_drift(tmp_path: Path) -> None:
    target = desired().targets["a"]
    memory = Memory(tmp_path)
    memory.see({target.application: app_of(target)}, {})
    assert memory.left == {target.application: digest_of(target.config)}
    memory.will_put({target.application: changed(target)})
    memory.see({target.application: app_of(target, changed(target))}, {})
    assert memory.left == {target.application: digest_of(changed(target))}
    memory.will_put({})
    assert memory.left == {}


def test_how_things_were_left_survives_a_restart(tmp_path: Path) -> None:
    target = desired().targets["a"]
    memory = Memory(tmp_path)
    memory.see({target.application: app_of(target)}, {})
    assert not list(tmp_path.iterdir()), "looking writes nothing"
    memory.save_left()
    again = Memory(tmp_path)
    again.see({}, {})
    assert again.left == {target.application: digest_of(target.config)}
    (tmp_path / "left.json").write_text(json.dumps([1]))
    assert Memory(tmp_path).left == {}


def test_a_setting_that_serve_changes_in_place_is_left_too_where_the_file_says_so() -> None:
    files = desired(heal="off")
    target = files.targets["a"]
    config = copy.deepcopy(target.config)
    config["deployments"][0]["max_ongoing_requests"] = 3
    found = plan(files, app_of(target, config))
    assert [(each.deed, each.healed) for each in found.drift] == [(Deed.CHANGED, False)]
    assert (found.changes, found.applications) == ((), None)


def test_a_change_to_what_the_file_asks_for_is_said_once(tmp_path: Path) -> None:
    """By hand before the commit, or by another reconciler meanwhile."""
    files = desired()
    target = files.targets["a"]
    observed = Observed(
        applications={target.application: app_of(target)},
        routes={"a": target.application},
        records={"a": Record("a", target.file, target.application, target.fields)},
        left={target.application: "another"},
        ready=frozenset({target.application}),
    )
    found = make_plan(files, observed)
    (drift,) = found.drift
    assert (drift.healed, drift.over) == (False, True)
    assert drift.text.endswith("it is as its file wants it")
    assert not found.steps


def test_what_was_changed_has_to_answer_anew(tmp_path: Path) -> None:
    target = desired().targets["a"]
    memory = Memory(tmp_path)
    memory.see({target.application: app_of(target)}, {})
    memory.answered(target.application)
    memory.see({target.application: app_of(target, changed(target))}, {})
    assert not memory.ready
