"""How long loads take: the loop's stopwatch, and what it remembers of it in the state directory.

    what comes up, each turn -> `Stopwatch` -> `LoadTimes` -> load_times.json -> how long the next load will take

The file is only worth estimates: whoever deletes it loses nothing else.
"""

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from reconciler.core.desired import Desired
from reconciler.core.state import Observed, Status
from reconciler.host.files import write_atomic

FILE = "load_times.json"
_KEPT = 5
_LARGEST = 16 * 2**20
"""Bytes of the file that are read: some 10,000 models. What is cut off is damaged."""
_Seconds = Annotated[float, Field(ge=0, le=30 * 86400, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Load:
    """One load, from its beginning to the traffic.

    Attributes:
        model: What was loaded.
        application: Its version.
        phases: Seconds by phase.
    """

    model: str
    application: str
    phases: Annotated[dict[str, _Seconds], Field(max_length=20)]

    @property
    def seconds(self) -> float:
        """What the load itself took."""
        return sum(self.phases.values())


class LoadTimes:
    """The load times of one state directory.

    Args:
        folder: The state directory. Read here; written only by `note` and `keep`.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._loads: dict[str, list[Load]] = {}
        for load in _read(self._file):
            self._loads.setdefault(load.model, []).append(load)
        self._changed()

    def note(self, model: str, application: str, phases: Mapping[str, float]) -> None:
        """Remember a load that came to its end.

        Args:
            model: What was loaded.
            application: Its version.
            phases: Seconds by phase, as `Stopwatch.done` gives them.

        Raises:
            OSError: The state directory cannot be written; the load counts until the process ends.
        """
        self._loads.setdefault(model, []).append(Load(model, application, dict(phases)))
        self._changed()
        self._save()

    def keep(self, models: Collection[str]) -> None:
        """Forget all models but these.

        Raises:
            OSError: The state directory cannot be written.
        """
        gone = self._loads.keys() - models
        if gone:
            for model in gone:
                del self._loads[model]
            self._changed()
            self._save()

    def expected(self) -> Mapping[str, float]:
        """Seconds that the next load will take, by model: the median of its last version's."""
        return self._expected

    def _changed(self) -> None:
        self._loads = {model: loads[-_KEPT:] for model, loads in self._loads.items()}
        # Replaced whole, never changed: plans are made in a thread of their own.
        self._expected = {
            model: statistics.median(load.seconds for load in loads if load.application == loads[-1].application)
            for model, loads in self._loads.items()
        }

    def _save(self) -> None:
        rows = [dataclasses.asdict(load) for loads in self._loads.values() for load in loads]
        write_atomic(self._file, json.dumps(rows, indent=1, sort_keys=True) + "\n")


@dataclass(slots=True)
class _Clock:
    """One load under way: `since` is when the phase began; `whole` that the load was seen from its beginning."""

    phase: str
    since: float
    whole: bool
    seconds: dict[str, float]

    def turn(self, phase: str, now: float) -> None:
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.since
        self.phase, self.since = phase, now


class Stopwatch:
    """Times loads by what each turn sees of them. It reads no file, and a restart begins anew.

    Args:
        monotonic: Clock for ages, in seconds.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._running: dict[str, _Clock] = {}
        self._left: dict[str, _Clock] = {}
        self._first = True

    def see(self, phases: Mapping[str, tuple[str, str]]) -> None:
        """Take in what is coming up; forget what is not any more, unless `done` asks for it before the next turn.

        Args:
            phases: The model and the phase (`build`, `load`, `probe`) by application.
        """
        now = self._monotonic()
        self._left = {name: clock for name, clock in self._running.items() if name not in phases}
        for name, clock in self._left.items():
            del self._running[name]
            clock.turn(clock.phase, now)
        for name, (_, phase) in phases.items():
            if name not in self._running:
                self._running[name] = _Clock(phase, now, not self._first, {})
            elif self._running[name].phase != phase:
                self._running[name].turn(phase, now)
        self._first = False

    def done(self, application: str) -> dict[str, float] | None:
        """Seconds by phase of a load that ended with the traffic; None where its beginning was not seen."""
        clock = self._left.pop(application, None)
        if clock is None:
            clock = self._running.pop(application, None)
            if clock is None:
                return None
            clock.turn(clock.phase, self._monotonic())
        return clock.seconds if clock.whole else None


def phases_of(desired: Desired, observed: Observed) -> dict[str, tuple[str, str]]:
    """The model and the phase of every wanted version that is coming up, by application."""
    found: dict[str, tuple[str, str]] = {}
    for target in desired.targets.values():
        app = observed.applications.get(target.application)
        if app is None or app.status is Status.DELETING or app.name in observed.up_seconds:
            continue
        up = app.name in observed.probing or app.name in observed.ready
        found[app.name] = (target.model, "probe" if up else "build" if app.building else "load")
    return found


def _read(file: Path) -> list[Load]:
    try:
        with file.open(encoding="utf-8") as opened:
            rows = json.loads(opened.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return []
    adapter = TypeAdapter(Load)
    found: list[Load] = []
    for row in rows if isinstance(rows, list) else ():
        with contextlib.suppress(ValidationError):
            found.append(adapter.validate_python(row))
    return found
