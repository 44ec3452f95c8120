"""`reconcile logs` and what it reads: files of this machine and of others, merged, and followed as they grow."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result

from reconciler.cli.logs_commands import logs
from reconciler.core.log_lines import LogLine
from reconciler.loop.logs import Logs, Wanted
from reconciler.ray_serve.node_logs import NodeLogs

START = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)
APP, OTHER = "qwen-0e55c6cb", "other-11111111"
ANSI = "\x1b["


def stamp(seconds: float, form: str) -> str:
    moment = START + timedelta(seconds=seconds)
    return moment.isoformat() if form == "iso" else moment.astimezone().strftime(form)


def event(seconds: float, name: str, **fields: Any) -> str:
    return json.dumps({**fields, "event": name, "level": "info", "timestamp": stamp(seconds, "iso")}) + "\n"


def serve(seconds: float, text: str, level: str = "INFO") -> str:
    return f"{level} {stamp(seconds, '%Y-%m-%d %H:%M:%S')},000 component -- {text}\n"


def vllm(seconds: float, text: str, level: str = "INFO") -> str:
    return (
        f"{ANSI}0;36m(EngineCore pid=7){ANSI}0;0m {level} {stamp(seconds, '%m-%d %H:%M:%S')} [core.py:1] {text}\n"
    )


class Machine:
    """A state directory, and Ray's session beside it, as start.sh lays them out."""

    def __init__(self, root: Path) -> None:
        self.state = root / "state"
        self.session = root / "sockets" / "session"
        self.own = self.state / "logs" / "reconciler.log"
        self.edge = self.state / "edge" / "edge.log"
        self.ray = self.session / "logs"
        self.replica = self.ray / "serve" / f"replica_{APP}_LLMServer_qwen_abcdefgh.log"
        self.controller = self.ray / "serve" / "controller_12.log"
        self.out = self.ray / "worker-aa-01000000-77.out"
        self.err = self.ray / "worker-aa-01000000-77.err"
        for folder in (self.own.parent, self.edge.parent, self.ray / "serve", self.state / "ray"):
            folder.mkdir(parents=True)
        (self.state / "ray" / "session").symlink_to(self.session)

    def fill(self) -> None:
        self.own.with_name("reconciler.log.1").write_text(event(0, "plan.change", model="qwen"))
        self.own.write_text(
            event(1, "model.start", model="qwen", application=APP) + event(2, "x.y", model="other")
        )
        self.edge.write_text("[NOTICE]   (1) : Loading success.\n")
        os.utime(self.edge, (START.timestamp() + 7, START.timestamp() + 7))
        self.controller.write_text(serve(2, f"Deploying new app '{APP}'.") + serve(2, f"Deploying '{OTHER}'."))
        self.replica.write_text(serve(3, "Started initializing replica."))
        head = f":job_id:01000000\n:actor_name:ServeReplica:{APP}:LLMServer:qwen\n"
        self.out.write_text(head + vllm(4, "Loading weights, with hf_abcdefghijklmnop"))
        self.err.write_text(
            head + serve(5, "in the replica's file as well") + "Traceback (most recent call last):\n  x\n"
        )
        (self.ray / "worker-bb-01000000-78.out").write_text(":job_id:1\n:actor_name:ProxyActor\nnobody's\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONCILE_RAY_DASHBOARD", "http://127.0.0.1:9")


def run(machine: Machine, *arguments: str, color: bool = False) -> Result:
    shared = {"state_dir": machine.state, "models_dir": None, "output": "text"}
    return CliRunner().invoke(logs, arguments, obj=shared, color=color)


def texts(lines: list[LogLine]) -> list[tuple[str, str]]:
    return [(line.origin, line.text) for line in lines]


MERGED = [
    ("reconciler", "plan.change"),
    ("reconciler", f"model.start application={APP}"),
    ("serve", f"component -- Deploying new app '{APP}'."),
    ("serve", "component -- Started initializing replica."),
    ("vllm", "(EngineCore pid=7) [core.py:1] Loading weights, with ***"),
    ("vllm", "Traceback (most recent call last):"),
    ("vllm", "  x"),
    ("edge", "Loading success."),
]


async def test_the_lines_of_a_model_are_merged_by_time(machine: Machine) -> None:
    machine.fill()
    lines = await Logs(machine.state).tail("qwen")
    assert texts(lines) == MERGED
    assert [line.level for line in lines][-4:] == ["info", "error", "error", "info"]
    assert lines == sorted(lines, key=lambda line: line.at or 0)
    assert await Logs(machine.state).tail("qwen", 3) == lines[-3:]
    assert await Logs(machine.state).tail("qwen", 0) == []


