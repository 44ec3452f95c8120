"""What the front door costs while many other models are declared and cold, against without them.

While the stack runs, the files of the cold models are saved and deleted again and again; between, the same paths
are measured. A round is one with and one without, in turns, and what is compared lies within a round.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine, ours
from bench.front_door_data import ALIAS, COLD_FULL, COLD_QUICK, DIRECT, EDGE, Cell, Series
from bench.front_door_slices import CHAT, Benchmark, Target
from bench.load_process import load_process
from bench.machine import say
from bench.measure import Spread, paired, ratio, spread, table
from bench.ours import Stack

_FULL_SECONDS, _FULL_ROUNDS, _QUICK_ROUNDS = 560.0, 20, 1
_CALM_SECONDS = 2.0
"""After the files changed: what the reconciler does once, at the change, is no part of what is measured."""


@dataclass(slots=True)
class Result:
    """Everything that was measured.

    Attributes:
        models: How many cold models.
        cells: What was measured with them, and without them: one value a round in each series.
        known_seconds: From the saving of all their files until the front door listed them.
    """

    machine: dict[str, Any]
    models: int
    cells: list[tuple[Cell, dict[str, Series], dict[str, Series]]]
    known_seconds: list[float] = field(default_factory=list)
    rounds: int = 0
    seconds: float = 0.0


class ColdModels:
    """The files of models that nobody asks for.

    Attributes:
        declared: They are there.
    """

    def __init__(self, stack: Stack, count: int) -> None:
        self._stack = stack
        self._names = [f"cold-{number:03}" for number in range(count)]
        self.declared = False

    def declare(self) -> float:
        """Save them; gives the seconds until the front door lists them."""
        began = time.monotonic()
        for name in self._names:
            text = ours.model_file(self._stack, name, accelerator="cpu", lifecycle="{policy: on_demand}")
            self._stack.write(name, f"{text}aliases: [alias-of-{name}]\n")
        ours.wait_cold(self._stack, self._names)
        self.declared = True
        return time.monotonic() - began

    def remove(self) -> None:
        """Delete them; returns when the front door does not list them any more."""
        for name in self._names:
            (self._stack.models / f"{name}.yaml").unlink()
        ours.wait_forgotten(self._stack, self._names)
        self.declared = False


def run(folder: Path, models: int, *, quick: bool, rounds: int | None) -> Result:
    """Start everything, measure, end everything.

    Raises:
        BenchError: Something did not come up, or a request failed.
    """
    before = machine.describe()
    with ours.running(folder) as stack, load_process() as generator:
        serve, edge = stack.ports["SERVE_PORT"], stack.ports["LISTEN_PORT"]
        targets = {
            DIRECT: Target(serve, f"/{ours.engine_of(stack).application}{CHAT}", ours.MODEL),
            EDGE: Target(edge, CHAT, ours.MODEL),
            ALIAS: Target(edge, CHAT, ours.ALIAS),
        }
        cells = COLD_QUICK if quick else COLD_FULL
        cold, with_them, without = ColdModels(stack, models), *(Benchmark(generator, targets, cells) for _ in "ab")
        say("warming up")
        without.warm_up()
        pairs = zip(with_them.cells, without.cells, strict=True)
        result = Result(before, models, [(cell, some, none) for (cell, some), (_, none) in pairs])
        began, wanted = time.monotonic(), rounds or (_QUICK_ROUNDS if quick else _FULL_ROUNDS)
        while result.rounds < wanted and (result.rounds == 0 or time.monotonic() - began < _FULL_SECONDS):
            say(f"round {result.rounds + 1}")
            # With, without, without, with: each change of files serves two measurements.
            for some in (True, False) if result.rounds % 2 == 0 else (False, True):
                _measure(cold, with_them if some else without, result, some=some)
            result.rounds += 1
        result.seconds = time.monotonic() - began
        return result


def _measure(cold: ColdModels, benchmark: Benchmark, result: Result, *, some: bool) -> None:
    if some and not cold.declared:
        result.known_seconds.append(cold.declare())
    elif cold.declared and not some:
        cold.remove()
    time.sleep(_CALM_SECONDS)
    benchmark.round(result.rounds)


def text(result: Result) -> str:
    """The report, as Markdown."""
    parts = [
        f"Measured {machine.sentence(result.machine)}",
        (
            f"{result.rounds} rounds in {result.seconds:.0f} s. All numbers are with {result.models} cold models "
            "/ without them: the median over the rounds (half of them lie within the brackets). *direct* does not "
            "go through the front door: what it differs by is the machine, the reconciler's own work included."
        ),
        "### Requests a second",
        table(_HEADER, [_row(cell, some, none, "per_second") for cell, some, none in result.cells]),
        "### Latency at the median",
        table(_HEADER, [_row(cell, some, none, "p50_ms") for cell, some, none in result.cells]),
        (
            f"From the saving of {result.models} files until the front door lists the models: "
            f"{median(result.known_seconds):.1f} s."
        ),
    ]
    return "\n\n".join(parts)


_HEADER = ("load, clients", EDGE, DIRECT, f"{EDGE} / {DIRECT}", ALIAS)


def _row(cell: Cell, some: dict[str, Series], none: dict[str, Series], what: str) -> list[str]:
    def compared(path: str) -> list[float]:
        pairs = zip(getattr(some[path], what), getattr(none[path], what), strict=True)
        return [ratio(one, other) for one, other in pairs]

    edge, direct = compared(EDGE), compared(DIRECT)
    shares: Spread = paired(edge, direct, ratio)
    found = (spread(edge), spread(direct), shares, spread(compared(ALIAS)))
    return [f"{cell.kind}, {cell.clients}", *(each.show() for each in found)]
