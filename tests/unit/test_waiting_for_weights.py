"""Plans of models whose weights are not on disk: what is fetched, what is waited for, what is said."""

import dataclasses
from pathlib import Path
from typing import Any

from reconciler.core.application import adapter_names
from reconciler.core.desired import Desired, Snapshot, compile_desired, wanted_in
from reconciler.core.diff import Effect
from reconciler.core.keep import recent_after, what_to_keep
from reconciler.core.model_source import copies_in
from reconciler.core.overrides import Kind, Override
from reconciler.core.parse import parse_all
from reconciler.core.plan import Action, Do, HeldKind
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.state import Application, Observed, Record, Replica, Status, Waiting
from reconciler.core.target import Platform
from reconciler.core.weights import Copy, CopyState, Keep, Phase, Resolution, Role

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
RENDERER = Renderer(TEMPLATE, Platform(hub_cache="/cache"))
OLD, NEW = "3fa9" * 10, "81cc" * 10
FILE = "source: {repo: o/m}\nlifecycle: {policy: pinned}\n"
ON_DEMAND, MANUAL = FILE.replace("pinned", "on_demand"), FILE.replace("pinned", "manual")


def desired(text: str = FILE, resolution: Resolution = Resolution(OLD)) -> Desired:  # noqa: B008 -- immutable
    files = {"models.d/m.yaml": text.encode()}
    resolutions = dict.fromkeys(wanted_in(parse_all(files)), resolution)
    return compile_desired(Snapshot("r", files, "/m"), RENDERER, resolutions)


def running(wanted: Desired, **more: Any) -> Observed:
    target = wanted.targets["m"]
    app = Application(target.application, Status.RUNNING, target.config, "m", replicas=(Replica("r", "RUNNING"),))
    return Observed(
        applications={app.name: app},
        routes={"m": app.name},
        ready=frozenset({app.name}),
        records={"m": Record("m", target.file, app.name, target.fields)},
        **more,
    )


def test_missing_weights_are_fetched_before_anything_is_started() -> None:
    state = CopyState(total=1000, done=200, free=5000)
    plan = make_plan(desired(), Observed(weights={Copy("o/m", OLD): state}))
    assert [step.do for step in plan.steps] == [Do.FETCH]
    assert plan.applications is None
    (change,) = plan.changes
    assert (change.action, [dataclasses.astuple(each) for each in change.downloads]) == (
        Action.ADD,
        [("o/m", "main", OLD, 1000, 200, 5000, "")],
    )


def test_with_the_weights_there_it_is_started() -> None:
    plan = make_plan(desired(), Observed(weights={Copy("o/m", OLD): CopyState(Phase.READY)}))
    assert [step.do for step in plan.steps] == [Do.START]
    assert plan.changes[0].downloads == ()


def test_the_weights_of_what_a_request_may_load_are_fetched_beforehand() -> None:
    plan = make_plan(desired(ON_DEMAND), Observed())
    assert [(step.do, step.why) for step in plan.steps] == [(Do.FETCH, f"downloads o/m@{OLD[:8]}")]
    (change,) = plan.changes
    assert (change.action, change.downloads[0].repo) == (Action.ADD, "o/m")
    assert change.cause.endswith("its weights are fetched now, a request loads it")
    there = Observed(weights={Copy("o/m", OLD): CopyState(Phase.READY)})
    plan = make_plan(desired(ON_DEMAND), there)
    assert plan.converged
    assert [each.on_request for each in plan.resting] == [True]
    plan = make_plan(desired(ON_DEMAND), dataclasses.replace(there, waiting={"m": Waiting(1, 0.0)}))
    assert [step.do for step in plan.steps] == [Do.START]


def test_the_weights_of_what_only_a_hand_loads_are_not() -> None:
    plan = make_plan(desired(MANUAL), Observed())
    assert plan.converged
    assert [each.on_request for each in plan.resting] == [False]
    by_hand = Observed(overrides={"m": Override("m", Kind.LOAD, 0.0)})
    assert [step.do for step in make_plan(desired(MANUAL), by_hand).steps] == [Do.FETCH]


def test_at_rest_a_failed_download_is_held_where_a_request_would_need_it() -> None:
    state = CopyState(Phase.FAILED, reason="the disk is full", retry_at=7.0)
    observed = Observed(weights={Copy("o/m", OLD): state})
    plan = make_plan(desired(ON_DEMAND), observed)
    assert [(held.kind, held.reason, held.retry_at) for held in plan.held] == [
        (HeldKind.MISSING, "the disk is full", 7.0)
    ]
    assert plan.resting == ()
    assert make_plan(desired(MANUAL), observed).held == ()


