"""Commands by hand, over a real control socket: what the reconciler answers, and what the commands make of it.

The loop is a stand-in that looks when a test says so; store, socket, client and commands are the real ones.
"""

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from structlog.testing import capture_logs

from reconciler.activator.directory import Directory, Entry, ModelState
from reconciler.activator.errors import Refusal
from reconciler.activator.server import serve_unix
from reconciler.cli import residency
from reconciler.core.desired import Snapshot, compile_desired
from reconciler.core.overrides import Kind, Override
from reconciler.core.plan import Plan
from reconciler.core.render import Renderer
from reconciler.core.state import Observed
from reconciler.core.target import Platform
from reconciler.host.lock import exclusive
from reconciler.host.settings import Settings
from reconciler.loop.by_hand import ByHand
from reconciler.loop.control import control_of
from reconciler.loop.loop import Look
from reconciler.loop.operations import Operations
from reconciler.loop.overrides import OverrideStore
from reconciler.loop.running import CONTROL_SOCKET, NoReconcilerError, RefusedError, give_override, states
from reconciler.loop.suspensions import SuspensionStore

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
FILES = {
    "models.d/qwen.yaml": b"source: {repo: o/q}\naliases: [chat]\nadapters: [{name: qwen-sql, repo: o/sql}]\n",
    "models.d/base.yaml": b"source: {repo: o/b}\nlifecycle: {policy: pinned}\n",
    "models.d/big.yaml": b"source: {repo: o/x}\nlifecycle: {policy: manual}\n",
}
DESIRED = compile_desired(Snapshot("r", FILES, "/m"), Renderer(TEMPLATE, Platform(hub_cache="/cache")))
LOADED, LOADING, UNLOADED, UNLOADING, FAILED = (
    ModelState.LOADED,
    ModelState.LOADING,
    ModelState.UNLOADED,
    ModelState.UNLOADING,
    ModelState.FAILED,
)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        await asyncio.sleep(0.005)


def control(loop: Any, weights: Any, world: "World") -> Starlette:
    other: Any = None  # Only other routes need it.
    return control_of(
        Operations(loop, weights, world.by_hand, rollback=other, sync=other, lease=other, journal=other)
    )


