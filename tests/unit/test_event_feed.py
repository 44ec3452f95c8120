"""The ring of events: order, gaps, resuming, many listeners, other threads."""

import asyncio
import contextlib
import gc
import threading
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from reconciler.host.event_feed import GAP, EventFeed, FeedEvent


def numbers(events: list[FeedEvent]) -> list[object]:
    return [event.event.get("n", event.event["event"]) for event in events]


def feed_of(count: int, *, keep: int = 5) -> EventFeed:
    feed = EventFeed(keep, began=1000)
    for n in range(1, count + 1):
        feed.append({"event": "some.thing", "n": n})
    return feed


async def take(events: AsyncIterator[FeedEvent], count: int) -> list[FeedEvent]:
    return [await asyncio.wait_for(anext(events), 5) for _ in range(count)]


def test_the_newest_are_kept_and_what_came_after_an_id_is_found() -> None:
    feed = feed_of(7)
    kept = feed.after(None)
    assert numbers(kept) == [3, 4, 5, 6, 7]
    assert numbers(feed.after(kept[2].id)) == [6, 7]
    assert feed.after(kept[-1].id) == []
    assert feed.last_id == kept[-1].id


def test_who_was_away_too_long_is_told_how_much_is_missing() -> None:
    feed = feed_of(3)
    seen = feed.after(None)[0].id
    for n in range(4, 10):
        feed.append({"event": "some.thing", "n": n})
    gap, *rest = feed.after(seen)
    assert gap.event == {"event": GAP, "level": "warning", "lost": 3}
    assert numbers(rest) == [5, 6, 7, 8, 9]
    # A listener that goes on from the gap misses nothing more.
    assert numbers(feed.after(gap.id)) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("last_id", ["999-2", "1000-8", "", "x", "1000-", "-1", "1000-٣", "1" * 5000, "1000-2\n"])
def test_an_id_of_an_earlier_process_or_of_nobody_is_a_gap(last_id: str) -> None:
    gap, *rest = feed_of(3).after(last_id)
    assert gap.event == {"event": GAP, "level": "warning", "lost": None}
    assert numbers(rest) == [1, 2, 3]


def test_ids_are_ordered_across_a_restart() -> None:
    before, after = EventFeed(began=1000), EventFeed()
    for feed in (before, after):
        feed.append({"event": "some.thing"})

    def place(feed: EventFeed) -> tuple[int, ...]:
        return tuple(int(part) for part in feed.last_id.split("-"))

    assert place(before) < place(after)


async def test_a_listener_gets_what_is_kept_and_then_what_comes() -> None:
    feed = feed_of(2)
    events = feed.follow(None)
    assert numbers(await take(events, 2)) == [1, 2]
    waiting = asyncio.create_task(take(events, 2))
    await asyncio.sleep(0.01)
    feed.append({"event": "some.thing", "n": 3})
    await asyncio.sleep(0.01)
    feed.append({"event": "some.thing", "n": 4})
    assert numbers(await waiting) == [3, 4]


async def test_a_slow_listener_gets_a_gap_and_goes_on() -> None:
    feed = feed_of(1)
    events = feed.follow(None)
    await take(events, 1)
    for n in range(2, 20):
        feed.append({"event": "some.thing", "n": n})
    gap, *rest = await take(events, 6)
    assert (gap.event["event"], gap.event["lost"]) == (GAP, 13)
    assert numbers(rest) == [15, 16, 17, 18, 19]


async def test_events_of_other_threads_reach_all_listeners_in_one_order() -> None:
    feed = EventFeed(keep=10_000)
    listeners = [asyncio.create_task(take(feed.follow(None), 400)) for _ in range(20)]
    await asyncio.sleep(0.01)

    def write(thread: int) -> None:
        for n in range(100):
            feed.append({"event": "some.thing", "n": (thread, n)})

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    got = await asyncio.gather(*listeners)
    for thread in threads:
        thread.join()
    assert all(each == got[0] for each in got)
    assert sorted(numbers(got[0])) == [(thread, n) for thread in range(4) for n in range(100)]  # type: ignore[type-var]


async def test_listeners_that_read_nothing_cost_no_memory() -> None:
    feed = EventFeed(keep=100)

    async def listen() -> None:
        async for _ in feed.follow(None):
            await asyncio.sleep(3600)

    tasks = [asyncio.create_task(listen()) for _ in range(200)]
    await asyncio.sleep(0.01)
    for _ in range(300):
        feed.append({"event": "some.thing", "text": "x" * 100})
    await asyncio.sleep(0.01)
    gc.collect()
    tracemalloc.start()
    for _ in range(5000):
        feed.append({"event": "some.thing", "text": "x" * 100})
    await asyncio.sleep(0.01)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    for task in tasks:
        task.cancel()
    # The ring itself, anew: 100 events of less than 1 kB. A queue for each would take a hundred times that.
    assert grown < 200_000
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks)


def test_a_loop_that_ended_with_its_listener_is_no_trouble() -> None:
    feed = EventFeed()

    async def listen_shortly() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(anext(feed.follow(None)), 0.01)

    asyncio.run(listen_shortly())
    feed.append({"event": "some.thing"})
    assert len(feed.after(None)) == 1


def test_values_that_are_not_plain_become_text() -> None:
    feed = EventFeed()
    feed.append({"event": "some.thing", "error": ValueError("no")})
    assert feed.after(None)[0].event["error"] == "no"
