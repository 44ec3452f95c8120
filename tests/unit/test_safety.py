"""Rule 2: what must not be removed by mistake."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.safety import ALLOW_FLAG, refuse_removals

NAMES = st.sets(st.sampled_from("abcdefgh"), max_size=8)


def test_no_file_at_all_is_refused() -> None:
    refusal = refuse_removals(["a"], ["a"], declared=0, unreadable="", allowed=False)
    assert refusal is not None
    assert refusal.flag == ALLOW_FLAG


@pytest.mark.parametrize(("removed", "refused"), [(1, False), (2, False), (3, True), (4, True)])
def test_more_than_half_is_refused_exactly_half_is_not(removed: int, refused: bool) -> None:
    refusal = refuse_removals("abcd"[:removed], "abcd", declared=3, unreadable="", allowed=False)
    assert (refusal is not None) == refused


@given(NAMES, NAMES, st.integers(0, 8))
def test_the_flag_allows_every_removal_that_was_read(removed: set[str], others: set[str], declared: int) -> None:
    running = removed | others
    assert refuse_removals(removed, running, declared=declared, unreadable="", allowed=True) is None


@given(NAMES, st.booleans())
def test_what_cannot_be_read_removes_nothing_whatever_the_flag(running: set[str], allowed: bool) -> None:
    refusal = refuse_removals(running, running, declared=0, unreadable="no such folder", allowed=allowed)
    assert refusal is not None
    assert refusal.models == tuple(sorted(running))
    assert refusal.flag == ""
    assert "no such folder" in refusal.reason


def test_nothing_to_remove_is_not_refused_where_something_is_declared() -> None:
    assert refuse_removals([], ["a"], declared=1, unreadable="", allowed=False) is None
