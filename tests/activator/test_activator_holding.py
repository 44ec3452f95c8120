"""The lines themselves: order, bounds, who is woken, what the loop is told. A clock of the test's own."""

import asyncio
import time

import pytest
from activator_stack import cold, hot

from reconciler.activator import errors, holding
from reconciler.activator.directory import Directory, Entry, ModelState
from reconciler.activator.holding import Holding, Waiter
from reconciler.core.state import Waiting


class Bench:
    """A Holding whose time stands still until it is moved, and what it told the loop."""

    def __init__(self) -> None:
        self.now = 100.0
        self.wakes = 0
        self.holding = Holding(self._woke, lambda: self.now)

    def _woke(self) -> None:
        self.wakes += 1

    def waiter(self, *, follows: bool = False, size: int = 10) -> Waiter:
        return Waiter("m", self.now, size, follows=follows)

    def joined(self, entry: Entry | None, *, follows: bool = False) -> Waiter:
        waiter = self.waiter(follows=follows)
        self.holding.join(waiter, entry)
        waiter.arm()
        return waiter


def woken(waiter: Waiter) -> bool:
    return waiter._woken is not None and waiter._woken.done()


async def test_the_loop_is_woken_by_the_first_and_by_the_last_that_leaves_unserved() -> None:
    b = Bench()
    first = b.joined(cold())
    b.now += 5
    second = b.joined(cold())
    assert b.wakes == 1
    b.now += 2
    assert b.holding.waiting() == {"m": Waiting(2, 7.0)}
    b.holding.leave(first, served=False)
    assert (b.wakes, b.holding.waiting()) == (1, {"m": Waiting(1, 2.0)})
    b.holding.leave(second, served=False)
    assert (b.wakes, b.holding.waiting()) == (2, {})
    b.holding.leave(second, served=False)
    third = b.joined(cold())
    assert b.wakes == 3
    b.holding.leave(third, served=True)
    assert (b.wakes, b.holding._bytes, b.holding._lines) == (3, 0, {})


async def test_only_those_whose_model_changed_are_woken() -> None:
    b = Bench()
    plain, stream, other = b.joined(cold()), b.joined(cold(), follows=True), b.joined(cold("other"))
    b.holding.update(Directory([cold(), cold("other")]))
    assert not any(map(woken, (plain, stream, other)))
    b.holding.update(Directory([cold(reason="downloading 42 %"), cold("other")]))
    assert (woken(plain), woken(stream), woken(other)) == (False, True, False)
    b.holding.update(Directory([hot(), cold("other")]))
    assert (woken(plain), woken(other)) == (True, False)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [hot()],
        [Entry("m", ModelState.FAILED, None, reason="out of memory")],
        [cold(aliases=("x",))],
        [cold("other", aliases=("m",))],
    ],
)
async def test_what_ends_a_wait_wakes_everybody(entries: list[Entry]) -> None:
    b = Bench()
    waiters = [b.joined(cold()) for _ in range(3)]
    b.holding.update(Directory(entries))
    assert all(map(woken, waiters))


async def test_a_place_is_kept_and_positions_follow_those_who_leave() -> None:
    b = Bench()
    waiters = [b.joined(cold()) for _ in range(4)]
    b.holding.join(waiters[0], cold(reason="other words"))
    assert [b.holding.place(w) for w in waiters] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    b.holding.leave(waiters[0], served=False)
    assert b.holding.place(waiters[3]) == (3, 3), "never more than there are"
    b.now += 1
    assert [b.holding.place(w) for w in waiters[1:]] == [(1, 3), (2, 3), (3, 3)]


async def test_bounds() -> None:
    b = Bench()
    b.joined(cold(max_waiting=1))
    with pytest.raises(errors.Refusal, match="1 requests wait"):
        b.joined(cold(max_waiting=1))
    b.holding.join(b.waiter(size=holding.MAX_HELD_BYTES - 10), cold("other"))
    with pytest.raises(errors.Refusal, match="large"):
        b.joined(cold("third"))
    assert set(b.holding.waiting()) == {"m", "other"}


async def test_from_the_first_look_into_the_models_line() -> None:
    b = Bench()
    early, late = b.joined(None), b.joined(None)
    assert (b.wakes, b.holding.waiting()) == (0, {}), "no model is known yet"
    b.holding.update(Directory(settled=False))
    assert not woken(early)
    b.holding.update(Directory([cold()]))
    assert woken(early)
    assert woken(late)
    b.holding.join(early, cold())
    b.holding.join(late, cold())
    assert (b.wakes, b.holding._bytes) == (1, 20)
    assert list(b.holding._lines["m"].waiters) == [early, late]


async def test_a_client_that_was_told_when_to_come_back_is_expected_then() -> None:
    b = Bench()
    b.holding.expect(cold(expected_wait=40.0))
    assert b.wakes == 1
    b.now += 10
    b.holding.expect(cold(expected_wait=30.0))
    b.joined(cold())
    assert b.holding.waiting() == {"m": Waiting(2, 10.0)}
    b.holding.update(Directory([hot()]))
    assert b.holding.waiting() == {"m": Waiting(1, 0.0)}
    b.holding.expect(cold("other", expected_wait=40.0))
    b.now += 69
    assert b.holding.waiting()["other"] == Waiting(1, 69.0)
    b.now += 1
    assert "other" not in b.holding.waiting()


async def test_ten_thousand_waiters_and_a_thousand_models_cost_a_directory_nothing_much() -> None:
    b = Bench()
    models = [cold(f"m{n}") for n in range(1000)]
    for n in range(10_000):
        b.joined(models[n % 1000], follows=n % 2 == 0)
    directories = [Directory([cold(f"m{n}") for n in range(1000)]) for _ in range(10)]
    began = time.process_time()
    for directory in directories:
        b.holding.update(directory)
    spent = (time.process_time() - began) / len(directories)
    # Some 1 ms here; a scan of all waiters would be far above the bound on a slow machine as well.
    assert spent < 0.03
    assert b.wakes == 1000
    began = time.process_time()
    assert len(b.holding.waiting()) == 1000
    assert time.process_time() - began < 0.1


async def test_a_wait_ends_with_the_time_the_client_or_a_change() -> None:
    b = Bench()
    stays: asyncio.Task[None] = asyncio.create_task(asyncio.sleep(60))
    waiter = b.joined(cold())
    await waiter.wait(stays, 0.01)
    assert not woken(waiter)
    leaves: asyncio.Task[None] = asyncio.create_task(asyncio.sleep(0))
    await asyncio.wait_for(waiter.wait(leaves, 60), 10)
    assert leaves.done()
    waiter.wake()
    await asyncio.wait_for(waiter.wait(stays, 60), 10)
    stays.cancel()
