"""A git repository as the source, on the real stack: pushes, mistakes, and a server and a cluster that die.

The tests of this file stand in an order: each starts from where the one before left the system.
"""

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import psutil
import pytest
from sources.git_server import GitServer, Repository
from stack import LOAD_SECONDS, Stack, running_stack
from traffic import Traffic

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

MODEL, FILE = "tiny-chat", "models.d/tiny-chat.yaml"
INTERVAL = 5.0
KILLS = int(os.environ.get("RECONCILE_E2E_KILLS", "1"))
"""How many replacements are interrupted at every step."""
NOTICED = 15.0
TOKEN = "a-token-of-the-git-server"


def model_file(weights: Path, *, alias: str = "", more: str = "") -> str:
    return (
        f"source: {{path: {weights}}}\n"
        "engine: {max_model_len: 512, kv_cache_memory_gib: 0.25, args: {enforce_eager: true}}\n"
        "resources: {accelerator: cpu}\n"
        "lifecycle: {policy: pinned}\n" + (f"aliases: [{alias}]\n" if alias else "") + more
    )


class Remote:
    """The repository as somebody who pushes to it has it."""

    def __init__(self, folder: Path) -> None:
        self.server = GitServer(folder / "server", token=TOKEN)
        self.repository = Repository(folder / "work", folder / "server" / "models.git")


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    folder = tmp_path_factory.mktemp("git")
    (folder / "server").mkdir()
    found = Remote(folder)
    with found.server:
        yield found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, remote: Remote) -> Iterator[Stack]:
    """The stack follows the repository, which has one model."""

    def prepare(stack: Stack) -> None:
        token = stack.folder / "git-token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        stack.environment |= {
            "RECONCILE_SOURCE": "git",
            "RECONCILE_GIT_URL": f"{remote.server.url}/models.git",
            "RECONCILE_GIT_INTERVAL": str(INTERVAL),
            "RECONCILE_GIT_TOKEN_PATH": str(token),
        }
        weights = stack.state / "demo" / "weights" / "tiny-chat"
        remote.repository.commit({FILE: model_file(weights)}, message="the first model")

    with running_stack(tmp_path_factory.mktemp("stack"), prepare=prepare) as running:
        yield running


