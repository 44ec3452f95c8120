"""The front door's benchmark: which loads there are, and what is measured of each. Data, and nothing else."""

from dataclasses import dataclass, field
from typing import Any

BARE, DIRECT, EDGE, ALIAS, AGAIN = "bare", "direct", "edge", "activator", "direct again"
PATHS = (BARE, DIRECT, EDGE, ALIAS, AGAIN)
"""`direct again` is the same as `direct`: how much the two differ is how well anything here can be told apart."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of load.

    Attributes:
        requests: In one slice.
        turns: Slices of each path in one round: many short ones, so that neighbours are near in time.
    """

    kind: str
    tokens: int
    clients: int
    requests: int
    turns: int

    @property
    def stream(self) -> bool:
        """Whether the answer is streamed."""
        return self.kind == "stream"


FULL = (
    Cell("short", 4, 1, 50, 3),
    Cell("short", 4, 16, 240, 2),
    Cell("short", 4, 64, 384, 1),
    Cell("stream", 256, 1, 2, 2),
    Cell("stream", 256, 16, 32, 1),
    Cell("stream", 256, 64, 64, 1),
)
QUICK = (
    Cell("short", 4, 1, 20, 1),
    Cell("short", 4, 16, 80, 1),
    Cell("short", 4, 64, 128, 1),
    Cell("stream", 256, 1, 1, 1),
    Cell("stream", 256, 16, 16, 1),
    Cell("stream", 256, 64, 64, 1),
)


COLD_FULL = (Cell("short", 4, 1, 50, 3), Cell("short", 4, 16, 240, 2), Cell("stream", 256, 16, 16, 1))
COLD_QUICK = (Cell("short", 4, 1, 20, 1), Cell("short", 4, 16, 80, 1), Cell("stream", 256, 16, 16, 1))
"""With and without cold models: a round of these is short, so that neighbours are near in time."""


@dataclass(slots=True)
class Series:
    """One value a slice, for one path in one cell."""

    p50_ms: list[float] = field(default_factory=list)
    p95_ms: list[float] = field(default_factory=list)
    first_p50_ms: list[float] = field(default_factory=list)
    first_p95_ms: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    generator_share: list[float] = field(default_factory=list)
    reconnects: int = 0


@dataclass(slots=True)
class Result:
    """Everything that was measured."""

    machine: dict[str, Any]
    ceilings: dict[int, float]
    cells: list[tuple[Cell, dict[str, Series]]]
    rounds: int = 0
    seconds: float = 0.0
