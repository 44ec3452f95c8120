"""`reconcile plan` and `reconcile apply`, from the command line down to what answers as Ray's dashboard does."""

import asyncio
import json
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click import ClickException
from click.testing import CliRunner, Result

from reconciler.cli.plan_commands import apply, plan
from reconciler.core.desired import Snapshot
from reconciler.core.saved_plan import saved_from_text
from reconciler.core.turn import Options
from reconciler.host.lock import exclusive
from reconciler.host.settings import load
from reconciler.loop import service
from reconciler.loop.applying import StaleError, apply_now
from reconciler.loop.assemble import assembled
from reconciler.loop.loop import Look
from reconciler.loop.running import CONTROL_SOCKET

MODEL = "source: {path: %s}\nlifecycle: {policy: pinned}\n"


class Dashboard(BaseHTTPRequestHandler):
    """A Ray on which nothing runs."""

    def do_GET(self) -> None:
        content = json.dumps({"applications": {}, "http_options": {"port": 8100}, "data": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def dashboard() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with one model, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECONCILE_ENGINE", "cpu")
    monkeypatch.setenv("RECONCILE_RAY_DASHBOARD", "http://127.0.0.1:9")
    folder = tmp_path / "models.d"
    folder.mkdir()
    (folder / "a.yaml").write_text(MODEL % "/nowhere/a")
    return folder


@pytest.fixture
def cluster(models: Path, dashboard: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECONCILE_RAY_DASHBOARD", dashboard)
    return models


def run(command: Any, *arguments: str) -> Result:
    shared = {"state_dir": None, "models_dir": None, "output": "text"}
    return CliRunner().invoke(command, arguments, obj=shared, standalone_mode=False)


def refused(command: Any, *arguments: str) -> str:
    """What is said of a wrong use."""
    error = run(command, *arguments).exception
    assert isinstance(error, ClickException)
    return error.message


# --- two trees --------------------------------------------------------------------------------------------


@pytest.fixture
def other(models: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "a.yaml").write_text(MODEL % "/nowhere/a" + "description: new\n")
    (folder / "b.yaml").write_text(MODEL % "/nowhere/b")
    return folder


def test_two_trees_are_compared_without_a_cluster(other: Path) -> None:
    done = run(plan, "--without-cluster", "--against", "other")
    assert done.exit_code == 0, done.output
    assert done.output == (
        "± a changed: front door\n"
        "      because models.d/a.yaml changed\n"
        '      description: "" -> "new"  (front door)\n'
        "+ b added\n"
        "      because models.d/b.yaml declares it\n"
        "Files of other against models.d: 1 added, 1 changed, 0 removed; 0 invalid, 0 unchanged. "
        "Nobody looked at the cluster.\n"
    )


def test_a_changed_folder_of_two_revisions_is_a_difference(models: Path, tmp_path: Path) -> None:
    def commit(content: str) -> None:
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / "weights" / "w").write_text(content)
        for arguments in (["add", "--all"], ["-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "x"]):
            subprocess.run(["git", *arguments], cwd=tmp_path, check=True)

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (models / "a.yaml").write_text(MODEL % "../weights")
    commit("one")
    commit("two")
    two = ("--without-cluster", "--detailed-exitcode", "--base", "HEAD^", "--against")
    done = run(plan, *two, "HEAD")
    assert done.exit_code == 2, done.output
    assert "because the content of a folder that models.d/a.yaml names changed" in done.output
    assert run(plan, *two, "HEAD^").exit_code == 0
    # What a folder on the disk holds nobody looked up.
    assert run(plan, *two, "models.d").exit_code == 0


def test_the_exit_code_says_what_was_found(other: Path) -> None:
    two = ("--without-cluster", "--against", "other", "--detailed-exitcode")
    assert run(plan, *two).exit_code == 2
    assert (
        run(plan, "--without-cluster", "--base", "other", "--against", "other", "--detailed-exitcode").exit_code
        == 0
    )
    (other / "b.yaml").write_text("{")
    assert run(plan, *two).exit_code == 3


@pytest.mark.parametrize("output", ["text", "json", "markdown"])
def test_a_mistake_is_located_in_every_format(other: Path, output: str) -> None:
    (other / "b.yaml").write_text("source: {path: /b}\nengin: {}\n")
    done = run(plan, "--without-cluster", "--against", "other", "--output", output)
    assert done.exit_code == 3
    assert "models.d/b.yaml:2:1" in done.output


def test_the_difference_as_json(other: Path) -> None:
    found = json.loads(run(plan, "--without-cluster", "--base", "other", "--output", "json").output)
    assert (found["without_cluster"], found["problems"]) == (True, [])
    assert [(each["model"], each["kind"], each["effect"]) for each in found["difference"]["changes"]] == [
        ("a", "changed", "front door"),
        ("b", "removed", None),
    ]
    assert found["difference"]["refused"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--base", "x"), "--base goes with --without-cluster"),
        (("--without-cluster",), "name one with --against or --base"),
        (("--against", "x", "--out", "f"), "a preview: merge it, then plan and apply"),
        (("--without-cluster", "--base", "x", "--out", "f"), "takes a look at the cluster"),
    ],
)
def test_what_does_not_go_together_is_said(models: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(plan, *arguments)
    assert not (models.parent / "f").exists()


def test_a_tree_that_is_not_there_is_an_error(models: Path) -> None:
    done = run(plan, "--without-cluster", "--against", "nothing")
    assert done.exit_code == 1
    assert "nothing" in done.output


# --- the plan ---------------------------------------------------------------------------------------------


def test_without_access_it_says_what_is_needed(models: Path) -> None:
    done = run(plan)
    assert done.exit_code == 4
    for needed in ("127.0.0.1:9", "RECONCILE_RAY_DASHBOARD", "RECONCILE_RAY_TOKEN_PATH", "--without-cluster"):
        assert needed in done.output


def test_the_plan_of_a_proposed_tree_has_the_names_of_the_models_folder(cluster: Path, other: Path) -> None:
    found = json.loads(run(plan, "--against", "other", "--output", "json").output)
    assert found["against"] == "other"
    assert [(held["model"], held["file"]) for held in found["plan"]["held"]] == [
        ("a", "models.d/a.yaml"),
        ("b", "models.d/b.yaml"),
    ]
    page = run(plan, "--against", "other", "--output", "markdown")
    assert page.exit_code == 3
    assert page.output.startswith("<!-- reconcile-plan -->\n## Plan: no change; 2 held\n")
    assert "the proposed tree <code>other</code>" in page.output
    assert run(plan, "--against", "other").output.startswith("If other were what the models folder has:\n")


def test_a_plan_is_saved_for_its_owner_only(cluster: Path, tmp_path: Path) -> None:
    done = run(plan, "--out", "plan.json", "--output", "json")
    file = tmp_path / "plan.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert saved_from_text(file.read_text()).plan == json.loads(done.output)["plan"]


def test_a_plan_that_cannot_be_saved_is_an_error(cluster: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(plan, "--out", "file/plan.json")
    assert done.exit_code == 1
    assert "could not be saved" in done.output


# --- apply ------------------------------------------------------------------------------------------------


@pytest.fixture
def converged(monkeypatch: pytest.MonkeyPatch) -> list[Snapshot]:
    """The files that were converged to. Converging itself takes an edge and a Ray."""
    found: list[Snapshot] = []

    async def converge(settings: Any, options: Any, on_downloads: Any, *, source: Any, saved: Any) -> Any:
        # Whatever is written meanwhile is none of this plan.
        (settings.models_dir / "late.yaml").write_text(MODEL % "/nowhere/late")
        found.append(await source.read())
        return await service.look_once(settings, options, source=source)

    monkeypatch.setattr(service, "converge_once", converge)
    return found


def test_a_plan_that_still_holds_is_applied_with_the_files_it_was_made_of(
    cluster: Path, converged: list[Snapshot]
) -> None:
    run(plan, "--out", "plan.json")
    done = run(apply, "plan.json")
    assert done.exit_code == 3, done.output  # Its weights are missing.
    assert [sorted(snapshot.files) for snapshot in converged] == [["models.d/a.yaml"]]


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_stale_plan_does_nothing_and_says_why(cluster: Path, converged: list[Snapshot], output: str) -> None:
    run(plan, "--out", "plan.json")
    (cluster / "b.yaml").write_text(MODEL % "/nowhere/b")
    done = run(apply, "plan.json", "--output", output)
    assert (done.exit_code, converged) == (4, [])
    assert "the model files, or the commits that their revisions stand for, changed" in done.output


@pytest.mark.parametrize("content", [None, "", "{}", "\udcff", "[" * 100_000])
def test_what_is_no_plan_is_not_applied(cluster: Path, converged: list[Snapshot], content: str | None) -> None:
    file = cluster.parent / "plan.json"
    if content is not None:
        file.write_bytes(content.encode(errors="surrogateescape"))
    done = run(apply, "plan.json")
    assert (done.exit_code, converged) == (1, [])
    assert done.output.startswith("reconcile: plan.json: ")


def test_a_plan_that_is_no_file_is_not_waited_for(cluster: Path) -> None:
    done = run(apply, "/dev/zero")
    assert done.exit_code == 1
    assert "not a regular file" in done.output


@pytest.fixture
def running(cluster: Path, tmp_path: Path) -> Iterator[Callable[[int, Any], None]]:
    """A reconciler that runs here, and what its control socket answers."""
    answers: list[tuple[int, Any]] = []
    loop = asyncio.new_event_loop()

    async def answer(request: web.Request) -> web.Response:
        assert saved_from_text(await request.text()).plan["changes"] == []
        status, value = answers[-1]
        return web.json_response(value, status=status)

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/apply", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / ".reconcile" / CONTROL_SOCKET)).start()
        return runner

    run(plan, "--out", "plan.json")
    with exclusive(tmp_path / ".reconcile"):
        runner = loop.run_until_complete(start())
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        yield lambda status, value: answers.append((status, value))
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


SUMMARY = {"unchanged": 2, "resting": 1}


@pytest.mark.parametrize(
    ("status", "value", "code", "said"),
    [
        (200, {"plan": {"held": [], "refused": [], "summary": SUMMARY}, "problems": []}, 0, "2 models are as"),
        (
            200,
            {"plan": {"held": [], "refused": [{"reason": "r", "flag": "f"}], "summary": SUMMARY}, "problems": []},
            4,
            "refused: r",
        ),
        (200, {"plan": {"held": [], "refused": [], "summary": SUMMARY}, "problems": ["x:1:1: y"]}, 3, "x:1:1: y"),
        (409, {"stale": ["the applications in Ray Serve changed"]}, 4, "the applications in Ray Serve changed"),
        (503, {"error": "it has not finished its first look"}, 1, "it has not finished its first look"),
        (404, ["no such route"], 1, "of another version"),
    ],
)
def test_a_reconciler_that_runs_is_asked(
    running: Callable[[int, Any], None], status: int, value: Any, code: int, said: str
) -> None:
    running(status, value)
    done = run(apply, "plan.json")
    assert done.exit_code == code, done.output
    assert said in done.output


@pytest.mark.parametrize("edit", [False, True])
def test_a_reconciler_that_runs_holds_the_plan_against_what_it_would_do(cluster: Path, edit: bool) -> None:
    run(plan, "--out", "plan.json")
    saved = saved_from_text((cluster.parent / "plan.json").read_text())
    if edit:
        (cluster / "b.yaml").write_text(MODEL % "/nowhere/b")
    reconciled: list[Options] = []

    async def work() -> None:
        async with assembled(load(), Options(), read_only=True) as parts:
            look = await parts.loop.look()

            async def reconcile_now(options: Options) -> Look:
                reconciled.append(options)
                return look

            # A turn would need an edge.
            parts.loop.reconcile_now = reconcile_now  # type: ignore[method-assign]
            assert await apply_now(parts.loop, saved, Options(max_loads=3)) is look

    if edit:
        with pytest.raises(StaleError, match="the model files"):
            asyncio.run(work())
        assert reconciled == []
    else:
        asyncio.run(work())
        assert reconciled == [Options(max_loads=3)]


def test_a_process_that_does_not_answer_is_no_applied_plan(cluster: Path, tmp_path: Path) -> None:
    run(plan, "--out", "plan.json")
    with exclusive(tmp_path / ".reconcile"):
        done = run(apply, "plan.json")
    assert done.exit_code == 1
    assert "it does not do it" in done.output
