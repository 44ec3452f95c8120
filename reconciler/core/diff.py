"""Which fields changed, and what each change costs: nothing, a setting in place, or a new engine."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from reconciler.core.application import BASIS_ENV
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


def effect_of(path: str, old: object = None, new: object = None) -> Effect:
    """The effect of changing the model file's field at `path` (dotted) from `old` to `new`."""
    if path == "lifecycle.sleep_after" and (old is None) != (new is None):
        return Effect.NEW_ENGINE  # Only an engine that was started so can sleep.
    if _within(path, _FRONT_DOOR):
        return Effect.FRONT_DOOR
    if _within(path, _IN_PLACE):
        return Effect.IN_PLACE
    return Effect.NEW_ENGINE


def field_changes(old: Json, new: Json) -> tuple[FieldChange, ...]:
    """The changed fields between two model files (defaults filled in), sorted by path."""
    return tuple(
        FieldChange(path, before, after, effect_of(path, before, after))
        for path, before, after in _differences(old, new)
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
        if not path.endswith(BASIS_ENV)  # It follows from the others.
    )


def in_place_changes(old: Json, new: Json) -> tuple[FieldChange, ...]:
    """The changed deployment settings between what runs (`old`) and what is wanted (`new`).

    Serve reports what it was given, so a setting that is no longer wanted is a difference too.
    """
    return tuple(
        FieldChange(path, left, right, Effect.IN_PLACE)
        for path, left, right in _differences(old, new)
        if not _same_number(left, right)
    )


def _same_number(left: object, right: object) -> bool:
    # Serve gives whole numbers back as floats: 20 becomes 20.0.
    return type(left) in (int, float) and type(right) in (int, float) and left == right


def _within(path: str, sections: tuple[str, ...]) -> bool:
    return any(path == section or path.startswith(f"{section}.") for section in sections)


def _differences(old: Json, new: Json) -> Iterator[tuple[str, Any, Any]]:
    before, after = dict(_flatten(old)), dict(_flatten(new))
    inner = {path[:depth] for path in before.keys() | after.keys() for depth in range(len(path))}
    for path in sorted(before.keys() | after.keys(), key=str):
        left, right = before.get(path, _ABSENT), after.get(path, _ABSENT)
        # An empty object that was filled is told by what it was filled with.
        if not _same(left, right) and not (path in inner and {} in (left, right)):
            shown = ".".join(str(part) for part in path)
            yield shown, None if left is _ABSENT else left, None if right is _ABSENT else right


_ABSENT: Any = object()
_Path: TypeAlias = tuple[str | int, ...]


def _flatten(value: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:  # noqa: ANN401 -- any JSON value
    # An empty object is a value of its own: an argument set to {} differs from one that is absent.
    if isinstance(value, dict) and (value or not path):
        for key, item in value.items():
            yield from _flatten(item, (*path, str(key)))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, (*path, index))
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def _same(left: Any, right: Any) -> bool:  # noqa: ANN401 -- any JSON value, or none
    # Most values are plain and equal; writing each as JSON first is what a plan of 1,000 models spent its time on.
    if type(left) is type(right) and isinstance(left, (str, int, float)):
        return bool(left == right)
    return _canonical(left) == _canonical(right)


def _canonical(value: Any) -> str:  # noqa: ANN401 -- any JSON value, or none
    # As the digest sees it: to Python, 1, 1.0 and true are equal.
    return "" if value is _ABSENT else json.dumps(value, sort_keys=True)
