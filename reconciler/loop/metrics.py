"""The reconciler's own measures for Prometheus: what happened is counted here, what is comes from the last look.

    loop, act, sleeping, journal --- what happened ---> `Metrics` -> text() -> api: GET /metrics
    the last look, downloads, keys, lease -- what is ------^

What is, is read when it is asked for, so a model that is gone has no series. Of what happened, a model's part goes
with it too: models have series only while they are declared or up.
"""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client import Counter as PromCounter
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from reconciler.activator.directory import Directory
from reconciler.core.journal_entry import ACTIONS, Entry
from reconciler.core.weights import Copy, CopyState
from reconciler.loop.loop import Look
from reconciler.loop.metrics_now import counter, gauge, of_each_model, of_memory, of_plan, of_source, rows

_TURN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LOAD_BUCKETS = (2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)
_WAKE_BUCKETS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 180.0)
_MOST_COUNTED = 1000
"""Keys, repositories and reasons of refusals that have a series each."""


class TurnResult(StrEnum):
    """How a turn ended."""

    OK = "ok"
    FAILED = "failed"
    """The world was not well: Ray or the front door did not answer, a file could not be written."""
    CRASHED = "crashed"
    """A fault of ours."""


def _nobody() -> Mapping[str, int]:
    return {}


@dataclass(frozen=True, slots=True)
class Feeds:
    """Whom to ask about what is; each is called within the process's event loop and answers at once.

    Attributes:
        look: What the loop saw last; None before it saw anything.
        directory: Where each model stands.
        holds_lease: This process may write to the cluster.
        downloads: Downloads under way.
        received: Bytes that came over the network since the process began, by repository.
        key_requests: Requests by a key's fingerprint.
        refused: Requests that were refused since the process began, by the code of the error.
        model_memory: Bytes that an application's processes have on GPUs, where somebody can tell.
        gpu_used: Bytes in use of a GPU, by Ray's id of its node and its index, where somebody can tell.
    """

    look: Callable[[], Look | None]
    directory: Callable[[], Directory]
    holds_lease: Callable[[], bool]
    downloads: Callable[[], Mapping[Copy, CopyState]]
    received: Callable[[], Mapping[str, int]] = _nobody
    key_requests: Callable[[], Mapping[str, int]] = _nobody
    refused: Callable[[], Mapping[str, int]] = _nobody
    model_memory: Callable[[], Mapping[str, int]] = _nobody
    gpu_used: Callable[[], Mapping[tuple[str, int], int]] = dict


