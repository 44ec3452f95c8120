"""Which fields differ, and what each difference costs."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from reconciler.core.diff import Effect, config_changes, effect_of, field_changes, in_place_changes
from reconciler.core.spec import ModelSpec

KEYS = st.sampled_from(["a", "b", "a.b", "0", "", "é"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0, 0.5, "", "a", "\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=3)


def as_json(value: Any) -> Any:
    """A value that is equal only to what JSON writes the same way: 1, 1.0 and true are three things."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return (type(value).__name__, value)


@given(OBJECTS, OBJECTS)
def test_there_is_a_change_exactly_when_something_differs(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert bool(field_changes(old, new)) == (as_json(old) != as_json(new))


@given(OBJECTS)
def test_nothing_changes_between_a_thing_and_its_copy(fields: dict[str, Any]) -> None:
    assert field_changes(fields, copy.deepcopy(fields)) == ()
    assert config_changes(fields, copy.deepcopy(fields)) == ()
    assert in_place_changes(fields, copy.deepcopy(fields)) == ()


@given(OBJECTS, OBJECTS)
def test_a_change_read_backwards_is_the_same_change(old: dict[str, Any], new: dict[str, Any]) -> None:
    forward = [(change.path, change.old, change.new) for change in field_changes(old, new)]
    backward = [(change.path, change.new, change.old) for change in field_changes(new, old)]
    assert as_json([list(row) for row in forward]) == as_json([list(row) for row in backward])


def test_an_argument_set_to_nothing_differs_from_one_that_is_absent() -> None:
    assert [c.path for c in field_changes({"args": {}}, {"args": {"hf_overrides": {}}})] == ["args.hf_overrides"]
    assert [c.path for c in field_changes({"args": {"x": 1}}, {"args": {"x": 1, "seed": None}})] == ["args.seed"]


def test_tuples_are_lists() -> None:
    assert field_changes({"a": (1, 2), "b": ({"c": 1},)}, {"a": [1, 2], "b": [{"c": 1}]}) == ()


@pytest.mark.parametrize(
    ("path", "effect"),
    [
        ("aliases", Effect.FRONT_DOOR),
        ("labels.team", Effect.FRONT_DOOR),
        ("lifecycle.schedule.0.start", Effect.FRONT_DOOR),
        ("source.track", Effect.FRONT_DOOR),
        ("source.track_record", Effect.NEW_ENGINE),
        ("resources.replicas.max", Effect.IN_PLACE),
        ("resources.max_queued_requests", Effect.IN_PLACE),
        ("resources.max_queued_requests_total", Effect.NEW_ENGINE),
        ("task", Effect.NEW_ENGINE),
        ("something.unheard.of", Effect.NEW_ENGINE),
    ],
)
def test_effects(path: str, effect: Effect) -> None:
    assert effect_of(path) is effect


def leaves(model: type[BaseModel], path: str = "") -> list[str]:
    found: list[str] = []
    for name, field in model.model_fields.items():
        here = f"{path}.{name}" if path else name
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += leaves(inner, here)
        else:
            found.append(here)
    return found


def test_every_field_of_the_model_file_has_the_effect_that_is_written_here() -> None:
    """A new field is a new engine unless someone says otherwise, here and in `diff`."""
    cheap = {path: effect_of(path) for path in leaves(ModelSpec) if effect_of(path) is not Effect.NEW_ENGINE}
    assert {path for path, effect in cheap.items() if effect is Effect.IN_PLACE} == {
        "resources.replicas.min",
        "resources.replicas.max",
        "resources.replicas.target_ongoing_requests",
        "resources.max_ongoing_requests",
        "resources.max_queued_requests",
    }
    front_door = {path for path, effect in cheap.items() if effect is Effect.FRONT_DOOR}
    assert {path for path in front_door if not path.startswith("lifecycle.")} == {
        "aliases",
        "description",
        "labels",
        "source.track",
    }


def test_a_setting_of_an_application_is_named_as_in_the_template() -> None:
    old = {"name": "a-1", "args": {"llm_configs": [{"engine_kwargs": {"seed": 1}}]}, "deployments": [1]}
    new = {"name": "a-2", "args": {"llm_configs": [{"engine_kwargs": {"seed": 2}}]}, "deployments": [2]}
    assert [(c.path, c.old, c.new) for c in config_changes(old, new)] == [("engine_kwargs.seed", 1, 2)]