async def test_of_all_models_each_line_says_whose_it_is(machine: Machine) -> None:
    machine.fill()
    lines = await Logs(machine.state).tail(None)
    assert len(lines) == len(MERGED) + 2
    assert {line.model for line in lines} == {"qwen", "other", None}
    assert [line.origin for line in lines if line.model is None] == ["edge"]


async def test_only_what_is_wanted(machine: Machine) -> None:
    machine.fill()
    reading = Logs(machine.state)
    assert texts(await reading.tail("qwen", wanted=Wanted(("vllm",)))) == MERGED[4:7]
    assert texts(await reading.tail("qwen", wanted=Wanted(level="error"))) == MERGED[5:7]
    assert texts(await reading.tail("qwen", wanted=Wanted(since=START.timestamp() + 3.5))) == MERGED[4:]


async def test_the_end_of_a_large_file_is_found_without_reading_all_of_it(machine: Machine) -> None:
    filler = "".join(serve(n % 100, f"Deploying '{OTHER}' {n} {'x' * 100}") for n in range(30_000))
    machine.controller.write_text(serve(0, f"'{APP}' early") + filler + serve(100, f"'{APP}' late"))
    assert machine.controller.stat().st_size > 4_000_000
    assert [line.text[-5:] for line in await Logs(machine.state).tail("qwen", 1)] == [" late"]
    assert [line.text[-5:] for line in await Logs(machine.state).tail("qwen", 5)] == ["early", " late"]


async def test_links_and_pipes_in_rays_folder_are_not_opened(machine: Machine, tmp_path: Path) -> None:
    machine.fill()
    secret = tmp_path / "secret"
    secret.write_text(f":actor_name:ServeReplica:{APP}:LLMServer:qwen\nprecious\n")
    (machine.ray / "worker-cc-01000000-79.out").symlink_to(secret)
    os.mkfifo(machine.ray / "worker-dd-01000000-80.out")
    os.mkfifo(machine.ray / "serve" / f"replica_{APP}_LLMServer_qwen_pipepipe.log")
    assert texts(await asyncio.wait_for(Logs(machine.state).tail("qwen"), 10)) == MERGED


# ---- following


@contextlib.asynccontextmanager
async def following(reading: Logs, model: str | None, lines: int = 0) -> AsyncIterator[list[LogLine]]:
    got: list[LogLine] = []

    async def collect() -> None:
        async for line in reading.follow(model, lines):
            got.append(line)  # noqa: PERF401 -- it never ends

    task = asyncio.create_task(collect())
    await asyncio.sleep(0.3)
    try:
        yield got
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(got: list[LogLine], count: int) -> None:
    deadline = time.monotonic() + 20
    while len(got) < count and time.monotonic() < deadline:  # noqa: ASYNC110 -- it is a list
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.6)  # nothing may come twice


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


async def test_following_gives_the_newest_and_then_each_line_once(machine: Machine) -> None:
    machine.fill()
    add(machine.replica, serve(8, "half a li")[:-1])
    async with following(Logs(machine.state), "qwen", 100) as got:
        await until(got, len(MERGED))
        assert texts(got) == MERGED
        add(machine.replica, "ne\n")
        add(machine.own, event(9, "model.ready", model="qwen") + event(9, "model.ready", model="other"))
        await until(got, len(MERGED) + 2)
    assert texts(got[len(MERGED) :]) == [("serve", "component -- half a line"), ("reconciler", "model.ready")]


async def test_following_bears_rotation_cutting_and_new_files(machine: Machine) -> None:
    machine.fill()
    async with following(Logs(machine.state), "qwen") as got:
        add(machine.own, event(9, "last.before", model="qwen"))
        machine.own.rename(machine.own.with_name("reconciler.log.1"))
        machine.own.write_text(event(10, "first.after", model="qwen"))
        await until(got, 2)
        os.truncate(machine.edge, 0)
        add(machine.edge, "[ALERT]    (1) : cut\n")
        new = machine.ray / "serve" / f"replica_{APP}_LLMServer_qwen_newnewne.log"
        new.write_text(serve(11, "a new replica"))
        await until(got, 4)
    assert texts(got)[:2] == [("reconciler", "last.before"), ("reconciler", "first.after")]
    assert sorted(texts(got)[2:]) == [("edge", "cut"), ("serve", "component -- a new replica")]


# ---- other nodes


