"""The words of a plan: what an operator reads before it runs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from reconciler.core.describe import describe
from reconciler.core.desired import Desired
from reconciler.core.diff import Effect
from reconciler.core.plan import Action, Change, Order, Plan, Refusal
from reconciler.core.plan_json import counts, plan_to_json
from reconciler.core.render import Renderer
from reconciler.core.spec import ModelSpec
from reconciler.core.state import Application, Node, Observed, Record, Replica, Status
from reconciler.core.target import Platform, Target
from reconciler.core.turn import Options, Turn

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
RENDERER = Renderer(TEMPLATE, Platform(simulate_gpus=True))


def target(file: str = "m/a.yaml", **fields: Any) -> Target:
    document = {"name": "a", "source": {"repo": "o/m"}, "engine": {"gpu_memory_utilization": 0.6}, **fields}
    return RENDERER.compile_target(ModelSpec.model_validate_json(json.dumps(document)), file=file, folder="/m")


def running(version: Target, **fields: Any) -> Observed:
    app = Application(
        version.application,
        Status.RUNNING,
        version.config,
        version.model,
        replicas=(Replica("r", "RUNNING"),),
        demand=version.demand,
    )
    record = Record(version.model, version.file, version.application, version.fields)
    observed = Observed(
        applications={app.name: app},
        routes={version.model: app.name},
        records={version.model: record},
        nodes=(Node("n", 2),),
    )
    return dataclasses.replace(observed, **fields)


def change(wanted: Target, observed: Observed) -> Change | None:
    return describe(Turn(Desired({wanted.model: wanted}), observed, Options()), wanted)


def test_no_difference_has_no_words() -> None:
    assert change(target(), running(target())) is None


def test_an_add_names_its_file() -> None:
    found = change(target(), Observed())
    assert found == Change("a", Action.ADD, "m/a.yaml declares it", new=target().application, file="m/a.yaml")


def test_a_new_engine_names_the_field_the_cost_and_the_order() -> None:
    wanted = target(task="embed", description="d")
    found = change(wanted, running(target()))
    assert found is not None
    assert (found.action, found.order, found.cause) == (Action.REPLACE, Order.BESIDE, "m/a.yaml changed")
    assert (found.old, found.new) == (target().application, wanted.application)
    assert [(f.path, f.old, f.new, f.effect) for f in found.fields] == [
        ("description", "", "d", Effect.FRONT_DOOR),
        ("task", "generate", "embed", Effect.NEW_ENGINE),
    ]


def test_without_room_it_is_in_turn() -> None:
    found = change(target(task="embed"), running(target(), nodes=(Node("n", 1),)))
    assert found is not None
    assert found.order is Order.IN_TURN


def test_a_setting_in_place_is_an_update() -> None:
    found = change(target(resources={"max_queued_requests": 5}), running(target()))
    assert found is not None
    assert found.action is Action.UPDATE
    assert [(f.path, f.effect) for f in found.fields] == [("resources.max_queued_requests", Effect.IN_PLACE)]


def test_settings_that_differ_though_no_file_changed_are_named_as_serve_has_them() -> None:
    observed = running(target())
    (app,) = observed.applications.values()
    config = {
        **(app.config or {}),
        "deployments": [{**target().in_place, "health_check_period_s": 99, "extra": 1}],
    }
    observed = dataclasses.replace(observed, applications={app.name: dataclasses.replace(app, config=config)})
    found = change(target(), observed)
    assert found is not None
    assert [(f.path, f.old, f.new) for f in found.fields] == [
        ("extra", 1, None),
        ("health_check_period_s", 99, 10),
    ]


def test_what_nobody_recorded_is_no_change() -> None:
    assert change(target(), running(target(), records={})) is None


def test_a_change_of_the_template_is_not_blamed_on_the_file() -> None:
    other = Renderer(TEMPLATE.replace('"num_cpus": 0', '"num_cpus": 1'), Platform(simulate_gpus=True))
    wanted = other.compile_target(target().spec, file="m/a.yaml", folder="/m")
    found = change(wanted, running(target()))
    assert found is not None
    assert found.cause == "the template or the settings of the reconciler changed"
    assert [f.path for f in found.fields] == ["deployment_config.ray_actor_options.num_cpus"]


def test_an_argument_from_the_allowed_list_is_blamed_on_the_file() -> None:
    args = {"gpu_memory_utilization": 0.6, "args": {"seed": 3, "hf_overrides": {"a": {"b": 1}}}}
    found = change(target(engine=args), running(target()))
    assert found is not None
    assert found.cause == "m/a.yaml changed"
    assert [f.path for f in found.fields] == ["engine.args.hf_overrides.a.b", "engine.args.seed"]
    back = change(target(), running(target(engine=args)))
    assert back is not None
    assert back.cause == "m/a.yaml changed"


def test_the_plan_for_machines_has_a_version_and_its_base() -> None:
    found = change(target(task="embed"), running(target()))
    assert found is not None
    plan = Plan(
        changes=(found,), refused=(Refusal(("b",), "why", "--flag"),), desired_digest="d", observed_digest="o"
    )
    data = json.loads(json.dumps(plan_to_json(plan)))
    assert data["format_version"] == 1
    assert data["base"] == {"desired": "d", "observed": "o"}
    assert data["changes"][0]["action"] == "replace"
    assert data["changes"][0]["fields"][0]["effect"] == "new engine"
    assert data["summary"] == counts(plan)
    assert data["summary"]["replace"] == data["summary"]["refused"] == 1
