"""GPUs as somebody read them -> `core.state.Device`: what of each GPU's memory is not Ray's. Pure.

`host.nvml` reads those of this machine, `ray_serve.gpus` those of the other nodes; the rule is the same for both.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reconciler.core.fit.gpus import MIB
from reconciler.core.state import Device

_UNNAMED = 512 * MIB
"""Bytes that no process has and that may be the driver's own. NVML gives what it reserves apart (480 MiB of an
H100) and then reports about 10 MiB more than its processes have; where only a total is known, what is reserved is
a guess (`core.fit.gpus.cuda_total`) that is up to 280 MiB too low on an A100 of 80 GB."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process on a GPU.

    Attributes:
        memory: Bytes that it has of it; 0 where the driver does not say.
        rays: It is one of Ray's; None where nobody can tell, because its number means nothing where we look.
    """

    memory: int
    rays: bool | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of one GPU; `index`, `uuid`, `name`, `total` and `failed` as in `Device`.

    Attributes:
        used: Bytes in use, without those that the driver reserves for itself.
    """

    index: int
    uuid: str = ""
    name: str = ""
    total: int = 0
    used: int = 0
    processes: tuple[Process, ...] = ()
    failed: str = ""


def devices(readings: Sequence[Reading], *, promised: bool) -> tuple[Device, ...]:
    """The GPUs of one machine, in the order of `readings`.

    What belongs to a process that is plainly not Ray's is foreign. Memory of a process that cannot be seen, or of
    no process at all, is foreign too if it cannot be Ray's: because Ray was promised nothing of this machine's
    GPUs, or because some process of Ray's is seen on them, so that the others would be seen as well. Else (a
    container whose driver tells nothing about processes, say) it may just as well be our own engines', and is not
    counted: a model that does not fit after all fails with vLLM's own words, whereas one held for its own memory
    would wait for ever.

    Args:
        readings: All GPUs that Ray may use there.
        promised: Some of their memory may be Ray's: Ray's ledger has a share of a GPU reserved there, or an
            application that wants one is coming up.
    """
    seen = any(process.rays for reading in readings for process in reading.processes)
    return tuple(
        Device(each.index, each.uuid, each.name, each.total, _foreign(each, seen or not promised), each.failed)
        for each in readings
    )


def visible_devices(wanted: str | None, gpus: Sequence[Sequence[tuple[str, ...]]]) -> list[tuple[int, int]]:
    """What Ray and CUDA make of `CUDA_VISIBLE_DEVICES`: places in `gpus`, in CUDA's order.

    Numbers, UUIDs and unambiguous beginnings of UUIDs, up to the first word that is none of these (CUDA
    programming guide, "CUDA Environment Variables"). A number is taken as NVML's; CUDA counts the fastest GPU
    first unless CUDA_DEVICE_ORDER is PCI_BUS_ID, which matters where GPUs differ. Of a GPU with MIG, which CUDA
    counts as one, it takes the first instance unless another is named.

    Args:
        wanted: The variable; None where it is not set.
        gpus: For each GPU its instances, or itself where it has none, and of each the names that it goes by; none
            where they could not be read.
    """
    if wanted is None:
        return [(gpu, 0) for gpu in range(len(gpus))]
    names = {(gpu, number): each for gpu, parts in enumerate(gpus) for number, each in enumerate(parts)}
    found: list[tuple[int, int]] = []
    for word in map(str.strip, wanted.split(",")):
        if re.fullmatch("[0-9]{1,5}", word) and int(word) < len(gpus):
            matches = [(int(word), 0)]
        elif word.startswith(("GPU-", "MIG-")):
            matches = [place for place, each in names.items() if any(name.startswith(word) for name in each)]
        else:
            break
        if len(matches) != 1:
            # It may be one whose name could not be read; people should see that one.
            found += [place for place, each in names.items() if not each]
            break
        found += matches
    return list(dict.fromkeys(found))


def _foreign(reading: Reading, unseen_too: bool) -> int:
    others = sum(process.memory for process in reading.processes if process.rays is False)
    unseen = sum(process.memory for process in reading.processes if process.rays is None)
    unnamed = max(0, reading.used - sum(process.memory for process in reading.processes))
    silent = [process.rays for process in reading.processes if not process.memory]
    if unnamed <= _UNNAMED or True in silent:
        unnamed = 0
    elif False in silent:
        others, unnamed = others + unnamed, 0
    return others + (unseen + unnamed if unseen_too else 0)