class Dashboard:
    """The part of Ray's dashboard that gives logs: as `StateHead` of ray 2.60 answers."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, str]] = {"n1": {}, "n2": {}}
        replica = {"class_name": f"ServeReplica:{APP}:LLMServer:qwen", "placement_group_id": "g1", "pid": 31}
        self.actors: list[dict[str, Any]] = [
            {"actor_id": "a", "node_id": "n2", "state": "ALIVE", **replica},
            {"actor_id": "b", "node_id": "n2", "state": "ALIVE", "class_name": "RayWorkerProc",
             "placement_group_id": "g1", "pid": 32},
            {"actor_id": "c", "node_id": "n2", "state": "ALIVE", "class_name": "Other", "pid": 33,
             "placement_group_id": None},
        ]  # fmt: skip
        self.authorized: set[str | None] = set()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/v0/nodes", self._nodes)
        app.router.add_get("/api/v0/actors", self._actors)
        app.router.add_get("/api/v0/logs", self._list)
        app.router.add_get("/api/v0/logs/file", self._file)
        return app

    async def _nodes(self, request: web.Request) -> web.Response:
        self.authorized.add(request.headers.get("Authorization"))
        rows = [{"node_id": node, "state": "ALIVE"} for node in self.nodes]
        return web.json_response({"result": True, "data": {"result": {"result": rows}}})

    async def _actors(self, _request: web.Request) -> web.Response:
        return web.json_response({"result": True, "data": {"result": {"result": self.actors}}})

    async def _list(self, request: web.Request) -> web.Response:
        from ray.dashboard.modules.log.log_manager import LogsManager

        there = self.nodes[request.query["node_id"]]
        found = [name for name in there if Path(name).match(request.query["glob"])]
        groups = LogsManager._categorize_log_files(None, found)
        return web.json_response({"result": True, "data": {"result": groups}})

    async def _file(self, request: web.Request) -> web.Response:
        text = self.nodes[request.query["node_id"]].get(request.query["filename"])
        if text is None:
            return web.Response(status=500, text="A file is not found")
        return web.Response(text="".join(text.splitlines(keepends=True)[-int(request.query["lines"]) :]))


@pytest.fixture
async def dashboard() -> AsyncIterator[tuple[Dashboard, str]]:
    board = Dashboard()
    async with TestServer(board.app()) as server:
        yield board, str(server.make_url("/")).rstrip("/")


async def test_logs_of_other_nodes_come_through_the_dashboard(
    machine: Machine, dashboard: tuple[Dashboard, str], tmp_path: Path
) -> None:
    machine.fill()
    board, url = dashboard
    token = tmp_path / "token"
    token.write_text("abc\n")
    board.nodes["n1"][f"serve/{machine.replica.name}"] = serve(3, "is read from its file here")
    board.nodes["n2"] = {
        f"serve/replica_{APP}_LLMServer_qwen_farfarfa.log": serve(3.5, "far away"),
        f"serve/replica_{OTHER}_LLMServer_other_farfarfa.log": serve(3.5, "not ours"),
        "worker-cc-01000000-31.out": vllm(6, "engine there"),
        "worker-dd-01000000-32.err": vllm(7, "rank there", "ERROR"),
        "worker-ee-01000000-33.out": vllm(7, "nobody's"),
    }
    reading = Logs(machine.state, dashboard=url, token_path=token)
    lines = await reading.tail("qwen")
    there = [(line.origin, line.text, line.level) for line in lines if (line.origin, line.text) not in MERGED]
    assert there == [
        ("serve", "component -- far away", "info"),
        ("vllm", "(EngineCore pid=7) [core.py:1] engine there", "info"),
        ("vllm", "(EngineCore pid=7) [core.py:1] rank there", "error"),
    ]
    assert len(lines) == len(MERGED) + 3
    assert (board.authorized, reading.missing) == ({"Bearer abc"}, [])


async def test_other_nodes_are_followed(machine: Machine, dashboard: tuple[Dashboard, str]) -> None:
    board, url = dashboard
    there = board.nodes["n2"]
    there["worker-cc-01000000-31.out"] = vllm(1, "before")
    async with following(Logs(machine.state, dashboard=url), "qwen") as got:
        for n in range(3):
            there["worker-cc-01000000-31.out"] += vllm(2, "the same") if n < 2 else vllm(3, "the last")
        there[f"serve/replica_{APP}_LLMServer_qwen_newnewne.log"] = serve(4, "new")
        await until(got, 4)
        there["worker-cc-01000000-31.out"] += vllm(5, "and on")
        await until(got, 5)
    assert [line.text.split("] ")[-1].split("-- ")[-1] for line in got] == [
        "the same", "the same", "the last", "new", "and on",
    ]  # fmt: skip


async def test_a_file_that_is_gone_is_empty(dashboard: tuple[Dashboard, str]) -> None:
    async with NodeLogs(dashboard[1]) as client:
        assert await client.end_of("n1", "no-such", 10) == ""


# ---- the command


@pytest.mark.usefixtures("no_ray")
def test_the_command_prints_a_line_each(machine: Machine) -> None:
    machine.fill()
    result = run(machine, "qwen", "-n", "2")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first.split() == [*stamp(5, "%m-%d %H:%M:%S.000").split(), "E", "vllm", "qwen", "x"]
    assert second.endswith(" I edge       -  Loading success.")
    assert "what is not on this machine" in result.stderr


@pytest.mark.usefixtures("no_ray")
def test_downloads_are_those_of_the_models_repositories(machine: Machine, tmp_path: Path) -> None:
    machine.own.write_text(
        "".join(event(n, "download.done", repo=f"o/{repo}") for n, repo in enumerate(("q", "sql", "x")))
    )
    # Without its file nobody knows which they are, and that is said.
    nothing = run(machine, "qwen")
    assert "download.done" not in nothing.stdout
    assert "downloads of qwen are left out: " in nothing.stderr
    (tmp_path / "models.d").mkdir()
    (tmp_path / "models.d" / "other.yaml").write_text("source: {repo: o/x}\n")
    (tmp_path / "models.d" / "qwen.yaml").write_text(
        "source: {repo: o/q}\nadapters: [{name: qwen-sql, repo: o/sql}]\n"
    )
    of_qwen = run(machine, "qwen")
    assert [line.split()[-1] for line in of_qwen.stdout.splitlines()] == ["repo=o/q", "repo=o/sql"]
    assert "left out" not in of_qwen.stderr
    assert len(run(machine).stdout.splitlines()) == 3


@pytest.mark.usefixtures("no_ray")
def test_a_source_that_cannot_be_meant_so_hides_no_lines(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.fill()
    monkeypatch.setenv("RECONCILE_SOURCE", "git")
    result = run(machine, "qwen", "-n", "2")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 2)
    assert "downloads of qwen are left out: source is git" in result.stderr


@pytest.mark.usefixtures("no_ray")
def test_the_command_as_json(machine: Machine) -> None:
    machine.fill()
    lines = [json.loads(line) for line in run(machine, "qwen", "--output", "json").stdout.splitlines()]
    assert [(line["origin"], line["text"]) for line in lines] == MERGED
    assert set(lines[0]) == {"at", "origin", "model", "level", "text"}


@pytest.mark.usefixtures("no_ray")
def test_colours_are_for_terminals_that_want_them(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.fill()
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert ANSI in run(machine, "qwen", color=True).stdout
    assert ANSI not in run(machine, "qwen").stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert ANSI not in run(machine, "qwen", color=True).stdout


@pytest.mark.usefixtures("no_ray")
def test_where_nothing_is_the_command_says_what_is_not_there(tmp_path: Path) -> None:
    shared = {"state_dir": tmp_path / "none", "models_dir": None, "output": "text"}
    result = CliRunner().invoke(logs, ["qwen"], obj=shared)
    assert (result.exit_code, result.stdout) == (0, "")
    for words in (
        "no reconciler has written",
        "no edge has run here",
        "Ray was not started here",
        "no such lines",
    ):
        assert words in result.stderr


@pytest.mark.usefixtures("no_ray")
def test_a_length_of_time_that_is_none_is_refused(machine: Machine) -> None:
    result = run(machine, "--since", "yesterday")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--since: 'yesterday' is not a duration" in result.stderr


def start(machine: Machine, *arguments: str) -> "subprocess.Popen[str]":
    code = (
        "import sys; from reconciler.cli.logs_commands import logs; from pathlib import Path;"
        "logs.main(sys.argv[2:], obj={'state_dir': Path(sys.argv[1]), 'models_dir': None, 'output': 'text'})"
    )
    command = [sys.executable, "-c", code, str(machine.state), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("no_ray")
def test_following_ends_with_an_interrupt(machine: Machine) -> None:
    machine.fill()
    with start(machine, "qwen", "-f", "-n", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith("Loading success.\n")
        add(machine.own, event(9, "model.ready", model="qwen"))
        assert process.stdout.readline().endswith("model.ready\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


@pytest.mark.usefixtures("no_ray")
def test_whoever_has_seen_enough_may_leave(machine: Machine) -> None:
    machine.own.write_text("".join(event(n / 100, "model.waiting", model="qwen", n=n) for n in range(9000)))
    with start(machine, "qwen", "-n", "9000") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RECONCILE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


async def test_followers_do_not_take_the_threads_of_others(machine: Machine) -> None:
    """Those of the event loop are all taken here, by what does not end."""
    machine.fill()
    others, over = asyncio.get_running_loop(), threading.Event()
    busy = ThreadPoolExecutor(1)
    others.set_default_executor(busy)
    waiting = others.run_in_executor(None, over.wait)
    coming = Logs(machine.state).follow("qwen", 1)
    try:
        assert (await asyncio.wait_for(anext(coming), 10)).text
        with machine.own.open("a") as file:
            file.write(event(9, "model.late", model="qwen"))
        assert "model.late" in (await asyncio.wait_for(anext(coming), 10)).text
    finally:
        over.set()
        await waiting
