"""Secrets that turn up where they should not be do not travel on: not to plans, logs, records, nor to clients."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from reconciler.core.plan_json import plan_to_json
from reconciler.loop.report import Reporter

from . import secrets
from .world import BUILD, REPLICA, World, model_file


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world(gpus=1)


def found(world: World, turns: int) -> set[str]:
    """Where planted secrets are seen in so many turns."""
    leaks: set[str] = set()
    reporter = Reporter()
    with structlog.testing.capture_logs() as events:
        for _ in range(turns):
            plan = world.turn()
            reporter.report(plan, world.desired)
            leaks.update(
                secrets.leaks(
                    plan=json.dumps(plan_to_json(plan)),
                    log=f"{events}\n{world.log}",
                    records=secrets.on_disk(world.folder),
                    directory=repr([world.directory.find(name) for name in "ab"]),
                )
            )
            world.tick()
    return leaks


@pytest.mark.parametrize("fault", [BUILD, REPLICA])
def test_what_a_failing_replica_blurts_out(world: World, fault: str) -> None:
    world.serve.reason = secrets.TELLTALE
    world.faults["a"] = fault
    world.edit(a=model_file(share=0.3))
    assert not found(world, 12)
    assert "401 Client Error" in world.plan().held[0].reason, "the rest of the reason is told"


def test_the_environment_of_somebody_elses_application(world: World) -> None:
    theirs = {"name": "theirs", "import_path": "m:a", "runtime_env": {"env_vars": {"HF_TOKEN": secrets.HUB_TOKEN}}}
    world.add("theirs", theirs)
    world.edit(a=model_file(share=0.3))
    assert not found(world, 12)
    assert world.serves("a")
    assert world.apps["theirs"].config == theirs


@pytest.mark.parametrize(
    "text",
    [
        f"token: {secrets.HUB_TOKEN}\n",
        f"source: {{repo: {secrets.HUB_TOKEN}}}\n",
        f"source: {{repo: o/m}}\nengine: {{args: {{hf_token: {secrets.HUB_TOKEN}}}}}\n",
        f"source: {{repo: 'https://bot:{secrets.PASSWORD}@hub.example/o/m'}}\n",
    ],
)
def test_a_mistake_in_a_file(world: World, text: str) -> None:
    world.edit(a=model_file(share=0.3), b=text)
    assert not found(world, 12)
    assert {problem.path for problem in world.desired.problems} == {"models.d/b.yaml"}
    assert not secrets.leaks(problems="\n".join(map(str, world.desired.problems)))


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "records.json").write_text(f'"{secrets.HUB_TOKEN}"')
    assert secrets.leaks(records=secrets.on_disk(tmp_path), log=secrets.TELLTALE) == [
        "hf_Pla… is in records",
        "hf_Pla… is in log",
        "rk-liv… is in log",
        "plante… is in log",
    ]
