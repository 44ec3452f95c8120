"""Sleep and wake: who may, the checks around them, what a version costs itself that fails one, and restarts."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock

import pynvml
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from test_nvml import FakeGpu, FakeNvml

from reconciler.core.fit.gpus import GIB
from reconciler.core.sleep import (
    LEFT_FREE,
    Footprint,
    answer_in,
    engine_processes,
    fixed_prompt,
    not_freed,
    other_answer,
    sleep_budget,
    sleep_left,
)
from reconciler.core.spec import Task
from reconciler.loop import engine_memory, sleeping
from reconciler.loop.engine_memory import EngineMemory, gpu_memory_by_process
from reconciler.loop.fixed_prompt import NoAnswerError, ask_fixed
from reconciler.loop.sleeping import Sleeping
from reconciler.ray_serve.engine_calls import EngineCallError, EngineCalls, EngineRefusedError

MODEL, APP = "qwen", "qwen-1a2b"
PRINT = Footprint(weights=14 * GIB, kv=30 * GIB)
HELD = PRINT.weights + PRINT.kv + 3 * GIB


# --- what is decided ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "budget", "asleep", "needed", "may"),
    [
        (100 * GIB, 50 * GIB, 0, 50 * GIB, True),
        (100 * GIB, 50 * GIB, 1, 50 * GIB, False),
        (100 * GIB, 50 * GIB, 30 * GIB, 20 * GIB, True),
        (20 * GIB + LEFT_FREE, 50 * GIB, 0, 20 * GIB, True),
        (20 * GIB + LEFT_FREE - 1, 50 * GIB, 0, 20 * GIB, False),
        (None, 50 * GIB, 0, 20 * GIB, True),
        (None, 50 * GIB, 40 * GIB, 20 * GIB, False),
        (100 * GIB, 0, 0, 1, False),
    ],
)
def test_the_budget_and_what_is_free_both_count(
    free: int | None, budget: int, asleep: int, needed: int, may: bool
) -> None:
    assert (needed <= sleep_left(free, budget, asleep)) is may


def test_the_budget_is_half_of_main_memory_unless_the_operator_says_otherwise() -> None:
    assert sleep_budget(None, 512 * GIB) == 256 * GIB
    assert sleep_budget(1.5, 512 * GIB) == 3 * GIB // 2
    assert sleep_budget(0.0, 512 * GIB) == 0


def test_weights_are_counted_twice_because_they_are_pinned_by_powers_of_two() -> None:
    assert PRINT.main_memory == 28 * GIB


def test_four_fifths_of_weights_and_cache_must_be_gone() -> None:
    expected = int(0.8 * 44 * GIB)
    assert not_freed(HELD, HELD - expected - 1, PRINT) == ""
    assert not_freed(HELD, 0, PRINT) == ""
    why = not_freed(HELD, HELD - expected + GIB, PRINT)
    assert why == "asleep it freed 34.2 GiB of GPU memory, and should have freed 35.2 GiB at least"
    assert not_freed(HELD, HELD, PRINT) != ""
    assert "freed -1.0 GiB" in not_freed(HELD, HELD + GIB, PRINT)


def test_what_nobody_can_tell_speaks_against_nobody() -> None:
    assert not_freed(None, 5, PRINT) == not_freed(5, None, PRINT) == not_freed(None, None, PRINT) == ""


def test_every_task_but_speech_has_a_fixed_prompt_and_none_is_left_to_chance() -> None:
    assert [task for task in Task if fixed_prompt("m", task) is None] == [Task.TRANSCRIBE]
    request = fixed_prompt("m", Task.GENERATE)
    assert request is not None
    assert request[0] == "/v1/completions"
    assert request[1].items() >= {"model": "m", "temperature": 0, "seed": 0, "max_tokens": 16}.items()


def test_the_part_of_an_answer_that_stays_the_same_is_compared() -> None:
    text = {"id": "cmpl-1", "created": 17, "choices": [{"text": " jumps", "index": 0}]}
    assert answer_in(text) == answer_in({**text, "id": "cmpl-2", "created": 18}) != ""
    assert other_answer(answer_in(text), answer_in({"choices": [{"text": " sleeps"}]})) != ""
    vector = {"id": "e-1", "data": [{"index": 0, "embedding": [0.12341, -0.5]}]}
    assert answer_in(vector) == answer_in({"id": "e-2", "data": [{"index": 0, "embedding": [0.12339, -0.5]}]})
    assert answer_in(vector) != answer_in({"data": [{"index": 0, "embedding": [0.9, -0.5]}]})


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "text", "data", "pid", "name", "node_id"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_an_answer_of_any_shape_raises_nothing_and_is_bounded(body: Any) -> None:
    assert len(answer_in(body)) <= 4096


def test_no_answer_is_empty() -> None:
    bodies: list[Any] = [{}, {"choices": []}, {"data": None}, {"error": "x"}, [], None, {"choices": "abc"}]
    assert {answer_in(body) for body in bodies} == {""}


# As /api/v0/actors?detail=1 of Ray 2.60 has them, with what is read alone.
REPLICA = {
    "name": "SERVE_REPLICA::qwen-1a2b#LLMServer:qwen#u9o",
    "pid": 70,
    "node_id": "n1",
    "placement_group_id": "g1",
}
RANKS = [
    {"name": "", "pid": pid, "node_id": node, "placement_group_id": "g1"} for pid, node in ((71, "n1"), (72, "n2"))
]
ROUTER = {"name": "SERVE_REPLICA::qwen-1a2b#LLMRouter#em9", "pid": 73, "node_id": "n1", "placement_group_id": None}
OTHERS = [
    {"name": "SERVE_REPLICA::qwen-1a2b-x#LLMServer:q#1", "pid": 74, "node_id": "n1", "placement_group_id": "g2"},
    {"name": "SERVE_REPLICA::qwen-1a2#LLMServer:q#1", "pid": 75, "node_id": "n1", "placement_group_id": "g3"},
    {"name": "SERVE_CONTROLLER_ACTOR", "pid": 76, "node_id": "n1", "placement_group_id": None},
]


def test_an_applications_processes_are_its_replicas_and_what_lies_in_their_placement_groups() -> None:
    rows = [*OTHERS, *RANKS, ROUTER, REPLICA]
    assert engine_processes(rows, APP) == {"n1": {70, 71}, "n2": {72}}
    assert engine_processes([{**REPLICA, "placement_group_id": None}, *OTHERS, ROUTER], APP) == {"n1": {70}}
    assert engine_processes(rows, "nobody") == engine_processes([], APP) == {}


@given(st.lists(st.dictionaries(st.sampled_from(["pid", "name", "node_id"]), JSON)))
def test_actors_of_any_shape_raise_nothing(rows: list[dict[str, Any]]) -> None:
    engine_processes(rows, APP)


# --- freed memory -------------------------------------------------------------------------------------------


class Machine:
    """A kernel's account of processes, and a driver's of GPU memory."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.driver: dict[int, int] = {}
        self.actors: list[dict[str, Any]] = [REPLICA, ROUTER, *OTHERS]
        self.add(1, 0)
        self.add(9, 1, "raylet", "--node_id=n1", "--head")
        self.add(70, 9)
        self.add(74, 9)

    def add(self, pid: int, parent: int, *cmdline: str) -> None:
        (self.proc / str(pid)).mkdir()
        (self.proc / str(pid) / "stat").write_text(f"{pid} (odd) name (x) S {parent} 1 1")
        (self.proc / str(pid) / "cmdline").write_bytes("\0".join(cmdline).encode())

    async def held(self) -> int | None:
        async def actors() -> list[dict[str, Any]]:
            return self.actors

        return await EngineMemory(actors, by_process=lambda: self.driver, proc=self.proc).held(APP)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def test_a_replica_holds_what_it_and_its_descendants_hold(machine: Machine) -> None:
    machine.add(80, 70)
    machine.add(81, 80)
    machine.driver = {80: 5 * GIB, 81: GIB, 74: 40 * GIB, 4242: GIB}
    assert await machine.held() == 6 * GIB


