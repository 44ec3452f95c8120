"""Where the start of one engine spends its time: by the lines of vLLM's log and by the births of its processes.

The same steps for bare vLLM and for a replica of Ray Serve, so that the two can be laid side by side. vLLM's log
names seconds, processes are known to a hundredth.
"""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate

import psutil

from bench.phases import REST
from reconciler.host.processes import family

_LINE = re.compile(r"(?:DEBUG|INFO|WARNING) (\d\d-\d\d \d\d:\d\d:\d\d) \[[^\]\n]{1,200}:\d{1,6}\] (.*)")
_ANSI = re.compile(r"\x1b\[[0-9;]{0,16}m")


@dataclass(frozen=True, slots=True)
class _Step:
    """What ends a phase: the birth of a process, or the first line of the log that begins so."""

    phase: str
    process: str = ""
    lines: tuple[str, ...] = ("",)


_STEPS = (
    _Step("Python is up, vLLM's import begins"),
    _Step("vLLM imported, model resolved", lines=("Resolved architecture",)),
    _Step("engine process started", process="VLLM::EngineCor"),
    _Step("engine process has imported", lines=("Initializing a V1 LLM engine",)),
    _Step("worker process started", process="VLLM::Worker"),
    _Step("worker has imported", lines=("Starting to load model",)),
    _Step("weights loaded", lines=("Model loading took", "Loading weights took")),
    _Step("cache made, warmed up", lines=("init engine (profile, create kv cache, warmup model)",)),
)
"""In their order. Linux keeps 15 characters of a process's name."""


def births(pid: int) -> dict[str, float]:
    """When an engine's processes were started, by name, in seconds since the epoch; of several, the first.

    Args:
        pid: The server's or replica's process.
    """
    # psutil's create_time is off by up to a second: it adds to a boot time in whole seconds.
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    found: dict[str, float] = {}
    for each in family([pid]):
        try:
            name = psutil.Process(each.pid).name()[:15]
        except psutil.NoSuchProcess:
            continue
        moment = booted + each.started / os.sysconf("SC_CLK_TCK")
        found[name] = min(moment, found.get(name, moment))
    return found


def engine_phases(log: str, born: dict[str, float], began: float, end: float) -> dict[str, float]:
    """Seconds of each phase of an engine's start; one that nothing tells the end of is counted into the next.

    Args:
        log: What the processes printed, also before and after this start.
        born: From `births`.
        began: When the server's process, or the replica, was started, in seconds since the epoch.
        end: When it answered.
    """
    lines = _lines(log, began)
    known: list[tuple[str, float, float]] = [("", began, began)]
    for step in _STEPS:
        span = _process(step, born) if step.process else _first_line(step, lines)
        if span is not None and span[1] >= began and span[0] <= end:
            known.append((step.phase, *span))
    moments = _placed([*known, (REST, end, end)])
    return {name: moment - before for (name, moment), (_, before) in zip(moments[1:], moments[:-1], strict=True)}


def _process(step: _Step, born: dict[str, float]) -> tuple[float, float] | None:
    moment = born.get(step.process)
    return None if moment is None else (moment, moment)


def _first_line(step: _Step, lines: Sequence[tuple[float, str]]) -> tuple[float, float] | None:
    # A line of 12:00:07 was written before 12:00:08.
    return next(((second, second + 1.0) for second, text in lines if text.startswith(step.lines)), None)


def _lines(log: str, began: float) -> list[tuple[float, str]]:
    """Seconds since the epoch and words of vLLM's lines, which do not name the year."""
    year = datetime.fromtimestamp(began).year  # noqa: DTZ006 -- vLLM writes local time
    found = []
    for raw in log.splitlines():
        match = _LINE.search(_ANSI.sub("", raw))
        if match is not None:
            moment = datetime.strptime(f"{year}-{match[1]}", "%Y-%m-%d %H:%M:%S").timestamp()  # noqa: DTZ007
            if moment + 1.0 >= began:
                found.append((moment, match[2]))
    return found


def _placed(known: Sequence[tuple[str, float, float]]) -> list[tuple[str, float]]:
    """A moment for each: the middle of what the order leaves of the span in which it was."""
    earliest = list(accumulate((low for _, low, _ in known), max))
    latest = list(accumulate((high for _, _, high in reversed(known)), min))[::-1]
    found = [
        (name, (low + high) / 2 if low <= high else low)
        for (name, _, _), low, high in zip(known, earliest, latest, strict=True)
    ]
    moments = accumulate((moment for _, moment in found), max)
    return [(name, moment) for (name, _), moment in zip(found, moments, strict=True)]
