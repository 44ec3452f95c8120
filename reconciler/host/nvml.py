"""The GPUs of this machine through NVML -> `core.devices.Reading`, which the observer turns into `Device`s.

Reading is cheap (1.3 ms for an H100 with two processes) and takes no GPU memory, but it asks the driver, and a
driver in trouble answers late or never: every call here can then hang in the kernel, most of all `nvmlInit` and
those that take a handle of a GPU that fell off the bus; no timeout or signal ends that. `Gpus` therefore reads in
a thread of its own.
"""

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from reconciler.core.devices import Process, Reading, visible_devices
from reconciler.core.fit.gpus import cuda_total

_PROC = Path("/proc")
_ANCESTORS = 64
_OURS = ("ray::", "VLLM::", "RayWorker")
_BROKEN = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)


class Gpus:
    """This machine's GPUs, read whenever somebody asks.

    NVML stays open between two looks, because without a client the driver may put a GPU to sleep, and waking it
    takes seconds. While a GPU is failed it is closed after each look: a GPU that somebody has open cannot be
    reset.

    Args:
        visible: `CUDA_VISIBLE_DEVICES` as Ray's processes on this machine see it; None where it is not set.
        patience: Seconds to wait for the driver.
        is_rays: Says whether a process is one of Ray's; None where nobody can tell.
    """

    def __init__(
        self,
        visible: str | None,
        *,
        patience: float = 10.0,
        is_rays: Callable[[int], bool | None] | None = None,
    ) -> None:
        self._visible = visible
        self._patience = patience
        self._is_rays = is_rays or process_is_rays
        self._open = False
        self._last: tuple[Reading, ...] = ()
        self._look = threading.Thread()
        self._since = 0.0

    def readings(self) -> tuple[Reading, ...]:
        """The GPUs that Ray may use here, in CUDA's order; empty where there is no GPU or no driver.

        Blocks for `patience` seconds at most. A driver that does not answer by then fails all GPUs that were
        known, at once, until the look comes back that is under way. Never raises. Not for several threads at a
        time.
        """
        if not self._look.is_alive():
            self._since = time.monotonic()
            self._look = threading.Thread(target=self._read, name="nvml", daemon=True)
            self._look.start()
        self._look.join(max(0.0, self._since + self._patience - time.monotonic()))
        if not self._look.is_alive():
            return self._last
        waited = time.monotonic() - self._since
        reason = f"its driver has not answered for {waited:.0f} s: reboot the machine if that stays so"
        return tuple(dataclasses.replace(each, failed=reason) for each in self._last)

    def _read(self) -> None:
        found: tuple[Reading, ...] = ()
        try:
            if not self._open:
                pynvml.nvmlInit()
                self._open = True
            gpus = [_parts_of(index) for index in range(pynvml.nvmlDeviceGetCount())]
            chosen = visible_devices(self._visible, [[part.names for part in parts] for parts in gpus])
            found = tuple(_reading(gpus[gpu][number], self._is_rays) for gpu, number in chosen)
        except pynvml.NVMLError:
            self._close()  # No driver, or another one than a moment ago.
        finally:
            self._last = found
        if any(each.failed for each in found):
            self._close()

    def _close(self) -> None:
        try:
            if self._open:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            pass  # There is nothing left to close.
        self._open = False


def process_is_rays(pid: int, proc: Path = _PROC) -> bool | None:
    """Whether a process was started by a raylet of this machine, or by something that was.

    An engine whose parent died has lost its raylet, but not its name (`ray::...`, `VLLM::...`). None where there
    is no such process to be seen here, because it is gone, somebody else's under `hidepid`, or in another
    container.
    """
    current = pid
    for _ in range(_ANCESTORS):
        try:
            # "1234 (name) S 1 ...", and a name may itself hold spaces and brackets.
            head, _, rest = (proc / str(current) / "stat").read_text(errors="replace").rpartition(")")
            name, parent = head.partition("(")[2], int(rest.split()[1])
            title = (proc / str(current) / "cmdline").read_bytes() if current == pid else b""
        except (OSError, ValueError, IndexError):
            return None if current == pid else False
        if name == "raylet" or name.startswith(_OURS) or title.startswith(tuple(map(str.encode, _OURS))):
            return True
        if parent <= 0:
            break
        current = parent
    return False


@dataclass(frozen=True, slots=True)
class _Part:
    """What CUDA counts as one device: a GPU, or an instance of one where MIG is on.

    Attributes:
        index: As Ray numbers them: that of `nvidia-smi`, for an instance 1000 times that and its own.
        gpu: The number of the GPU it is or belongs to.
        handle: NVML's of itself; None where there is none to be had.
        names: Those by which `CUDA_VISIBLE_DEVICES` may call it; none where they could not be read.
    """

    index: int
    gpu: int
    handle: Any = None
    names: tuple[str, ...] = ()
    title: str = ""
    failed: str = ""


