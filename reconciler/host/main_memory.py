"""How much main memory is free on this machine, or in this container."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that new processes can have without swapping, as the kernel sees it; None where it does not say.

    In a container it is what its limit leaves, if that is less. The page cache counts as used there, though the
    kernel would give it back, so it is added again.
    """
    free = _field(meminfo, "MemAvailable:")
    if free is None:
        return None
    free *= 1024  # The file counts in kB.
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is None or used is None:
        return free
    cached = _field(cgroup / "memory.stat", "inactive_file") or 0
    return max(0, min(free, limit - used + cached))


def total_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Bytes of main memory that this machine, or this container, has; 0 where nobody says."""
    total = (_field(meminfo, "MemTotal:") or 0) * 1024
    limit = _number(cgroup / "memory.max")
    return total if limit is None else min(total, limit)


def _field(file: Path, name: str) -> int | None:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((int(words[1]) for words in map(str.split, lines) if len(words) > 1 and words[0] == name), None)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # "max", or no such container.
