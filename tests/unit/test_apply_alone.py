"""What commands say and do about plans and sources: alone, and through the reconciler that runs."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_plan_commands import MODEL, Dashboard

from reconciler.cli import run as running
from reconciler.cli.main import cli
from reconciler.core.desired import Desired
from reconciler.core.plan import Plan
from reconciler.core.plan_json import plan_to_json
from reconciler.core.provenance import Commit, Provenance
from reconciler.core.saved_plan import SavedPlan
from reconciler.core.state import Observed
from reconciler.core.turn import Options
from reconciler.host.lock import exclusive
from reconciler.host.settings import Settings, load
from reconciler.loop import service
from reconciler.loop.applying import StaleError
from reconciler.loop.control import _outcome
from reconciler.loop.front_door import FrontDoor
from reconciler.loop.journal import read
from reconciler.loop.lease import Keeper
from reconciler.loop.loop import Look


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A reconciler's, over a Ray on which nothing runs, with one model whose weights are not there."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECONCILE_ENGINE", "cpu")
    monkeypatch.setenv("RECONCILE_LEASE", "false")
    monkeypatch.setenv("RECONCILE_RAY_DASHBOARD", f"http://127.0.0.1:{server.server_address[1]}")
    for name in ("RECONCILE_RAY_TOKEN_PATH", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "models.d").mkdir()
    (tmp_path / "models.d" / "a.yaml").write_text(MODEL % "/nowhere/a")
    (tmp_path / ".reconcile").mkdir(mode=0o700)
    yield load()
    server.shutdown()
    server.server_close()


# --- a saved plan -----------------------------------------------------------------------------------------


async def saved_plan(settings: Settings) -> SavedPlan:
    look = await service.look_once(settings, Options(max_loads=1))
    return SavedPlan(time.time(), "1", "", plan_to_json(look.plan))


@pytest.mark.parametrize("changes", [False, True])
async def test_a_saved_plan_is_checked_once_more_with_the_lease(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, changes: bool
) -> None:
    async def run_no_edge(_: FrontDoor) -> None:
        """Nothing is asked for in this test."""

    async def take(_: Keeper) -> None:
        # It may have waited half a minute for one who is gone.
        if changes:
            (settings.models_dir / "b.yaml").write_text(MODEL % "/nowhere/b")

    saved = await saved_plan(settings)
    monkeypatch.setattr(FrontDoor, "ensure_running", run_no_edge)
    monkeypatch.setattr(Keeper, "take", take)
    work = service.converge_once(settings, Options(max_loads=1), lambda _: None, saved=saved)
    if changes:
        with pytest.raises(StaleError, match="the model files"):
            await work
        assert read(settings.state_dir) == []
        return
    look = await work
    said = [(str(entry.what), str(entry.outcome), entry.revision) for entry in read(settings.state_dir)]
    assert ("apply", "done", look.plan.revision) in said


# --- a source that is held back ---------------------------------------------------------------------------


def provenance(problem: str) -> Provenance:
    return Provenance("https://x/y", "main", Commit("a" * 40, "Ann", 0.0), problem=problem)


@pytest.mark.parametrize(("problem", "code"), [("", 0), ("refused: not signed", 3)])
@pytest.mark.parametrize("output", ["text", "json"])
def test_a_reconciler_that_runs_says_what_keeps_newer_files_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, problem: str, code: int, output: str
) -> None:
    look = Look(Desired({}, (), provenance=provenance(problem)), Observed(), Plan())

    async def ask(*_: Any) -> Any:
        return json.loads(bytes(_outcome(look).body))

    monkeypatch.setattr(running, "ask_running", ask)
    with exclusive(settings.state_dir):
        done = CliRunner().invoke(cli, ["--output", output])
    assert done.exit_code == code, done.output
    assert ("nothing newer than aaaaaaaaaaaa: refused: not signed" in done.output) is bool(problem)


def test_a_reconciler_of_an_earlier_version_does_not_say_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(*_: Any) -> Any:
        return {"plan": plan_to_json(Plan()), "problems": []}

    monkeypatch.setattr(running, "ask_running", ask)
    with exclusive(settings.state_dir):
        assert CliRunner().invoke(cli, []).exit_code == 0


# --- a shell that does not know the token -----------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--dry-run"], []])
def test_the_file_that_knows_the_token_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    def refuse(self: Dashboard) -> None:
        self.send_error(401)

    monkeypatch.setattr(Dashboard, "do_GET", refuse)
    folder = settings.state_dir.absolute()
    hint = f"source {folder}/env\n"
    assert hint not in CliRunner().invoke(cli, arguments).output
    (folder / "env").write_text("export RAY_AUTH_MODE=token\n")
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 4
    assert "HTTP 401" in done.output
    assert hint in done.output
    (folder / "token").write_text("x" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
    assert hint not in CliRunner().invoke(cli, arguments).output