def answer_of(stack: Stack, model: str, *, patience: str = "") -> tuple[int, str]:
    """Status and body of one short chat; `patience` is what the client says that it waits, in seconds."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    headers = {"Content-Type": "application/json"} | ({"X-Stainless-Read-Timeout": patience} if patience else {})
    request = urllib.request.Request(f"{stack.url}/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=LOAD_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def status_json(stack: Stack) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stack.reconcile("status", "--output", "json").stdout)
    return found


def test_a_commit_is_served(stack: Stack, remote: Remote) -> None:
    """The model of the first commit comes up, and the status says which commit it is and who changed the file."""
    stack.wait_for(lambda: answer_of(stack, MODEL, patience="1")[0] == 200, "it is served", LOAD_SECONDS, pause=1)
    stack.wait_settled()
    status = status_json(stack)
    head = remote.repository.head()
    assert (status["revision"], status["source"]["id"]) == (head, head)
    (row,) = status["models"]
    assert row["changed_by"]["id"] == head
    assert answer_of(stack, MODEL)[0] == 200
    started = stack.events("model.start")[0]
    assert started["revision"] == head


def test_a_push_is_served_within_an_interval(stack: Stack, remote: Remote) -> None:
    weights = stack.state / "demo" / "weights" / "tiny-chat"
    starts = len(stack.events("model.start"))
    remote.repository.commit({FILE: model_file(weights, alias="chat")}, message="an alias")
    began = time.monotonic()
    stack.wait_for(lambda: answer_of(stack, "chat")[0] == 200, "the alias is served", 60, pause=0.2)
    # The interval, a tenth more by chance, and what fetching and one turn take on a busy machine.
    assert time.monotonic() - began < INTERVAL * 1.1 + 10
    assert len(stack.events("model.start")) == starts, "no engine was touched"


def test_a_broken_model_is_held_while_the_rest_applies(stack: Stack, remote: Remote) -> None:
    weights = stack.state / "demo" / "weights" / "tiny-chat"
    before = remote.repository.head()
    broken = "source: {repo: org/broken}\nengine: {max_model_len: many}\n"
    changed = model_file(weights, alias="talk")
    remote.repository.commit({FILE: changed, "models.d/broken.yaml": broken}, message="two at once")
    done = stack.reconcile("sync", "--wait")
    assert done.returncode == 3, done.stdout + done.stderr
    assert answer_of(stack, "talk")[0] == 200
    problem = stack.events("source.problem")[-1]
    assert (problem["at"], problem["revision"]) == ("models.d/broken.yaml:2:25", remote.repository.head())

    # Force-pushed away again: what the commit brought is gone, what serves was never touched.
    remote.repository.git("reset", "--hard", "--quiet", before)
    remote.repository.push()
    done = stack.reconcile("sync", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert status_json(stack)["problems"] == []
    assert answer_of(stack, "chat")[0] == 200
    taken = stack.events("source.taken_over")[-1]
    assert (taken["commit"], taken["how"]) == (before[:12], "forced")


def test_a_server_that_is_gone_changes_nothing(stack: Stack, remote: Remote) -> None:
    remote.server.delay, remote.server.token = 0.0, "another"
    stack.wait_for(lambda: bool(stack.events("source.unreachable")), "it is noticed", 60)
    assert answer_of(stack, MODEL)[0] == 200
    try:
        stack.wait_for(lambda: status_json(stack)["source"]["problem"], "the status says so", 60, pause=1)
    finally:
        remote.server.token = TOKEN
    stack.wait_for(lambda: bool(stack.events("source.recovered")), "it is noticed", 60)
    assert TOKEN not in stack.log.read_text()


def test_history_says_which_commit_did_what(stack: Stack, remote: Remote) -> None:
    done = stack.reconcile("history", MODEL, "--output", "json")
    assert done.returncode == 0, done.stderr
    entries = json.loads(done.stdout)["entries"]
    assert {"add", "front door"} <= {entry["what"] for entry in entries}
    assert all(entry["revision"] for entry in entries)


def test_back_to_an_earlier_commit_and_on_with_the_next(stack: Stack, remote: Remote) -> None:
    """A rollback is declared drift: it is shown, and the next commit of the file ends it."""
    first = remote.repository.git("rev-list", "--max-parents=0", "HEAD")
    done = stack.reconcile("rollback", MODEL, "--to", first[:12], "--reason", "the alias confuses people")
    assert done.returncode == 0, done.stderr
    stack.wait_for(lambda: answer_of(stack, "chat")[0] == 404, "the alias is gone", 30)
    assert answer_of(stack, MODEL)[0] == 200
    plan, _ = stack.plan()
    assert any("the alias confuses people" in note["text"] for note in plan["notes"]), plan["notes"]
    weights = stack.state / "demo" / "weights" / "tiny-chat"
    remote.repository.commit({FILE: model_file(weights, alias="chat", more="description: better\n")})
    assert stack.reconcile("sync", "--wait").returncode == 0
    stack.wait_for(lambda: answer_of(stack, "chat")[0] == 200, "the alias is back", 30)
    assert stack.events("rollback.ended")


def test_suspended_models_do_not_follow_their_files(stack: Stack, remote: Remote) -> None:
    """The plan of a pull request says what a commit would do; while all is suspended it does nothing."""
    weights = stack.state / "demo" / "weights" / "tiny-chat"
    remote.repository.git("checkout", "--quiet", "-b", "proposal")
    changed = model_file(weights, alias="chat").replace("512", "500")
    remote.repository.commit({FILE: changed}, message="a shorter context")
    remote.repository.git("checkout", "--quiet", "main")
    done = stack.reconcile("plan", "--against", "proposal", "--output", "markdown")
    assert "max_model_len" in done.stdout, done.stderr
    assert stack.reconcile("suspend", "--all", "--reason", "a demonstration").returncode == 0
    done = stack.reconcile("plan", "--against", "proposal", "--output", "markdown")
    assert "a demonstration" in done.stdout, done.stderr
    starts = len(stack.events("model.start"))
    remote.repository.git("merge", "--quiet", "proposal")
    remote.repository.push()
    assert stack.reconcile("sync").returncode == 0
    stack.wait_for(lambda: status_json(stack)["models"][0]["sync"] == "held", "it is held", 30, pause=1)
    assert len(stack.events("model.start")) == starts
    remote.repository.git("revert", "--no-edit", "HEAD")
    remote.repository.push()
    assert stack.reconcile("sync").returncode == 0
    assert stack.reconcile("resume", "--all").returncode == 0
    stack.wait_for(lambda: stack.plan()[1] == 0, "everything is as it was", 60, pause=1)
    assert len(stack.events("model.start")) == starts


def processes_of(stack: Stack, condition: Callable[[str], bool]) -> list[psutil.Process]:
    """Processes of the stack's own Ray whose command line meets a condition."""
    run = (stack.state / "ray" / "run-id").read_text().strip()
    session = (stack.state / "ray" / "session-id").read_text().strip()
    found = []
    for process in psutil.process_iter():
        try:
            ours = os.getsid(process.pid) == int(session) or process.environ().get("RECONCILE_RAY_RUN") == run
            if ours and condition(" ".join(process.cmdline())):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


