"""Three models on room for two, through a day of crowds, crashes, a broken model and an operator's hands.

The tests of this file stand in an order: each starts from where the one before left the system.
"""

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from asking import Answer, RoundRobin, ask, ask_all, failures, order, status_of
from stack import LOAD_SECONDS, Stack, running_stack, second_edge

MINUTES = float(os.environ.get("RECONCILE_E2E_MINUTES", "1"))
"""How long the round robin goes on."""

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800 + MINUTES * 60)]

A, B, C = MODELS = ("a", "b", "c")
CONTEXT = 8192
LONGER = 8000
"""Tokens of a stream that outlasts what happens meanwhile; one has some 300 in a second."""


def model_file(stack: Stack, name: str, *, stay: str = "10s", idle: str = "30m", weights: str = "long") -> str:
    """A model on demand that takes a whole GPU."""
    return (
        f"name: {name}\n"
        f"source: {{path: {stack.state / weights}}}\n"
        f"engine: {{max_model_len: {CONTEXT}, kv_cache_memory_gib: 0.25, args: {{enforce_eager: true}}}}\n"
        "resources: {accelerator: gpu}\n"
        f"lifecycle: {{policy: on_demand, min_stay: {stay}, idle_timeout: {idle}}}\n"
    )


def _prepare(stack: Stack) -> None:
    stack.environment |= {"RECONCILE_RAY_ARGS": "--num-gpus=2", "RECONCILE_MAX_LOADS": "1"}
    stack.models.mkdir(parents=True)
    for unused in ("tiny-chat", "all-minilm-l6-v2"):
        # In place of the demo's files, so that only the demo's weights are made.
        text = "source: {repo: unused/unused}\nlifecycle: {policy: manual}\n"
        (stack.models / f"{unused}.yaml").write_text(text)


def _make_weights(stack: Stack, name: str, **config: Any) -> None:
    """The demo's chat model for longer answers, with another configuration."""
    folder = stack.state / name
    shutil.copytree(stack.state / "demo" / "weights" / "tiny-chat", folder)
    original = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(original | {"max_position_embeddings": CONTEXT} | config))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two GPUs that Ray counts, three models on demand, one load at a time."""
    with running_stack(tmp_path_factory.mktemp("residency"), prepare=_prepare) as running:
        running.wait_for(lambda: running.events("reconcile.settled"), "it has looked around", 120)
        _make_weights(running, "long")
        for name in MODELS:
            running.write(name, model_file(running, name))
        running.wait_settled()
        yield running


@pytest.fixture(scope="module")
def node2(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A second edge, as on another node: its URL and its state directory."""
    folder = tmp_path_factory.mktemp("node2")
    with second_edge(stack, folder) as url:
        stack.wait_for(lambda: stack.events("edge.joined"), "the second edge reports")
        yield url, folder


async def test_a_herd_for_one_cold_model_causes_one_load(stack: Stack) -> None:
    """500 requests at once, a part of them streams: one load, and every one is answered in full."""
    answers = [Answer(A, 8) for _ in range(500)]
    streams = answers[:250]
    herd = asyncio.create_task(ask_all(stack.url, answers, streams=len(streams)))
    seen: set[tuple[str, bool]] = set()
    applications: set[str] = set()
    while not herd.done():
        state, reason = await status_of(stack.url, A)
        seen.add((state, bool(reason)))
        applications |= {name for name in (await stack.serve_instance())["applications"] if name.startswith("a-")}
        await asyncio.sleep(0.5)
    await herd

    assert failures(answers) == []
    assert len(_started(stack, A)) == 1
    assert applications == {_started(stack, A)[0]["application"]}
    assert ("loading", True) in seen, "/v1/models did not say that it loads, and how far it is"
    assert (await status_of(stack.url, A))[0] == "loaded"
    # All arrive while the model loads, so all wait, and a stream hears of it.
    assert all(stream.comments for stream in streams)
    said = {comment for stream in streams for comment in stream.comments}
    assert any(comment.startswith("loading: ") and comment.endswith(" of 500") for comment in said), said


