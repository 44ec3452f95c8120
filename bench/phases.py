"""Phases of what the reconciler did, read from its log: each ends with an event; what is left over is the rest."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

REST = "rest"
_BUILDS = ("Ray Serve builds the application", "waits until Ray Serve has built ")
_ANSWERS = "answering its first request"


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the reconciler's log.

    Attributes:
        moment: Seconds since the epoch.
        fields: What docs/events.md lists.
    """

    name: str
    moment: float
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Mark:
    """An event that ends a phase.

    Attributes:
        phase: What ends here.
        event: The event's name.
        model: Whose event.
        matches: Which of these, by their fields.
    """

    phase: str
    event: str
    model: str
    matches: Callable[[Mapping[str, Any]], bool] = lambda _: True

    def is_met_by(self, event: Event) -> bool:
        """Whether this event ends the phase."""
        return _named(self.event, self.model, event) and self.matches(event.fields)


def load_marks(model: str) -> tuple[Mark, ...]:
    """From the model's being asked for to its traffic."""
    return (
        Mark("noticed", "plan.change", model, lambda fields: fields["action"] in ("add", "load")),
        *start_marks(model),
    )


def start_marks(model: str) -> tuple[Mark, ...]:
    """From the decision that there is room for the model to its traffic."""
    return (
        Mark("scheduled: sent to Serve", "model.start", model),
        Mark("built", "model.waiting", model, lambda fields: not fields["why"].startswith((*_BUILDS, _ANSWERS))),
        Mark("loaded", "model.waiting", model, lambda fields: fields["why"] == _ANSWERS),
        Mark("answered a first request", "model.ready", model),
        Mark("switched", "traffic.switched", model),
    )


def unload_marks(model: str) -> tuple[Mark, ...]:
    """From the decision that the model goes to the free memory."""
    return (
        Mark("routed away", "traffic.stopped", model),
        Mark("drained, removal sent", "model.remove", model),
        Mark("memory free", "model.unloaded", model),
    )


def read_events(log: Path) -> list[Event]:
    """All events of a log; start.sh and others write to it too, and their lines are left out."""
    lines = log.read_text(errors="replace").splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{") and '"event"' in line]
    return [Event(row["event"], datetime.fromisoformat(row["timestamp"]).timestamp(), row) for row in rows]


def phases(events: Sequence[Event], marks: Iterable[Mark], began: float, end: float) -> dict[str, float]:
    """Seconds of each phase; a phase whose event is missing is counted into the next one.

    Args:
        events: In their order.
        marks: In their order.
        began: Seconds since the epoch.
        end: The end of the last phase, `REST`.
    """
    found: dict[str, float] = {}
    last = began
    for mark in marks:
        moment = next(
            (each.moment for each in events if last <= each.moment <= end and mark.is_met_by(each)), None
        )
        if moment is not None:
            found[mark.phase] = moment - last
            last = moment
    return {**found, REST: end - last}


def to_free_memory(events: Sequence[Event], model: str, began: float) -> float | None:
    """Seconds from the end of the drain, when the removal is sent, until the memory is free; None before that."""
    sent = next((each for each in events if each.moment >= began and _named("model.remove", model, each)), None)
    if sent is None:
        return None
    unloaded = (each for each in events if each.moment >= sent.moment and _named("model.unloaded", model, each))
    free = next(unloaded, None)
    return None if free is None else free.moment - sent.moment


def phase_rows(columns: Sequence[Sequence[Mapping[str, float]]], rest: str) -> list[list[str]]:
    """Medians of the phases, a row each, in the order in which they come.

    Args:
        columns: For each column one mapping a turn.
        rest: What the last phase ends with.
    """
    turns = [turn for column in columns for turn in column]
    names = list(dict.fromkeys(name for turn in turns for name in turn if name != REST))
    return [
        [rest if name == REST else name, *(_median(column, name) for column in columns)] for name in (*names, REST)
    ]


def _median(turns: Sequence[Mapping[str, float]], name: str) -> str:
    return f"{median([turn.get(name, 0.0) for turn in turns]):.2f}"


def _named(name: str, model: str, event: Event) -> bool:
    return event.name == name and event.fields.get("model") == model
