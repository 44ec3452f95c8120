"""The real stack as a person starts it (start.sh, Ray, vLLM, HAProxy, the reconciler), and a person's hands."""

import asyncio
import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp

REPOSITORY = Path(__file__).resolve().parents[2]
LOAD_SECONDS = 420.0
"""How long a load may take here before a test gives up: two cores are shared by everything."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now.

    They are below those that the kernel gives away by itself: Ray's workers take many of these at any time, and
    one of them may be a port that is meant for a part of a stack which comes up a moment later.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            each = stack.enter_context(socket.socket())
            port = random.randint(12_000, 31_000)
            with contextlib.suppress(OSError):
                each.bind(("127.0.0.1", port))
                found.append(port)
    return found


class Stack:
    """One running system in a folder of its own, on ports of its own, beside whatever else runs here."""

    def __init__(self, folder: Path, *, hub_url: str = "") -> None:
        names = (
            "RAY_PORT", "DASHBOARD_PORT", "RAY_AGENT_PORT", "RAY_CLIENT_PORT", "HAPROXY_STATS_PORT",
            "HAPROXY_METRICS_PORT", "FALLBACK_PORT", "SERVE_PORT", "LISTEN_PORT", "ACTIVATOR_PORT",
            "API_PORT",
        )  # fmt: skip
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.folder = folder
        self.state = folder / "state"
        self.models = self.state / "demo" / "models.d"
        self.log = folder / "reconciler.log"
        self.url = f"http://127.0.0.1:{ports['LISTEN_PORT']}/v1"
        self.page_url = f"http://127.0.0.1:{ports['API_PORT']}/"
        self.dashboard = f"http://127.0.0.1:{ports['DASHBOARD_PORT']}"
        self.ports = ports
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RECONCILE_", "RAY_", "HF_"))}
        self.environment = {
            **clean,
            **{f"RECONCILE_{name}": str(port) for name, port in ports.items()},
            "RECONCILE_STATE_DIR": str(self.state),
            "RECONCILE_RAY_ARGS": "--num-gpus=1",
            "RECONCILE_SIMULATE_GPUS": "1",
            "RECONCILE_CPU_THREADS": "1",
            "RECONCILE_MAX_LOADS": "2",
            "HF_HOME": str(folder / "hf"),
            "RECONCILE_REVISION_CHECK_INTERVAL": "3",
            **({"HF_ENDPOINT": hub_url} if hub_url else {"HF_HUB_OFFLINE": "1"}),
            # For the foreign application, which Ray imports by name.
            "PYTHONPATH": str(Path(__file__).parent),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._settled_before = 0

    # --- starting and stopping ----------------------------------------------------------------------------

    def start(self) -> None:
        """`./start.sh --demo`, in the background; returns when the reconciler's process is there."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [REPOSITORY / "start.sh", "--cpu", "--demo"],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_for(lambda: self.reconciler_pid() is not None, "the reconciler starts", 180)

    def reconciler_pid(self) -> int | None:
        """The reconciler that runs here, by its lock file."""
        try:
            pid = int((self.state / "reconciler.pid").read_text() or 0)
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid or None

    def kill_reconciler(self) -> None:
        """`kill -9`, as a crash does."""
        pid = self.reconciler_pid()
        assert pid is not None, "no reconciler to kill"
        os.kill(pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait(timeout=30)

    def start_reconciler(self) -> None:
        """The reconciler alone, as a service manager would restart it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [REPOSITORY / ".venv" / "bin" / "reconcile", "--watch"],
                env=self.settings(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def die_at(self, step: str, when: str) -> None:
        """Have the reconciler, which does not run now, run until it dies at a step; see `dying`."""
        program = Path(__file__).parent / "dying.py"
        with self.log.open("ab") as log:
            process = subprocess.run(
                [REPOSITORY / ".venv" / "bin" / "python", program, step, when],
                env=self.settings(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=LOAD_SECONDS,
                check=False,
            )
        assert process.returncode == -signal.SIGKILL, f"it never came to {when} {step}"

    def stop(self) -> None:
        """`./start.sh --stop`."""
        # Its words are not for the output of whoever uses a stack: a benchmark prints JSON there.
        command = [str(REPOSITORY / "start.sh"), "--stop"]
        subprocess.run(command, env=self.environment, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def settings(self) -> dict[str, str]:
        """The environment that `source .reconcile/env` gives a person."""
        lines = (self.state / "env").read_text().splitlines()
        exported = [line.removeprefix("export ").split("=", 1) for line in lines]
        chosen = {key: shlex.split(value)[0] for key, value in exported if key != "PATH"}
        path = f"{REPOSITORY / '.venv' / 'bin'}:{self.environment['PATH']}"
        return {**self.environment, **chosen, "PATH": path}

    # --- a person's commands ------------------------------------------------------------------------------

    def reconcile(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run `reconcile`, with `RECONCILE_*` variables of its own; the caller looks at the exit code."""
        return subprocess.run(
            [REPOSITORY / ".venv" / "bin" / "reconcile", *arguments],
            env=self.settings() | {f"RECONCILE_{name}": value for name, value in settings.items()},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=LOAD_SECONDS * 2,
        )

    def plan(self, edits: dict[str, str | None] | None = None, **settings: str) -> tuple[dict[str, Any], int]:
        """What a dry run says, and its exit code.

        Args:
            edits: Files to change (None: to delete) in a copy of the model files: the plan before the edit,
                which the reconciler that watches would carry out at once.
            settings: `RECONCILE_*` variables of the dry run.
        """
        arguments = ["--dry-run", "--detailed-exitcode", "--output", "json"]
        if edits is not None:
            copy = self.folder / "preview" / self.models.name
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(self.models, copy)
            for name, text in edits.items():
                if text is None:
                    (copy / f"{name}.yaml").unlink()
                else:
                    (copy / f"{name}.yaml").write_text(text)
            arguments += ["--models-dir", str(copy)]
        result = self.reconcile(*arguments, **settings)
        assert result.stdout, result.stderr
        plan: dict[str, Any] = json.loads(result.stdout)["plan"]
        return plan, result.returncode

    def planned(self, edits: dict[str, str | None] | None = None) -> dict[str, str]:
        """Model to action, as a dry run announces."""
        return {change["model"]: change["action"] for change in self.plan(edits)[0]["changes"]}

    def status(self) -> dict[str, dict[str, Any]]:
        """`reconcile status`, by model."""
        result = self.reconcile("status", "--output", "json")
        assert result.stdout, result.stderr
        return {row["model"]: row for row in json.loads(result.stdout)["models"]}

    def write(self, name: str, text: str) -> None:
        """Save a model file as a careful editor does: a temporary file, then a rename."""
        self._settled_before = len(self.events("reconcile.settled"))
        temporary = self.models / f".{name}.tmp"
        temporary.write_text(text)
        temporary.rename(self.models / f"{name}.yaml")

    # --- looking ------------------------------------------------------------------------------------------

    async def serve_instance(self) -> dict[str, Any]:
        """Serve's own description of itself, asked past the reconciler."""
        token = (self.state / "ray-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{self.dashboard}/api/serve/applications/") as answer,
        ):
            instance: dict[str, Any] = await answer.json(content_type=None)
            return instance

    def wait_starts(self, number: int, what: str) -> None:
        """Wait for a number of starts, each handed to Serve: the log says so before it is done."""

        def handed_over() -> bool:
            starts = self.events("model.start")
            return len(starts) >= number and (
                starts[-1]["application"] in asyncio.run(self.serve_instance())["applications"]
            )

        self.wait_for(handed_over, what)

    async def gpus_used(self) -> float:
        """How many GPUs Ray has given away. Ray's own account of it may be some seconds old."""
        token = (self.state / "ray-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{self.dashboard}/api/cluster_status") as answer,
        ):
            report = (await answer.json())["data"]["clusterStatus"]["loadMetricsReport"]
        return float(report["usage"]["GPU"][0])

    def events(self, name: str) -> list[dict[str, Any]]:
        """The reconciler's log lines of one event, in order."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and f'"event": "{name}"' in line]

    def wait_settled(self) -> None:
        """Wait until the reconciler has settled since the last `write`."""
        # By the log, not by asking `reconcile status` again and again: that would take the core the load needs.
        self.wait_for(
            lambda: len(self.events("reconcile.settled")) > self._settled_before,
            "settled",
            LOAD_SECONDS,
            pause=0.5,
        )

    def wait_loaded(self, *models: str) -> None:
        """Wait until the reconciler has settled since the last `write`; then these are loaded and in sync."""
        self.wait_settled()
        rows = self.status()
        states = {model: (rows[model]["state"], rows[model]["sync"]) for model in models}
        assert set(states.values()) == {("loaded", "in sync")}, states

    def wait_for(
        self, condition: Callable[[], object], what: str, seconds: float = 60.0, *, pause: float = 0.2
    ) -> None:
        """Poll until `condition` holds; the reconciler's log is the message when it does not."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])
                raise AssertionError(f"not within {seconds:.0f} s: {what}\n{tail}")
            time.sleep(pause)