class World:
    """A loop that looks when `look` is called, behind a real control socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last: Look | None = None
        self.overrides = OverrideStore(folder)
        self.suspensions = SuspensionStore(folder)
        self._directory = Directory(settled=False)
        self.polls = 0
        loop: Any = self
        self.by_hand = ByHand(loop, self.overrides, self.suspensions, self._seen)

    def _seen(self) -> Directory:
        self.polls += 1
        return self._directory

    def look(
        self, state: ModelState, reason: str = "", *, model: str = "qwen", expected_wait: float | None = None
    ) -> None:
        """Take a turn that finds one model in a state, and the others not up."""
        entries = [
            Entry(
                name,
                state if name == model else UNLOADED,
                None,
                reason if name == model else "",
                aliases=target.spec.aliases,
                expected_wait=expected_wait,
            )
            for name, target in DESIRED.targets.items()
        ]
        self._directory = Directory(entries)
        self.last = Look(DESIRED, Observed(now=time.time()), Plan())

    async def goes(self, *turns: tuple[ModelState, str], model: str = "qwen") -> None:
        """After a command was given, take these turns, each once somebody asked for what was there before it."""
        await until(lambda: bool(self.overrides.active()))
        polls = self.polls
        await until(lambda: self.polls > polls + 1)
        for state, reason in turns:
            self.look(state, reason, model=model)
            seen = self.polls
            await until(lambda seen=seen: self.polls > seen)  # type: ignore[misc]

    def end(self, model: str = "qwen") -> None:
        """What was asked for is done."""
        self.overrides.end(self.overrides.active()[model], "done")


@contextlib.asynccontextmanager
async def serving(app: Any, folder: Path) -> AsyncIterator[None]:
    server = asyncio.create_task(serve_unix(app, folder / CONTROL_SOCKET, grace_seconds=1))
    await until((folder / CONTROL_SOCKET).exists)
    try:
        yield
    finally:
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    loop: Any = world
    weights: Any = None  # Only another route needs them.
    with capture_logs():
        async with serving(control(loop, weights, world), tmp_path):
            yield world


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "_POLL_SECONDS", 0.01)


# --- the socket -------------------------------------------------------------------------------------------


async def post(folder: Path, body: bytes) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(folder / CONTROL_SOCKET))) as http,
        http.post("http://reconciler/override", data=body) as answer,
    ):
        return answer.status, await answer.json()


@pytest.mark.parametrize("name", ["qwen", "chat", "qwen-sql"])
async def test_a_command_holds_for_the_model_whatever_name_it_was_given(world: World, name: str) -> None:
    world.look(UNLOADED)
    before = time.time()
    status, answer = await post(world.folder, json.dumps({"model": name, "kind": "pin", "seconds": 7200}).encode())
    kept = world.overrides.active()["qwen"]
    assert status == 200
    assert before <= kept.since <= time.time()
    assert answer == {
        "model": "qwen",
        "kind": "pin",
        "since": kept.since,
        "until": kept.since + 7200,
        "text": "pinned by hand for another 2 h; its file says on_demand",
    }
    assert OverrideStore(world.folder).active() == {"qwen": kept}


async def test_a_command_that_ends_another_says_so(world: World) -> None:
    world.look(LOADED)
    await give_override(world.folder, Kind.PIN, "qwen", None)
    status, answer = await post(world.folder, b'{"model": "qwen", "kind": "unpin", "seconds": null}')
    assert (status, answer["since"], answer["until"]) == (200, None, None)
    assert answer["text"] == "what was asked for by hand is ended; its file says on_demand"
    assert world.overrides.active() == {}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "EOF"),
        (b"[]", "object"),
        (b'{"kind": "pin"}', "model"),
        (b'{"model": "", "kind": "pin"}', "model"),
        (b'{"model": 5, "kind": "pin"}', "model"),
        (b'{"model": "qwen", "kind": "explode"}', "kind"),
        (b'{"model": "qwen", "kind": null}', "kind"),
        (b'{"model": "qwen", "kind": "pin", "seconds": "2h"}', "seconds"),
        (b'{"model": "qwen", "kind": "pin", "seconds": true}', "seconds"),
        (b'{"model": "qwen", "kind": "pin", "seconds": NaN}', "seconds"),
        (b'{"model": "qwen", "kind": "pin", "seconds": 1e999}', "seconds"),
        (b'{"model": "qwen", "kind": "pin", "minutes": 5}', "minutes"),
        (b'{"model": "\\ud800", "kind": "pin"}', "JSON"),
        (b'{"model": "\xff", "kind": "pin"}', "JSON"),
        (b'{"model": "' + b"a" * 10_000 + b'", "kind": "pin"}', "model"),
        (b"[" * 100_000, "recursion"),
    ],
)
async def test_what_is_no_command_is_refused_with_the_mistake(world: World, body: bytes, says: str) -> None:
    world.look(UNLOADED)
    status, answer = await post(world.folder, body)
    assert status == 400
    assert says.casefold() in answer["error"].casefold()
    assert world.overrides.active() == {}


@pytest.mark.parametrize(("name", "near"), [("qwem", ["qwen"]), ("chad", ["chat"]), ("nothing like it", [])])
async def test_a_model_that_is_not_declared_is_not_found(world: World, name: str, near: list[str]) -> None:
    world.look(UNLOADED)
    status, answer = await post(world.folder, json.dumps({"model": name, "kind": "load"}).encode())
    assert status == 404
    assert answer == {"error": f"no valid model file declares {name!r}", "near": near}
    with pytest.raises(RefusedError) as refused:
        await give_override(world.folder, Kind.LOAD, name, None)
    assert refused.value.near == tuple(near)


async def test_what_makes_no_sense_is_a_conflict_with_the_reason(world: World) -> None:
    world.look(LOADED)
    status, answer = await post(world.folder, b'{"model": "base", "kind": "unload"}')
    assert status == 409
    assert answer["error"].startswith("base is pinned by its file: unload base --for 2h keeps it away for a time")
    status, answer = await post(world.folder, b'{"model": "qwen", "kind": "pin", "seconds": 1e12}')
    assert (status, answer["error"][:36]) == (409, "what is asked for by hand holds from")


async def test_before_the_first_look_nothing_is_known(world: World) -> None:
    status, answer = await post(world.folder, b'{"model": "qwen", "kind": "load"}')
    assert (status, set(answer)) == (503, {"error"})
    with pytest.raises(RefusedError, match="not finished its first look"):
        await states(world.folder)


async def test_what_cannot_be_written_down_is_told(world: World) -> None:
    world.look(UNLOADED)
    (world.folder / "overrides.json").mkdir()
    status, answer = await post(world.folder, b'{"model": "qwen", "kind": "load"}')
    assert status == 500
    assert answer["error"].startswith("the command could not be written down")
    assert world.overrides.active() == {}


async def test_states_are_those_of_the_last_look_with_what_holds_by_hand(world: World) -> None:
    world.look(LOADING, "downloads", expected_wait=42.5)
    given = await give_override(world.folder, Kind.LOAD, "chat", None)
    assert world.last is not None
    looked_at, found = await states(world.folder)
    assert looked_at == world.last.observed.now < (given.since or 0)
    assert set(found) == {"qwen", "base", "big"}
    qwen = found["qwen"]
    assert (qwen.state, qwen.reason, qwen.expected_wait) == ("loading", "downloads", 42.5)
    assert qwen.by_hand == (Kind.LOAD, given.since)
    assert found["base"].by_hand is None


async def test_the_front_door_gives_commands_in_process(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(verb: str, model: str) -> Refusal:
        with pytest.raises(Refusal) as caught:
            await world.by_hand.command(verb, model)
        return caught.value

    early = await refused("load", "qwen")
    assert (early.status, early.code, early.headers) == (503, "starting", {"retry-after": "2"})
    assert "first look" in str(early)
    world.look(UNLOADED)
    await world.by_hand.command("load", "chat")
    kept = world.overrides.active()["qwen"]
    assert (kept.kind, kept.until) == (Kind.LOAD, None)
    for verb, model, reason in (
        ("unload", "base", "pinned by its file"),
        ("load", "nobody", "no valid model file declares 'nobody'"),
    ):
        late = await refused(verb, model)
        assert (late.status, late.code) == (400, "command_refused")
        assert reason in str(late)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world.overrides, "give", full)
    disk = await refused("load", "qwen")
    assert (disk.status, disk.code) == (500, "internal_error")


async def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(NoReconcilerError):
        await give_override(tmp_path, Kind.LOAD, "qwen", None)
    with pytest.raises(NoReconcilerError):
        await states(tmp_path / ("long" * 40))
    # What a process that was killed leaves behind.
    (tmp_path / CONTROL_SOCKET).touch()
    with pytest.raises(NoReconcilerError):
        await states(tmp_path)


async def test_another_version_that_knows_no_commands_is_told(tmp_path: Path) -> None:
    async with serving(Starlette(), tmp_path):
        with pytest.raises(NoReconcilerError, match="another version"):
            await give_override(tmp_path, Kind.LOAD, "qwen", None)


# --- the commands -----------------------------------------------------------------------------------------

Run = Callable[..., Any]


@pytest.fixture
def run(world: World, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a thread of its own; gives its exit code, and what it wrote."""
    settings = Settings(state_dir=world.folder, models_dir=world.folder / "models.d")

    def call(command: Callable[..., int], name: str, options: dict[str, Any]) -> int:
        try:
            return command(settings, name, **options)
        except SystemExit as end:
            return int(end.code or 0)

    async def run(command: Callable[..., int], name: str = "qwen", **options: Any) -> tuple[int, str, str]:
        given = {"duration": None, "output": "text", **options}
        if command in (residency.load, residency.unload):
            given = {"wait": True, **given}
        code = await asyncio.to_thread(call, command, name, given)
        written = capsys.readouterr()
        return code, written.out, written.err

    return run


