"""The GPUs of this machine: what NVML says, whose memory it is, and what an ill GPU or driver does to us."""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from reconciler.core.devices import Process, Reading, devices, visible_devices
from reconciler.core.fit.gpus import GIB, MIB, cuda_total
from reconciler.host import nvml
from reconciler.host.nvml import Gpus, process_is_rays
from reconciler.host.well import visible

H100 = 85_520_809_984  # As an H100 of 80 GB says, with 503316480 of it reserved.
RESERVED = 503_316_480
CUDA_HAS = 85_017_493_504  # As torch.cuda.mem_get_info says of the same one.
LOST, NOT_SUPPORTED, UNKNOWN, RESET = 15, 3, 999, 16


@dataclass(eq=False)
class FakeGpu:
    """One GPU. `errors`: the error's number by the end of the call's name that fails with it."""

    uuid: str = "GPU-aaaa1111"
    name: str = "NVIDIA H100 80GB HBM3"
    total: int = H100
    used: int = 0
    processes: dict[int, int | None] = field(default_factory=dict)
    graphics: dict[int, int | None] = field(default_factory=dict)
    remapped: tuple[int, int, int, int] = (0, 0, 0, 0)
    retired: int = 0
    action: int | None = 0
    ecc: int = 0
    mig: list["FakeGpu"] | None = None
    errors: dict[str, int] = field(default_factory=dict)


def _memory(gpu: FakeGpu, version: int = 0) -> Any:
    if not version:
        return SimpleNamespace(total=gpu.total, used=gpu.used + RESERVED)
    if "MemoryInfo_v2" in gpu.errors:
        raise pynvml.NVMLError(gpu.errors["MemoryInfo_v2"])
    return SimpleNamespace(total=gpu.total, reserved=RESERVED, used=gpu.used)


def _instance(gpu: FakeGpu, index: int) -> FakeGpu:
    if gpu.mig is None or index >= len(gpu.mig):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
    return gpu.mig[index]


def _processes(found: dict[int, int | None]) -> list[Any]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in found.items()]