async def test_a_broken_model_tells_why_and_leaves_the_others_alone(stack: Stack) -> None:
    """Who waits for it gets vLLM's own reason, who comes later too, at once; the others answer all the while."""
    _make_weights(stack, "broken", rope_parameters={"rope_type": "nonsense"})
    others = RoundRobin([stack.url], [[A]], tokens=24)
    stack.write("broken", model_file(stack, "broken", weights="broken"))
    await asyncio.to_thread(stack.wait_settled)
    waiters = [Answer("broken", 8) for _ in range(6)]
    await ask_all(stack.url, waiters, streams=3)
    (failed,) = [event for event in stack.events("model.failed") if event["model"] == "broken"]
    assert "nonsense" in failed["reason"], "the reason is vLLM's own"
    # A stream whose comments have begun has its error in an event.
    assert {waiter.status for waiter in waiters[3:]} == {503}
    assert all(waiter.error.startswith("model_failed: ") for waiter in waiters), waiters
    assert all("nonsense" in waiter.error for waiter in waiters), waiters
    assert all(waiter.comments for waiter in waiters[:3])

    later = [Answer("broken", 8) for _ in range(10)]
    await ask_all(stack.url, later, streams=5)
    assert {answer.status for answer in later} == {503}
    assert all("nonsense" in answer.error for answer in later), later
    assert max(answer.seconds for answer in later) < 5
    assert (await status_of(stack.url, "broken"))[0] == "failed"
    assert len(_started(stack, "broken")) == 1, "a request had it tried again"

    await others.stop()
    assert failures(others.answers) == []
    assert len(others.answers) > 3
    (stack.models / "broken.yaml").unlink()


async def test_waiters_survive_a_killed_reconciler(stack: Stack) -> None:
    """`kill -9` during a load with 20 waiters: the next reconciler takes over the load, and all are answered."""
    waiters = [Answer(B, 8) for _ in range(20)]
    waiting = asyncio.create_task(ask_all(stack.url, waiters, streams=0))
    await _until(stack, lambda: _started(stack, B), "the load begins")
    await asyncio.to_thread(stack.kill_reconciler)
    assert not any(waiter.ended for waiter in waiters), "it was killed too late"
    await asyncio.to_thread(stack.start_reconciler)
    await waiting
    assert failures(waiters) == []
    assert len(_started(stack, B)) == 1, "loaded twice"
    ours = {name for name in (await stack.serve_instance())["applications"] if name[1] == "-"}
    assert {name[0] for name in ours} == {A, B}
    assert len(ours) == 2


async def test_an_unload_waits_for_a_running_stream(stack: Stack) -> None:
    """The stream ends in full, the processes are gone with it, and who came meanwhile is answered after a load."""
    loaded = await asyncio.to_thread(stack.reconcile, "load", A)
    assert (loaded.returncode, loaded.stdout.splitlines()[0]) == (0, "a is loaded."), loaded
    processes = _processes((await asyncio.to_thread(stack.status))[A]["pids"])
    stopped = len(_of(stack, "traffic.stopped", A))
    stream = Answer(A, LONGER)
    streaming = asyncio.create_task(ask(stack.url, stream, stream=True))
    await _until(stack, lambda: stream.chunks or stream.ended, "the stream begins")
    unloading = asyncio.create_task(asyncio.to_thread(stack.reconcile, "unload", A))
    await _until(stack, lambda: len(_of(stack, "traffic.stopped", A)) > stopped, "it takes no more requests")
    late = Answer(A, 8)
    waiting = asyncio.create_task(ask(stack.url, late, stream=True))
    await streaming
    assert stream.is_full, stream
    unloaded = await unloading
    assert unloaded.returncode == 0, unloaded
    await _until(stack, lambda: not _alive(processes), "its processes are gone", 30)
    await waiting
    assert late.is_full, late


