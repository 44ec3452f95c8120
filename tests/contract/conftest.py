"""The two subjects of the contract: the simulator's fake Serve, and a real Ray that the tests start and end."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from simulation.fake_serve import BUILD, REPLICA, FakeServe

from reconciler.core.application import MODEL_ENV
from reconciler.core.state import Json
from reconciler.ray_serve.client import ServeClient

from . import serve_apps

HERE = Path(__file__).parent
RAY_UP_SECONDS, RAY_DOWN_SECONDS = 60.0, 3.0


@dataclass
class FakeSubject:
    """The fake, by a clock that passes when it is told to."""

    now: float = 0.0
    serve: FakeServe = field(init=False)

    def __post_init__(self) -> None:
        self.serve = FakeServe(lambda: self.now, gpus=1)

    def application(self, name: str, kind: str = "well", **more: object) -> Json:
        faults = {"no build": BUILD, "no replica": REPLICA}
        if kind in faults:
            self.serve.faults[name] = faults[kind]
        gpus = 99 if kind == "no room" else 0
        llm = {
            "runtime_env": {"env_vars": {MODEL_ENV: name}},
            "placement_group_config": {"bundle_per_worker": {"GPU": gpus}},
            "engine_kwargs": {},
        }
        args = {"kind": kind, "llm_configs": [llm], **more}
        return {"name": name, "route_prefix": f"/{name}", "import_path": "serve_apps:build", "args": args}

    def builds(self, name: str) -> int:
        return self.serve.builds[name]

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.serve.progress()

    async def run_by_hand(self, name: str) -> None:
        self.serve.add(name, None, imperative=True)

    async def kill_controller(self) -> None:
        self.serve.restart_controller()


@dataclass
class RealSubject:
    """Ray Serve, by the client that the reconciler has."""

    serve: ServeClient
    folder: Path
    environment: dict[str, str]
    address: str

    def application(self, name: str, kind: str = "well", **more: object) -> Json:
        args = {"kind": kind, "log": str(self._log(name)), **more}
        return {"name": name, "route_prefix": f"/{name}", "import_path": "serve_apps:build", "args": args}

    def builds(self, name: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return len(self._log(name).read_text().splitlines())
        return 0

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def run_by_hand(self, name: str) -> None:
        script = [sys.executable, serve_apps.__file__, self.address, name, str(self._log(name))]
        process = await asyncio.create_subprocess_exec(*script, env=self.environment, cwd=self.folder)
        assert await process.wait() == 0

    async def kill_controller(self) -> None:
        (row,) = [row for row in await self.serve.actors() if row["class_name"] == "ServeController"]
        os.kill(row["pid"], signal.SIGKILL)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.builds"


@dataclass(frozen=True)
class Ray:
    """A Ray that runs."""

    folder: Path
    token_path: Path
    dashboard: str
    address: str
    environment: dict[str, str]


@pytest.fixture
def fake() -> FakeSubject:
    return FakeSubject()


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    """A head on loopback, on free ports, with token authentication: as `start.sh` has it, without HAProxy."""
    folder = tmp_path_factory.mktemp("ray")
    # Not in pytest's own folder: the path of a socket may have 107 bytes, and Ray's are long.
    sockets = Path(tempfile.mkdtemp(prefix="ray-"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard, agent, client = _free_ports(4)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RECONCILE_", "RAY_"))}
    environment = {
        **clean,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(HERE),
    }
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"),
        *("--num-cpus=4", "--num-gpus=1", "--object-store-memory=80000000", f"--temp-dir={sockets}"),
    ]
    log = (folder / "ray.log").open("wb")
    head = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for_port(dashboard, head, folder / "ray.log")
        url = f"http://127.0.0.1:{dashboard}"
        yield Ray(folder, token, url, f"127.0.0.1:{port}", environment)
    finally:
        _end_session(head)
        log.close()
        shutil.rmtree(sockets, ignore_errors=True)


@pytest.fixture
async def real(ray: Ray) -> AsyncIterator[RealSubject]:
    # Ray's dashboard loads its part for Serve when it is asked the first time.
    async with ServeClient(ray.dashboard, ray.token_path, timeout=60.0) as serve:
        yield RealSubject(serve, ray.folder, ray.environment, ray.address)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for_port(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + RAY_UP_SECONDS
    while time.monotonic() < deadline and head.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise AssertionError(f"Ray did not come up:\n{log.read_text(errors='replace')[-2000:]}")


def _end_session(head: subprocess.Popen[bytes]) -> None:
    """End everything that our `ray start` has started, and nothing else: they share its session."""
    for kill, patience in ((signal.SIGTERM, RAY_DOWN_SECONDS), (signal.SIGKILL, RAY_DOWN_SECONDS)):
        for pid in _of_session(head.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, kill)
        deadline = time.monotonic() + patience
        while _of_session(head.pid) and time.monotonic() < deadline:
            head.poll()
            time.sleep(0.1)


def _of_session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # A process may end between the list and the look.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(int(entry.name)) == session:
                    found.append(int(entry.name))
    return found
