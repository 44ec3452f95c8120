"""Suspended models stay as they are: what the planner makes of it, how it is kept, and the commands."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from reconciler.cli.main import cli
from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.plan import HeldKind, Plan
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.state import Application, Observed, Record, Replica, Status, Waiting
from reconciler.core.suspension import ALL, Suspension, in_words, suspension_of
from reconciler.core.target import Platform
from reconciler.host.templates import read_template
from reconciler.loop.directory import build_directory
from reconciler.loop.memory import Memory
from reconciler.loop.suspensions import FILE, SuspensionError, SuspensionStore, SuspensionsUnreadableError

RENDERER = Renderer(read_template("application.json.j2", None), Platform())
NOW = 1000.0


def desired(**models: str) -> Desired:
    files = {f"m/{name}.yaml": f"source: {{repo: o/{name}}}\n{text}".encode() for name, text in models.items()}
    return compile_desired(Snapshot("r", files, "/m"), RENDERER)


PINNED = "lifecycle: {policy: pinned}\n"
OLD = desired(a=PINNED + "engine: {max_model_len: 512}\n", b=PINNED, c="")


def up(files: Desired, *models: str) -> dict[str, Application]:
    targets = [files.targets[model] for model in models]
    return {t.application: Application(t.application, Status.RUNNING, t.config, t.model) for t in targets}


def plan(
    files: Desired, apps: dict[str, Application], *suspended: str, waiting: dict[str, Waiting] | None = None
) -> Plan:
    routes = {app.model: name for name, app in apps.items() if app.model is not None}
    records = {
        model: Record(model, f"m/{model}.yaml", name, OLD.targets[model].fields) for model, name in routes.items()
    }
    observed = Observed(
        applications=apps,
        routes=routes,
        records=records,
        ready=frozenset(apps),
        suspensions=tuple(Suspension(model, NOW - 5) for model in suspended),
        now=NOW,
        waiting=waiting or {},
    )
    return make_plan(files, observed)


def test_a_suspended_model_does_not_follow_its_file_and_the_others_do() -> None:
    changed = desired(
        a=PINNED + "engine: {max_model_len: 256}\n", b=PINNED + "engine: {max_model_len: 256}\n", c=""
    )
    found = plan(changed, up(OLD, "a", "b"), "a")
    assert [(held.model, held.kind) for held in found.held] == [("a", HeldKind.SUSPENDED)]
    assert "else: replace, because m/a.yaml changed" in found.held[0].reason
    assert [change.model for change in found.changes] == ["b"]
    assert {step.model for step in found.steps} <= {"b", "c"}


@pytest.mark.parametrize("by", ["a", ALL])
def test_a_suspended_model_is_not_removed(by: str) -> None:
    apps = up(OLD, "a", "b", "c")
    found = plan(desired(b=PINNED, c=""), apps, by)
    assert found.applications is None
    assert found.held[0].model == "a"
    assert "not declared" in found.held[0].reason


def test_a_suspended_model_is_not_brought_up() -> None:
    found = plan(OLD, {}, ALL, waiting={"c": Waiting(3, 5.0)})
    assert not found.steps
    assert found.applications is None
    assert {held.model for held in found.held} == {"a", "b", "c"}


def test_a_suspended_model_at_rest_rests_and_says_so_to_clients() -> None:
    apps = up(OLD, "a", "b")
    found = plan(OLD, apps, "c")
    assert [(resting.model, resting.on_request) for resting in found.resting] == [("c", False)]
    observed = Observed(applications=apps, suspensions=(Suspension("c", NOW),), now=NOW)
    entry = build_directory(OLD, observed, found, created=0).find("c")
    assert entry is not None
    assert (entry.holds, entry.reason) == (False, "suspended by hand")


def test_as_its_file_wants_it_a_suspended_model_is_unchanged_and_noted() -> None:
    found = plan(OLD, up(OLD, "a", "b"), "b")
    assert set(found.unchanged) == {"a", "b"}
    assert [(note.model, note.text) for note in found.notes if note.model == "b"] == [("b", "suspended by hand")]
    assert not found.held


def test_what_is_under_way_stands_still() -> None:
    """A version that comes up beside the old one is neither probed nor given the traffic, nor removed."""
    changed = desired(a=PINNED + "engine: {max_model_len: 256}\n", b=PINNED, c="")
    apps = up(OLD, "a", "b") | up(changed, "a")
    target = changed.targets["a"].application
    observed = Observed(
        applications=apps,
        routes={"a": OLD.targets["a"].application, "b": OLD.targets["b"].application},
        suspensions=(Suspension("a", NOW),),
        now=NOW,
    )
    found = make_plan(changed, observed)
    assert found.applications is None
    assert not [step for step in found.steps if step.model == "a"]
    assert target in apps


def test_an_end_ends_it() -> None:
    suspension = Suspension("a", 0.0, until=NOW)
    assert suspension_of([suspension], "a", NOW - 1) is suspension
    assert suspension_of([suspension], "a", NOW) is None
    assert in_words(Suspension(ALL, 0.0, 120.0, "driver upgrade"), 0.0) == (
        "all models are suspended by hand for another 2 min (driver upgrade)"
    )


# --- the store --------------------------------------------------------------------------------------------------


def test_what_is_suspended_survives(tmp_path: Path) -> None:
    clock = [NOW]
    store = SuspensionStore(tmp_path, wall_clock=lambda: clock[0])
    woken: list[int] = []
    store.wake = lambda: woken.append(1)
    store.suspend("a", seconds=60, reason="")
    store.suspend(ALL, seconds=None, reason="why not")
    assert len(woken) == 2
    again = SuspensionStore(tmp_path, wall_clock=lambda: clock[0])
    assert {each.model for each in again.active()} == {"a", ALL}
    clock[0] += 60
    assert {each.model for each in again.active()} == {ALL}
    assert again.resume("a") is None
    assert [each.model for each in again.resume_everything()] == [ALL]
    assert SuspensionStore(tmp_path).active() == ()


@pytest.mark.parametrize("text", ["{", "[{}]", '[{"model": "a"}]', "\xff"])
def test_what_cannot_be_read_stops_everything(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="latin-1")
    with pytest.raises(SuspensionsUnreadableError, match=r"mend it, or remove it"):
        SuspensionStore(tmp_path)


@pytest.mark.parametrize(("seconds", "reason"), [(0.0, ""), (1e12, ""), (None, "a\nb"), (None, "x" * 201)])
def test_what_makes_no_sense_is_refused(tmp_path: Path, seconds: float | None, reason: str) -> None:
    with pytest.raises(SuspensionError):
        SuspensionStore(tmp_path).suspend("a", seconds=seconds, reason=reason)


# --- the commands, where no reconciler runs ---------------------------------------------------------------------


def run(state: Path, *args: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["--state-dir", str(state), *args])
    return result.exit_code, result.output


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models `a`, `org/b` and, of another time, `gone`."""
    folder = tmp_path / "models.d"
    folder.mkdir()
    monkeypatch.setenv("RECONCILE_MODELS_DIR", str(folder))
    (folder / "a.yaml").write_text("source: {repo: o/a}\naliases: [chat]\n")
    (folder / "b.yaml").write_text("name: org/b\nsource: {repo: o/b}\nadapters: [{name: sql, repo: o/sql}]\n")
    Memory(tmp_path).record(Record("gone", "models.d/gone.yaml", "gone-1", {}))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("name", "model"), [("chat", "a"), ("sql", "org/b"), ("org/b", "org/b"), ("gone", "gone")]
)
def test_a_model_is_meant_by_each_of_its_names(tmp_path: Path, name: str, model: str) -> None:
    code, text = run(tmp_path, "suspend", name)
    assert (code, text.startswith(f"{model}: suspended by hand.")) == (0, True), text
    assert [each.model for each in SuspensionStore(tmp_path).active()] == [model]
    assert run(tmp_path, "resume", name) == (0, f"{model}: resumed.\n")
    assert SuspensionStore(tmp_path).active() == ()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("command", ["suspend", "resume"])
