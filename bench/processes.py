"""Processes of an engine: found with everything they started, and watched until they are gone."""

import contextlib
import time
from collections.abc import Collection

import psutil

from bench.machine import BenchError

POLL_SECONDS = 0.02
_SPARE_WORKER = "ray::IDLE"


def family(*pids: int) -> set[psutil.Process]:
    """These processes and all that descend from them."""
    found: set[psutil.Process] = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(pid)
            found |= {parent, *parent.children(recursive=True)}
    return found


def with_environment(variable: str, value: str) -> set[psutil.Process]:
    """Our user's processes that have this variable in their environment, Ray's spare workers left out.

    Ray keeps a worker that it has no work for, with the environment it was started for; it holds no model.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(variable) == value and process.name() != _SPARE_WORKER:
                found.add(process)
    return found


def wait_gone(processes: Collection[psutil.Process], *, seconds: float) -> None:
    """Return when none of them is left.

    A zombie holds no memory and counts as gone; so does what turned out to be one of Ray's spare workers.

    Raises:
        BenchError: Some stayed.
    """
    deadline = time.monotonic() + seconds
    while left := [process for process in processes if _is_there(process)]:
        if time.monotonic() > deadline:
            raise BenchError(f"still there after {seconds:.0f} s: {', '.join(map(str, left))}")
        time.sleep(POLL_SECONDS)


def _is_there(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return (
            process.is_running() and process.status() != psutil.STATUS_ZOMBIE and process.name() != _SPARE_WORKER
        )
    return False
