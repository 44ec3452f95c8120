"""What engines did over the last hour: rates from counters, quantiles from histograms, a point a step. Pure.

    ray_serve.engine_metrics -> `Reading` -> `Meter` -> values of one step -> `Hour` -> `Series` -> the page

A counter that is smaller than before began anew: what it shows came since (as Prometheus's `rate` has it). A
quantile is interpolated within its bucket, as by Prometheus's `histogram_quantile`.
"""

import math
from array import array
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from reconciler.core.metric_names import (
    COUNTERS,
    ERRORS,
    FIRST_TOKEN,
    GAUGES,
    GENERATION_TOKENS,
    KV_CACHE,
    LATENCY,
    PROMPT_TOKENS,
    REPLICA_LABELS,
    REQUESTS,
    RUNNING,
    WAITING,
)

STEP_SECONDS = 15.0
POINTS = 240
"""An hour of steps."""
UNITS: Mapping[str, str] = {
    "requests": "requests/s",
    "errors": "requests/s",
    "prompt_tokens": "tokens/s",
    "generation_tokens": "tokens/s",
    "first_token_p50": "s",
    "first_token_p95": "s",
    "latency_p50": "s",
    "latency_p95": "s",
    "kv_cache_use": "ratio",
    "running": "requests",
    "waiting": "requests",
    "in_flight": "requests",
    "held": "requests",
}
"""Every measure with its unit, in the order in which they are shown. `waiting` waits within the engines for a
place in a batch, `held` at the front door for the model to come up; `kv_cache_use` is the fullest engine's."""
_WINDOW = 2
"""Steps that a rate goes over. Ray's agents show what is new every 10 seconds, so that one step of 15 seconds has
either one or two of their reports, and two steps have three."""
_RATES = {
    "requests": REQUESTS,
    "errors": ERRORS,
    "prompt_tokens": PROMPT_TOKENS,
    "generation_tokens": GENERATION_TOKENS,
}
_QUANTILES = {
    "first_token_p50": (FIRST_TOKEN, 0.5),
    "first_token_p95": (FIRST_TOKEN, 0.95),
    "latency_p50": (LATENCY, 0.5),
    "latency_p95": (LATENCY, 0.95),
}


class Sample(NamedTuple):
    """One number under a name, told apart from others of that name by its labels."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What one engine says of itself.

    Attributes:
        counters: By name and, for a histogram, by the upper bound of the bucket (else an empty text).
        gauges: By name.
    """

    counters: Mapping[tuple[str, str], float] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Series:
    """One measure over the last hour.

    Attributes:
        start: Seconds since the epoch of the first point.
        step: Seconds from one point to the next.
        points: None where nothing was measured.
    """

    name: str
    unit: str
    start: float
    step: float
    points: tuple[float | None, ...]


def readings(found: Iterable[Sample], replicas: Collection[str]) -> dict[str, Reading]:
    """What the engines of these replicas say, by replica; those of whom nothing is said are left out.

    A replica may have several engines, and requests several ends: their counters and gauges are added up, but for
    the use of KV caches, of which the largest counts.
    """
    counters: dict[str, dict[tuple[str, str], float]] = {}
    gauges: dict[str, dict[str, float]] = {}
    for name, labels, value in found:
        replica = next((labels[label] for label in REPLICA_LABELS if label in labels), "")
        if replica not in replicas:
            continue
        if name in COUNTERS:
            key, sums = (name, labels.get("le", "")), counters.setdefault(replica, {})
            sums[key] = sums.get(key, 0.0) + value
        elif name in GAUGES:
            now = gauges.setdefault(replica, {})
            now[name] = max(now.get(name, 0.0), value) if name == KV_CACHE else now.get(name, 0.0) + value
    return {
        replica: Reading(counters.get(replica, {}), gauges.get(replica, {}))
        for replica in counters.keys() | gauges.keys()
    }


@dataclass(slots=True)
class _Counted:
    """What became of one replica's counters.

    Attributes:
        before: As they were shown last.
        grown: How much each has grown since the beginning.
        steps: The same after each of the last steps, with the time of its end.
    """

    before: Mapping[tuple[str, str], float]
    grown: dict[tuple[str, str], float]
    steps: deque[tuple[float, dict[tuple[str, str], float]]]

    def add(self, now: Mapping[tuple[str, str], float]) -> None:
        """The counters as they are shown now."""
        for key, value in now.items():
            more = value - self.before.get(key, 0.0)
            self.grown[key] = self.grown.get(key, 0.0) + (more if more >= 0 else value)
        # One that is missing for once did not begin anew.
        self.before = {**self.before, **now}