async def test_workers_that_are_actors_count(machine: Machine) -> None:
    machine.add(71, 9)
    machine.actors = [*machine.actors, RANKS[0]]
    machine.driver = {71: 5 * GIB, 74: GIB}
    assert await machine.held() == 5 * GIB


async def test_nobody_can_tell_where_a_worker_is_on_another_machine(machine: Machine) -> None:
    machine.add(72, 9)  # Another process here happens to have the number.
    machine.actors = [*machine.actors, RANKS[1]]
    machine.driver = {70: GIB, 72: GIB}
    assert await machine.held() is None


async def test_nobody_can_tell_what_the_driver_does_not_say(machine: Machine) -> None:
    assert await machine.held() is None, "it sees none of them, as in some containers"
    machine.driver = {70: 0}
    assert await machine.held() is None, "it sees it, and no size"
    machine.driver = {70: 1}
    machine.actors = OTHERS
    assert await machine.held() is None, "there is no such application"


async def test_a_driver_in_trouble_says_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()

    async def actors() -> list[dict[str, Any]]:
        return [REPLICA]

    def fails() -> dict[int, int]:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    def hangs() -> dict[int, int]:
        hang.wait(30)
        return {70: GIB}

    monkeypatch.setattr(engine_memory, "_DRIVER_SECONDS", 0.1)
    assert await EngineMemory(actors, by_process=fails, proc=machine.proc).held(APP) is None
    assert await EngineMemory(actors, by_process=hangs, proc=machine.proc).held(APP) is None
    hang.set()


