"""How long a model takes to come and to go: ours against bare vLLM.

    python -m bench.cold_start [--quick] [--output json]

Coming: from the start of bare vLLM's process, or from the saving of the model file, to the first token. Going:
from SIGTERM, or from the deletion of the model file, until none of the engine's processes is left. In turns.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine, ours
from bench.asking import wait_first_token
from bench.bare import bare_vllm
from bench.machine import BenchError, say
from bench.measure import ratio, spread, table
from bench.ours import Engine, Stack
from bench.processes import family, wait_gone, with_environment
from reconciler.core.application import MODEL_ENV

_CHAT = "/v1/chat/completions"
_NAME = "cold"
_LOAD_SECONDS, _UNLOAD_SECONDS = 300.0, 120.0
_BUILDS = "Ray Serve builds the application"
_ANSWERS = "answering its first request"


@dataclass(slots=True)
class Times:
    """Seconds of each turn."""

    bare_start: list[float] = field(default_factory=list)
    bare_stop: list[float] = field(default_factory=list)
    ours_start: list[float] = field(default_factory=list)
    ours_stop: list[float] = field(default_factory=list)
    start_phases: list[dict[str, float]] = field(default_factory=list)
    stop_phases: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mark:
    """An event of the reconciler's log that ends a phase.

    Attributes:
        phase: What ends here.
        event: The event's name.
        matches: Which of these events.
    """

    phase: str
    event: str
    matches: Callable[[dict[str, Any]], bool] = lambda _: True


START_MARKS = (
    Mark("noticed", "plan.change", lambda event: event["action"] == "add"),
    Mark("sent to Serve", "model.start"),
    Mark("built", "model.waiting", lambda event: event["why"] not in (_BUILDS, _ANSWERS)),
    Mark("loaded", "model.waiting", lambda event: event["why"] == _ANSWERS),
    Mark("probed", "model.ready"),
    Mark("switched", "traffic.switched"),
)
STOP_MARKS = (
    Mark("noticed", "plan.change", lambda event: event["action"] == "remove"),
    Mark("traffic off", "traffic.stopped"),
    Mark("drained, sent to Serve", "model.remove"),
)


def phases(events: list[dict[str, Any]], marks: tuple[Mark, ...], began: float, end: float) -> dict[str, float]:
    """Seconds of each phase; a phase whose event is missing is counted into the next one.

    Args:
        events: The reconciler's events.
        marks: In their order.
        began: Seconds since the epoch.
        end: The end of the last phase, `rest`.
    """
    found: dict[str, float] = {}
    last = began
    for mark in marks:
        moments = [
            moment
            for event in events
            if event["event"] == mark.event and mark.matches(event) and last <= (moment := _moment(event)) <= end
        ]
        if moments:
            found[mark.phase] = moments[0] - last
            last = moments[0]
    return {**found, "rest": end - last}


def one_bare(engine: Engine, folder: Path, times: Times) -> None:
    """Start and stop bare vLLM once."""
    with bare_vllm(engine, _NAME, folder / "bare.log") as server:
        first = wait_first_token(server.port, _CHAT, _NAME, seconds=_LOAD_SECONDS, check=server.check)
        times.bare_start.append(first - server.started_at)
        times.bare_stop.append(server.stop())


def one_ours(stack: Stack, file: str, times: Times) -> None:
    """Save the model file and delete it once.

    Raises:
        BenchError: The model did not come up, or its processes stayed.
    """
    port: int = stack.ports["LISTEN_PORT"]
    saved = time.time()
    stack.write(_NAME, file)
    first = wait_first_token(port, _CHAT, _NAME, seconds=_LOAD_SECONDS, check=lambda: _fail_early(stack, saved))
    times.ours_start.append(first - saved)
    times.start_phases.append(phases(_events(stack), START_MARKS, saved, first))
    _wait_settled(stack, first)

    processes = family(*_replica_pids(stack)) | with_environment(MODEL_ENV, _NAME)
    deleted = time.time()
    (stack.models / f"{_NAME}.yaml").unlink()
    wait_gone(processes, seconds=_UNLOAD_SECONDS)
    gone = time.time()
    times.ours_stop.append(gone - deleted)
    times.stop_phases.append(phases(_events(stack), STOP_MARKS, deleted, gone))
    _wait_settled(stack, deleted)


def run(folder: Path, turns: int) -> Times:
    """Start the stack, take turns, end everything."""
    times = Times()
    with ours.running(folder) as stack:
        engine = ours.engine_of(stack)
        file = _model_file(engine.source)
        for turn in range(turns):
            say(f"turn {turn + 1} of {turns}")
            if turn % 2 == 0:
                one_bare(engine, folder, times)
                one_ours(stack, file, times)
            else:
                one_ours(stack, file, times)
                one_bare(engine, folder, times)
    return times


def text(times: Times, about: dict[str, Any]) -> str:
    """The report, as Markdown."""
    rows = [
        ["first token", *_row(times.bare_start, times.ours_start)],
        ["gone", *_row(times.bare_stop, times.ours_stop)],
    ]
    parts = [
        f"Measured {machine.sentence(about)}",
        f"{len(times.ours_start)} turns; medians.",
        table(["until", "bare vLLM, s", "ours, s", "ours / bare", "ours - bare, s"], rows),
        "### Where our seconds go",
        table(["coming", "s"], _phase_rows(times.start_phases, "first token")),
        table(["going", "s"], _phase_rows(times.stop_phases, "processes gone")),
    ]
    return "\n\n".join(parts)


def _row(bare: list[float], own: list[float]) -> list[str]:
    ratios = spread([ratio(a, b) for a, b in zip(own, bare, strict=True)])
    more = median(own) - median(bare)
    return [f"{median(bare):.2f}", f"{median(own):.2f}", ratios.show(), f"{more:+.2f}"]


def _phase_rows(turns: list[dict[str, float]], rest: str) -> list[list[str]]:
    names = list(dict.fromkeys(name for phases in turns for name in phases if name != "rest"))
    rows = [[name, f"{median([turn.get(name, 0.0) for turn in turns]):.2f}"] for name in names]
    return [*rows, [rest, f"{median([turn['rest'] for turn in turns]):.2f}"]]


def _model_file(weights: str) -> str:
    """The demo's chat model once more, under another name: the same engine as bare vLLM is told to run."""
    return (
        f"name: {_NAME}\n"
        f"source: {{path: {json.dumps(weights)}}}\n"
        "engine: {max_model_len: 512, kv_cache_memory_gib: 0.25, args: {enforce_eager: true}}\n"
        "resources: {accelerator: cpu}\n"
        "lifecycle: {policy: pinned}\n"
    )


