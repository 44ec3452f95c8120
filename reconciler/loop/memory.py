"""What the loop remembers: on disk what must outlive it, in memory what can be found out again.

Records (what the front door serves, and the way back) and failures (for backoff) are files of the state directory.
Everything else here is lost in a crash and costs at most a second probe or a new start of a clock.
"""

import contextlib
import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from reconciler.core.backoff import delay
from reconciler.core.drift import digest_of
from reconciler.core.state import Application, Demand, Failure, Json, Record, failure_of
from reconciler.host.files import write_atomic

RECORDS_FILE = "records.json"
"""In the state directory: what the front door serves, by model."""
_FOREIGN_WINDOW_SECONDS = 12.0
_Row = TypeVar("_Row")


class Memory:
    """The loop's memory of one state directory.

    Args:
        folder: The state directory. Read here; written only by `save_*`.
        monotonic: Clock for ages, in seconds.
    """

    def __init__(self, folder: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._records_file = folder / RECORDS_FILE
        self._failures_file = folder / "failures.json"
        self._left_file = folder / "left.json"
        self._declared_file = folder / "declared.json"
        self._monotonic = monotonic
        self.records: dict[str, Record] = {row.model: row for row in _read(self._records_file, Record)}
        self.failures: dict[str, Failure] = {row.application: row for row in _read(self._failures_file, Failure)}
        self.left: dict[str, str] = _read_texts(self._left_file)
        self.declared: dict[str, str] = _read_texts(self._declared_file)
        self._left_saved = dict(self.left)
        self.ready: set[str] = set()
        self.probing: set[str] = set()
        self.unanswered: dict[str, str] = {}
        self._first_seen: dict[str, float] = {}
        self._without_traffic: dict[str, float] = {}
        self._with_traffic: dict[str, float] = {}
        self._last_used: dict[str, float] = {}
        self._counted: set[str] = set()
        self._busy: set[str] = set()
        self._building: set[str] = set()
        self._waking: set[str] = set()
        self._seen_as: dict[str, str] = {}
        self._demands: dict[str, tuple[str, Demand]] = {}
        self._foreign: dict[str, deque[tuple[float, float]]] = {}

    # --- on disk ------------------------------------------------------------------------------------------

    def record(self, record: Record) -> None:
        """Remember what the front door serves for a model."""
        self.records[record.model] = record
        self._save_records()

    def forget_models(self, models: Iterable[str]) -> None:
        """Forget models that neither run nor are declared."""
        gone = [model for model in models if self.records.pop(model, None) is not None]
        if gone:
            self._save_records()

    def keep_previous(self, model: str, config: Json) -> None:
        """Remember the version that makes way, so that it can come back."""
        record = self.records.get(model) or Record(model, "", config["name"], {})
        self.record(dataclasses.replace(record, previous=config))

    def forget_previous(self, model: str) -> None:
        """No version has to come back any more."""
        record = self.records.get(model)
        if record is not None:
            self.record(dataclasses.replace(record, previous=None))

    def fail(self, model: str, application: str, reason: str, now: float, basis: str = "") -> Failure:
        """Note that a version could not be brought up; gives the note with the time of the next try.

        Args:
            model: Its model.
            application: The version.
            reason: In words.
            now: Seconds since the epoch.
            basis: What its sizes were decided from: tries with other sizes count together.
        """
        before = failure_of(self.failures, model, application, basis)
        attempts = before.attempts + 1 if before is not None else 1
        failure = Failure(model, application, reason, attempts, now, now + delay(attempts), basis)
        self.failures[application] = failure
        self._save_failures()
        return failure

    def forgive(self, application: str, basis: str = "") -> None:
        """The version came up: its failures, and those of the same with other sizes, are history."""
        gone = [
            name for name, each in self.failures.items() if name == application or (basis and each.basis == basis)
        ]
        for name in gone:
            del self.failures[name]
        if gone:
            self._save_failures()

    def forget_failures(self, wanted: Iterable[str], bases: Iterable[str] = ()) -> None:
        """Forget failures of versions that nobody wants any more (a revert gets a fresh try).

        Args:
            wanted: Applications.
            bases: What the sizes of wanted versions are decided from.
        """
        keep, kept = set(wanted), set(bases)
        gone = [name for name, each in self.failures.items() if name not in keep and each.basis not in kept]
        for application in gone:
            del self.failures[application]
        if gone:
            self._save_failures()

    def will_put(self, configs: Mapping[str, Json]) -> None:
        """Serve is about to be told to hold these applications: what changes by that is no drift."""
        self.left = {
            name: left for name, left in self.left.items() if name in configs and digest_of(configs[name]) == left
        }
        self.save_left()

    def forget_left(self, names: Iterable[str]) -> None:
        """Forget how applications were left that nobody misses."""
        gone = set(names)
        self.left = {name: left for name, left in self.left.items() if name not in gone}

    def declare(self, files: Mapping[str, str]) -> None:
        """Remember which files declare models: when one of them breaks, its model is not taken for removed.

        Args:
            files: By model. Of others it is remembered for as long as something of them is there.
        """
        there = {model for model, _ in self._demands.values()}
        declared = {model: file for model, file in self.declared.items() if model in there} | dict(files)
        if declared != self.declared:
            self.declared = declared
            with contextlib.suppress(OSError):  # A record knows it too, once the model had traffic.
                write_atomic(self._declared_file, json.dumps(declared, indent=1, sort_keys=True))

    def save_left(self) -> None:
        """Write down how applications were left, where that changed."""
        if self.left != self._left_saved:
            with contextlib.suppress(OSError):  # What it costs is that drift goes unnoticed over a restart.
                write_atomic(self._left_file, json.dumps(self.left, indent=1, sort_keys=True))
                self._left_saved = dict(self.left)

    # --- in memory ----------------------------------------------------------------------------------------

    def see(self, applications: Mapping[str, Application], routes: Mapping[str, str]) -> dict[str, Application]:
        """Take in what is there: start clocks, drop those of what is gone.

        Returns:
            The applications, those that are being deleted with the model and the demand they had before: Serve
            forgets an application's configuration before its replicas are gone.
        """
        now = self._monotonic()
        seen: dict[str, Application] = {}
        for name, app in applications.items():
            if app.model is not None:
                self._demands[name] = (app.model, app.demand)
            elif app.config is None and name in self._demands:
                model, demand = self._demands[name]
                app = dataclasses.replace(app, model=model, demand=demand)  # noqa: PLW2901
            seen[name] = app
            self._first_seen.setdefault(name, now)
            if app.model is not None and app.config is not None:
                self._look_at(name, digest_of(app.config))
        self._see_builds(seen)
        routed = set(routes.values())
        for name in seen:
            if name in routed:
                self._without_traffic.pop(name, None)
                self._with_traffic.setdefault(name, now)
            else:
                self._without_traffic.setdefault(name, now)
        self._with_traffic.update(dict.fromkeys(self._waking & routed, now))
        self._waking -= routed
        clocks_of_applications = (
            self._first_seen,
            self._without_traffic,
            self._with_traffic,
            self._last_used,
            self._demands,
            self._seen_as,
            self.unanswered,
        )
        for clocks in clocks_of_applications:
            for name in clocks.keys() - seen.keys():
                clocks.pop(name)
        self._busy &= seen.keys()
        self._waking &= seen.keys()
        self.ready &= seen.keys()
        self.ready |= routed & seen.keys()
        return seen

    def _see_builds(self, seen: Mapping[str, Application]) -> None:
        building = {name for name, app in seen.items() if app.building}
        # One that was there before is built anew: somebody deployed it again.
        self._first_seen.update(dict.fromkeys(building - self._building, self._monotonic()))
        self._building = building

    def _look_at(self, name: str, digest: str) -> None:
        if self._seen_as.get(name, digest) != digest:
            # Serve deploys it anew, so what it answered before says nothing.
            self.ready.discard(name)
            self.unanswered.pop(name, None)
        self._seen_as[name] = digest
        self.left.setdefault(name, digest)

    def ages(self) -> dict[str, float]:
        """Seconds since each application was first seen, or since its last build was."""
        now = self._monotonic()
        return {name: now - since for name, since in self._first_seen.items()}

    def draining(self) -> dict[str, float]:
        """Seconds that each application without traffic has been without."""
        now = self._monotonic()
        return {name: now - since for name, since in self._without_traffic.items()}

    def up_seconds(self) -> dict[str, float]:
        """Seconds since each application that has or had the traffic first had it, as far as this process saw.

        For one that slept: since it woke and had the traffic again.
        """
        now = self._monotonic()
        return {name: now - since for name, since in self._with_traffic.items()}

    def answered(self, application: str) -> None:
        """A version answered its first request: it is ready, and idle from now on."""
        self.ready.add(application)
        # Requests may be passed on to it from now on, before the edge knows of it.
        if application in self._without_traffic:
            self._without_traffic[application] = self._monotonic()
        self._last_used[application] = self._monotonic()

    def wakes(self, application: str) -> None:
        """A version is being woken: how long it has been up counts anew once it has the traffic."""
        self._waking.add(application)

    def awaited(self, models: Collection[str]) -> None:
        """Requests wait for these models: what comes up for them is in use."""
        now = self._monotonic()
        for name, (model, _) in self._demands.items():
            if model in models:
                self._last_used[name] = now

    def use(self, in_flight: Mapping[str, int] | None, idle: Mapping[str, float]) -> dict[str, float]:
        """Take in what the front door counted; gives the seconds since each application was last used.

        What cannot be told counts as use, so nothing is unloaded too early: while the counts cannot be had, and
        when the edge has lost what it knew, because it was started anew.

        Args:
            in_flight: Requests in flight by application; None when that could not be read.
            idle: Seconds since the last request ended, of applications that ever had one.
        """
        now = self._monotonic()
        for name, since in self._first_seen.items():
            used = self._last_used.get(name, since if name not in idle else now - idle[name])
            if in_flight is None or in_flight.get(name) or (name in self._counted and name not in idle):
                used = now
            elif name in idle:
                used = max(used, now - idle[name])
            self._last_used[name] = used
            # The activator passes requests on before the edge knows the route, so a version without a route may
            # have some. They get the whole time that a drain may take, from the first of them on.
            busy = in_flight is None or bool(in_flight.get(name))
            if busy and name not in self._busy and name not in self._with_traffic:
                self._without_traffic[name] = now
            (self._busy.add if busy else self._busy.discard)(name)
        if in_flight is not None:
            self._counted = set(idle) & self._first_seen.keys()
        return {name: now - used for name, used in self._last_used.items()}

    def settle(self, what: str, amount: float) -> float:
        """What others have of something: the least of the last seconds, because reports lag behind our own deeds.

        Args:
            what: Of what; each has a memory of its own.
            amount: What it looks like now.
        """
        now = self._monotonic()
        seen = self._foreign.setdefault(what, deque())
        seen.append((now, amount))
        while seen[0][0] < now - _FOREIGN_WINDOW_SECONDS:
            seen.popleft()
        return min(amount for _, amount in seen)

    def _save_records(self) -> None:
        _write(self._records_file, self.records.values())

    def _save_failures(self) -> None:
        _write(self._failures_file, self.failures.values())


def _read_texts(file: Path) -> dict[str, str]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(name): str(left) for name, left in found.items()} if isinstance(found, dict) else {}


def _read(file: Path, kind: type[_Row]) -> list[_Row]:
    # Lost records cost words in a plan and a second try, no model; a crash loop would cost more.
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return []
    adapter = TypeAdapter(kind)
    found: list[_Row] = []
    for row in rows if isinstance(rows, list) else ():
        with contextlib.suppress(ValidationError):
            found.append(adapter.validate_python(row))
    return found


def _write(file: Path, rows: Iterable[Record] | Iterable[Failure]) -> None:
    write_atomic(file, json.dumps([dataclasses.asdict(row) for row in rows], indent=1, sort_keys=True))