def test_memory_is_summed_over_gpus_and_their_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    part = FakeGpu(processes={7: 3 * GIB})
    fake = FakeNvml(
        FakeGpu(processes={7: GIB, 8: None}), FakeGpu(processes={7: 2 * GIB}), FakeGpu(mig=[part, FakeGpu()])
    )
    monkeypatch.setattr(engine_memory, "pynvml", fake)
    assert gpu_memory_by_process() == {7: 6 * GIB, 8: 0}
    assert fake.opened == 0
    monkeypatch.setattr(engine_memory, "pynvml", FakeNvml(FakeGpu(processes={7: GIB}, errors={"MigMode": 3})))
    assert gpu_memory_by_process() == {7: GIB}


# --- the fixed prompt ---------------------------------------------------------------------------------------


@pytest.fixture
async def engine() -> AsyncIterator[tuple[str, dict[str, Any]]]:
    how: dict[str, Any] = {"status": 200, "body": json.dumps({"choices": [{"text": " jumps"}]}), "asked": None}

    async def answer(request: web.Request) -> web.Response:
        how["asked"] = (request.path, await request.json())
        return web.Response(status=how["status"], text=how["body"])

    app = web.Application()
    app.router.add_post("/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/app", how
    await runner.cleanup()


async def test_the_fixed_prompt_goes_to_the_applications_own_route(engine: tuple[str, dict[str, Any]]) -> None:
    url, how = engine
    assert json.loads(await ask_fixed(url, MODEL, "generate")) == [" jumps"]
    assert how["asked"][0] == "/app/v1/completions"
    assert how["asked"][1]["model"] == MODEL


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (500, "  it\nbroke ", "HTTP 500: it broke"),
        (200, "{}", "HTTP 200: {}"),
        (200, "<html>", "Expecting value"),
        (200, "[" * 100_000, "recursion"),
        (404, '{"choices": [{"text": "x"}]}', "HTTP 404"),
    ],
)
async def test_what_is_no_answer_is_an_error(
    engine: tuple[str, dict[str, Any]], status: int, body: str, says: str
) -> None:
    url, how = engine
    how |= {"status": status, "body": body}
    with pytest.raises(NoAnswerError, match=says):
        await ask_fixed(url, MODEL, "generate")


async def test_nobody_there_and_nothing_to_ask_are_errors() -> None:
    with pytest.raises(NoAnswerError):
        await ask_fixed("http://127.0.0.1:9/app", MODEL, "generate")
    with pytest.raises(NoAnswerError, match="no fixed prompt"):
        await ask_fixed("http://127.0.0.1:9/app", MODEL, "transcribe")


# --- around a sleep and a wake ------------------------------------------------------------------------------


