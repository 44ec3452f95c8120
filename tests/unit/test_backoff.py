"""Later each time, within bounds."""

from pathlib import Path
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.backoff import FIRST_SECONDS, LONGEST_SECONDS, delay, is_due
from reconciler.core.weights import Copy, Phase
from reconciler.weights.cache import HubCache
from reconciler.weights.hub import Hub
from reconciler.weights.store import Limits, WeightStore


def test_the_first_delays() -> None:
    assert [delay(n) for n in (1, 2, 3, 4)] == [30, 60, 120, 240]


@given(st.integers(1, 10**9))
def test_it_never_shrinks_and_never_exceeds_half_an_hour(attempts: int) -> None:
    assert FIRST_SECONDS <= delay(attempts) <= delay(attempts + 1) <= LONGEST_SECONDS


def test_what_failed_waits_until_its_time_and_not_for_a_clock_that_was_set_back() -> None:
    assert [is_due(100.0, 130.0, now) for now in (100.0, 129.9, 130.0, 99.9, -1e9)] == [
        False,
        False,
        True,
        True,
        True,
    ]


async def test_a_download_does_not_wait_for_a_clock_that_was_set_back(tmp_path: Path) -> None:
    now = [10_000.0]
    cache = HubCache(tmp_path / "hub")
    store = WeightStore(tmp_path, cast("Hub", None), cache, Limits(), clock=lambda: now[0])
    copy = Copy("o/m", "c" * 40)
    store.fetch({copy: "main"}, still_wanted=None, keep=None)
    assert (await store.finished([copy]))[copy].phase is Phase.FAILED
    now[0] -= 3600
    assert (await store.states([copy]))[copy].phase is Phase.ABSENT
    await store.close()