def test_a_name_that_nothing_has_is_refused(tmp_path: Path, command: str) -> None:
    code, text = run(tmp_path, command, "chta")
    assert code == 1
    assert "no model 'chta' is declared, and none runs; did you mean chat?" in text
    assert run(tmp_path, command, "zzz")[1] == "reconcile: no model 'zzz' is declared, and none runs\n"
    assert SuspensionStore(tmp_path).active() == ()


def test_where_no_file_can_be_read_all_can_be_suspended_and_what_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECONCILE_MODELS_DIR", str(tmp_path / "nowhere"))
    code, text = run(tmp_path, "suspend", "a")
    assert (code, "the model files cannot be read: " in text) == (1, True), text
    Memory(tmp_path).record(Record("a", "models.d/a.yaml", "a-1", {}))
    assert run(tmp_path, "suspend", "a")[0] == 0
    assert run(tmp_path, "suspend", "--all")[0] == 0
    # What is suspended can be resumed whatever the files say.
    assert run(tmp_path, "resume", "a") == (0, "a: resumed.\n")


@pytest.mark.usefixtures("files")
def test_commands_hold_for_the_next_reconciler(tmp_path: Path) -> None:
    code, text = run(tmp_path, "suspend", "a", "--for", "2h", "--reason", "driver upgrade")
    assert code == 0, text
    assert "a: suspended by hand for another 2 h (driver upgrade)." in text
    assert "`reconcile resume a` ends it earlier" in text
    assert [each.model for each in SuspensionStore(tmp_path).active()] == ["a"]
    assert run(tmp_path, "suspend", "--all")[1].startswith("All models are suspended by hand.")
    code, text = run(tmp_path, "--output", "json", "resume", "--all")
    assert json.loads(text) == {"models": [ALL, "a"]}
    assert run(tmp_path, "resume", "--all") == (0, "Nothing is suspended.\n")
    assert run(tmp_path, "resume", "a")[0] == 1


@pytest.mark.parametrize("args", [[], ["a", "--all"]])
def test_a_model_or_all(tmp_path: Path, args: list[str]) -> None:
    code, text = run(tmp_path, "suspend", *args)
    assert (code, "or --all" in text) == (2, True)  # 1 through the program's own entry point


def test_a_load_that_is_suspended_half_way_keeps_nobody_from_loading() -> None:
    """It comes up, and is not probed: it would count as a load for as long as it is suspended."""
    apps = up(OLD, "a")
    observed = Observed(
        applications={name: replace(app, replicas=(Replica("r", "RUNNING"),)) for name, app in apps.items()},
        suspensions=(Suspension("a", NOW),),
        now=NOW,
    )
    found = make_plan(OLD, observed)
    assert OLD.targets["b"].application in (found.applications or {})


def test_a_suspended_model_that_drains_is_at_rest_not_held() -> None:
    apps = up(OLD, "c")
    target = OLD.targets["c"]
    observed = Observed(
        applications=apps,
        records={"c": Record("c", target.file, target.application, target.fields)},
        idle_seconds={target.application: 1e6},
        up_seconds={target.application: 1e6},
        suspensions=(Suspension("c", NOW),),
        now=NOW,
    )
    found = make_plan(OLD, observed)
    assert "c" in {resting.model for resting in found.resting}
    assert "c" not in {held.model for held in found.held}
    assert found.applications is None or target.application in found.applications
