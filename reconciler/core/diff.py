"""Which fields changed, and what each change costs: nothing, a setting in place, or a new engine."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from reconciler.core.state import Json


class Effect(StrEnum):
    """What it takes to make a changed field true. In order of cost."""

    FRONT_DOOR = "front door"
    """Only routing, listing or policy: no engine is touched."""
    IN_PLACE = "in place"
    """Serve changes it on the running deployment."""
    NEW_ENGINE = "new engine"
    """A new version is started beside the old one, or after it."""


_FRONT_DOOR = ("aliases", "description", "labels", "lifecycle", "source.track")
_IN_PLACE = ("resources.replicas", "resources.max_ongoing_requests", "resources.max_queued_requests")


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field, before and after. `None` stands for absent."""

    path: str
    old: Any
    new: Any
    effect: Effect


def effect_of(path: str) -> Effect:
    """The effect of changing the model file's field at `path` (dotted)."""
    if path.startswith(_FRONT_DOOR):
        return Effect.FRONT_DOOR
    if path.startswith(_IN_PLACE):
        return Effect.IN_PLACE
    return Effect.NEW_ENGINE


def field_changes(old: Json, new: Json) -> tuple[FieldChange, ...]:
    """The changed fields between two model files (defaults filled in), sorted by path."""
    return tuple(
        FieldChange(path, before, after, effect_of(path)) for path, before, after in _differences(old, new)
    )


def config_changes(old: Json, new: Json) -> tuple[FieldChange, ...]:
    """The changed settings between two Serve applications, where the files do not explain the difference."""
    before, after = (
        {key: value for key, value in config.items() if key not in ("name", "route_prefix", "deployments")}
        for config in (old, new)
    )
    return tuple(
        FieldChange(path.removeprefix("args.llm_configs.0."), left, right, Effect.NEW_ENGINE)
        for path, left, right in _differences(before, after)
    )


def in_place_changes(old: Json, new: Json) -> tuple[FieldChange, ...]:
    """The changed deployment settings between what runs (`old`) and what is wanted (`new`).

    Settings that Serve reports beyond the wanted ones are its own defaults and no difference.
    """
    wanted = dict(_flatten(new))
    running = dict(_flatten(old))
    return tuple(
        FieldChange(path, running.get(path), value, Effect.IN_PLACE)
        for path, value in sorted(wanted.items())
        if running.get(path) != value
    )


def _differences(old: Json, new: Json) -> Iterator[tuple[str, Any, Any]]:
    before, after = dict(_flatten(old)), dict(_flatten(new))
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            yield path, before.get(path), after.get(path)


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 -- any JSON value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{path}.{index}")
    else:
        yield path, list(value) if isinstance(value, tuple) else value