POINTS = [
    ("put", "before"), ("put", "after"), ("probe", "before"), ("probe", "after"), ("answered", "before"),
    ("route", "before"), ("route", "after"), ("record", "before"), ("record", "after"),
    ("put", "before"), ("put", "after"),
]  # fmt: skip
"""What a replacement does, in its order: start, probe, switch the traffic, write it down, remove the old one."""


class Replicas:
    """Every replica that Serve ever had while the block runs, by application."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.seen: dict[str, set[str]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.3):
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                found = asyncio.run(self._stack.serve_instance())
                for name, app in found.get("applications", {}).items():
                    engine = app["deployments"].get(f"LLMServer:{MODEL}", {})
                    ids = {replica["replica_id"] for replica in engine.get("replicas", ())}
                    self.seen.setdefault(name, set()).update(ids)


@pytest.mark.parametrize("turn", range(KILLS))
def test_it_is_killed_at_every_step_of_a_replacement(stack: Stack, remote: Remote, turn: int) -> None:
    """Each next reconciler goes on where the one before died: one load in all, and no request fails meanwhile."""
    weights = stack.state / "demo" / "weights" / "tiny-chat"
    stack.kill_reconciler()
    changed = model_file(weights, alias="chat").replace("512", str(480 - turn))
    remote.repository.commit({FILE: changed}, message=f"a shorter context {turn}")
    old = set(asyncio.run(stack.serve_instance())["applications"])
    with Replicas(stack) as replicas, Traffic(stack.url, [MODEL]) as traffic:
        for step, when in POINTS:
            stack.die_at(step, when)
        stack.start_reconciler()
        stack.wait_for(lambda: stack.reconciler_pid() is not None, "the reconciler is back")
        stack.wait_for(lambda: stack.plan()[1] == 0, "it settles", LOAD_SECONDS, pause=2)
        assert traffic.failures() == []
    new = set(replicas.seen) - old
    assert len(new) == 1, replicas.seen
    assert len(replicas.seen[new.pop()]) == 1, "loaded twice"


def test_serves_controller_is_killed(stack: Stack) -> None:
    """Hot models answer meanwhile; Ray starts the controller again, and nothing is loaded twice."""
    starts = len(stack.events("model.start"))
    (controller,) = processes_of(stack, lambda line: line.startswith("ray::ServeController"))
    os.kill(controller.pid, signal.SIGKILL)
    for _ in range(20):
        assert answer_of(stack, MODEL)[0] == 200
        time.sleep(0.5)
    stack.wait_for(
        lambda: len(processes_of(stack, lambda line: line.startswith("ray::ServeController"))) == 1,
        "the controller is back",
        120,
    )
    stack.wait_for(lambda: stack.plan()[1] == 0, "everything is as it was", 120, pause=2)
    assert len(stack.events("model.start")) == starts


def test_rays_head_is_killed(stack: Stack) -> None:
    """It is noticed, everything comes back without a person, and meanwhile who asks is told the truth."""
    failed = len(stack.events("turn.failed"))
    (head,) = processes_of(stack, lambda line: "gcs_server" in line.split(" ")[0])
    os.kill(head.pid, signal.SIGKILL)
    began = time.monotonic()
    stack.wait_for(lambda: len(stack.events("turn.failed")) > failed, "it is noticed", 60, pause=0.1)
    assert time.monotonic() - began < NOTICED
    stack.wait_for(lambda: bool(stack.events("ray.started")), "Ray is started again", 180)
    # From the edge while it still has the route, from the activator when the loop has seen that nothing is there.
    status, body = answer_of(stack, MODEL, patience="1")
    assert status == 503
    assert json.loads(body)["error"]["message"]
    stack.wait_for(lambda: answer_of(stack, MODEL, patience="1")[0] == 200, "it is back", LOAD_SECONDS, pause=1)
    assert {event["model"] for event in stack.events("drift.found")} == {MODEL}