def test_the_application_reads_the_snapshot_and_stays_off_the_network() -> None:
    config = desired().targets["m"].config
    llm = config["args"]["llm_configs"][0]
    assert llm["model_loading_config"]["model_source"] == f"/cache/models--o--m/snapshots/{OLD}"
    assert llm["runtime_env"]["env_vars"]["HF_HUB_OFFLINE"] == "1"
    assert "revision" not in llm["engine_kwargs"]
    assert copies_in(config) == {Copy("o/m", OLD)}


def test_the_commit_is_part_of_the_version() -> None:
    first, second = desired(), desired(resolution=Resolution(NEW))
    assert first.targets["m"].application != second.targets["m"].application
    assert (
        first.targets["m"].application
        == desired(f"source: {{repo: o/m, revision: {OLD}}}\n").targets["m"].application
    )


def test_a_branch_that_moved_is_a_change_with_both_commits() -> None:
    plan = make_plan(desired(resolution=Resolution(NEW)), running(desired()))
    (change,) = plan.changes
    assert change.action is Action.REPLACE
    assert change.cause == f"revision main moved: {OLD[:8]} -> {NEW[:8]}"
    assert [(field.path, field.old, field.new, field.effect) for field in change.fields] == [
        ("source.commit", OLD, NEW, Effect.NEW_ENGINE)
    ]
    # What serves goes on serving while the new commit is fetched.
    assert [step.do for step in plan.steps] == [Do.FETCH]


def test_a_branch_that_moved_and_is_not_followed_is_a_note_and_no_change() -> None:
    plan = make_plan(desired(resolution=Resolution(OLD, moved_to=NEW)), running(desired()))
    assert plan.converged
    assert [(note.model, f"{OLD[:8]} -> {NEW[:8]}" in note.text) for note in plan.notes] == [("m", True)]


def test_a_commit_that_is_not_known_yet_is_waited_for_and_nothing_is_touched() -> None:
    plan = make_plan(desired(resolution=Resolution()), running(desired()))
    assert [step.do for step in plan.steps] == [Do.AWAIT]
    assert "which commit o/m@main is" in plan.steps[0].why
    assert plan.applications is None


def test_a_commit_that_cannot_be_known_holds_the_model_where_it_is() -> None:
    problem = Resolution(problem="o/m is not on the hub", retry_at=9.0)
    plan = make_plan(desired(resolution=problem), running(desired()))
    assert [(held.kind, held.reason, held.retry_at) for held in plan.held] == [
        (HeldKind.MISSING, "o/m is not on the hub", 9.0)
    ]
    assert plan.steps == ()


def test_a_failed_download_is_held_with_its_reason_and_the_time_of_the_next_try() -> None:
    state = CopyState(Phase.FAILED, reason="the disk is full", retry_at=7.0)
    plan = make_plan(desired(), Observed(weights={Copy("o/m", OLD): state}))
    assert [(held.kind, held.reason, held.retry_at) for held in plan.held] == [
        (HeldKind.MISSING, "the disk is full", 7.0)
    ]
    assert plan.settled


def test_one_copy_that_cannot_be_had_does_not_stop_the_others() -> None:
    text = FILE + "adapters: [{name: lora, repo: o/a}]\n"
    failed = CopyState(Phase.FAILED, reason="it is gated", retry_at=7.0)
    plan = make_plan(desired(text), Observed(weights={Copy("o/a", OLD, Role.ADAPTER): failed}))
    assert [held.reason for held in plan.held] == ["it is gated"]
    assert [(step.do, step.why) for step in plan.steps] == [(Do.FETCH, f"downloads o/m@{OLD[:8]}")]


def test_a_draft_model_comes_the_same_way() -> None:
    text = (
        "source: {repo: o/m}\nengine: {args: {speculative_config: {model: o/draft, num_speculative_tokens: 3}}}\n"
    )
    target = desired(text).targets["m"]
    assert set(target.copies) == {Copy("o/m", OLD), Copy("o/draft", OLD)}
    assert target.config["args"]["llm_configs"][0]["engine_kwargs"]["speculative_config"] == {
        "model": f"/cache/models--o--draft/snapshots/{OLD}",
        "num_speculative_tokens": 3,
    }


def test_what_files_want_what_runs_and_what_may_come_back_is_kept() -> None:
    wanted = desired(resolution=Resolution(NEW))
    observed = running(desired())
    assert what_to_keep(wanted, observed) == Keep(frozenset({Copy("o/m", OLD), Copy("o/m", NEW)}))
    previous = dataclasses.replace(next(iter(observed.records.values())), previous=desired().targets["m"].config)
    gone = Observed(records={"m": previous})
    assert what_to_keep(wanted, gone) == Keep(frozenset({Copy("o/m", OLD), Copy("o/m", NEW)}))


