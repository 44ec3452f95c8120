"""The worker that waits for Serve's next build: exactly one, and whatever fails only leaves none."""

import asyncio
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
import structlog.testing
from aiohttp import web
from aiohttp.test_utils import TestServer

from reconciler.core.fast_start import BUILD_ENVIRONMENT, CALLBACK, HOOK_ENV, REPLICA_HOOK, SPARE_HOOK
from reconciler.ray_serve import spare
from reconciler.ray_serve.client import ServeClient
from reconciler.ray_serve.warm_build import KEEP_SECONDS, NotWarmedError, WarmBuild, prestart, spares

RUN = "0123abcd"
GIB = 2**30
HEAD = {"nodeManagerAddress": "127.0.0.1", "nodeManagerPort": 77}
grpc: Any = importlib.import_module("grpc") if importlib.util.find_spec("grpc") else None
needs_grpc = pytest.mark.skipif(grpc is None, reason="gRPC comes with Ray, which is not installed")
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


# --- the call to the raylet -------------------------------------------------------------------------------


class Raylet:
    """A gRPC server with the one method; keeps what it was sent, and answers `status`."""

    def __init__(self, status: Any = None) -> None:
        self.status = status
        self.requests: list[bytes] = []
        self.tokens: list[str] = []
        self._server = grpc.server(ThreadPoolExecutor(1))
        handler = grpc.unary_unary_rpc_method_handler(self._answer)
        methods = grpc.method_handlers_generic_handler("ray.rpc.NodeManagerService", {"PrestartWorkers": handler})
        self._server.add_generic_rpc_handlers((methods,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def _answer(self, request: bytes, context: Any) -> bytes:
        self.requests.append(request)
        self.tokens += [value for key, value in context.invocation_metadata() if key == "authorization"]
        if self.status is not None:
            context.abort(self.status, "no such thing")
        return b""

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()


@needs_ray
async def test_ray_reads_in_the_request_what_is_meant_and_knows_the_environment_again() -> None:
    from ray._private.utils import get_runtime_env_info
    from ray.core.generated import node_manager_pb2
    from ray.runtime_env import RuntimeEnv

    with Raylet() as raylet:
        await prestart(raylet.address, "secret", BUILD_ENVIRONMENT, KEEP_SECONDS)
    request = node_manager_pb2.PrestartWorkersRequest.FromString(raylet.requests[0])
    assert request.num_workers == 1
    assert request.keep_alive_duration_secs == KEEP_SECONDS
    assert not request.HasField("job_id")
    # What Serve makes of the application's environment for its build task: Ray compares the text.
    assert request.runtime_env_info == get_runtime_env_info(RuntimeEnv(**BUILD_ENVIRONMENT), serialize=False)
    assert raylet.tokens == ["Bearer secret"]


@needs_grpc
@pytest.mark.parametrize("status", ["UNIMPLEMENTED", "UNAUTHENTICATED", "INTERNAL"])
async def test_a_raylet_that_says_no(status: str) -> None:
    with Raylet(getattr(grpc.StatusCode, status)) as raylet, pytest.raises(NotWarmedError, match=status):
        await prestart(raylet.address, "", BUILD_ENVIRONMENT, 1)
    assert raylet.tokens == []


@needs_grpc
async def test_no_raylet() -> None:
    with Raylet() as raylet:
        gone = raylet.address
    with pytest.raises(NotWarmedError, match="UNAVAILABLE"):
        await prestart(gone, "", BUILD_ENVIRONMENT, 1)


# --- who is a spare ---------------------------------------------------------------------------------------


def process(proc: Path, pid: int, title: str, **changed: str | None) -> None:
    environ = {"RECONCILE_RAY_RUN": RUN, HOOK_ENV: SPARE_HOOK, "RAY_JOB_ID": "ffffffff", "PATH": "/bin", **changed}
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes(title.encode() + b"\0" * 9)
    (folder / "environ").write_bytes(b"".join(f"{k}={v}\0".encode() for k, v in environ.items() if v is not None))


def test_who_waits_for_a_build(tmp_path: Path) -> None:
    process(tmp_path, 10, "ray::IDLE")
    process(tmp_path, 11, "/venv/bin/python\0/site-packages/ray/_private/workers/default_worker.py")
    process(tmp_path, 20, "ray::build_serve_application")
    process(tmp_path, 21, "ray::ServeReplica:a:LLMRouter")
    process(tmp_path, 22, "ray::IDLE", RECONCILE_RAY_RUN="another")
    process(tmp_path, 23, "ray::IDLE", RAY_JOB_ID="01000000")
    process(tmp_path, 24, "ray::IDLE", **{HOOK_ENV: None})
    process(tmp_path, 25, "ray::IDLE", **{HOOK_ENV: REPLICA_HOOK})
    (tmp_path / "26").mkdir()
    (tmp_path / "sys").mkdir()
    process(tmp_path, 27, "")
    (tmp_path / "27" / "cmdline").write_bytes(b"")
    assert spares(RUN, tmp_path) == [10, 11]


def test_a_real_process_is_found_and_is_gone_when_it_ends() -> None:
    run = f"test-{os.getpid()}"
    environ = {**os.environ, "RECONCILE_RAY_RUN": run, HOOK_ENV: SPARE_HOOK, "RAY_JOB_ID": "ffffffff"}
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert spares(run) == [child.pid]
        child.kill()
    assert spares(run) == []


# --- keeping one ------------------------------------------------------------------------------------------


@dataclass
class World:
    """Ray's dashboard, the processes and the clock, as `WarmBuild` sees them."""

    started: list[tuple[str, str, Any, int]] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)
    rises: bool = True
    error: Exception | None = None
    free: int | None = 8 * GIB
    now: float = 1000.0
    head: dict[str, Any] = field(default_factory=lambda: {**HEAD})
    warm: WarmBuild = field(init=False)
    close_dashboard: Callable[[], Awaitable[None]] = field(init=False)
    make: Callable[[bool], WarmBuild] = field(init=False)

    async def ensure(self, *applications: str) -> None:
        self.warm.ensure(applications)
        task = self.warm._task
        assert task is not None
        await task

    async def start(self, address: str, token: str, environment: Any, seconds: int) -> None:
        if self.error is not None:
            raise self.error
        self.started.append((address, token, environment, seconds))
        if self.rises:
            self.alive.append(len(self.started))

    def end(self, pid: int) -> None:
        self.alive.remove(pid)

    def find(self, run: str) -> list[int]:
        assert run
        return list(self.alive)

    async def nodes(self, _: web.Request) -> web.Response:
        rows = [{"node_id": "w", "state": "ALIVE"}, {"node_id": "h", "state": "ALIVE", "is_head_node": True}]
        return web.json_response({"data": {"result": {"result": rows}}})

    async def details(self, _: web.Request) -> web.Response:
        return web.json_response({"data": {"detail": {"raylet": self.head}}})


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World()
    app = web.Application()
    app.router.add_get("/api/v0/nodes", world.nodes)
    app.router.add_get("/nodes/h", world.details)
    token, run_file = tmp_path / "token", tmp_path / "run-id"
    token.write_text("secret\n")
    run_file.write_text(RUN + "\n")
    async with TestServer(app) as server, ServeClient(str(server.make_url("")), token) as client:
        world.close_dashboard = server.close
        world.make = lambda wanted: WarmBuild(
            client,
            token,
            run_file,
            wanted=wanted,
            start=world.start,
            find=world.find,
            end=world.end,
            free=lambda: world.free,
            clock=lambda: world.now,
            rise_seconds=0.0,
        )
        world.warm = world.make(True)
        yield world
        await world.warm.close()


async def test_one_is_started_at_the_heads_raylet(world: World) -> None:
    await world.ensure()
    assert world.started == [("127.0.0.1:77", "secret", BUILD_ENVIRONMENT, KEEP_SECONDS)]


async def test_never_a_second_while_one_waits(world: World) -> None:
    world.alive.append(99)  # From before we were started.
    for applications in ((), ("a",), ("a", "b")):
        await world.ensure(*applications)
    world.now += 1e6
    await world.ensure("c")
    assert world.started == []


async def test_calls_at_the_same_time_start_one(world: World) -> None:
    world.warm.ensure(["a"])
    task = world.warm._task
    world.warm.ensure(["a", "b"])
    assert world.warm._task is task
    await world.ensure()
    assert len(world.started) == 1


async def test_what_a_build_has_used_is_replaced(world: World) -> None:
    await world.ensure("a")
    for count, names in ((2, ("a", "b")), (3, ("a", "b", "c"))):
        world.alive.clear()
        await world.ensure(*names)
        assert len(world.started) == count


async def test_a_model_that_went_and_comes_again_has_used_it(world: World) -> None:
    await world.ensure("a")
    await world.ensure()
    world.alive.clear()
    await world.ensure("a")
    assert len(world.started) == 2


async def test_what_was_built_before_one_waited_has_not_used_it(world: World) -> None:
    await world.ensure("a")
    await world.ensure("a", "b")
    world.alive.clear()
    await world.ensure("a", "b")
    assert len(world.started) == 1


async def test_of_several_one_stays(world: World) -> None:
    world.alive += [7, 8, 9]
    await world.ensure()
    assert world.alive == [7]
    assert world.started == []


async def test_where_none_is_wanted_what_was_left_behind_is_ended_once(world: World, tmp_path: Path) -> None:
    await world.ensure()
    world.warm = world.make(False)
    await world.ensure()
    assert world.alive == []
    world.alive.append(5)
    await world.ensure("a")
    assert world.alive == [5]
    assert len(world.started) == 1
    (tmp_path / "run-id").unlink()
    world.warm = world.make(False)
    with structlog.testing.capture_logs() as logs:
        await world.ensure()
    assert logs == []


async def test_one_that_nobody_has_used_and_is_gone_is_not_replaced_at_once(world: World) -> None:
    await world.ensure("a")
    for _ in range(10):
        world.alive.clear()
        world.now += 50
        await world.ensure("a")
    assert len(world.started) == 1
    world.now += 150
    await world.ensure("a")
    assert len(world.started) == 2


async def test_another_ray_has_no_spare_yet(world: World, tmp_path: Path) -> None:
    await world.ensure("a")
    world.alive.clear()
    (tmp_path / "run-id").write_text("another\n")
    await world.ensure("a")
    assert len(world.started) == 2


@pytest.mark.parametrize("free", [None, 0, 4 * GIB - 1])
async def test_none_while_main_memory_is_short(world: World, free: int | None) -> None:
    world.free = free
    with structlog.testing.capture_logs() as logs:
        await world.ensure("a")
    assert world.started == []
    assert logs == []
    world.free = 4 * GIB
    await world.ensure("a")
    assert len(world.started) == 1


async def test_one_is_ended_when_main_memory_gets_short_but_not_by_what_it_takes_itself(world: World) -> None:
    world.free = 4 * GIB
    await world.ensure("a")
    world.free = 4 * GIB - 7 * GIB // 10
    await world.ensure("a")
    assert len(world.alive) == 1
    world.free = 3 * GIB - 1
    await world.ensure("a")
    assert world.alive == []
    assert len(world.started) == 1


async def test_a_failure_is_said_once_and_tried_again(world: World) -> None:
    world.error = NotWarmedError("no")
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            await world.ensure("a")
            world.now += 1000
        world.error = RuntimeError()  # Nothing that anybody has foreseen.
        await world.ensure("a")
    assert [(row["event"], row["reason"], row["log_level"]) for row in logs] == [
        ("build.not_warmed", "no", "warning"),
        ("build.not_warmed", "RuntimeError", "warning"),
    ]
    world.error = None
    world.now += 1000
    await world.ensure("a")
    assert len(world.started) == 1


async def test_failures_do_not_pile_up_attempts(world: World) -> None:
    world.rises = False
    with structlog.testing.capture_logs() as logs:
        for _ in range(50):
            await world.ensure("a")
            world.now += 10
    assert len(world.started) == 1
    assert [row["event"] for row in logs] == ["build.not_warmed"]


@pytest.mark.parametrize("head", [{}, {"nodeManagerPort": 7}, {"nodeManagerAddress": "127.0.0.1"}])
async def test_a_dashboard_that_says_nothing(world: World, head: dict[str, Any]) -> None:
    world.head = head
    with structlog.testing.capture_logs() as logs:
        await world.ensure()
    assert world.started == []
    assert "does not say" in logs[0]["reason"]


async def test_a_dashboard_that_is_gone(world: World) -> None:
    await world.close_dashboard()
    with structlog.testing.capture_logs() as logs:
        await world.ensure()
    assert world.started == []
    assert "does not answer" in logs[0]["reason"]


async def test_a_ray_that_was_not_started_here(world: World, tmp_path: Path) -> None:
    (tmp_path / "run-id").unlink()
    with structlog.testing.capture_logs() as logs:
        await world.ensure()
        await world.ensure()
    assert world.started == []
    assert len(logs) == 1


async def test_closing_gives_up_what_is_under_way(world: World) -> None:
    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    world.warm._start = hang
    world.warm.ensure([])
    await asyncio.sleep(0)
    await asyncio.wait_for(world.warm.close(), 5)
    assert world.warm._task is not None
    assert world.warm._task.cancelled()


# --- what runs inside Ray ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("job", "imports"), [("ffffffff", True), (None, True), ("01000000", False)])
def test_only_a_spare_imports_beforehand(monkeypatch: pytest.MonkeyPatch, job: str | None, imports: bool) -> None:
    asked: list[str] = []

    def fail(name: str) -> None:
        asked.append(name)
        raise RuntimeError("a worker whose hook fails is lost")

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.delenv("RAY_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("RAY_JOB_ID", job)
    spare.preload()
    assert asked == (["ray.serve.llm"] if imports else [])


@needs_ray
def test_ray_finds_the_hook_and_the_callback_by_their_names() -> None:
    from ray._common.utils import load_class
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

    assert WORKER_PROCESS_SETUP_HOOK_ENV_VAR == HOOK_ENV
    assert load_class(SPARE_HOOK) is spare.preload
    module, name = CALLBACK["callback_class"].split(":")
    assert (module, name) == ("reconciler.ray_serve.skip_node_init", "SkipNodeInit")


@needs_ray
def test_vllms_ray_executor_may_connect_with_a_replicas_environment() -> None:
    # It calls this with what Ray Serve LLM gave the replica, and an error ends the engine.
    from ray._private.runtime_env.setup_hook import upload_worker_process_setup_hook_if_needed as check

    def environment(hook: str) -> dict[str, Any]:
        return {"worker_process_setup_hook": REPLICA_HOOK, "env_vars": {HOOK_ENV: hook}}

    assert check(environment(REPLICA_HOOK), None) == environment(REPLICA_HOOK)
    with pytest.raises(RuntimeError, match="Conflicting"):
        check(environment(SPARE_HOOK), None)


@needs_ray
async def test_the_callback_skips_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reconciler.ray_serve.skip_node_init import SkipNodeInit

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    callback = SkipNodeInit(llm_config=None, ctx_kwargs={"placement_group": "group"})
    assert callback.ctx.run_init_node
    await callback.run_callback("on_before_node_init")
    assert not callback.ctx.run_init_node
    assert callback.ctx.placement_group == "group"
    assert (tmp_path / "kernels").is_dir()
