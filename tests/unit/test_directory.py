"""What clients and `reconcile status` are told of a model whose weights are still on their way."""

from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.activator.directory import Entry, ModelState
from reconciler.core.desired import Snapshot, compile_desired, wanted_in
from reconciler.core.parse import parse_all
from reconciler.core.plan import Plan
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.state import Application, Observed, Replica, Status
from reconciler.core.target import Platform
from reconciler.core.weights import Copy, CopyState, Phase, Resolution
from reconciler.loop.directory import build_directory

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
COMMIT = "3fa9" * 10


def entry_of(state: CopyState | None, policy: str = "pinned") -> tuple[ModelState, str]:
    files = {"models.d/m.yaml": f"source: {{repo: o/m}}\nlifecycle: {{policy: {policy}}}\n".encode()}
    renderer = Renderer(TEMPLATE, Platform(hub_cache="/cache"))
    resolutions = dict.fromkeys(wanted_in(parse_all(files)), Resolution(COMMIT))
    desired = compile_desired(Snapshot("r", files, "/m"), renderer, resolutions)
    observed = Observed(weights={} if state is None else {Copy("o/m", COMMIT): state})
    found = build_directory(desired, observed, make_plan(desired, observed), created=0).find("m")
    assert found is not None
    return found.state, found.reason


def test_a_model_that_is_being_fetched_is_loading_and_says_how_far_it_is() -> None:
    state = CopyState(Phase.FETCHING, total=2 * 2**30, done=2**29, rate=2**26)
    assert entry_of(state) == (ModelState.LOADING, "downloads o/m@3fa93fa9: 25 % of 2.0 GiB, about 24 s left")


def test_one_that_nobody_asks_for_is_fetched_and_is_not_loading() -> None:
    state = CopyState(Phase.FETCHING, total=2 * 2**30, done=2**29)
    reason = "on demand: a request loads it; downloads o/m@3fa93fa9: 25 % of 2.0 GiB"
    assert entry_of(state, "on_demand") == (ModelState.UNLOADED, reason)


def test_while_nobody_knows_how_much_there_is_nothing_is_made_up() -> None:
    assert entry_of(None) == (ModelState.LOADING, "downloads o/m@3fa93fa9")


def test_a_download_that_failed_is_a_failed_model_with_the_reason() -> None:
    state = CopyState(Phase.FAILED, reason="o/m is gated", retry_at=9.0)
    assert entry_of(state) == (ModelState.FAILED, "missing weights: o/m is gated")


def routed(status: Status, *states: str, failure: str = "") -> Entry:
    files = {"models.d/m.yaml": b"source: {repo: o/m}\nlifecycle: {policy: pinned}\n"}
    renderer = Renderer(TEMPLATE, Platform(hub_cache="/cache"))
    resolutions = dict.fromkeys(wanted_in(parse_all(files)), Resolution(COMMIT))
    desired = compile_desired(Snapshot("r", files, "/m"), renderer, resolutions)
    target = desired.targets["m"]
    replicas = tuple(Replica(str(number), state) for number, state in enumerate(states))
    app = Application(
        target.application, status, target.config, "m", failure=failure, message=failure, replicas=replicas
    )
    observed = Observed(applications={app.name: app}, routes={"m": app.name})
    plan = make_plan(desired, observed)
    found = build_directory(desired, observed, plan, created=0).find("m")
    # The same model once its file is gone or invalid, as long as it has its traffic.
    other = build_directory(replace(desired, targets={}), observed, Plan(), created=0).find("m")
    assert found is not None
    assert other is not None
    assert (found.application, other.application) == (app.name, app.name)
    assert (found.state, found.reason) == (other.state, other.reason)
    return found


@pytest.mark.parametrize("states", [(), ("STARTING",), ("STOPPING", "STARTING")])
def test_a_model_whose_engine_ended_is_not_called_loaded(states: tuple[str, ...]) -> None:
    found = routed(Status.UNHEALTHY, *states)
    assert (found.state, found.reason) == (ModelState.LOADING, "no engine of it runs; Ray Serve starts it again")
    found = routed(Status.UNHEALTHY, *states, failure="CUDA out of memory")
    assert found.reason == "no engine of it runs; Ray Serve starts it again: CUDA out of memory"


@pytest.mark.parametrize(
    ("status", "states"),
    [
        (Status.RUNNING, ("RUNNING",)),
        (Status.UNHEALTHY, ("STARTING", "RUNNING")),
        (Status.DEPLOYING, ("RECOVERING",)),
    ],
)
def test_one_that_still_has_an_engine_is(status: Status, states: tuple[str, ...]) -> None:
    found = routed(status, *states)
    assert (found.state, found.reason) == (ModelState.LOADED, "")
