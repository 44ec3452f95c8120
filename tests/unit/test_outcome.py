"""What is told of a revision, and when something is news."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.desired import Desired
from reconciler.core.outcome import LONGEST_TEXT, ModelOutcome, Outcome, State, outcome_of, to_tell
from reconciler.core.parse import InvalidFile, Problem
from reconciler.core.plan import Action, Change, Do, Held, HeldKind, Plan, Refusal, Resting, Step

REVISION = "3fa9c1d2e0aa" + "0" * 28
BAD = Problem("b.yaml", 3, 5, "replicas: must be at least 1")
INVALID = InvalidFile("b.yaml", "", (BAD,), frozenset({"b"}))
UNDER_WAY = (Step(Do.START, "a", "a-1"),)


def seen(plan: Plan | None = None, **desired: Any) -> Outcome:
    found = outcome_of(Desired(revision=REVISION, **desired), plan or Plan())
    assert found is not None
    return found


def test_pending_while_something_of_it_is_under_way() -> None:
    plan = Plan(changes=(Change("a", Action.ADD, "its file is new", file="a.yaml"),), steps=UNDER_WAY)
    found = seen(plan)
    assert (found.revision, found.state, found.text) == (REVISION, State.PENDING, "1 model under way: a (add)")
    assert found.models == (ModelOutcome("a", "add", "its file is new", "a.yaml"),)


def test_success_counts_what_rests_as_well() -> None:
    found = seen(Plan(unchanged=("a", "b"), resting=(Resting("c", "it is idle"),)))
    assert (found.state, found.text, found.models) == (State.SUCCESS, "2 up as wanted, 1 at rest", ())


def test_what_comes_and_goes_by_traffic_is_not_pending() -> None:
    change = Change("a", Action.LOAD, "a request waits for it")
    plan = Plan(changes=(change,), steps=UNDER_WAY, by_traffic=frozenset({"a"}), unchanged=("b",))
    assert seen(plan).state is State.SUCCESS
    added = Change("b", Action.ADD, "its file is new")
    both = Plan(changes=(change, added), steps=(*UNDER_WAY, Step(Do.START, "b", "b-1")), by_traffic=frozenset("a"))
    assert [each.model for each in seen(both).models] == ["b"]


def test_a_held_model_is_a_failure_once_nothing_is_left_to_do() -> None:
    held = (Held("a", HeldKind.FAILED, "CUDA out of memory\nat …", "a.yaml", retry_at=9.0),)
    assert seen(Plan(held=held, steps=UNDER_WAY)).state is State.PENDING
    found = seen(Plan(held=held))
    assert (found.state, found.text) == (State.FAILURE, "1 model not as wanted: a (failed)")
    assert found.models == (ModelOutcome("a", "failed", "CUDA out of memory at …", "a.yaml"),)


def test_an_invalid_file_is_told_at_once_and_once() -> None:
    held = (Held("b", HeldKind.INVALID, "its file is invalid", "b.yaml"), Held("c", HeldKind.NO_ROOM, "no room"))
    early = seen(Plan(held=held, steps=UNDER_WAY), invalid=(INVALID,), problems=(BAD,))
    assert (early.state, early.text) == (State.FAILURE, "b.yaml:3:5: replicas: must be at least 1")
    assert [each.model for each in early.models] == ["b"]
    late = seen(Plan(held=held), invalid=(INVALID,), problems=(BAD, BAD))
    assert late.text == (
        "b.yaml:3:5: replicas: must be at least 1 (and 1 more); 1 model not as wanted: c (no room)"
    )
    assert [each.label for each in late.models] == ["b (invalid file)", "c (no room)"]


def test_a_file_that_speaks_for_nobody_is_called_by_its_path() -> None:
    found = seen(invalid=(InvalidFile("x.yaml", "", (), None),), problems=(Problem("x.yaml", 1, 1, "no YAML"),))
    assert [each.label for each in found.models] == ["x.yaml (invalid file)"]


def test_what_a_safety_rule_refuses_is_a_failure() -> None:
    found = seen(Plan(refused=(Refusal(("a", "b"), "more than half would go", "--allow-removals"),)))
    assert (found.state, found.text) == (State.FAILURE, "2 models not as wanted: a (refused), b (refused)")
    assert seen(Plan(refused=(Refusal((), "nothing is left", ""),))).state is State.FAILURE


@pytest.mark.parametrize("desired", [Desired(revision=REVISION, unreadable="gone"), Desired()])
def test_of_what_could_not_be_read_nothing_is_told(desired: Desired) -> None:
    assert outcome_of(desired, Plan()) is None


@given(st.lists(st.text(max_size=300), min_size=1, max_size=50), st.booleans())
def test_the_text_is_one_short_line_whatever_is_in_it(names: list[str], done: bool) -> None:
    held = tuple(Held(name, HeldKind.FAILED, name, name) for name in names)
    changes = tuple(Change(name, Action.ADD, name) for name in names)
    found = seen(Plan(held=held, changes=changes, steps=() if done else UNDER_WAY))
    assert len(found.text) <= LONGEST_TEXT
    assert found.text.isprintable()
    assert len(found.models) == len(names)
    assert all(len(each.reason) <= 500 and (not each.reason or each.reason.isprintable()) for each in found.models)


def outcome(state: State, text: str = "", revision: str = REVISION) -> Outcome:
    return Outcome(revision, state, text)


@pytest.mark.parametrize(
    ("told", "then", "news"),
    [
        (None, outcome(State.PENDING), [State.PENDING]),
        (outcome(State.PENDING, "2 under way"), outcome(State.PENDING, "1 under way"), []),
        (outcome(State.PENDING), outcome(State.SUCCESS), [State.SUCCESS]),
        (outcome(State.SUCCESS, "1 up"), outcome(State.SUCCESS, "2 up"), []),
        (outcome(State.SUCCESS), outcome(State.PENDING), []),
        (outcome(State.SUCCESS), outcome(State.FAILURE), [State.FAILURE]),
        (outcome(State.FAILURE, "a"), outcome(State.FAILURE, "a"), []),
        (outcome(State.FAILURE, "a"), outcome(State.FAILURE, "a, b"), [State.FAILURE]),
        (outcome(State.FAILURE), outcome(State.PENDING), []),
        (outcome(State.FAILURE), outcome(State.SUCCESS), [State.SUCCESS]),
        (outcome(State.PENDING, revision="old"), outcome(State.PENDING), [State.SUPERSEDED, State.PENDING]),
        (outcome(State.SUCCESS, revision="old"), outcome(State.PENDING), [State.PENDING]),
        (outcome(State.FAILURE, revision="old"), outcome(State.SUCCESS), [State.SUCCESS]),
    ],
)
def test_what_is_news(told: Outcome | None, then: Outcome, news: list[State]) -> None:
    assert [each.state for each in to_tell(told, then)] == news


def test_the_superseded_one_says_by_what() -> None:
    left, then = to_tell(outcome(State.PENDING, revision="old"), outcome(State.SUCCESS))
    assert (left.revision, left.text) == ("old", "superseded by 3fa9c1d2e0aa")
    assert then.revision == REVISION