def at(until: float | None) -> str:
    assert until is not None
    return f"{datetime.fromtimestamp(until).astimezone():%Y-%m-%d %H:%M:%S %Z}"


async def test_load_waits_and_shows_each_phase_once(world: World, run: Run) -> None:
    """A failure from before the command says nothing about it."""
    world.look(FAILED, "failed: it had no room yesterday")
    turns = world.goes(
        (LOADING, "downloads o/q: 3 % of 2.0 GiB, about 40 s left"),
        (LOADING, "downloads o/q: 91 % of 2.0 GiB, about 4 s left"),
        (LOADING, "it is being started"),
        (LOADED, ""),
    )
    (code, out, err), _ = await asyncio.gather(run(residency.load), turns)
    assert (code, out) == (0, "qwen is loaded.\nqwen: load asked for by hand; its file says on_demand.\n")
    assert err.splitlines() == [
        "qwen loading: downloads o/q: 3 % of 2.0 GiB, about 40 s left",
        "qwen loading: it is being started",
    ]


async def test_load_for_a_time_says_until_when_and_how_to_end_it(world: World, run: Run) -> None:
    world.look(UNLOADED)
    turns = world.goes((LOADED, ""))
    (code, out, _), _ = await asyncio.gather(run(residency.load, duration="90m"), turns)
    kept = world.overrides.active()["qwen"]
    assert kept.until == kept.since + 5400
    assert code == 0
    assert out.splitlines() == [
        "qwen is loaded.",
        "qwen: kept up by hand for another 1 h 30 min; its file says on_demand.",
        f"Until {at(kept.until)}; `reconcile unload qwen` ends it earlier.",
    ]