@contextlib.contextmanager
def running_stack(
    folder: Path, *, hub_url: str = "", prepare: Callable[[Stack], None] = lambda _: None
) -> Iterator[Stack]:
    """A started stack; everything it started is gone afterwards.

    Args:
        folder: Where it lives.
        hub_url: Its hub; without one it has none.
        prepare: Called before the start.
    """
    stack = Stack(folder, hub_url=hub_url)
    prepare(stack)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@contextlib.contextmanager
def second_edge(stack: Stack, folder: Path) -> Iterator[str]:
    """`reconcile edge follow`, as on another node: in a folder of its own. Gives its URL.

    Args:
        stack: Whose edge it is.
        folder: The other node's state directory; it exists.
    """
    (port,) = free_ports(1)
    of, token = f"http://127.0.0.1:{stack.ports['ACTIVATOR_PORT']}", str(stack.state / "edge-token")
    program = REPOSITORY / ".venv" / "bin" / "reconcile"
    here = ["--listen-port", str(port), "--state-dir", str(folder)]
    with (folder / "follow.log").open("ab") as log:
        process = subprocess.Popen(
            [program, "edge", "follow", "--of", of, "--token", token, "--name", "node2", *here],
            env=stack.settings(),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)
        # Its edge goes on serving, as it should, until it is told to stop.
        subprocess.run(
            [program, "edge", "stop", "--state-dir", str(folder)],
            env=stack.settings(),
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )
