"""Later each time, within bounds."""

from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.backoff import FIRST_SECONDS, LONGEST_SECONDS, delay


def test_the_first_delays() -> None:
    assert [delay(n) for n in (1, 2, 3, 4)] == [30, 60, 120, 240]


@given(st.integers(1, 10**9))
def test_it_never_shrinks_and_never_exceeds_half_an_hour(attempts: int) -> None:
    assert FIRST_SECONDS <= delay(attempts) <= delay(attempts + 1) <= LONGEST_SECONDS