def _events(stack: Stack) -> list[dict[str, Any]]:
    lines = stack.log.read_text(errors="replace").splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{") and '"event"' in line]
    return [event for event in events if event.get("model") in (_NAME, None)]


def _moment(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def _fail_early(stack: Stack, since: float) -> None:
    for event in _events(stack):
        if event["event"] in ("model.failed", "model.held", "source.problem") and _moment(event) >= since:
            raise BenchError(f"the model does not come up: {event}")


def _wait_settled(stack: Stack, since: float) -> None:
    def settled() -> bool:
        return any(
            event["event"] == "reconcile.settled" and _moment(event) >= since - 1.0 for event in _events(stack)
        )

    stack.wait_for(settled, "the reconciler is settled", _UNLOAD_SECONDS)


def _replica_pids(stack: Stack) -> list[int]:
    name = ours.engine_of(stack, _NAME).application
    deployments: dict[str, dict[str, Any]] = ours.applications(stack)[name]["deployments"]
    return [replica["pid"] for each in deployments.values() for replica in each["replicas"] if replica["pid"]]


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
            times = run(Path(folder), 1 if options.quick else 3)
        except BenchError as error:
            say(f"error: {error}")
            return 1
    if options.output == "json":
        print(json.dumps({"machine": about, **asdict(times)}, indent=1))
    else:
        print(text(times, about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
