"""`reconcile history` and `reconcile rollback`, as an operator meets them: what is printed, and the exit code."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from reconciler.activator.server import serve_unix
from reconciler.cli.history_commands import history, rollback
from reconciler.core.desired import Snapshot, revision_of
from reconciler.core.diff import Effect
from reconciler.core.journal_entry import By, Entry, Field, Outcome, iso_of
from reconciler.core.rollback import Version
from reconciler.host.lock import exclusive
from reconciler.loop import journal
from reconciler.loop.control import control_of
from reconciler.loop.journal import Journal, Versions, read
from reconciler.loop.operations import Operations
from reconciler.loop.rollbacks import RollbackHand, RollbackStore
from reconciler.loop.running import CONTROL_SOCKET
from reconciler.sources.folder import FolderSource

NOW = time.time()
COMMIT = "3fa9c1d2e0aa"
ONE, TWO = (f"source: {{repo: o/a}}\nengine: {{max_model_len: {n}}}\n" for n in (1, 2))


def entry(ago: float, model: str, what: str, outcome: Outcome, **fields: Any) -> Entry:
    return replace(Entry(iso_of(NOW - ago), model, what, outcome, revision="9" * 40), **fields)


STARTED = entry(
    500, "qwen", "replace", Outcome.STARTED, cause="models.d/qwen.yaml changed", by=By.FILE, commit=COMMIT,
    author="Ada [x]", subject="Longer context", new="qwen-2", old="qwen-1",
    fields=(
        Field("engine.max_model_len", 1024, 2048, Effect.NEW_ENGINE),
        Field("aliases", None, "[]", Effect.FRONT_DOOR),
    ),
)  # fmt: skip
ENTRIES = [
    entry(90_000, "base", "add", Outcome.STARTED, cause="models.d/base.yaml declares it", by=By.FILE),
    STARTED,
    replace(STARTED, at=iso_of(NOW - 480), outcome=Outcome.DONE, since=STARTED.at, seconds=20.0, fields=()),
    entry(300, "", "refusal", Outcome.REFUSED, by=By.SAFETY, models=("base", "qwen"), cause="more than half"),
    entry(200, "qwen", "unload", Outcome.STARTED, cause="idle 30 min", by=By.TRAFFIC),
    entry(100, "*", "suspend", Outcome.GIVEN, cause="all models are suspended by hand", by=By.HAND),
]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory with a journal in it, and a folder of model files beside it."""
    (tmp_path / "models.d").mkdir()
    (tmp_path / "models.d" / "a.yaml").write_text(TWO)
    folder = tmp_path / "state"
    journal._append(folder / journal.FOLDER, ENTRIES, journal.MAX_BYTES)
    return folder


def run(command: Any, state: Path, *arguments: str) -> Result:
    models = str(state.parent / "models.d")
    options = ["--state-dir", str(state), "--models-dir", models, *arguments]
    return CliRunner().invoke(command, options, obj={"state_dir": None, "models_dir": None, "output": "text"})


# --- history ------------------------------------------------------------------------------------------------


def test_the_newest_is_on_top_and_a_change_that_ended_is_one_row(state: Path) -> None:
    result = run(history, state)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["WHEN", "MODEL", "WHAT", "OUTCOME", "COMMIT", "BY", "WHY"]
    assert [line.split()[2:4] for line in lines[1:]] == [
        ["*", "suspend"], ["qwen", "unload"], ["2", "models"], ["qwen", "replace"], ["base", "add"],
    ]  # fmt: skip
    assert f"done in 20 s  {COMMIT}  file (Ada [x])  models.d/qwen.yaml changed" in lines[4]
    assert "started" in lines[2]
    assert lines[3].split()[4:7] == ["refusal", "refused", "9" * 12]
    assert "\x1b" not in result.output


def test_that_of_one_model_has_what_concerns_it_and_its_diff(state: Path) -> None:
    result = run(history, state, "base")
    assert [line.split()[3] for line in result.output.splitlines()[1:]] == ["suspend", "models", "add"]
    result = run(history, state, "qwen", "--diff")
    assert f" qwen replace {COMMIT} Longer context\n" in result.output
    assert "      engine.max_model_len: 1024 -> 2048  (new engine)\n" in result.output
    assert '      aliases: (absent) -> "[]"  (front door)\n' in result.output
    assert "max_model_len" not in run(history, state, "qwen").output


