"""How long a model takes to come and to go: ours against bare vLLM.

    python -m bench.cold_start [--quick] [--output json]

Coming, to the first token: from the start of bare vLLM's process, from the saving of the file of a pinned model,
and from a request for a cold model. Going: from SIGTERM, or from the deletion of the model file, until none of the
engine's processes is left. In turns.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine, ours
from bench.asking import first_token, wait_first_token
from bench.bare import bare_vllm
from bench.engine_start import births, engine_phases
from bench.machine import BenchError, say
from bench.measure import ratio, spread, table, verdict
from bench.ours import Engine, Stack
from bench.phases import Mark, load_marks, phase_rows, phases, read_events, to_free_memory, unload_marks
from bench.processes import family, wait_gone, with_environment
from reconciler.core.application import MODEL_ENV

AIM_RATIO, AIM_FREE_SECONDS = 1.2, 3.0

_CHAT = "/v1/chat/completions"
_NAME = "cold"
_LOAD_SECONDS, _UNLOAD_SECONDS = 300.0, 120.0
_FILE, _REQUEST = "{policy: pinned}", "{policy: on_demand}"
# How the memory became free is measured at the processes themselves; when that was confirmed stands beside it.
_REMOVED = (
    Mark("noticed", "plan.change", _NAME, lambda fields: fields["action"] == "remove"),
    *unload_marks(_NAME)[:-1],
)


@dataclass(slots=True)
class Times:
    """Seconds of each turn, of one way to load.

    Attributes:
        start: To the first token.
        engine: The start of the engine, by phase.
        stop: Until the processes are gone.
        phases: Of the start, as the reconciler's log tells them. Ours only, as what follows.
        stop_phases: Of the stop.
        free: From the end of the drain until the reconciler has confirmed that the memory is free.
    """

    start: list[float] = field(default_factory=list)
    engine: list[dict[str, float]] = field(default_factory=list)
    stop: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    stop_phases: list[dict[str, float]] = field(default_factory=list)
    free: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """Bare vLLM, and ours by a saved file and by a request."""

    bare: Times = field(default_factory=Times)
    saved: Times = field(default_factory=Times)
    asked: Times = field(default_factory=Times)


def one_bare(engine: Engine, log: Path, times: Times) -> None:
    """Start and stop bare vLLM once."""
    with bare_vllm(engine, _NAME, log) as server:
        first = wait_first_token(server.port, _CHAT, _NAME, seconds=_LOAD_SECONDS, check=server.check)
        times.start.append(first - server.started_at)
        born = births(server.pid)
        times.engine.append(engine_phases(log.read_text(errors="replace"), born, server.started_at, first))
        times.stop.append(server.stop())


def one_saved(stack: Stack, times: Times) -> None:
    """Save the file of a pinned model, and delete it.

    Raises:
        BenchError: The model did not come up, or its processes stayed.
    """
    text = ours.model_file(stack, _NAME, accelerator="cpu", lifecycle=_FILE)
    saved = time.time()
    stack.write(_NAME, text)
    port: int = stack.ports["LISTEN_PORT"]
    first = wait_first_token(port, _CHAT, _NAME, seconds=_LOAD_SECONDS, check=lambda: _fail_early(stack, saved))
    _note_start(stack, times, saved, first)
    _delete(stack, times)


def one_asked(stack: Stack, times: Times) -> None:
    """Ask for a declared, cold model, and delete it.

    Raises:
        BenchError: The model did not come up, or its processes stayed.
    """
    stack.write(_NAME, ours.model_file(stack, _NAME, accelerator="cpu", lifecycle=_REQUEST))
    ours.wait_cold(stack, (_NAME,))
    asked = time.time()
    first = first_token(stack.ports["LISTEN_PORT"], _CHAT, _NAME, seconds=_LOAD_SECONDS)
    _note_start(stack, times, asked, first)
    _delete(stack, times)


def _note_start(stack: Stack, times: Times, began: float, first: float) -> None:
    events = read_events(stack.log)
    times.start.append(first - began)
    times.phases.append(phases(events, load_marks(_NAME), began, first))
    replica = ours.replica_of(stack, _NAME)
    # The reconciler's own request is the first one that a replica answers.
    answered = Mark("", "model.ready", _NAME)
    end = next(each.moment for each in events if each.moment >= replica.started and answered.is_met_by(each))
    times.engine.append(engine_phases(ours.engine_log(stack, replica), births(replica.pid), replica.started, end))
    ours.wait_settled(stack, began)


def _delete(stack: Stack, times: Times) -> None:
    processes = family(ours.replica_of(stack, _NAME).pid) | with_environment(MODEL_ENV, _NAME)
    deleted = time.time()
    (stack.models / f"{_NAME}.yaml").unlink()
    wait_gone(processes, seconds=_UNLOAD_SECONDS)
    gone = time.time()
    times.stop.append(gone - deleted)
    stack.wait_for(
        lambda: to_free_memory(read_events(stack.log), _NAME, deleted) is not None, "the unload is confirmed", 60
    )
    events = read_events(stack.log)
    times.stop_phases.append(phases(events, _REMOVED, deleted, gone))
    free = to_free_memory(events, _NAME, deleted)
    assert free is not None  # It was waited for.
    times.free.append(free)
    ours.wait_settled(stack, deleted)


def _fail_early(stack: Stack, since: float) -> None:
    for event in read_events(stack.log):
        told = event.fields.get("model") in (_NAME, None) and event.moment >= since
        if told and event.name in ("model.failed", "model.held", "source.problem"):
            raise BenchError(f"the model does not come up: {dict(event.fields)}")


def run(folder: Path, turns: int) -> Result:
    """Start the stack, take turns, end everything."""
    result = Result()
    with ours.running(folder) as stack:
        engine = ours.engine_of(stack)
        ways: list[Callable[[], None]] = [
            partial(one_bare, engine, folder / "bare.log", result.bare),
            partial(one_saved, stack, result.saved),
            partial(one_asked, stack, result.asked),
        ]
        for turn in range(turns):
            say(f"turn {turn + 1} of {turns}")
            first = turn % len(ways)
            for way in (*ways[first:], *ways[:first]):
                way()
    return result


def text(result: Result, about: dict[str, Any]) -> str:
    """The report, as Markdown."""
    bare, saved, asked = result.bare, result.saved, result.asked
    rows = [
        ["first token, by a saved file", *_row(bare.start, saved.start)],
        ["first token, by a request", *_row(bare.start, asked.start)],
        ["gone", *_row(bare.stop, saved.stop)],
    ]
    free = median([*saved.free, *asked.free])
    parts = [
        f"Measured {machine.sentence(about)}",
        f"{len(saved.start)} turns; medians. The aim for a cold start is {AIM_RATIO} times bare vLLM's.",
        table(["until", "bare vLLM, s", "ours, s", "ours / bare", "ours - bare, s"], rows),
        (
            f"From the end of the drain to free memory: {free:.2f} s; aim {AIM_FREE_SECONDS:g} s "
            f"{verdict(free, AIM_FREE_SECONDS)}."
        ),
        "### Where our seconds go",
        table(
            ["coming, s", "by a saved file", "by a request"],
            phase_rows([saved.phases, asked.phases], "first token"),
        ),
        table(["going, s", "by deletion"], phase_rows([saved.stop_phases + asked.stop_phases], "processes gone")),
        "### The start of the engine",
        table(
            ["s", "bare vLLM", "by a saved file", "by a request"],
            phase_rows([bare.engine, saved.engine, asked.engine], "first answer"),
        ),
        (
            "Bare vLLM: from the start of its process. Ours: from the moment Serve starts the replica. To half a "
            "second, because vLLM's log names seconds."
        ),
    ]
    return "\n\n".join(parts)


def _row(bare: Sequence[float], own: Sequence[float]) -> list[str]:
    ratios = spread([ratio(a, b) for a, b in zip(own, bare, strict=True)])
    more = median(own) - median(bare)
    return [f"{median(bare):.2f}", f"{median(own):.2f}", ratios.show(), f"{more:+.2f}"]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.cold_start", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one turn instead of three")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    about = machine.describe()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            result = run(Path(folder), 1 if options.quick else 3)
        except BenchError as error:
            say(f"error: {error}")
            return 1
    if options.output == "json":
        print(json.dumps({"machine": about, **asdict(result)}, indent=1))
    else:
        print(text(result, about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