def test_the_weights_of_the_last_versions_are_kept_so_that_going_back_downloads_nothing() -> None:
    record: Record | None = None
    for commit in (OLD, NEW, "c" * 40, NEW, "d" * 40):
        recent = recent_after(record, [Copy("o/m", commit), Copy("o/t", OLD, Role.TOKENIZER)], 2)
        record = Record("m", "models.d/m.yaml", "m-1", {}, recent=recent)
    assert record is not None
    keep = what_to_keep(Desired(), Observed(records={"m": record}))
    assert keep is not None
    assert [keep.has("o/m", commit) for commit in ("d" * 40, NEW, "c" * 40, OLD)] == [True, True, True, False]
    assert keep.has("o/t", OLD)


def test_where_it_cannot_be_told_what_is_needed_nothing_is_removed() -> None:
    unknown = desired(resolution=Resolution())
    keep = what_to_keep(unknown, Observed())
    assert keep is not None
    assert keep.has("o/m", OLD)
    invalid = compile_desired(Snapshot("r", {"models.d/m.yaml": b"{"}, "/m"), RENDERER, {})
    assert what_to_keep(invalid, Observed()) is None
    assert what_to_keep(Desired(unreadable="gone"), Observed()) is None


def test_a_model_that_is_up_needs_its_weights_no_more() -> None:
    plan = make_plan(desired(), running(desired()))
    assert plan.converged


def test_nothing_is_fetched_for_a_model_that_has_no_room() -> None:
    renderer = Renderer(TEMPLATE, Platform(device="cuda", hub_cache="/cache"))
    files = {"models.d/m.yaml": FILE.encode()}
    resolutions = dict.fromkeys(wanted_in(parse_all(files)), Resolution(OLD))
    wanted = compile_desired(Snapshot("r", files, "/m"), renderer, resolutions)
    plan = make_plan(wanted, Observed())
    assert [held.kind for held in plan.held] == [HeldKind.NO_ROOM]
    assert plan.steps == ()


def test_tokenizer_and_adapters_come_the_same_way() -> None:
    text = (
        "source: {repo: o/m, tokenizer: o/t}\n"
        "adapters: [{name: lora-a, repo: o/a}, {name: lora-b, path: ../b}]\n"
        "engine: {max_lora_rank: 32}\n"
    )
    target = desired(text).targets["m"]
    assert set(target.copies) == {
        Copy("o/m", OLD), Copy("o/t", OLD, Role.TOKENIZER), Copy("o/a", OLD, Role.ADAPTER)
    }  # fmt: skip
    assert target.paths == {"/b": Role.ADAPTER}
    kwargs = target.config["args"]["llm_configs"][0]["engine_kwargs"]
    assert kwargs["tokenizer"] == f"/cache/models--o--t/snapshots/{OLD}"
    assert kwargs["lora_modules"] == [
        {"name": "lora-a", "path": f"/cache/models--o--a/snapshots/{OLD}"},
        {"name": "lora-b", "path": "/b"},
    ]
    assert (kwargs["enable_lora"], kwargs["max_loras"], kwargs["max_lora_rank"]) == (True, 2, 32)
    assert adapter_names(target.config) == ("lora-a", "lora-b")
    plan = make_plan(desired(text), Observed())
    assert plan.steps[0].why == f"downloads o/m@{OLD[:8]}, o/t@{OLD[:8]}, o/a@{OLD[:8]}"


def test_an_adapters_name_belongs_to_one_file() -> None:
    files = {
        "models.d/m.yaml": b"source: {path: /m}\nadapters: [{name: twice, path: /a}]\n",
        "models.d/n.yaml": b"source: {path: /n}\naliases: [twice]\n",
    }
    parsed = parse_all(files)
    assert [str(problem).partition(":")[0] for problem in parsed.problems] == [
        "models.d/m.yaml",
        "models.d/n.yaml",
    ]


def test_code_of_a_repository_runs_only_where_the_operator_allows_it() -> None:
    allowing = Renderer(TEMPLATE, Platform(hub_cache="/cache", allow_code=("o/*",)))
    files = {"models.d/m.yaml": FILE.encode()}
    resolutions = dict.fromkeys(wanted_in(parse_all(files)), Resolution(OLD))
    trusted = compile_desired(Snapshot("r", files, "/m"), allowing, resolutions).targets["m"]
    kwargs = [t.config["args"]["llm_configs"][0]["engine_kwargs"] for t in (trusted, desired().targets["m"])]
    assert [each.get("trust_remote_code") for each in kwargs] == [True, None]