class World:
    """Engines, their memory and their answers; everything can fail, or take its time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1000.0
        self.age = 50.0
        self.calls: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.answer = "[' jumps']"
        self.memory: dict[bool, int | None] = {False: HELD, True: 3 * GIB}
        self.sleeps: set[str] = set()
        self.stuck = ""
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.woken = asyncio.Event()
        self.store = self.restart()

    def restart(self) -> Sleeping:
        self.store = Sleeping(
            self.folder,
            cast("EngineCalls", self),
            self.ask,
            self.held,
            wall_clock=lambda: self.now,
            monotonic=lambda: self.age,
            wake_loop=self.woken.set,
        )
        return self.store

    async def _call(self, what: str) -> None:
        self.calls.append(what)
        await self.gate.wait()
        if what == self.stuck:
            self.reached.set()
            await asyncio.Event().wait()
        if what in self.errors:
            raise self.errors[what]

    async def sleep(self, application: str) -> None:
        await self._call("sleep")
        self.sleeps.add(application)

    async def wake(self, application: str) -> None:
        await self._call("wake")
        self.sleeps.discard(application)

    async def ask(self, application: str, model: str) -> str:
        assert (application, model) == (APP, MODEL)
        await self._call("ask")
        assert application not in self.sleeps, "it would wait for ever"
        return self.answer

    async def held(self, application: str) -> int | None:
        return self.memory[application in self.sleeps]

    async def ended(self) -> None:
        await asyncio.wait_for(self.woken.wait(), 10)
        self.woken.clear()

    async def put_to_sleep(self) -> None:
        self.store.sleep(MODEL, APP, PRINT)
        await self.ended()

    async def wake_up(self) -> None:
        self.store.wake(APP)
        await self.ended()

    def state(self) -> str:
        """In which of the loop's lists it is; empty where it is simply up."""
        lists = {
            "asleep": self.store.asleep, "going": self.store.going_to_sleep, "waking": self.store.waking,
            "failed": self.store.failed.keys(),
        }  # fmt: skip
        found = [name for name, names in lists.items() if APP in names]
        assert len(found) <= 1, found
        return "".join(found)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as found:
        yield cast("list[Any]", found)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeping, "_SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(sleeping, "_SETTLE_PAUSE_SECONDS", 0.01)


def events(logs: list[Any]) -> list[str]:
    return [each["event"] for each in logs]


async def test_a_sleep_and_a_wake(world: World, logs: list[Any]) -> None:
    world.gate.clear()
    world.store.sleep(MODEL, APP, PRINT)
    assert world.state() == "going"
    world.gate.set()
    await world.ended()
    assert (world.state(), world.calls) == ("asleep", ["ask", "sleep"])
    assert world.store.asleep_since == {APP: 1000.0}
    assert world.store.main_memory == {APP: PRINT.main_memory}
    world.gate.clear()
    world.store.wake(APP)
    assert world.state() == "waking"
    world.gate.set()
    await world.ended()
    assert (world.state(), world.calls[2:]) == ("", ["wake", "ask"])
    assert world.store.main_memory == {APP: PRINT.main_memory}, "vLLM keeps it for the next time"
    assert events(logs) == ["model.asleep", "model.awake"]
    assert (logs[0]["model"], logs[0]["application"], logs[0]["freed"]) == (MODEL, APP, HELD - 3 * GIB)
    assert logs[0]["log_level"] == logs[1]["log_level"] == "info"


async def test_a_version_is_asked_once_before_it_first_sleeps(world: World) -> None:
    await world.put_to_sleep()
    await world.wake_up()
    await world.put_to_sleep()
    assert world.calls == ["ask", "sleep", "wake", "ask", "sleep"]
    await world.wake_up()
    assert world.state() == ""


async def test_asking_again_begins_nothing_again(world: World) -> None:
    world.store.wake(APP)
    assert world.state() == "", "it does not sleep"
    world.store.sleep(MODEL, APP, PRINT)
    world.store.sleep(MODEL, APP, PRINT)
    world.store.wake(APP)
    await world.ended()
    world.store.sleep(MODEL, APP, PRINT)
    world.store.wake(APP)
    world.store.wake(APP)
    world.store.sleep(MODEL, APP, PRINT)
    await world.ended()
    assert world.calls == ["ask", "sleep", "wake", "ask"]


async def test_memory_that_was_not_freed_demotes(world: World, logs: list[Any]) -> None:
    world.memory[True] = HELD - GIB
    await world.put_to_sleep()
    assert world.state() == "failed"
    assert world.store.demoted == world.store.failed
    assert "freed 1.0 GiB" in world.store.demoted[APP]
    assert [(each["event"], each["log_level"]) for each in logs] == [("model.sleep_demoted", "warning")]
    assert (logs[0]["model"], logs[0]["application"], logs[0]["reason"]) == (MODEL, APP, world.store.demoted[APP])


async def test_memory_may_take_a_moment_to_show(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeping, "_SETTLE_SECONDS", 10.0)
    world.memory[True] = HELD
    world.store.sleep(MODEL, APP, PRINT)
    await asyncio.sleep(0.1)
    assert world.state() == "going"
    world.memory[True] = GIB
    await world.ended()
    assert world.state() == "asleep"