async def test_a_load_that_fails_exits_3_with_the_reason(world: World, run: Run) -> None:
    world.look(UNLOADED)
    turns = world.goes((LOADING, "starts"), (FAILED, "failed: CUDA out of memory."))
    (code, out, _), _ = await asyncio.gather(run(residency.load), turns)
    assert code == 3
    assert out.startswith("qwen is not loaded: failed: CUDA out of memory.\n")


async def test_a_load_that_was_ended_or_replaced_is_not_waited_for(world: World, run: Run) -> None:
    world.look(UNLOADED)

    async def ends() -> None:
        await world.goes((LOADING, "starts"))
        world.end()

    (code, out, _), _ = await asyncio.gather(run(residency.load), ends())
    assert (code, out) == (3, "qwen is not loaded: starts.\n")

    async def replaced() -> None:
        await world.goes((LOADING, "starts"))
        await give_override(world.folder, Kind.UNLOAD, "qwen", 60)

    (code, out, _), _ = await asyncio.gather(run(residency.load), replaced())
    assert code == 3
    assert out.endswith("Another command has taken the place of this one: unload.\n")


async def test_unload_waits_until_nothing_is_there(world: World, run: Run) -> None:
    """It is called unloaded a little before the last of it is gone."""
    world.look(LOADED)

    async def leaves() -> None:
        await world.goes((UNLOADING, "2 requests in flight"), (UNLOADED, "it goes"))
        world.end()

    (code, out, err), _ = await asyncio.gather(run(residency.unload), leaves())
    assert (code, out) == (0, "qwen is unloaded.\n")
    assert err.splitlines() == ["qwen unloading: 2 requests in flight", "qwen unloaded: it goes"]


async def test_unload_for_a_time_of_a_pinned_model(world: World, run: Run) -> None:
    world.look(LOADED, model="base")
    turns = world.goes((UNLOADING, "drains"), (UNLOADED, "kept away by hand"), model="base")
    (code, out, _), _ = await asyncio.gather(run(residency.unload, "base", duration="2h"), turns)
    kept = world.overrides.active()["base"]
    assert code == 0
    assert out.splitlines() == [
        "base is unloaded.",
        "base: kept away by hand for another 2 h; its file says pinned.",
        f"Until {at(kept.until)}; `reconcile load base` ends it earlier.",
    ]
    code, _, _ = await run(residency.unload, "base")
    # Without an end the longer promise stays.
    assert (code, world.overrides.active()["base"]) == (0, kept)


async def test_pin_and_unpin_return_at_once(world: World, run: Run) -> None:
    world.look(UNLOADED)
    code, out, err = await run(residency.pin)
    kept = world.overrides.active()["qwen"]
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "qwen: pinned by hand for another 1 h; its file says on_demand.",
        f"Until {at(kept.until)}; `reconcile unpin qwen` ends it earlier.",
    ]
    code, out, _ = await run(residency.unpin)
    assert (code, out) == (0, "qwen: what was asked for by hand is ended; its file says on_demand.\n")
    assert world.overrides.active() == {}
    code, out, err = await run(residency.unpin)
    assert (code, out, err) == (1, "", "reconcile: qwen is not pinned: its file says on_demand\n")


async def test_without_waiting_a_command_only_says_what_holds(world: World, run: Run) -> None:
    world.look(UNLOADED)
    code, out, err = await run(residency.load, "big", wait=False)
    assert (code, out, err) == (0, "big: kept up by hand until it is unloaded; its file says manual.\n", "")


