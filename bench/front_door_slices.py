"""Slices of load on the paths of the front door's benchmark, in turns: who is measured when, and what is noted."""

import statistics
from dataclasses import dataclass

from bench.asking import chat_body, completed
from bench.front_door_data import Cell, Series
from bench.load import Job
from bench.load_process import LoadProcess
from bench.measure import percentile

CHAT = "/v1/chat/completions"


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
