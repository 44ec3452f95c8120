"""Numbers of a benchmark and how they are shown: percentiles, paired comparisons, tables. Pure."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the quartiles around it: half of all rounds lie between `low` and `high`."""

    median: float
    low: float
    high: float

    def show(self, digits: int = 2, *, signed: bool = False) -> str:
        """`1.02 (0.99 to 1.05)`."""
        form = f"{'+' if signed else ''}.{digits}f"
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` % of `values` do not exceed, interpolated between neighbours.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    return Spread(statistics.median(values), percentile(values, 25), percentile(values, 75))


def paired(first: Sequence[float], second: Sequence[float], compare: Callable[[float, float], float]) -> Spread:
    """Compare two series round by round, and only then take the median.

    What slows the machine for a while slows both halves of a pair, so it cancels out; it would not between the
    medians of the two series.

    Args:
        first: One value a round.
        second: One value a round, measured next to it.
        compare: `ratio` or `difference`.

    Raises:
        ValueError: The series differ in length.
    """
    return spread([compare(a, b) for a, b in zip(first, second, strict=True)])


def ratio(first: float, second: float) -> float:
    """How many times `second` is in `first`."""
    return first / second


def difference(first: float, second: float) -> float:
    """What `first` has more than `second`."""
    return first - second


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned Markdown: readable on a terminal, and fit to be pasted into a README. Numbers stand to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    right = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        f"{'-' * (width + 1)}:" if to_right else "-" * (width + 2)
        for width, to_right in zip(widths, right, strict=True)
    )
    return "\n".join((line(header), f"|{rule}|", *(line(row) for row in rows)))


def verdict(value: float, aim: float) -> str:
    """Whether `value` is at most `aim`."""
    return "met" if value <= aim else "MISSED"


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "+-"