class Metrics:
    """All measures of one reconciler.

    Args:
        feeds: Whom to ask about what is.
        version: Of the reconciler.
        disks: Folders whose disks are watched, by a short name.
        wall_clock: Seconds since the epoch.
    """

    def __init__(
        self,
        feeds: Feeds,
        version: str,
        *,
        disks: Mapping[str, Path] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._feeds = feeds
        self._version = version
        self._disks = disks or {}
        self._wall_clock = wall_clock
        self._free: dict[str, tuple[int, int]] = {}
        self._succeeded_at: float | None = None
        self._phases: dict[str, dict[str, float]] = {}
        self._evictions: Counter[str] = Counter()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_Now(self))
        self._turns = PromCounter(
            "reconcile_turns", "Turns of the loop, by how they ended.", ["result"], registry=self._registry
        )
        for result in TurnResult:
            self._turns.labels(result)
        self._turn_seconds = Histogram(
            "reconcile_turn_duration_seconds",
            "How long a turn of the loop took.",
            buckets=_TURN_BUCKETS,
            registry=self._registry,
        )
        self._changes = PromCounter(
            "reconcile_changes",
            "Changes of models, as the journal has them: each when it starts and when it ends.",
            ["action", "outcome"],
            registry=self._registry,
        )
        self._load_seconds = Histogram(
            "reconcile_model_load_seconds",
            "How long a load took, from its beginning to the traffic.",
            ["model"],
            buckets=_LOAD_BUCKETS,
            registry=self._registry,
        )
        self._wake_seconds = Histogram(
            "reconcile_model_wake_seconds",
            "How long a sleeping model took to answer again.",
            ["model"],
            buckets=_WAKE_BUCKETS,
            registry=self._registry,
        )
        self._timed: dict[str, set[str]] = {"load": set(), "wake": set()}

    # --- what happened --------------------------------------------------------------------------------------

    def turn(self, seconds: float, result: TurnResult) -> None:
        """A turn of the loop ended."""
        self._turns.labels(result).inc()
        self._turn_seconds.observe(seconds)
        if result is TurnResult.OK:
            self._succeeded_at = self._wall_clock()
        self._forget()

    def noted(self, entries: Iterable[Entry]) -> None:
        """These lines were added to the journal."""
        for entry in entries:
            if entry.what in ACTIONS:
                self._changes.labels(entry.what, entry.outcome.value).inc()

    def loaded(self, model: str, phases: Mapping[str, float]) -> None:
        """A load ended with the traffic.

        Args:
            model: What was loaded.
            phases: Seconds by phase, as `load_times.Stopwatch.done` gives them.
        """
        self._timed["load"].add(model)
        self._phases[model] = dict(phases)
        self._load_seconds.labels(model).observe(sum(phases.values()))

    def woke(self, model: str, seconds: float) -> None:
        """A sleeping model answers again."""
        self._timed["wake"].add(model)
        self._wake_seconds.labels(model).observe(seconds)

    def evicted(self, model: str) -> None:
        """A model was unloaded to make room for another one."""
        self._evictions[model] += 1

    async def look_at_disks(self) -> None:
        """Find out how much is free on the disks; a disk that does not answer keeps only a thread waiting."""
        self._free = await asyncio.to_thread(_free_on, self._disks)

    # --- what is --------------------------------------------------------------------------------------------

    def text(self) -> bytes:
        """Everything, in Prometheus's text format 0.0.4. To be called within the process's event loop."""
        self._forget()
        return generate_latest(self._registry)

    def now(self) -> Iterator[Metric]:
        """What is, read now."""
        yield gauge("reconcile_build_info", "The reconciler that runs.", [((self._version,), 1)], ["version"])
        if self._succeeded_at is not None:
            yield gauge(
                "reconcile_last_success_timestamp_seconds",
                "When a turn of the loop last ended well.",
                [((), self._succeeded_at)],
            )
        yield gauge(
            "reconcile_lease_held",
            "1 while this reconciler may write to the cluster.",
            [((), self._feeds.holds_lease())],
        )
        yield from self._disk_space()
        yield from self._of_downloads()
        yield from self._of_requests()
        look = self._feeds.look()
        if look is not None:
            yield from of_source(look, self._wall_clock())
            yield from of_plan(look)
            yield from self._of_models(look)
            yield from of_memory(look.observed, self._feeds.model_memory(), self._feeds.gpu_used())

    def _disk_space(self) -> Iterator[Metric]:
        for name, words, place in (
            ("reconcile_disk_free_bytes", "Free on the disk of a folder.", 0),
            ("reconcile_disk_size_bytes", "Size of the disk of a folder.", 1),
        ):
            yield gauge(name, words, [((disk,), each[place]) for disk, each in self._free.items()], ["disk"])

    def _of_downloads(self) -> Iterator[Metric]:
        phases: Counter[str] = Counter()
        rates: Counter[str] = Counter()
        missing: Counter[str] = Counter()
        for copy, state in self._feeds.downloads().items():
            phases[state.phase.value] += 1
            rates[copy.repo] += round(state.rate)
            missing[copy.repo] += state.missing or 0
        yield gauge("reconcile_downloads", "Downloads under way.", rows(phases), ["phase"])
        yield gauge("reconcile_download_bytes_per_second", "Speed over the last seconds.", rows(rates), ["repo"])
        yield gauge("reconcile_download_missing_bytes", "Still to be fetched.", rows(missing), ["repo"])
        yield counter(
            "reconcile_download_bytes",
            "Bytes that came over the network.",
            rows(_most(self._feeds.received())),
            ["repo"],
        )

    def _of_requests(self) -> Iterator[Metric]:
        yield counter(
            "reconcile_key_requests",
            "Requests with a key, by its fingerprint.",
            rows(_most(self._feeds.key_requests())),
            ["key"],
        )
        yield counter(
            "reconcile_requests_refused",
            "Requests that the reconciler refused at the front door; not those that the edge refused.",
            rows(_most(self._feeds.refused())),
            ["reason"],
        )

    def _of_models(self, look: Look) -> Iterator[Metric]:
        entries = self._feeds.directory().entries
        states = Counter({entry.state.value: 0 for entry in entries})
        states.update(entry.state.value for entry in entries)
        yield gauge("reconcile_models", "Models, by where they stand.", rows(states), ["state"])
        yield gauge(
            "reconcile_model_state",
            "1 for where a model stands: loaded, loading, sleeping, unloaded, unloading or failed.",
            [((entry.name, entry.state.value), 1) for entry in entries],
            ["model", "state"],
        )
        yield from of_each_model(look)
        yield counter(
            "reconcile_model_evictions",
            "How often a model was unloaded to make room for another one.",
            rows(self._evictions),
            ["model"],
        )
        yield gauge(
            "reconcile_model_last_load_seconds",
            "What the last load took, by phase.",
            [((model, phase), value) for model, each in self._phases.items() for phase, value in each.items()],
            ["model", "phase"],
        )

    def _forget(self) -> None:
        """Drop what was counted of models that are neither declared nor up."""
        look = self._feeds.look()
        if look is None:
            return
        there = look.desired.targets.keys() | {app.model for app in look.observed.applications.values()}
        # An invalid file, or a source that cannot be read, makes no model undeclared.
        there |= {entry.name for entry in self._feeds.directory().entries}
        for model in self._evictions.keys() - there:
            del self._evictions[model]
        for model in self._phases.keys() - there:
            del self._phases[model]
        for histogram, timed in ((self._load_seconds, "load"), (self._wake_seconds, "wake")):
            for model in self._timed[timed] - there:
                histogram.remove(model)
                self._timed[timed].discard(model)


class _Now(Collector):
    """What is, for the registry."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.now()

    def describe(self) -> Iterable[Metric]:
        return ()


def _most(counts: Mapping[str, int]) -> Mapping[str, int]:
    return dict(sorted(counts.items(), key=lambda each: -each[1])[:_MOST_COUNTED])


def _free_on(disks: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for name, folder in disks.items():
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            continue
        found[name] = (usage.free, usage.total)
    return found