async def test_memory_that_nobody_can_tell_is_said_to_be_unknown(world: World, logs: list[Any]) -> None:
    world.memory = {False: None, True: None}
    await world.put_to_sleep()
    assert (world.state(), logs[0]["event"], logs[0]["freed"]) == ("asleep", "model.asleep", None)


async def test_another_answer_after_waking_demotes(world: World, logs: list[Any]) -> None:
    await world.put_to_sleep()
    world.answer = "[' !!!!!!']"
    await world.wake_up()
    assert world.state() == "failed"
    assert "otherwise than before" in world.store.demoted[APP]
    assert events(logs) == ["model.asleep", "model.sleep_demoted"]


async def test_no_answer_after_waking_demotes(world: World) -> None:
    await world.put_to_sleep()
    world.errors["ask"] = NoAnswerError("HTTP 500: it broke")
    await world.wake_up()
    assert world.state() == "failed"
    assert "HTTP 500: it broke" in world.store.demoted[APP]


@pytest.mark.parametrize("call", ["sleep", "wake"])
async def test_an_engine_that_says_no_is_demoted(world: World, call: str) -> None:
    world.errors[call] = EngineRefusedError("CUDA Error: out of memory")
    await world.put_to_sleep()
    if call == "wake":
        await world.wake_up()
    assert world.state() == "failed"
    assert world.store.demoted == {APP: "CUDA Error: out of memory"}


@pytest.mark.parametrize("call", ["sleep", "wake"])
@pytest.mark.parametrize("error", [EngineCallError("the process that speaks to Ray ended (3)"), KeyError("odd")])
async def test_a_call_of_which_nobody_knows_fails_the_version_and_demotes_nobody(
    world: World, logs: list[Any], call: str, error: Exception
) -> None:
    world.errors[call] = error
    await world.put_to_sleep()
    if call == "wake":
        await world.wake_up()
    assert (world.state(), world.store.demoted) == ("failed", {})
    assert (events(logs)[-1], logs[-1]["log_level"]) == ("model.sleep_failed", "warning")
    world.store.forget(there=[], wanted=[APP])
    assert world.state() == "", "loaded anew, it may sleep again"
    world.errors, world.sleeps = {}, set()
    await world.put_to_sleep()
    assert world.state() == "asleep"


async def test_who_cannot_be_asked_stays_awake_and_is_asked_again_later(world: World, logs: list[Any]) -> None:
    for attempt, pause in enumerate((30.0, 60.0), start=1):
        world.errors["ask"] = NoAnswerError("HTTP 503")
        await world.put_to_sleep()
        assert world.state() == "", "it was told nothing, so it stays as it is"
        assert world.store.demoted == {APP: "HTTP 503"}
        assert (events(logs), logs[-1]["retry_in_seconds"]) == (["model.sleep_postponed"] * attempt, pause)
        world.age += pause - 0.1
        assert world.store.demoted
        world.age += 0.1
        assert world.store.demoted == {}
    world.errors.clear()
    await world.put_to_sleep()
    assert world.state() == "asleep"
    assert world.restart().demoted == {}


async def test_memory_that_cannot_be_looked_at_postpones_the_sleep(world: World) -> None:
    held, world.held = world.held, AsyncMock(side_effect=OSError("the dashboard is away"))  # type: ignore[method-assign]
    world.restart()
    await world.put_to_sleep()
    assert (world.state(), world.calls, world.store.demoted) == ("", ["ask"], {APP: "the dashboard is away"})
    world.store.forget(there=[], wanted=[APP])
    assert world.store.demoted == {}, "loaded anew, it may sleep"
    world.held = held  # type: ignore[method-assign]


async def test_who_failed_gets_no_further_call(world: World) -> None:
    world.memory[True] = HELD
    await world.put_to_sleep()
    before = list(world.calls)
    world.store.sleep(MODEL, APP, PRINT)
    world.store.wake(APP)
    await asyncio.sleep(0.05)
    assert (world.state(), world.calls) == ("failed", before)


# --- restarts -----------------------------------------------------------------------------------------------


async def test_after_a_restart_a_sleeper_still_sleeps_and_is_checked_when_it_wakes(world: World) -> None:
    await world.put_to_sleep()
    world.now = 5000.0
    world.restart()
    assert (world.state(), world.store.asleep_since) == ("asleep", {APP: 1000.0})
    world.answer = "[' other']"
    await world.wake_up()
    assert world.state() == "failed"
    world.restart()
    assert world.state() == "failed", "and another restart does not make it well"


