"""The memory on GPUs that an application's processes hold, from the driver and Ray's list of actors."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pynvml

from reconciler.core.sleep import engine_processes
from reconciler.core.state import Json

_DRIVER_SECONDS = 10.0
_ANCESTORS = 64


class EngineMemory:
    """The memory on GPUs that an application's processes hold, as this machine's driver counts it.

    Args:
        actors: The actors that are alive, as Ray's state API describes them in detail.
        by_process: Bytes on all GPUs of this machine by process number; may hang.
        proc: Where the kernel tells of processes.
    """

    def __init__(
        self,
        actors: Callable[[], Awaitable[list[Json]]],
        *,
        by_process: Callable[[], Mapping[int, int]] | None = None,
        proc: Path = Path("/proc"),
    ) -> None:
        self._actors = actors
        self._by_process = by_process or gpu_memory_by_process
        self._proc = proc

    async def held(self, application: str) -> int | None:
        """Bytes of an application's replicas, their engines' workers, and what those started.

        None where nobody can tell: some of them are on another machine, or the driver does not answer, or knows
        none of them (in a container), or does not say how much each has.
        """
        nodes = engine_processes(await self._actors(), application)
        processes = {pid for pids in nodes.values() for pid in pids}
        if not all(self._is_here(pid, node) for node, pids in nodes.items() for pid in pids):
            return None
        found = await _in_a_thread(self._by_process, _DRIVER_SECONDS)
        return sum(size for pid, size in (found or {}).items() if processes & {pid, *self._ancestors(pid)}) or None

    def _is_here(self, pid: int, node: str) -> bool:
        # Workers are children of their raylet, which says on its command line which node it is.
        parent = next(self._ancestors(pid), 0)
        with contextlib.suppress(OSError):
            return f"--node_id={node}".encode() in (self._proc / str(parent) / "cmdline").read_bytes().split(b"\0")
        return False

    def _ancestors(self, pid: int) -> Iterator[int]:
        for _ in range(_ANCESTORS):
            try:
                # "1234 (name) S 1 ...", and a name may itself hold spaces and brackets.
                stat = (self._proc / str(pid) / "stat").read_text(errors="replace")
                pid = int(stat.rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                return
            yield pid


def gpu_memory_by_process() -> dict[int, int]:
    """Bytes on all GPUs of this machine by process number; those of whom the driver does not say count 0.

    Raises:
        pynvml.NVMLError: There is no driver, or it is in trouble. It may also never come back.
    """
    found: dict[int, int] = {}
    pynvml.nvmlInit()
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            for handle in _handles(pynvml.nvmlDeviceGetHandleByIndex(index)):
                for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                    found[process.pid] = found.get(process.pid, 0) + (process.usedGpuMemory or 0)
    finally:
        # It counts its users; `host.nvml` is another.
        pynvml.nvmlShutdown()
    return found


def _handles(gpu: Any) -> Iterator[Any]:  # noqa: ANN401 -- NVML's handle
    """A GPU's own, or those of its instances where MIG is on."""
    try:
        divided = pynvml.nvmlDeviceGetMigMode(gpu)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    except pynvml.NVMLError_NotSupported:
        divided = False
    if not divided:
        yield gpu
        return
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        with contextlib.suppress(pynvml.NVMLError_NotFound):
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)


async def _in_a_thread(read: Callable[[], Mapping[int, int]], seconds: float) -> Mapping[int, int] | None:
    """What a read gives, that may hang for ever; None then, or when it fails. Its thread keeps no process up."""
    loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def give(found: Mapping[int, int] | None) -> None:
        if not answer.done():
            answer.set_result(found)

    def work() -> None:
        found = None
        with contextlib.suppress(pynvml.NVMLError):
            found = read()
        with contextlib.suppress(RuntimeError):  # The loop is closed; nobody waits any more.
            loop.call_soon_threadsafe(give, found)

    threading.Thread(target=work, name="nvml-processes", daemon=True).start()
    try:
        return await asyncio.wait_for(answer, seconds)
    except TimeoutError:
        return None