class Meter:
    """Turns what engines say now and said before into the values of a step.

    Of a replica that was there before the first look nobody knows when its counters grew, so they count from its
    first reading. One that came later began at nought.
    """

    def __init__(self) -> None:
        self._counted: dict[str, _Counted] = {}
        self._there: frozenset[str] | None = None
        self._at = 0.0

    def see(self, replicas: Collection[str], at: float) -> None:
        """These are all replicas that there are, at a time in seconds; comes before `measure` in each step."""
        there = frozenset(replicas)
        if self._there is not None:
            self._counted |= {replica: _begun({}, self._at) for replica in there - self._there}
        self._counted = {replica: each for replica, each in self._counted.items() if replica in there}
        self._there, self._at = there, at

    def measure(self, found: Mapping[str, Reading]) -> dict[str, float]:
        """The values of one model at the time of `see`, without those that nobody can tell.

        Args:
            found: What each of its replicas says now.
        """
        rates: dict[tuple[str, str], float] = {}
        timed = False
        for replica, now in found.items():
            counted = self._counted.setdefault(replica, _begun(now.counters, self._at))
            counted.add(now.counters)
            then, before = counted.steps[0]
            if self._at > then:
                timed = True
                for key, value in counted.grown.items():
                    rates[key] = rates.get(key, 0.0) + (value - before.get(key, 0.0)) / (self._at - then)
                counted.steps.append((self._at, dict(counted.grown)))
        values = {name: rates.get((counter, ""), 0.0) for name, counter in _RATES.items()} if timed else {}
        for name, (histogram, share) in _QUANTILES.items():
            seconds = quantile(share, {key[1]: rate for key, rate in rates.items() if key[0] == histogram})
            if seconds is not None:
                values[name] = seconds
        return values | _now([reading.gauges for reading in found.values()])


def _begun(counters: Mapping[tuple[str, str], float], at: float) -> _Counted:
    return _Counted(counters, {}, deque([(at, {})], maxlen=_WINDOW))


def _now(gauges: Sequence[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, gauge in (("running", RUNNING), ("waiting", WAITING)):
        if any(gauge in each for each in gauges):
            values[name] = sum(each.get(gauge, 0.0) for each in gauges)
    if any(KV_CACHE in each for each in gauges):
        values["kv_cache_use"] = max(each.get(KV_CACHE, 0.0) for each in gauges)
    return values


def quantile(share: float, buckets: Mapping[str, float]) -> float | None:
    """The value that a share of all that was observed does not exceed; None where nothing was.

    Beyond the last bound that is finite it is that bound, as nobody knows more.

    Args:
        share: From 0 to 1.
        buckets: How much was observed up to each upper bound, as text (`+Inf` for all of it).
    """
    bounds = sorted((bound, count) for text, count in buckets.items() if (bound := _bound(text)) is not None)
    if len(bounds) < 2 or bounds[-1][0] != math.inf or bounds[-1][1] <= 0:  # noqa: PLR2004 -- one that is finite
        return None
    rank, below, counted = share * bounds[-1][1], 0.0, 0.0
    for bound, count in bounds[:-1]:
        if count >= rank and count > counted:
            # Of a first bucket of what is negative, nobody knows where it begins.
            low = below if below or bound > 0 else bound
            return low + (bound - low) * max(0.0, rank - counted) / (count - counted)
        below, counted = bound, max(counted, count)
    return below


def _bound(text: str) -> float | None:
    try:
        bound = float(text)
    except ValueError:
        return None
    return None if math.isnan(bound) else bound


class Hour:
    """The last hour of one model: 240 numbers for each measure."""

    def __init__(self) -> None:
        self._values = {name: array("d", [math.nan]) * POINTS for name in UNITS}
        self._last: int | None = None

    def put(self, tick: int, values: Mapping[str, float]) -> None:
        """The values of one step; measures that are not among them have none.

        Args:
            tick: Steps since the epoch. If it goes back, the clock was set: what came before is forgotten.
            values: By measure.
        """
        if self._last is None or tick < self._last or tick - self._last >= POINTS:
            blank = range(POINTS)
        else:
            blank = range(self._last + 1, tick + 1)
        for name, ring in self._values.items():
            for each in blank:
                ring[each % POINTS] = math.nan
            ring[tick % POINTS] = values.get(name, math.nan)
        self._last = tick

    def is_over(self, tick: int) -> bool:
        """Nothing was measured within the hour that ends with this step."""
        return self._last is None or tick - self._last >= POINTS

    def series(self, tick: int) -> tuple[Series, ...]:
        """Every measure over the hour that ends with this step."""
        start = tick - POINTS + 1
        return tuple(
            Series(
                name,
                UNITS[name],
                start * STEP_SECONDS,
                STEP_SECONDS,
                tuple(self._point(ring, each) for each in range(start, tick + 1)),
            )
            for name, ring in self._values.items()
        )

    def _point(self, ring: "array[float]", tick: int) -> float | None:
        if self._last is None or not self._last - POINTS < tick <= self._last:
            return None
        value = ring[tick % POINTS]
        return None if math.isnan(value) else value
