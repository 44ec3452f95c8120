"""Processes of this machine, by /proc: who descends from whom, and who is still there."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_STATE, _PARENT, _STARTED, _RESIDENT = 0, 1, 19, 21
"""Fields of /proc/PID/stat behind the name, which may hold anything."""
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Process:
    """One process; its start tells it from a later one of the same number.

    Attributes:
        started: Clock ticks since the machine's start.
        resident: Bytes of main memory, shared ones included.
    """

    pid: int
    started: int
    resident: int = 0


def family(pids: Iterable[int]) -> frozenset[Process]:
    """These processes and all that descend from them, as far as they are alive."""
    children: dict[int, list[int]] = {}
    found: dict[int, Process] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (stat := _stat(int(folder.name))) is not None:
            pid = int(folder.name)
            children.setdefault(int(stat[_PARENT]), []).append(pid)
            found[pid] = Process(pid, int(stat[_STARTED]), int(stat[_RESIDENT]) * _PAGE)
    left, members = list(pids), set()
    while left:
        pid = left.pop()
        if pid in found and pid not in members:
            members.add(pid)
            left += children.get(pid, ())
    return frozenset(found[pid] for pid in members)


def alive(processes: Iterable[Process]) -> frozenset[Process]:
    """Those that still run."""
    return frozenset(
        each for each in processes if (stat := _stat(each.pid)) is not None and int(stat[_STARTED]) == each.started
    )


def _stat(pid: int) -> list[str] | None:
    """The fields behind the name; None for one that has ended, a zombie included."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[_STATE] in "ZX" else fields
    return None