async def test_after_a_restart_one_that_is_awake_is_awake(world: World) -> None:
    await world.put_to_sleep()
    await world.wake_up()
    world.restart()
    assert (world.state(), world.store.main_memory) == ("", {APP: PRINT.main_memory})
    await world.put_to_sleep()
    assert world.calls[-1] == "sleep"
    assert world.calls.count("ask") == 2, "its answer was kept"


@pytest.mark.parametrize("call", ["sleep", "wake"])
async def test_one_that_a_crash_left_on_its_way_counts_as_asleep(world: World, call: str) -> None:
    if call == "wake":
        await world.put_to_sleep()
        world.store.wake(APP)
    else:
        world.store.sleep(MODEL, APP, PRINT)
    crashed = world.store
    world.stuck = call
    await asyncio.wait_for(world.reached.wait(), 10)
    world.restart()
    assert world.state() == "asleep"
    await crashed.close()
    world.woken.clear()
    world.stuck = ""
    await world.wake_up()
    assert world.state() == ""


async def test_closing_ends_what_is_under_way_and_keeps_what_may_be_asleep(world: World) -> None:
    await world.put_to_sleep()
    world.gate.clear()
    world.store.wake(APP)
    await asyncio.wait_for(world.store.close(), 5)
    assert (world.state(), world.store.failed) == ("asleep", {})


async def test_demotions_last_as_long_as_the_version_is_wanted(world: World) -> None:
    world.memory[True] = HELD
    await world.put_to_sleep()
    world.store.forget(there=[APP], wanted=[APP])
    assert world.state() == "failed"
    world.store.forget(there=[], wanted=[APP])
    assert (world.state(), list(world.store.demoted), world.store.main_memory) == ("", [APP], {})
    world.restart()
    assert (world.state(), list(world.store.demoted)) == ("", [APP])
    world.store.forget(there=[], wanted=["qwen-other"])
    assert world.store.demoted == world.restart().demoted == {}


async def test_a_sleeper_that_is_gone_is_forgotten(world: World) -> None:
    await world.put_to_sleep()
    world.store.forget(there=[APP], wanted=[])
    assert world.state() == "asleep"
    world.store.forget(there=[], wanted=[APP])
    assert (world.state(), world.store.main_memory) == ("", {})
    assert world.restart().asleep == frozenset()


async def test_who_cannot_be_written_down_is_not_put_to_sleep(world: World) -> None:
    world.folder.joinpath(sleeping.FILE).mkdir()
    await world.put_to_sleep()
    assert (world.state(), world.calls) == ("failed", ["ask"])
    assert world.store.demoted == {}


async def test_one_that_woke_is_awake_though_it_cannot_be_written_down(world: World, logs: list[Any]) -> None:
    await world.put_to_sleep()
    file = world.folder / sleeping.FILE
    file.unlink()
    file.mkdir()
    await world.wake_up()
    assert world.state() == ""
    assert events(logs) == ["model.asleep", "sleep.unsaved", "model.awake"]


GOOD = {"model": MODEL, "application": APP, "answer": "x", "main_memory": 5, "since": 7.0}


@pytest.mark.parametrize(
    ("text", "asleep"),
    [
        ("", set()),
        ("[1, 2]", set()),
        ("[" * 100_000, set()),
        ('{"slept": 5, "demoted": {"a": 1}}', set()),
        (json.dumps({"slept": [None, [], {"model": 1}, GOOD], "demoted": ["x"]}), {APP}),
        (json.dumps({"slept": [GOOD | {"since": float("nan")}, GOOD | {"application": "b"}]}), {"b"}),
        (json.dumps({"slept": [GOOD | {"main_memory": -1}]}), set()),
        (json.dumps({"slept": [GOOD | {"since": None}]}), set()),
    ],
)
def test_a_damaged_file_costs_what_is_damaged(tmp_path: Path, text: str, asleep: set[str]) -> None:
    (tmp_path / sleeping.FILE).write_text(text)

    async def never(*_: str) -> Any:
        raise AssertionError

    assert Sleeping(tmp_path, cast("EngineCalls", None), never, never).asleep == asleep


def test_making_one_writes_nothing(tmp_path: Path) -> None:
    async def never(*_: str) -> Any:
        raise AssertionError

    Sleeping(tmp_path, cast("EngineCalls", None), never, never).forget(there=["a"], wanted=["b"])
    assert list(tmp_path.iterdir()) == []
