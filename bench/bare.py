"""Bare vLLM: its own server, told the same as the engine under Ray Serve, in an environment without ours."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bench.machine import BenchError
from bench.ours import Engine
from bench.processes import family, wait_gone

_NOT_PASSED_ON = ("RECONCILE_", "RAY_", "HF_", "PYTHONDONTWRITEBYTECODE")
_STOP_SECONDS = 60.0


def command(engine: Engine, model: str, port: int) -> list[str]:
    """The command line that runs `engine` without Ray."""
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", engine.source, "--served-model-name", model),
        *("--host", "127.0.0.1", "--port", str(port)),
        # Ray Serve runs vLLM's web application without uvicorn's log of requests.
        "--disable-uvicorn-access-log",
        *(word for name, value in sorted(engine.arguments.items()) for word in _option(name, value)),
    ]


def environment(engine: Engine) -> dict[str, str]:
    """What the engine under Ray Serve has in its environment, as far as vLLM looks at it."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(_NOT_PASSED_ON)}
    path = f"{Path(sys.executable).parent}:{clean.get('PATH', os.defpath)}"  # vLLM calls ninja by name
    return {**clean, "PATH": path, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", **engine.variables}


class BareVllm:
    """One running server."""

    def __init__(self, engine: Engine, model: str, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._log = log
        with log.open("ab") as output:
            self.started_at = time.time()
            self._process = subprocess.Popen(
                command(engine, model, self.port),
                env=environment(engine),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The server's first process."""
        return self._process.pid

    def check(self) -> None:
        """See that it still runs.

        Raises:
            BenchError: It ended; with the end of its log.
        """
        if self._process.poll() is not None:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
            raise BenchError(f"bare vLLM ended with exit code {self._process.returncode}:\n{tail}")

    def stop(self) -> float:
        """SIGTERM; gives the seconds until none of its processes was left."""
        processes = family(self._process.pid)
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            wait_gone(processes, seconds=_STOP_SECONDS)
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()
        return time.monotonic() - began


@contextlib.contextmanager
def bare_vllm(engine: Engine, model: str, log: Path) -> Iterator[BareVllm]:
    """A server that ends with the block, if it was not stopped before."""
    server = BareVllm(engine, model, log)
    try:
        yield server
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            server.stop()


def _option(name: str, value: Any) -> list[str]:
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{words}" if value else f"--no-{words}"]
    return [f"--{words}", value if isinstance(value, str) else json.dumps(value)]