async def test_two_edges_agree(stack: Stack, node2: tuple[str, Path]) -> None:
    """What is loaded answers on both; a stream through the other one keeps its model; then both lose it."""
    url, folder = node2
    hot = Answer(A, 8)
    await ask(url, hot, stream=False)
    assert hot.is_full, hot
    assert await _routes(stack, folder) == await _routes(stack)
    stopped, removed = len(_of(stack, "traffic.stopped", A)), len(_of(stack, "model.remove", A))
    stream = Answer(A, LONGER)
    streaming = asyncio.create_task(ask(url, stream, stream=True))
    await _until(stack, lambda: stream.chunks or stream.ended, "the stream begins")
    assert await order(url, "unload", A) == {"success": True}
    await _until(stack, lambda: len(_of(stack, "traffic.stopped", A)) > stopped, "it takes no more requests")
    assert A not in await _routes(stack)
    assert A not in await _routes(stack, folder)
    await streaming
    assert stream.is_full, stream
    await _until(stack, lambda: len(_of(stack, "model.remove", A)) > removed, "it is removed", 60)


async def test_three_models_share_room_for_two(stack: Stack) -> None:
    """Round robin with streams of several seconds: every request is answered in full.

    No model is ever up twice, and no more of the GPUs is given away than there is. The full length is ten minutes
    (RECONCILE_E2E_MINUTES=10).
    """
    before = {model: len(_started(stack, model)) for model in MODELS}
    room = asyncio.create_task(_watch_room(stack))
    # One for each model, and one that goes from model to model.
    clients = RoundRobin([stack.url], [*([model] for model in MODELS), MODELS], tokens=450)
    await asyncio.sleep(MINUTES * 60)
    await clients.stop()
    room.cancel()
    seen = await room

    assert failures(clients.answers) == []
    for model in MODELS:
        assert [answer for answer in clients.answers if answer.model == model], model
    assert sum(len(_started(stack, model)) - before[model] for model in MODELS) > 1, "nobody took turns"
    assert seen["twice"] == []
    assert seen["most shares"] <= 2.0
    assert seen["most of Ray"] <= 2.0


async def _watch_room(stack: Stack) -> dict[str, Any]:
    """Look every half second until cancelled; gives what was seen."""
    seen: dict[str, Any] = {"looks": 0, "twice": [], "most shares": 0.0, "most of Ray": 0.0}
    try:
        while True:
            apps = (await stack.serve_instance())["applications"]
            shares = {name: share for name, app in apps.items() if (share := _share(app))}
            models = [name.rsplit("-", 1)[0] for name in shares]
            seen["twice"] += [name for name in shares if models.count(name.rsplit("-", 1)[0]) > 1]
            seen["most shares"] = max(seen["most shares"], sum(shares.values()))
            seen["most of Ray"] = max(seen["most of Ray"], await stack.gpus_used())
            seen["looks"] += 1
            await asyncio.sleep(0.5)
    except asyncio.CancelledError:
        return seen


def _share(app: dict[str, Any]) -> float:
    """GPUs of an application that has engines, in whatever state: each takes a whole one here."""
    servers = (item for name, item in app["deployments"].items() if name.startswith("LLMServer"))
    return float(sum(len(server["replicas"]) for server in servers))


async def _routes(stack: Stack, folder: Path | None = None) -> dict[str, str]:
    """Model to application, by the edge with that state directory; None: the first one."""
    arguments = ["edge", "status", "--output", "json", *(["--state-dir", str(folder)] if folder else [])]
    said = await asyncio.to_thread(stack.reconcile, *arguments)
    routes: dict[str, str] = json.loads(said.stdout)["routes"]
    return routes


def _of(stack: Stack, event: str, model: str) -> list[dict[str, Any]]:
    return [each for each in stack.events(event) if each["model"] == model]


def _started(stack: Stack, model: str) -> list[dict[str, Any]]:
    return _of(stack, "model.start", model)


def _processes(pids: list[int]) -> list[psutil.Process]:
    """The replicas' processes, and those of their engines."""
    replicas = [psutil.Process(pid) for pid in pids]
    assert replicas
    return [*replicas, *(child for replica in replicas for child in replica.children(recursive=True))]


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running()]


async def _until(stack: Stack, condition: Callable[[], object], what: str, seconds: float = LOAD_SECONDS) -> None:
    """`Stack.wait_for`, while requests go on."""
    await asyncio.to_thread(stack.wait_for, condition, what, seconds)