async def test_json_is_all_that_is_written(world: World, run: Run) -> None:
    world.look(UNLOADED)
    turns = world.goes((LOADING, "starts"), (FAILED, "failed: no"))
    (code, out, err), _ = await asyncio.gather(run(residency.load, "chat", output="json", duration="1h"), turns)
    kept = world.overrides.active()["qwen"]
    assert (code, err) == (3, "")
    assert json.loads(out) == {
        "model": "qwen",
        "kind": "load",
        "until": kept.until,
        "text": "kept up by hand for another 1 h; its file says on_demand",
        "state": "failed",
        "reason": "failed: no",
    }
    code, out, _ = await run(residency.load, "big", output="json", wait=False)
    assert (code, json.loads(out)["until"], json.loads(out)["state"]) == (0, None, None)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("qwne", {}, "no valid model file declares 'qwne'; did you mean qwen?"),
        ("qwen", {"duration": "soon"}, "--for: 'soon' is not a duration such as 90s, 15m, 1h30m or 2d"),
        ("qwen", {"duration": "999999999d"}, "holds from 1 s to 366 d"),
        ("base", {}, "base is pinned by its file: unload base --for 2h"),
    ],
)
async def test_what_is_refused_is_one_line(
    world: World, run: Run, name: str, options: dict[str, Any], says: str
) -> None:
    world.look(LOADED, model="base")
    code, out, err = await run(residency.unload, name, **options)
    assert (code, out) == (1, "")
    assert says in err
    assert len(err.splitlines()) == 1


async def test_where_no_reconciler_runs_it_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(state_dir=tmp_path, models_dir=tmp_path / "models.d")

    def call() -> int:
        with pytest.raises(SystemExit) as end:
            residency.pin(settings, "qwen", duration=None, output="text")
        assert isinstance(end.value.code, int)
        return end.value.code

    assert await asyncio.to_thread(call) == 1
    assert capsys.readouterr().err == (
        f"reconcile: no reconciler runs here (state dir {tmp_path}); "
        "start one with ./start.sh or `reconcile --watch`\n"
    )
    with exclusive(tmp_path):  # As `reconcile` does that converges once.
        assert await asyncio.to_thread(call) == 1
    assert f"the reconciler that runs here (process {os.getpid()}) does not answer" in capsys.readouterr().err


async def test_a_reconciler_that_goes_away_ends_the_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path)
    world.look(UNLOADED)
    loop: Any = world
    weights: Any = None
    settings = Settings(state_dir=tmp_path, models_dir=tmp_path / "models.d")

    def call() -> None:
        residency.load(settings, "qwen", duration=None, wait=True, output="text")

    async with serving(control(loop, weights, world), tmp_path):
        command = asyncio.create_task(asyncio.to_thread(_exit_code, call))
        await world.goes((LOADING, "starts"))
    assert await command == 1
    assert "no reconciler runs here" in capsys.readouterr().err
    assert list(OverrideStore(tmp_path).active()) == ["qwen"]


def _exit_code(call: Callable[[], None]) -> int:
    with pytest.raises(SystemExit) as end:
        call()
    assert isinstance(end.value.code, int)
    return end.value.code


# --- as a process -----------------------------------------------------------------------------------------


async def start(world: World, *words: str, stderr: int) -> asyncio.subprocess.Process:
    options = ["--state-dir", str(world.folder), "--models-dir", str(world.folder / "models.d")]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "reconciler",
        *words,
        *options,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
    )


async def test_ctrl_c_leaves_the_load_alone(world: World) -> None:
    world.look(UNLOADED)
    command = await start(world, "load", "qwen", stderr=asyncio.subprocess.PIPE)
    assert command.stderr is not None
    await world.goes((LOADING, "it is being started"))
    assert await command.stderr.readline() == b"qwen loading: it is being started\n"
    command.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(command.communicate(), 30)
    assert (command.returncode, out) == (130, b"")
    assert err == b"The load of qwen goes on; `reconcile status` shows how far it is.\n"
    assert list(world.overrides.active()) == ["qwen"]


async def test_on_a_terminal_the_phase_is_a_line_that_goes_away(world: World) -> None:
    world.look(UNLOADED)
    ours, theirs = pty.openpty()
    command = await start(world, "load", "qwen", "--for", "1h", stderr=theirs)
    os.close(theirs)
    await world.goes((LOADING, "it [is] being started"))
    shown = b""
    while b"it [is] being started" not in shown:
        shown += await asyncio.wait_for(asyncio.to_thread(os.read, ours, 4096), 30)
    world.look(LOADED)
    out, _ = await asyncio.wait_for(command.communicate(), 30)
    os.close(ours)
    assert (command.returncode, out.splitlines()[0]) == (0, b"qwen is loaded.")


async def test_options_reach_the_command(world: World) -> None:
    world.look(UNLOADED)
    command = await start(
        world, "unload", "chat", "--for", "1h30m", "--no-wait", "--output", "json", stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(command.communicate(), 60)
    kept = world.overrides.active()["qwen"]
    assert (command.returncode, err, json.loads(out)["until"]) == (0, b"", kept.until)
    assert kept == Override("qwen", Kind.UNLOAD, kept.since, kept.since + 5400)