def _fields(gpu: FakeGpu, fields: list[int]) -> list[Any]:
    assert fields == [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
    status = NOT_SUPPORTED if gpu.action is None else 0
    return [SimpleNamespace(nvmlReturn=status, value=SimpleNamespace(uiVal=gpu.action or 0))]


ANSWERS: dict[str, Callable[..., Any]] = {
    "HandleByIndex": lambda gpu: gpu,
    "UUID": lambda gpu: gpu.uuid,
    "Name": lambda gpu: gpu.name,
    "MemoryInfo": _memory,
    "ComputeRunningProcesses": lambda gpu: _processes(gpu.processes),
    "GraphicsRunningProcesses": lambda gpu: _processes(gpu.graphics),
    "MPSComputeRunningProcesses": lambda gpu: [],
    "RemappedRows": lambda gpu: gpu.remapped,
    "RetiredPagesPendingStatus": lambda gpu: gpu.retired,
    "TotalEccErrors": lambda gpu, kind, since: gpu.ecc,
    "FieldValues": _fields,
    "MigMode": lambda gpu: [int(gpu.mig is not None)] * 2,
    "MaxMigDeviceCount": lambda gpu: 7,
    "MigDeviceHandleByIndex": _instance,
    "GpuInstanceId": lambda gpu: 9,
    "ComputeInstanceId": lambda gpu: 0,
    # Ray's reporter asks for these too.
    "UtilizationRates": lambda gpu: SimpleNamespace(gpu=7),
    "ProcessesUtilizationInfo": lambda gpu, since: [],
    "PowerUsage": lambda gpu: 70_000,
    "Temperature": lambda gpu, sensor: 40,
}


class FakeNvml:
    """NVML with faults on demand; its constants and errors are the real ones'."""

    def __init__(self, *gpus: FakeGpu, error: int = 0) -> None:
        self.gpus = gpus
        self.error = error
        self.opened = 0
        self.gate = threading.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        call = name.removeprefix("nvmlDeviceGet")
        if name == call or call not in ANSWERS:
            return getattr(pynvml, name)

        def ask(gpu: Any, *arguments: Any) -> Any:
            gpu = self.gpus[gpu] if isinstance(gpu, int) else gpu
            if call in gpu.errors:
                raise pynvml.NVMLError(gpu.errors[call])
            return ANSWERS[call](gpu, *arguments)

        return ask

    def nvmlInit(self) -> None:  # noqa: N802 -- NVML's names
        self._answer()
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._answer()
        return len(self.gpus)

    def _answer(self) -> None:
        self.gate.wait(60)
        if self.error:
            raise pynvml.NVMLError(self.error)


RAYS, OTHER, HIDDEN = 10, 20, 30
OWNERS = {RAYS: True, OTHER: False, HIDDEN: None}


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Any:
    def start(*gpus: FakeGpu, visible: str | None = None, error: int = 0, patience: float = 10.0) -> Any:
        fake = FakeNvml(*gpus, error=error)
        monkeypatch.setattr(nvml, "pynvml", fake)
        return fake, Gpus(visible, patience=patience, is_rays=OWNERS.get)

    return start


def test_what_ray_may_be_given_is_all_but_what_failed(look: Any) -> None:
    well, ill = FakeGpu(uuid="GPU-1"), FakeGpu(uuid="GPU-2", errors={"MemoryInfo": LOST, "MemoryInfo_v2": LOST})
    assert visible(look(well, ill)[1].readings()) == "GPU-1"
    # Where all are well nothing has to be said, and without any that is well Ray can be given none.
    assert visible(look(well)[1].readings()) == visible(look(ill)[1].readings()) == ""
    assert visible(()) == ""


# --- memory -------------------------------------------------------------------------------------------------


def test_the_total_is_what_cuda_can_have_and_what_others_use_is_told_apart(look: Any) -> None:
    gpu = FakeGpu(used=40 * GIB, processes={RAYS: 30 * GIB, OTHER: 10 * GIB})
    (reading,) = look(gpu)[1].readings()
    assert (reading.total, reading.used) == (CUDA_HAS, 40 * GIB)
    (device,) = devices([reading], promised=True)
    assert (device.index, device.uuid, device.name, device.failed) == (0, gpu.uuid, gpu.name, "")
    assert (device.total, device.foreign) == (CUDA_HAS, 10 * GIB)


def test_an_old_driver_tells_less_and_it_is_near_enough(look: Any) -> None:
    """Without version 2 of the call, what is reserved is guessed; an idle GPU has nothing foreign for that."""
    (reading,) = look(FakeGpu(errors={"MemoryInfo_v2": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}))[1].readings()
    assert reading.total == cuda_total(H100)
    assert CUDA_HAS - 16 * MIB < reading.total <= CUDA_HAS
    assert devices([reading], promised=False)[0].foreign == 0


def test_memory_that_is_the_machines_is_no_fault(look: Any) -> None:
    """A GB10 has no memory of its own, and its driver says so."""
    (reading,) = look(FakeGpu(errors={"MemoryInfo": NOT_SUPPORTED}))[1].readings()
    assert (reading.total, reading.used, reading.failed) == (0, 0, "")


def test_a_process_that_computes_and_draws_counts_once(look: Any) -> None:
    (reading,) = look(FakeGpu(used=2 * GIB, processes={OTHER: 2 * GIB}, graphics={OTHER: 2 * GIB}))[1].readings()
    assert reading.processes == (Process(2 * GIB, rays=False),)


GPU_TABLE = [
    # processes, used, promised -> foreign; in GiB
    pytest.param({}, 0, True, 0, id="idle"),
    pytest.param({}, 0.4, False, 0, id="the driver's own is nobody's"),
    pytest.param({OTHER: 5}, 5, True, 5, id="somebody else's, whatever Ray was promised"),
    pytest.param({RAYS: 60}, 60, True, 0, id="all Ray's"),
    pytest.param({}, 30, True, 0, id="nothing to be seen, and it may be Ray's"),
    pytest.param({}, 30, False, 30, id="nothing to be seen, and Ray has nothing there"),
    pytest.param({HIDDEN: 30}, 30, True, 0, id="another namespace's numbers, and one may be Ray's"),
    pytest.param({HIDDEN: 30}, 30, False, 30, id="another namespace's numbers, and none is Ray's"),
    pytest.param({RAYS: 20, HIDDEN: 30}, 50, True, 30, id="Ray's are seen, so this is another container's"),
    pytest.param({RAYS: 20}, 50, True, 30, id="Ray's are seen, so what is nobody's is another container's"),
    pytest.param({RAYS: 0}, 50, True, 0, id="Ray's, with no amount"),
    pytest.param({OTHER: 0}, 50, True, 50, id="somebody else's, with no amount"),
    pytest.param({RAYS: 0, OTHER: 5}, 50, True, 5, id="both, one of them with no amount"),
    pytest.param({RAYS: 30, OTHER: 30}, 50, True, 30, id="shared memory is counted for both, and not below zero"),
]


@pytest.mark.parametrize(("processes", "used", "promised", "foreign"), GPU_TABLE)
def test_whose_memory_it_is(processes: dict[int, int], used: float, promised: bool, foreign: int) -> None:
    found = tuple(Process(size * GIB, OWNERS[pid]) for pid, size in processes.items())
    (device,) = devices([Reading(0, total=CUDA_HAS, used=int(used * GIB), processes=found)], promised=promised)
    assert device.foreign == foreign * GIB


def test_one_process_of_rays_shows_that_all_of_them_would_be_seen() -> None:
    first = Reading(0, used=20 * GIB, processes=(Process(20 * GIB, rays=True),))
    second = Reading(1, used=10 * GIB)
    assert [each.foreign for each in devices([first, second], promised=True)] == [0, 10 * GIB]


# --- faults -------------------------------------------------------------------------------------------------

WELL: dict[str, Any] = {"ecc": 3, "remapped": (1, 2, 0, 0)}
FAULTS = [
    pytest.param(WELL, "", id="past errors harm no future work"),
    pytest.param({"remapped": (0, 1, 1, 0)}, "", id="a row waits, and the driver says the GPU can be used"),
    pytest.param({"action": None}, "", id="an old driver, and nothing wrong"),
    pytest.param({"action": None, "ecc": 3}, "", id="an old driver, and past errors"),
    pytest.param({"action": 1, "ecc": 2}, r"\(2 uncorrectable memory errors.*gpu-reset -i 0", id="reset"),
    pytest.param({"action": 2}, "asks for help: reboot the machine$", id="reboot"),
    pytest.param({"action": 3}, "moves data between GPUs.*nvidia-smi -q -i 0", id="drain peers"),
    pytest.param(
        {"action": 4, "remapped": (0, 1, 1, 0)}, "finish, then run .*gpu-reset -i 0", id="drain and reset"
    ),
    pytest.param({"action": 42}, "nvidia-smi -q -i 0", id="an action nobody knows yet"),
    pytest.param({"remapped": (0, 9, 0, 1)}, "spare rows: have the GPU replaced", id="no rows left"),
    pytest.param(
        {"action": None, "remapped": (0, 1, 1, 0)}, "next reset only: .*gpu-reset -i 0", id="a row waits"
    ),
    pytest.param({"action": None, "retired": 1}, "next start only: reboot", id="a page waits"),
    pytest.param({"errors": {"HandleByIndex": LOST}}, "GPU is lost.*Reboot.*replace", id="lost"),
    pytest.param({"errors": {"HandleByIndex": UNKNOWN}}, "Unknown Error.*kernel's log", id="no handle"),
    pytest.param({"errors": {"UUID": LOST}}, "GPU is lost", id="lost a moment later"),
    pytest.param({"errors": {"MemoryInfo": UNKNOWN}}, "Unknown Error", id="no memory"),
    pytest.param({"errors": {"RemappedRows": LOST}}, "GPU is lost", id="lost in a call that may fail otherwise"),
    pytest.param({"errors": {"ComputeRunningProcesses": RESET}}, "cannot be read.*gpu-reset", id="reset required"),
]


@pytest.mark.parametrize(("state", "says"), FAULTS)
def test_a_gpu_that_is_ill_says_what_is_wrong_and_what_to_do(state: dict[str, Any], says: str, look: Any) -> None:
    sick, well = FakeGpu(**state), FakeGpu("GPU-bbbb2222")
    first, second = devices(look(sick, well)[1].readings(), promised=False)
    assert second.failed == ""
    assert second.total == CUDA_HAS
    assert first.index == 0
    assert re.search(says, first.failed) if says else first.failed == ""


OPTIONAL = (
    "MigMode RemappedRows RetiredPagesPendingStatus FieldValues TotalEccErrors ComputeRunningProcesses "
    "GraphicsRunningProcesses MPSComputeRunningProcesses MemoryInfo_v2"
).split()


@pytest.mark.parametrize("error", [NOT_SUPPORTED, UNKNOWN, pynvml.NVML_ERROR_NO_PERMISSION])
def test_a_gpu_that_has_none_of_the_extras_is_well(error: int, look: Any) -> None:
    gpu = FakeGpu(used=GIB, processes={OTHER: GIB}, ecc=9, action=1, errors=dict.fromkeys(OPTIONAL, error))
    (device,) = devices(look(gpu)[1].readings(), promised=True)
    assert (device.failed, device.foreign, device.total) == ("", 0, cuda_total(H100))


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_no_driver_no_gpus(error: int, look: Any) -> None:
    fake, gpus = look(FakeGpu(), error=error)
    assert gpus.readings() == ()
    fake.error = 0  # It is installed while we run.
    assert len(gpus.readings()) == 1


def test_a_driver_that_is_loaded_anew_is_asked_anew(look: Any) -> None:
    fake, gpus = look(FakeGpu())
    assert len(gpus.readings()) == len(gpus.readings()) == fake.opened == 1
    fake.error = pynvml.NVML_ERROR_UNINITIALIZED
    assert gpus.readings() == ()
    assert fake.opened == 0
    fake.error = 0
    assert len(gpus.readings()) == fake.opened == 1


def test_a_failed_gpu_can_be_reset_while_we_run(look: Any) -> None:
    """`nvidia-smi --gpu-reset` refuses a GPU that somebody has open."""
    fake, gpus = look(FakeGpu(action=1))
    assert gpus.readings()[0].failed
    assert fake.opened == 0
    fake.gpus[0].action = 0
    assert not gpus.readings()[0].failed
    assert fake.opened == 1


def test_a_driver_that_hangs_stops_nobody(look: Any) -> None:
    fake, gpus = look(FakeGpu(), FakeGpu("GPU-bbbb2222"), patience=0.2)
    fake.gate.clear()
    assert gpus.readings() == ()
    fake.gate.set()
    while not gpus.readings() or gpus.readings()[0].failed:
        time.sleep(0.01)
    fake.gate.clear()
    assert all("has not answered for 0 s: reboot" in reading.failed for reading in gpus.readings())
    begun = time.monotonic()
    for _ in range(20):
        first, second = gpus.readings()
    assert time.monotonic() - begun < 2, "each look waits again"
    assert (first.uuid, second.uuid, first.total) == ("GPU-aaaa1111", "GPU-bbbb2222", CUDA_HAS)
    assert sum(thread.name == "nvml" for thread in threading.enumerate()) == 1
    fake.gate.set()
    while any(reading.failed for reading in gpus.readings()):
        time.sleep(0.01)


def test_this_machine_can_be_asked() -> None:
    """With the real NVML, where there is one: a few milliseconds, and no exception whatever there is."""
    gpus = Gpus(None)
    first = gpus.readings()
    begun = time.monotonic()
    assert [each.uuid for each in gpus.readings()] == [each.uuid for each in first]
    assert time.monotonic() - begun < 5
    assert all(device.total > 0 and device.foreign <= device.total for device in devices(first, promised=False))


# --- CUDA_VISIBLE_DEVICES -----------------------------------------------------------------------------------

FOUR = [[("GPU-aaaa1111",)], [("GPU-aaaa2222",)], [("GPU-bbbb3333",)], [("GPU-cccc4444",)]]
VISIBLE = [
    (None, [0, 1, 2, 3]),
    ("", []),
    ("NoDevFiles", []),
    ("none", []),
    ("-1", []),
    ("0", [0]),
    ("2,1", [2, 1]),
    (" 3 , 0 ", [3, 0]),
    ("0,2,-1,1", [0, 2]),
    ("0,9,1", [0]),
    ("0,x,1", [0]),
    ("0,,1", [0]),
    ("1,1,0", [1, 0]),
    ("999999999999999999999999", []),
    ("٢", []),
    ("GPU-bbbb3333", [2]),
    ("GPU-c", [3]),
    ("GPU-aaaa2,GPU-b,0", [1, 2, 0]),
    ("GPU-aaaa", []),
    ("0,GPU-aaaa,1", [0]),
    ("bbbb3333", []),
    ("MIG-1", []),
]


@pytest.mark.parametrize(("wanted", "expected"), VISIBLE)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(wanted: str | None, expected: list[int]) -> None:
    assert visible_devices(wanted, FOUR) == [(gpu, 0) for gpu in expected]


def test_only_visible_gpus_are_read_and_in_this_order(look: Any) -> None:
    gpus = look(*(FakeGpu(parts[0][0]) for parts in FOUR), visible="GPU-c,1")[1]
    assert [(each.index, each.uuid) for each in gpus.readings()] == [(3, "GPU-cccc4444"), (1, "GPU-aaaa2222")]


def test_a_gpu_that_cannot_even_say_its_name_is_shown_where_a_name_is_missing(look: Any) -> None:
    lost = FakeGpu("GPU-bbbb2222", errors={"UUID": LOST})
    first, second = look(FakeGpu(), lost, FakeGpu("GPU-c"), visible="GPU-aaaa1111,GPU-bbbb2222,GPU-c")[
        1
    ].readings()
    assert (first.failed, second.index) == ("", 1)
    assert "lost" in second.failed


def test_instances_of_a_gpu_have_names_numbers_and_memory_of_their_own(look: Any) -> None:
    first = FakeGpu(
        "MIG-1111", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", total=10 * GIB, used=GIB, processes={OTHER: GIB}
    )
    second = FakeGpu("MIG-2222", first.name, total=10 * GIB)
    # With instances, rows cannot be asked for, neither of them nor of the whole.
    whole = FakeGpu("GPU-bbbb", mig=[first, second], errors={"RemappedRows": NOT_SUPPORTED})

    def found(visible: str | None) -> list[tuple[int, str]]:
        return [(each.index, each.uuid) for each in look(FakeGpu(), whole, visible=visible)[1].readings()]

    assert found(None) == [(0, "GPU-aaaa1111"), (1000, "MIG-1111")]
    assert found("1,0") == [(1000, "MIG-1111"), (0, "GPU-aaaa1111")]
    assert found("GPU-bbbb") == [(1000, "MIG-1111")]
    assert found("MIG-2222,MIG-1") == [(1001, "MIG-2222"), (1000, "MIG-1111")]
    assert found("MIG-GPU-bbbb/9/0") == [], "two instances of the fake have this number"
    (device,) = devices(look(FakeGpu(), whole, visible="MIG-1111")[1].readings(), promised=True)
    assert (device.total, device.foreign, device.name) == (10 * GIB - RESERVED, GIB, first.name)
    whole.action = 1
    assert "gpu-reset -i 1" in look(FakeGpu(), whole, visible="MIG-1111")[1].readings()[0].failed


def test_mig_without_an_instance_is_of_no_use(look: Any) -> None:
    (reading,) = look(FakeGpu(mig=[]))[1].readings()
    assert "no instances" in reading.failed
    (reading,) = look(FakeGpu(mig=[FakeGpu("MIG-1", errors={"UUID": LOST})]))[1].readings()
    assert "lost" in reading.failed


# --- whose process ------------------------------------------------------------------------------------------


@pytest.fixture
def shell() -> Iterator[Any]:
    """Starts a shell's commands, gives what they print first, and ends them with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str) -> tuple[subprocess.Popen[str], int]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.communicate()  # Its input ends, and with that all that it started.


# Its child is a shell that starts a child in turn, like an engine and its worker; both end with their input. What
# a shell starts in the background has none of its own, so it is kept under another number before.
_TREE = "exec 3<&0\nsh -c 'sh -c \"echo \\$\\$; cat\" <&3' &\nwait\n"


def whose(pid: int) -> bool | None:
    """`process_is_rays`, of one that was just started: while it becomes another program nobody can tell."""
    deadline = time.monotonic() + 10
    while (found := process_is_rays(pid)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_what_a_raylet_started_is_rays_at_any_depth(tmp_path: Path, shell: Any) -> None:
    raylet, script = tmp_path / "raylet", tmp_path / "other"
    for file in (raylet, script):
        file.write_text("#!/bin/sh\n" + _TREE)
        file.chmod(0o755)
    process, grandchild = shell(str(raylet))
    assert grandchild != process.pid
    assert whose(process.pid) is True
    assert whose(grandchild) is True
    process, grandchild = shell(str(script))
    assert whose(grandchild) is False
    assert process_is_rays(1) is False


def test_an_orphan_of_rays_still_has_its_name(shell: Any) -> None:
    for name in ("ray::ServeReplica:chat:LLMServer", "VLLM::EngineCore", "RayWorkerProc"):
        process, _ = shell("bash", "-c", f"echo $$; exec -a '{name}' cat")
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(name.encode()):
            time.sleep(0.01)
        assert process_is_rays(process.pid) is True, name
    # vLLM's names are the thread's as well, and that is all that a child finds of its parent.
    process, child = shell(
        "sh", "-c", "printf VLLM::EngineCore > /proc/$$/comm; " + _TREE.replace(" &\nwait\n", "")
    )
    assert whose(child) is True
    process, _ = shell("bash", "-c", "echo $$; exec -a 'python xray::y' cat")
    assert whose(process.pid) is False


def test_a_process_that_is_not_to_be_seen_is_nobodys(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert process_is_rays(process.pid) is None
    assert process_is_rays(1, proc=tmp_path) is None


def test_names_with_brackets_loops_and_rubbish_do_no_harm(tmp_path: Path) -> None:
    def put(pid: int, stat: str) -> None:
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(stat)
        (tmp_path / str(pid) / "cmdline").write_bytes(b"\xff\0x")

    put(5, "5 (a) (raylet) b) S 6 5 5 0")
    put(6, "6 (x) S 5 6 6 0")
    put(7, "7 (y) S 8 7 7 0")
    put(8, "8 (raylet) S 1 8 8 0")
    put(9, "rubbish")
    put(10, "10 (z) S 99 1 1")
    put(11, "11 (w")
    found = {pid: process_is_rays(pid, proc=tmp_path) for pid in (5, 6, 7, 9, 10, 11)}
    assert found == {5: False, 6: False, 7: True, 9: None, 10: False, 11: None}
