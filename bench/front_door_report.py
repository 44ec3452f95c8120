"""The front door's benchmark as tables: ratios first, the numbers they are made of beside them. Pure."""

from collections.abc import Callable, Sequence
from statistics import median

from bench.front_door_data import AGAIN, ALIAS, BARE, DIRECT, EDGE, Cell, Result, Series
from bench.machine import sentence
from bench.measure import Spread, difference, paired, ratio, table, verdict

AIM_ADDED_MS = 0.3
AIM_LOSS_PERCENT = 3.0

_RATIOS = ((EDGE, DIRECT), (ALIAS, DIRECT), (DIRECT, BARE), (EDGE, BARE), (AGAIN, DIRECT))
_Metric = tuple[str, Callable[[Series], list[float]], int]
_LATENCY: tuple[_Metric, ...] = (
    ("latency p50, ms", lambda series: series.p50_ms, 2),
    ("latency p95, ms", lambda series: series.p95_ms, 2),
)
_FIRST: tuple[_Metric, ...] = (
    ("first token p50, ms", lambda series: series.first_p50_ms, 2),
    ("first token p95, ms", lambda series: series.first_p95_ms, 2),
)
_RATE: tuple[_Metric, ...] = (("requests/s", lambda series: series.per_second, 1),)


def text(result: Result) -> str:
    """The whole report, as Markdown."""
    parts = [
        f"Measured {sentence(result.machine)}",
        (
            f"{result.rounds} rounds in {result.seconds:.0f} s. Ratio: median over neighbouring slices "
            "(half of them lie within the brackets)."
        ),
    ]
    for kind, title in (("short", "Short answers, 4 tokens"), ("stream", "Streams of 256 tokens")):
        cells = [(cell, series) for cell, series in result.cells if cell.kind == kind]
        parts += [f"### {title}: ratios", _ratios(cells), f"### {title}: medians", _absolutes(cells)]
    parts += ["### What the edge adds", _aims(result.cells), _generator(result)]
    return "\n\n".join(parts)


def _metrics(cell: Cell) -> tuple[_Metric, ...]:
    return (*(_FIRST if cell.stream else ()), *_LATENCY, *_RATE)


def _ratios(cells: Sequence[tuple[Cell, dict[str, Series]]]) -> str:
    measured = cells[0][1]
    pairs = [(one, other) for one, other in _RATIOS if one in measured and other in measured]
    rows = [
        [
            str(cell.clients),
            name,
            *(paired(values(series[one]), values(series[other]), ratio).show() for one, other in pairs),
        ]
        for cell, series in cells
        for name, values, _ in _metrics(cell)
    ]
    return table(["clients", "", *(f"{one} / {other}" for one, other in pairs)], rows)


def _absolutes(cells: Sequence[tuple[Cell, dict[str, Series]]]) -> str:
    paths = list(cells[0][1])
    rows = [
        [str(cell.clients), name, *(f"{median(values(series[path])):.{digits}f}" for path in paths)]
        for cell, series in cells
        for name, values, digits in _metrics(cell)
    ]
    return table(["clients", "", *paths], rows)


def _aims(cells: Sequence[tuple[Cell, dict[str, Series]]]) -> str:
    rows = []
    for cell, series in cells:
        edge, direct = series[EDGE], series[DIRECT]
        added = paired(edge.p50_ms, direct.p50_ms, difference)
        loss = paired(edge.per_second, direct.per_second, _loss_percent)
        noise = _noise(series)
        rows.append(
            [
                f"{cell.kind}, {cell.clients}",
                added.show(signed=True),
                verdict(added.median, AIM_ADDED_MS),
                loss.show(1, signed=True),
                verdict(loss.median, AIM_LOSS_PERCENT),
                *noise,
            ]
        )
    header = ["load, clients", "added at p50, ms", f"aim {AIM_ADDED_MS} ms"]
    header += ["throughput lost, %", f"aim {AIM_LOSS_PERCENT:.0f} %"]
    return table([*header, "noise: ms", "noise: %"], rows)


def _noise(series: dict[str, Series]) -> list[str]:
    """The same two numbers for a path against itself: what of the edge's is below this is not known."""
    if AGAIN not in series:
        return ["?", "?"]
    again, direct = series[AGAIN], series[DIRECT]
    added: Spread = paired(again.p50_ms, direct.p50_ms, difference)
    loss: Spread = paired(again.per_second, direct.per_second, _loss_percent)
    return [added.show(signed=True), loss.show(1, signed=True)]


def _loss_percent(through: float, direct: float) -> float:
    return (1 - through / direct) * 100


def _generator(result: Result) -> str:
    ceilings = ", ".join(f"{rate:.0f}/s with {clients}" for clients, rate in result.ceilings.items())
    every = [each for _, series in result.cells for each in series.values()]
    share = max(median(each.generator_share) for each in every)
    reconnects = sum(each.reconnects for each in every)
    return (
        f"The load generator (a process of its own) manages {ceilings} clients against a "
        f"HAProxy that answers by itself. In the measurement it used at most {share:.0%} of one core and "
        f"reconnected {reconnects} times."
    )