def _parts_of(gpu: int) -> list[_Part]:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(gpu)
        uuid, title = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
        whole = _Part(gpu, gpu, handle, (uuid,), title)
        mode = _optional(pynvml.nvmlDeviceGetMigMode, handle)
        if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return [whole]
        instances = [
            part
            for number in range(_optional(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0)
            if (part := _instance(whole, number)) is not None
        ]
        # Whoever names the GPU gets its first instance.
        instances[:1] = [dataclasses.replace(part, names=(*part.names, uuid)) for part in instances[:1]]
    except pynvml.NVMLError as error:
        return [_Part(gpu, gpu, failed=_cannot_be_read(error))]
    reason = f"MIG is on, but it has no instances: make some, or run `nvidia-smi -i {gpu} -mig 0`"
    return instances or [dataclasses.replace(whole, failed=reason)]


def _instance(whole: _Part, number: int) -> _Part | None:
    handle = _optional(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, whole.handle, number)
    if handle is None:
        return None
    uuid = pynvml.nvmlDeviceGetUUID(handle)
    group, compute = (
        _optional(pynvml.nvmlDeviceGetGpuInstanceId, handle),
        _optional(pynvml.nvmlDeviceGetComputeInstanceId, handle),
    )
    names = (uuid, f"MIG-{whole.names[0]}/{group}/{compute}")
    return _Part(whole.gpu * 1000 + number, whole.gpu, handle, names, pynvml.nvmlDeviceGetName(handle))


def _reading(part: _Part, is_rays: Callable[[int], bool | None]) -> Reading:
    blank = Reading(part.index, next(iter(part.names), ""), part.title, failed=part.failed)
    if part.failed:
        return blank
    try:
        total, used = _memory(part.handle)
        processes = tuple(Process(memory, is_rays(pid)) for pid, memory in _processes(part.handle).items())
        failed = _failure(part.gpu)
    except pynvml.NVMLError as error:
        return dataclasses.replace(blank, failed=_cannot_be_read(error))
    return dataclasses.replace(blank, total=total, used=used, processes=processes, failed=failed)


def _memory(handle: Any) -> tuple[int, int]:  # noqa: ANN401 -- NVML's handle
    """Bytes that CUDA can have in all, and those of them in use; zeros where NVML does not say (unified memory).

    Version 2 gives apart what driver and firmware reserve (`nvmlMemory_v2_t.reserved`), and the rest is what CUDA
    says it has, to the byte: on an H100 85520809984 - 503316480 = `torch.cuda.mem_get_info()[1]`. Version 1, of
    older drivers, counts that as used.
    """
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if memory is not None:
        return memory.total - memory.reserved, memory.used
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError_NotSupported:
        return 0, 0
    total = cuda_total(memory.total)
    return total, max(0, memory.used - (memory.total - total))


def _processes(handle: Any) -> dict[int, int]:  # noqa: ANN401 -- NVML's handle
    """Bytes by process; 0 where the driver does not say, as some do in containers."""
    found: dict[int, int] = {}
    for call in (
        pynvml.nvmlDeviceGetComputeRunningProcesses,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses,
        pynvml.nvmlDeviceGetMPSComputeRunningProcesses,
    ):
        # One that computes and draws is in both lists, with the same bytes.
        for process in _optional(call, handle) or ():
            found[process.pid] = max(found.get(process.pid, 0), process.usedGpuMemory or 0)
    return found


_ACTIONS = {
    pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET: "stop what uses it and run `nvidia-smi --gpu-reset -i {}`",
    pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: "reboot the machine",
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P: (
        "stop all that moves data between GPUs, switch persistence mode off and look at `nvidia-smi -q -i {}`"
    ),
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: (
        "part of it is switched off; let what runs on it finish, then run `nvidia-smi --gpu-reset -i {}`"
    ),
}


def _failure(gpu: int) -> str:
    """Why a GPU that can be read should get no new work; empty where nothing speaks against it.

    Uncorrectable memory errors alone do not: the program that met one is ended, the page is taken out of use, and
    "additional workloads can be launched on this GPU without requiring a GPU reset" (NVIDIA GPU Memory Error
    Management, "Response to Uncorrectable Contained ECC Errors"), while their count stays until the driver is
    loaded anew. Whether it took harm, newer drivers say themselves (the recovery action, "Error Recovery and
    Response Flags" there); with NONE, "the GPU can be immediately used again", also while a row waits to be
    remapped. Older drivers do not, so there what waits for a reset counts: without containment (GA10x, Ada,
    Turing) the bad memory is in use until then.
    """
    handle = pynvml.nvmlDeviceGetHandleByIndex(gpu)
    rows = _optional(pynvml.nvmlDeviceGetRemappedRows, handle)  # Corrected, uncorrected, pending, failed.
    action = _recovery_action(handle)
    if action:
        remedy = _ACTIONS.get(action, "look at `nvidia-smi -q -i {}`, GPU Recovery Action").format(gpu)
        return f"its driver asks for help{_errors(handle)}: {remedy}"
    if rows is not None and rows[3]:
        return f"bad memory in it could not be replaced by spare rows{_errors(handle)}: have the GPU replaced"
    if action is None and rows is not None and rows[2]:
        remedy = _ACTIONS[pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET].format(gpu)
        return f"bad memory in it is replaced at the next reset only{_errors(handle)}: {remedy}"
    if action is None and _optional(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle):
        return f"bad memory in it is retired at the next start only{_errors(handle)}: reboot the machine"
    return ""


def _recovery_action(handle: Any) -> int | None:  # noqa: ANN401 -- NVML's handle
    fields = _optional(pynvml.nvmlDeviceGetFieldValues, handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    if not fields or fields[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    return int(fields[0].value.uiVal)


def _errors(handle: Any) -> str:  # noqa: ANN401 -- NVML's handle
    kind, since = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    count = _optional(pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, since)
    return f" ({count} uncorrectable memory errors since the driver was loaded)" if count else ""


def _cannot_be_read(error: Exception) -> str:
    remedy = {
        pynvml.NVML_ERROR_GPU_IS_LOST: "it fell off the bus. Reboot the machine; replace it if it is lost again",
        pynvml.NVML_ERROR_RESET_REQUIRED: "stop what uses it and reset it (`nvidia-smi --gpu-reset`)",
    }.get(getattr(error, "value", None), "look at `nvidia-smi -q` and the kernel's log (Xid)")
    return f"it cannot be read ({error}): {remedy}"


def _optional(call: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 -- NVML has no types
    """What a call gives that not every GPU, driver or user can make; None where it cannot be made."""
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if error.value in _BROKEN:
            raise
        return None