def test_how_many_and_since_when(state: Path) -> None:
    assert len(run(history, state, "--limit", "2").output.splitlines()) == 1 + 2
    passed = round(time.time() - NOW)
    assert len(run(history, state, "--since", f"{passed + 250}s").output.splitlines()) == 1 + 2
    assert run(history, state, "--since", "1s").output == "Nothing is recorded of the last 1s.\n"
    wrong = run(history, state, "--since", "yesterday")
    assert (wrong.exit_code, "--since: 'yesterday' is not a duration" in wrong.output) == (1, True)


def test_machines_get_every_entry_as_it_is(state: Path) -> None:
    answer = json.loads(run(history, state, "qwen", "--output", "json", "--limit", "5").output)
    assert [(row["what"], row["outcome"]) for row in answer["entries"]] == [
        ("suspend", "given"), ("unload", "started"), ("refusal", "refused"), ("replace", "done"),
        ("replace", "started"),
    ]  # fmt: skip
    assert answer["entries"][4]["fields"][0] == {
        "path": "engine.max_model_len", "old": 1024, "new": 2048, "effect": "new engine",
    }  # fmt: skip


def test_an_unknown_name_is_an_error_with_its_near_ones(state: Path) -> None:
    result = run(history, state, "qwem")
    assert result.exit_code == 1
    assert result.output == "reconcile: the journal says nothing of 'qwem'; did you mean qwen?\n"


def test_it_is_told_while_a_reconciler_runs_and_before_one_ever_did(state: Path, tmp_path: Path) -> None:
    with exclusive(state):
        assert run(history, state).exit_code == 0
    fresh = tmp_path / "fresh"
    result = run(history, fresh)
    assert (result.exit_code, result.output) == (0, "Nothing is recorded yet.\n")
    assert not fresh.exists()


def test_colours_are_for_terminals_without_no_color(state: Path) -> None:
    code = "from reconciler.cli import history as h; from reconciler.cli.common import settings_of; from pathlib import Path; import sys; h.history(settings_of(Path(sys.argv[1]), None), None, limit=9, since=None, diff=True, output='text')"  # noqa: E501 -- one program
    environment = {**os.environ, "FORCE_COLOR": "1"}
    environment.pop("NO_COLOR", None)
    coloured, plain = (
        subprocess.run([sys.executable, "-c", code, state], env=env, capture_output=True, text=True, check=True)
        for env in (environment, {**environment, "NO_COLOR": "1"})
    )
    assert "\x1b[32m" in coloured.stdout
    assert "\x1b[3" not in plain.stdout


# --- rollback -----------------------------------------------------------------------------------------------


@pytest.fixture
def versions(state: Path) -> Versions:
    kept = Versions(state)
    for number, text in enumerate((ONE, TWO)):
        kept.add(Version("a", "models.d/a.yaml", text, f"rrrrrrr{number}", NOW - 10, text))
    return kept


def operations(hand: RollbackHand) -> Operations:
    other: Any = None  # Only the other paths need these.
    return Operations(other, other, other, rollback=hand, sync=other, lease=other, journal=other)


@contextlib.contextmanager
def reconciler(state: Path) -> Iterator[RollbackStore]:
    """One that runs: it has the lock, and answers on the control socket."""
    store = RollbackStore(state)
    hand = RollbackHand(store, Versions(state), FolderSource(state.parent / "models.d").read)
    app = control_of(operations(hand))
    loop = asyncio.new_event_loop()
    with exclusive(state):
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        server = asyncio.run_coroutine_threadsafe(serve_unix(app, state / CONTROL_SOCKET, grace_seconds=1), loop)
        end = time.monotonic() + 10
        while not (state / CONTROL_SOCKET).exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        yield store
        server.cancel()
        time.sleep(0.1)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.usefixtures("versions")
