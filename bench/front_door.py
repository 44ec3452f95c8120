"""What the front door costs: the same model bare, directly at its application, through the edge, and by an alias.

    python -m bench.front_door [--quick] [--rounds N] [--output json] [--cold-models N]

All paths are up at the same time and are measured in short slices that take turns, so that whatever else the
machine does hits all alike. Ratios are made of neighbouring slices. bench/README.md says how to read the result.

With --cold-models another question is answered: what the same paths cost while so many other models are declared
and cold, against without them.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from bench import asking, ceiling, front_door_cold, front_door_report, machine, ours
from bench.asking import chat_body
from bench.bare import bare_vllm
from bench.front_door_data import AGAIN, ALIAS, BARE, DIRECT, EDGE, FULL, QUICK, Result
from bench.front_door_slices import CHAT, Benchmark, Target
from bench.load import Job
from bench.load_process import LoadProcess, load_process
from bench.machine import BenchError, say

_FULL_SECONDS, _QUICK_SECONDS = 440.0, 40.0
_FULL_ROUNDS, _QUICK_ROUNDS = 20, 1


def measure_ceilings(generator: LoadProcess, folder: Path) -> dict[int, float]:
    """Requests a second that the load generator manages with nothing behind the socket, by clients."""
    found: dict[int, float] = {}
    with ceiling.answering_haproxy(folder) as port:
        body = chat_body(ours.MODEL, 4, stream=False)
        for clients in (1, 16, 64):
            job = Job("127.0.0.1", port, CHAT, body, clients, 2000, ceiling.EXPECTED)
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
            asking.wait_first_token(bare.port, CHAT, ours.MODEL, seconds=180, check=bare.check)
            serve, edge = stack.ports["SERVE_PORT"], stack.ports["LISTEN_PORT"]
            targets = {
                BARE: Target(bare.port, CHAT, ours.MODEL),
                DIRECT: Target(serve, f"/{engine.application}{CHAT}", ours.MODEL),
                EDGE: Target(edge, CHAT, ours.MODEL),
                ALIAS: Target(edge, CHAT, ours.ALIAS),
                AGAIN: Target(serve, f"/{engine.application}{CHAT}", ours.MODEL),
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
    parser.add_argument("--cold-models", type=int, default=0, metavar="N", help="with N more models, and without")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            if options.cold_models:
                cold = front_door_cold.run(
                    Path(folder), options.cold_models, quick=options.quick, rounds=options.rounds
                )
                found, report = asdict(cold), front_door_cold.text(cold)
            else:
                result = run(Path(folder), quick=options.quick, rounds=options.rounds)
                found, report = asdict(result), front_door_report.text(result)
        except BenchError as error:
            say(f"error: {error}")
            return 1
    print(json.dumps(found, indent=1) if options.output == "json" else report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
