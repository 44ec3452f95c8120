"""What the front door costs: the same model bare, directly at its application, through the edge, and by an alias.

    python -m bench.front_door [--quick] [--rounds N] [--output json]

All paths are up at the same time and are measured in short slices that take turns, so that whatever else the
machine does hits all alike. Ratios are made of neighbouring slices. bench/README.md says how to read the result.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import asking, ceiling, front_door_report, machine, ours
from bench.asking import chat_body, completed
from bench.bare import bare_vllm
from bench.front_door_data import AGAIN, ALIAS, BARE, DIRECT, EDGE, FULL, QUICK, Cell, Result, Series
from bench.load import Job
from bench.load_process import LoadProcess, load_process
from bench.machine import BenchError, say
from bench.measure import percentile

_CHAT = "/v1/chat/completions"
_FULL_SECONDS, _QUICK_SECONDS = 440.0, 40.0
_FULL_ROUNDS, _QUICK_ROUNDS = 20, 1


@dataclass(frozen=True, slots=True)
class Target:
    """Where one path begins."""

    port: int
    path: str
    model: str


class Benchmark:
    """The slices of all cells, in turns."""

    def __init__(self, generator: LoadProcess, targets: dict[str, Target], cells: tuple[Cell, ...]) -> None:
        self._generator = generator
        self._targets = targets
        self.cells = [(cell, {path: Series() for path in targets}) for cell in cells]

    def warm_up(self) -> None:
        """Half a slice of everything, dropped: imports, caches, connections, memory."""
        for cell, _ in self.cells:
            for target in self._targets.values():
                self._generator.run(_job(cell, target, max(cell.clients, cell.requests // 2)))

    def round(self, number: int) -> None:
        """All cells once, with as many turns as each takes."""
        for cell, series in self.cells:
            for turn in range(cell.turns):
                for path in _order(tuple(self._targets), number * cell.turns + turn):
                    _note(series[path], self._generator, _job(cell, self._targets[path], cell.requests))


def _order(paths: tuple[str, ...], turn: int) -> tuple[str, ...]:
    """Who comes first changes from turn to turn, and after all were first also who follows whom."""
    start = turn % len(paths)
    rotated = paths[start:] + paths[:start]
    return rotated if turn // len(paths) % 2 == 0 else rotated[::-1]


def _job(cell: Cell, target: Target, requests: int) -> Job:
    return Job(
        host="127.0.0.1",
        port=target.port,
        path=target.path,
        body=chat_body(target.model, cell.tokens, stream=cell.stream),
        clients=cell.clients,
        requests=requests,
        expect=completed(cell.tokens),
    )


def _note(series: Series, generator: LoadProcess, job: Job) -> None:
    done = generator.run(job)
    series.p50_ms.append(statistics.median(done.latency_ms))
    series.p95_ms.append(percentile(done.latency_ms, 95))
    series.first_p50_ms.append(statistics.median(done.first_ms))
    series.first_p95_ms.append(percentile(done.first_ms, 95))
    series.per_second.append(len(done.latency_ms) / done.seconds)
    series.generator_share.append(done.cpu_seconds / done.seconds)
    series.reconnects += done.reconnects


def measure_ceilings(generator: LoadProcess, folder: Path) -> dict[int, float]:
    """Requests a second that the load generator manages with nothing behind the socket, by clients."""
    found: dict[int, float] = {}
    with ceiling.answering_haproxy(folder) as port:
        body = chat_body(ours.MODEL, 4, stream=False)
        for clients in (1, 16, 64):
            job = Job("127.0.0.1", port, _CHAT, body, clients, 2000, ceiling.EXPECTED)
            slices = [generator.run(job) for _ in range(3)]
            found[clients] = max(len(each.latency_ms) / each.seconds for each in slices)
    return found


def run(folder: Path, *, quick: bool, rounds: int | None) -> Result:
    """Start everything, measure, end everything.

    Raises:
        BenchError: Something did not come up, or a request failed.
    """
    before = machine.describe()
    with ours.running(folder) as stack, load_process() as generator:
        engine = ours.engine_of(stack)
        say("starting bare vLLM")
        with bare_vllm(engine, ours.MODEL, folder / "bare.log") as bare:
            asking.wait_first_token(bare.port, _CHAT, ours.MODEL, seconds=180, check=bare.check)
            serve, edge = stack.ports["SERVE_PORT"], stack.ports["LISTEN_PORT"]
            targets = {
                BARE: Target(bare.port, _CHAT, ours.MODEL),
                DIRECT: Target(serve, f"/{engine.application}{_CHAT}", ours.MODEL),
                EDGE: Target(edge, _CHAT, ours.MODEL),
                ALIAS: Target(edge, _CHAT, ours.ALIAS),
                AGAIN: Target(serve, f"/{engine.application}{_CHAT}", ours.MODEL),
            }
            if quick:
                targets.pop(AGAIN)
            began = time.monotonic()
            ceilings = measure_ceilings(generator, folder)
            benchmark = Benchmark(generator, targets, QUICK if quick else FULL)
            if not quick:
                say("warming up")
                benchmark.warm_up()
            result = Result(before, ceilings, benchmark.cells)
            wanted = rounds or (_QUICK_ROUNDS if quick else _FULL_ROUNDS)
            for number in _rounds(wanted, began, _QUICK_SECONDS if quick else _FULL_SECONDS):
                say(f"round {number + 1}")
                benchmark.round(number)
                result.rounds += 1
            result.seconds = time.monotonic() - began
            return result


def _rounds(wanted: int, began: float, seconds: float) -> Iterator[int]:
    """At least one round, and no round that would probably end after the time is up."""
    longest = 0.0
    for number in itertools.count():
        now = time.monotonic()
        if number >= wanted or (number > 0 and now + longest > began + seconds):
            return
        yield number
        longest = max(longest, time.monotonic() - now)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.front_door", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small round: does it work at all?")
    parser.add_argument("--rounds", type=int, help="at most so many (default: as many as fit 7 minutes, up to 20)")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            result = run(Path(folder), quick=options.quick, rounds=options.rounds)
        except BenchError as error:
            say(f"error: {error}")
            return 1
    if options.output == "json":
        print(json.dumps(asdict(result), indent=1))
    else:
        print(front_door_report.text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