def test_without_a_reconciler_the_next_one_finds_it(state: Path) -> None:
    result = run(rollback, state, "a", "--reason", "too slow")
    assert result.exit_code == 0, result.output
    before = revision_of({"models.d/a.yaml": TWO.encode()})
    assert result.output == (
        f"a: it was rolled back by hand to rrrrrrr0 (before: {before}); "
        "ends when models.d/a.yaml changes in the source; too slow.\n"
        "`reconcile rollback a --end` ends it earlier; `reconcile status` shows how far it is.\n"
    )
    store = RollbackStore(state)
    source = asyncio.run(FolderSource(state.parent / "models.d").read())
    assert store.apply(source).files == {"models.d/a.yaml": ONE.encode()}
    assert (state.parent / "models.d" / "a.yaml").read_text() == TWO
    ended = run(rollback, state, "a", "--end")
    assert (ended.exit_code, ended.output) == (
        0,
        "a: the rollback to rrrrrrr0 has ended; the source holds again.\n",
    )
    assert RollbackStore(state).active() == ()


@pytest.mark.usefixtures("versions")
def test_the_reconciler_that_runs_is_asked(state: Path) -> None:
    with reconciler(state) as store:
        result = run(rollback, state, "a", "--for", "2h", "--output", "json")
        assert result.exit_code == 0, result.output
        answer = json.loads(result.output)
        assert (answer["about"], answer["revision"], answer["files"]) == ("a", "rrrrrrr0", ["models.d/a.yaml"])
        assert [each.until for each in store.active()] == [answer["until"]]
        wrong = run(rollback, state, "aa")
        assert wrong.exit_code == 1
        assert wrong.output == "reconcile: no model file declares or declared 'aa'; did you mean a?\n"
        nothing = run(rollback, state, "--to", "deadbeef")
        assert (nothing.exit_code, "deadbeef is not kept; kept are: none" in nothing.output) == (1, True)


def test_one_that_holds_the_lock_and_does_not_answer_is_named(state: Path) -> None:
    with exclusive(state):
        result = run(rollback, state, "a")
    assert result.exit_code == 1
    assert "does not answer" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say which model goes back"),
        (("a", "--end", "--to", "rrrrrrr1"), "--end goes with neither"),
        (("a", "--for", "soon"), "--for: 'soon' is not a duration"),
        (("a", "--for", "0.1s"), "--for: Input should be greater than or equal to 1"),
        (("a", "--reason", "x" * 201), "--reason: String should have at most 200 characters"),
        (("a", "--reason", "two\nlines"), "a reason is one line"),
        (("a",), "no version of a has served yet"),
        (("--to", "deadbeef"), "revision deadbeef is not kept"),
    ],
)
def test_what_makes_no_sense_is_an_error(state: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(rollback, state, *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert not (state / "rollbacks.json").exists()


async def test_the_socket_takes_no_other_form(state: Path) -> None:
    from starlette.testclient import TestClient

    async def read() -> Snapshot:
        return Snapshot("r", {}, "/m")

    hand = RollbackHand(RollbackStore(state), Versions(state), read)
    app = control_of(operations(hand))
    client = TestClient(app)
    for body, message in (
        (b"{", "Invalid JSON"),
        (b'{"model": 1}', "model: "),
        (b'{"model": "a", "x": 1}', "x: "),
        (b'{"to": "r", "seconds": NaN}', "seconds: "),
    ):
        answer = await asyncio.to_thread(client.post, "/rollback", content=body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]


async def test_a_sync_by_hand_that_brings_something_is_remembered(tmp_path: Path) -> None:
    found: dict[str, object] = {"source": "git", "new": False, "commit": "c" * 40}

    async def sync() -> dict[str, object]:
        return found

    other: Any = None
    journal = Journal(tmp_path)
    operations = Operations(other, other, other, rollback=other, sync=sync, lease=other, journal=journal)
    await operations.sync()
    assert read(tmp_path) == []
    found["new"] = True
    await operations.sync()
    (entry,) = read(tmp_path)
    assert (entry.what, entry.model, entry.by, entry.revision) == ("sync", "*", "hand", "c" * 40)
